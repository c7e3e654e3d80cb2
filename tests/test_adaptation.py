"""Warmup lands where theory says, from bad starts too, without a branch on a value, and stops."""

import math

import pytest
import torch
from laws import assert_close
from torch import tensor

from pyro_ebm import Boltzmann
from pyro_ebm.energies import Gaussian
from pyro_ebm.kernels import GHMC, HMC, MALA, ULA, RandomWalk, run
from pyro_ebm.kernels.adaptation import Adaptation, DualAveraging, Moments, When
from pyro_ebm.kernels.metric import Metric
from pyro_ebm.kernels.transition import Info, State, seeded_generator
from pyro_ebm.potential import Potential

SD = tensor([0.01, 1.0, 100.0], dtype=torch.float64)


def badly_scaled():
    return Gaussian(torch.zeros(3), SD**-2)


def flat_potential(energy):
    return Potential.of(Boltzmann(energy))


def warm(kernel, energy, num_chains, warmup_steps, z=None):
    potential = flat_potential(energy)
    z = energy.sample(num_chains) if z is None else z
    state = kernel.init(potential, z)
    generator = seeded_generator(z.device)
    adaptation = kernel.adaptation(warmup_steps)
    history = list(run(kernel, potential, state, warmup_steps, generator, adaptation))
    return potential, history, generator


def state_of(z, grad):
    return State(z, z.sum(-1), grad, torch.ones(()), Metric.unit(z, 0))


@pytest.mark.parametrize("warmup_steps", [300, 500])
@pytest.mark.parametrize("make", [RandomWalk, MALA, HMC, GHMC])
def test_acceptance_lands_at_its_target_and_stays(make, warmup_steps):
    kernel = make()
    potential, history, generator = warm(kernel, badly_scaled(), 64, warmup_steps)
    tail = history[-warmup_steps // 5 :]
    state = history[-1][0]
    draws = list(run(kernel, potential, state, 200, generator))
    assert all(later.step_size == state.step_size for later, _ in draws)
    assert all(torch.equal(later.metric.scale, state.metric.scale) for later, _ in draws)
    # What dual averaging could know: the acceptance of the steps since the last window; and the
    # mean of 200 steps of its own. Both are means over steps, in batches that forget one another.
    rates = [torch.stack([i.accept_prob.mean() for _, i in part]) for part in (tail, draws)]
    error = math.hypot(*(standard_error(rate) for rate in rates))
    assert_close(rates[1].mean(), kernel.target_accept_prob, error)


def standard_error(series, num_batches=10):
    batches = series[: len(series) // num_batches * num_batches].view(num_batches, -1).mean(-1)
    return (batches.std() / math.sqrt(num_batches)).item()


@pytest.mark.parametrize("target", [0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("begin", [1e-3, 1.0, 1e3])
def test_dual_averaging_finds_the_root_from_afar(begin, target):
    def accept_prob(step_size):
        return torch.erfc(step_size**2)

    tuner = DualAveraging.begin(tensor(begin))
    for num_steps in (50, 50, 100, 100):
        tuner = DualAveraging.begin(tuner.final_step_size)
        for _ in range(num_steps):
            tuner = tuner.update(accept_prob(tuner.step_size), target)
    found = accept_prob(tuner.final_step_size).item()
    assert abs(found - target) < 0.1 * (1 - target)
    assert abs(tuner.step_size / tuner.final_step_size - 1) < 0.1  # it does not swing


def test_moments_are_those_of_all_finite_draws():
    z = 1e8 + torch.randn(5, 40, 3)  # far from zero: squares must keep their digits
    grad = 1e3 * torch.randn(5, 40, 3)
    grad[2, 7, 1], z[3, 0, 0] = math.inf, math.nan
    window = Moments.begin(state_of(z[0], grad[0]))
    assert window.mean.isfinite().all()
    for row, slopes in zip(z, grad, strict=True):
        window = window.add(state_of(row, slopes))
    known = (z.isfinite() & grad.isfinite()).all(-1)
    assert window.count == 198
    for i, x in enumerate((z, grad)):
        torch.testing.assert_close(window.mean[i], x[known].mean(0))
        expected = x[known].var(0, correction=0)
        torch.testing.assert_close(window.variance[i], expected, rtol=1e-6, atol=0.0)


def test_units_are_exact_for_a_gaussian_and_kept_where_nothing_is_known():
    flat_in_the_middle = Boltzmann(
        lambda x: 0.5 * (x[..., 0] / 0.01) ** 2 + 0.5 * (x[..., 2] / 100.0) ** 2, event_shape=(3,)
    )
    potential = Potential.of(flat_in_the_middle)
    kernel = MALA(step_size=1e-3)
    state = kernel.init(potential, torch.randn(64, 3) * SD)
    adaptation = Adaptation(kernel, 100)
    *_, (state, _) = run(
        kernel, potential, state, 100, seeded_generator(state.z.device), adaptation
    )
    torch.testing.assert_close(state.metric.scale, SD)  # of the flat coordinate it is the first, 1


def test_no_chain_is_left_behind():
    """Far out in steep walls, the mean acceptance of the others would leave two chains stuck."""
    energy = Boltzmann(lambda x: x.pow(4).sum(-1), event_shape=(2,))
    potential = Potential.of(energy)
    z = 0.5 * torch.randn(64, 2)
    z[:2] = 60.0
    kernel = HMC(adapt_mass_matrix=False)
    state = kernel.init(potential, z)
    generator = seeded_generator(z.device)
    *_, (state, _) = run(kernel, potential, state, 300, generator, kernel.adaptation(300))
    assert state.z.abs().max() < 5


@pytest.mark.parametrize("make", [HMC, lambda: ULA(step_size=0.1)], ids=["HMC", "ULA"])
def test_learning_is_pure_and_can_be_traced(make):
    kernel = make()
    adaptation = kernel.adaptation(40)
    z, grad = torch.randn(16, 3), torch.randn(16, 3)
    state = state_of(z, grad)
    info = Info(torch.zeros(16, dtype=torch.bool), torch.rand(16))

    def learn(tuning, state, when):
        return adaptation.learn(tuning, state, info, When(*when))

    before = adaptation.begin(state)
    graph = torch.fx.experimental.proxy_tensor.make_fx(learn)(
        before, state, tuple(flags[0] for flags in adaptation.schedule)
    )
    for step in (0, 9, 31, 39):  # a window ends at the third and the last is the last
        when = tuple(flags[step] for flags in adaptation.schedule)
        got, expected = graph(before, state, when), learn(before, state, when)
        leaves = [torch.utils._pytree.tree_leaves(x) for x in (got, expected)]
        assert all(torch.equal(a, b) for a, b in zip(*leaves, strict=True))
    assert "_local_scalar_dense" not in graph.code


def test_the_step_size_that_is_kept_is_the_average():
    adaptation = HMC().adaptation(40)
    state = state_of(torch.randn(16, 3), torch.randn(16, 3))
    for _ in range(40):
        info = Info(torch.zeros(16, dtype=torch.bool), torch.rand(16))
        state = adaptation.update(state, info)
    step = adaptation.tuning.step
    assert state.step_size == step.final_step_size
    assert state.step_size != step.step_size


@pytest.mark.parametrize("warmup_steps", [1, 2, 7])
def test_the_shortest_warmups_work(warmup_steps):
    _, history, _ = warm(HMC(), badly_scaled(), 4, warmup_steps)
    state, _ = history[-1]
    assert len(history) == warmup_steps
    assert state.metric.scale.isfinite().all()
    assert 0 < state.step_size < math.inf
