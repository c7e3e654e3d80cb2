"""A run that an error of the target ends keeps all that it had drawn."""

import functools
import sys
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import tensor

import pyro_ebm as ebm
from pyro_ebm.energies import Banana, Energy
from pyro_ebm.kernels import MALA, NUTS

NUM_SAMPLES, WARMUP_STEPS = 30, 10


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr("pyro_ebm.kernels.transition.BLOCK_STEPS", 12)


class RaisingError(ArithmeticError):
    pass


class Raising(Energy):
    """Skewed, and broken once it was asked for so many values."""

    error = RaisingError

    def __init__(self, calls):
        super().__init__((2,))
        self.banana, self.calls = Banana(scale=1.0, curvature=0.5), calls

    def forward(self, x):
        self.calls -= 1
        if self.calls < 0:
            raise self.error("the energy broke down")
        return self.banana(x)


def broken_off(mcmc, *args):
    """Runs into the error; returns it, and what was said of what is kept."""
    pyro.set_rng_seed(4)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(RaisingError, match="broke down") as end:
            mcmc.run(*args)
    if sys.version_info >= (3, 11):
        return end, "".join(end.value.__notes__)
    return end, str(said[-1].message)


def make(calls, kernel=MALA, **kwargs):
    target = ebm.Boltzmann(Raising(calls))
    return ebm.MCMC(kernel(target), NUM_SAMPLES, WARMUP_STEPS, disable_progbar=True, **kwargs)


@functools.cache
def whole():
    pyro.set_rng_seed(4)
    mcmc = make(10**6)
    mcmc.run()
    return mcmc


def calls_until(draw):
    """How often MALA asks before a draw: once for each step, and now and then before the first."""
    asked = 10**6 - whole().kernel.target.energy.calls
    return asked - NUM_SAMPLES + draw


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("draw", [0, 1, 13, 29])
def test_what_was_drawn_before_an_error_stays_readable(draw, store, tmp_path):
    mcmc = make(calls_until(draw), store=tmp_path if store else None)
    end, said = broken_off(mcmc)
    assert end.traceback[-1].name == "forward"
    assert said == f"{draw} of 30 draws were made before, and are kept: get_samples()"
    assert mcmc.num_draws == draw
    expected = whole()
    found = mcmc.get_samples(group_by_chain=True)["x"]
    assert torch.equal(found, expected.get_samples(group_by_chain=True)["x"][:, :draw])
    assert torch.equal(mcmc.get_warmup()["x"], expected.get_warmup()["x"])
    assert mcmc.sampling_time > 0
    if draw:
        assert torch.equal(mcmc.sample_stats["lp"], expected.sample_stats["lp"][:, :draw])
        assert dict(ebm.to_arviz(mcmc)["posterior"].sizes)["draw"] == draw
        mcmc.summary()


class WithoutNotesError(RaisingError):
    """As all errors are before Python 3.11."""

    @property
    def add_note(self):
        raise AttributeError


def test_a_warning_says_what_an_error_cannot(monkeypatch):
    monkeypatch.setattr(Raising, "error", WithoutNotesError)
    mcmc = make(calls_until(13))
    pyro.set_rng_seed(4)
    with (
        pytest.raises(WithoutNotesError, match="broke down"),
        pytest.warns(UserWarning, match="13 of 30 draws were made before") as said,
    ):
        mcmc.run()
    assert said[0].filename == __file__


def test_an_error_in_warmup_leaves_the_steps_of_warmup():
    mcmc = make(calls_until(-4))
    _, said = broken_off(mcmc)
    assert said == "6 of 10 warmup steps were made before, and are kept: get_warmup()"
    assert torch.equal(mcmc.get_warmup()["x"], whole().get_warmup()["x"][:, :6])
    assert mcmc.num_draws == 0
    assert mcmc.warmup_time > 0
    for read in (ebm.to_arviz, ebm.MCMC.summary):
        with pytest.raises(ValueError, match="no draws: the run ended before the first"):
            read(mcmc)


def test_what_a_pyro_model_drew_stays_too_where_chains_do_not_wait_for_one_another():
    left = 10**6

    def model(y):
        nonlocal left
        left -= 1
        if left < 0:
            raise RaisingError("the model broke down")
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    def run(most):
        nonlocal left
        left = most
        pyro.set_rng_seed(4)
        return ebm.MCMC(NUTS(model), NUM_SAMPLES, WARMUP_STEPS, disable_progbar=True)

    expected = run(10**6)
    expected.run(tensor(1.0))
    mcmc = run((10**6 - left) * 3 // 4)
    _, said = broken_off(mcmc, tensor(1.0))
    assert said.startswith(f"{mcmc.num_draws} of 30 draws were made before")
    assert 0 < mcmc.num_draws < NUM_SAMPLES
    found = mcmc.get_samples(group_by_chain=True)["loc"]
    assert torch.equal(
        found, expected.get_samples(group_by_chain=True)["loc"][:, : mcmc.num_draws]
    )


@pytest.mark.parametrize("draw", [-3, 13, 25])
def test_with_a_checkpoint_the_run_goes_on_when_the_energy_is_mended(draw, tmp_path):
    told = {"checkpoint": tmp_path, "checkpoint_every": 1e9}
    mcmc = make(calls_until(draw), **told)
    _, said = broken_off(mcmc)
    last = {-3: 0, 13: 18, 25: 30}[draw]
    assert said.endswith(f"; run() goes on from step {last}")
    assert mcmc.num_draws == max(0, draw)
    mcmc.kernel.target.energy.calls = 10**6
    mcmc.run()
    assert torch.equal(mcmc.get_samples()["x"], whole().get_samples()["x"])


def test_an_error_of_the_disk_while_keeping_does_not_hide_the_first(monkeypatch):
    mcmc = make(calls_until(-3))

    def full(self, z, stats):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyro_ebm.runs.draws.Draws.append", full)
    end, said = broken_off(mcmc)
    assert end.type is RaisingError
    assert said.startswith("0 of 10 warmup steps")
