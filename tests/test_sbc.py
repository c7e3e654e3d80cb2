"""Simulation-based calibration: of data from the prior, the posterior is calibrated.

A parameter is drawn from its prior and data from that parameter; then the rank of the parameter
among draws of the posterior given these data is uniform. All replications run at once, each as one
chain: a chain has data of its own, what warmup learns is pooled over all of them, and that costs
no exactness, since it is over before draws are kept.
"""

import contextlib

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import assert_same_law
from torch import tensor

from pyro_ebm.kernels import MALA, NUTS, ChEES
from pyro_ebm.kernels.acceleration import Runner
from pyro_ebm.kernels.transition import seeded_generator
from pyro_ebm.potential import Potential

NUM_DRAWS = 19
"""Ranks go from 0 to 19: each is one cell of the chi-square test."""
LEAST_P = 1e-3
"""Shared by all quantities of a model: of so many p-values the least may be as much less."""


@contextlib.contextmanager
def own_rows(y):
    """The data of one chain, of data ``(R, n)`` of all: a plate shows them, at full weight."""
    num_rows = y.shape[1]
    everything = y.reshape(-1)
    with (
        pyro.poutine.scale(scale=num_rows / len(everything)),
        pyro.plate("rows", len(everything), subsample_size=num_rows) as rows,
    ):
        yield everything[rows]


class Hierarchy:
    """A scale on the half line over groups, not centred."""

    @staticmethod
    def model(y):
        centre = pyro.sample("centre", dist.Normal(0.0, 1.0))
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        with pyro.plate("groups", 4):
            offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        with own_rows(y) as own:
            pyro.sample("y", dist.Normal(centre + spread * offset, 0.5), obs=own)

    @staticmethod
    def draw(num):
        x = {
            "centre": torch.randn(num),
            "spread": torch.randn(num).abs(),
            "offset": torch.randn(num, 4),
        }
        loc = x["centre"][:, None] + x["spread"][:, None] * x["offset"]
        return x, loc + 0.5 * torch.randn(num, 4)


class Skewed:
    """A rate and a share, of which few data say little: their posteriors lean."""

    @staticmethod
    def model(y):
        rate = pyro.sample("rate", dist.Gamma(1.5, 1.0))
        share = pyro.sample("share", dist.Beta(1.0, 3.0))
        with own_rows(y) as own:
            pyro.sample("y", dist.Exponential(rate * tensor([1.0, 1.0]) * share), obs=own)

    @staticmethod
    def draw(num):
        x = {
            "rate": dist.Gamma(1.5, 1.0).sample((num,)),
            "share": dist.Beta(1.0, 3.0).sample((num,)),
        }
        scale = (x["rate"] * x["share"])[:, None]
        return x, dist.Exponential(1.0).sample((num, 2)) / scale


class Correlated:
    """A line to one side of the origin: slope and intercept hang together."""

    at = tensor([0.0, 0.5, 1.0, 1.5, 2.0])

    @staticmethod
    def model(y):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.25))
        with own_rows(y) as own:
            loc = weights[..., 0] + weights[..., 1] * Correlated.at
            pyro.sample("y", dist.Normal(loc, noise), obs=own)

    @staticmethod
    def draw(num):
        x = {
            "weights": torch.randn(num, 2),
            "noise": dist.LogNormal(-1.0, 0.25).sample((num,)),
        }
        loc = x["weights"][:, :1] + x["weights"][:, 1:] * Correlated.at
        return x, loc + x["noise"][:, None] * torch.randn(num, 5)


MODELS = {"hierarchy": Hierarchy, "skewed": Skewed, "correlated": Correlated}
SAMPLERS = {"ChEES": (ChEES, 5, 500), "NUTS": (NUTS, 2, 200), "MALA": (MALA, 400, 500)}
"""With the steps from one draw to the next, so many that these are as good as independent (one
step size serves the narrowest of all posteriors, and a random walk takes long in the widest), and
those of warmup."""


def replicate(model, num):
    """A target of which each chain has its own data, and what these were drawn from."""
    x, y = model.draw(num)
    rows = torch.arange(y.numel()).reshape(y.shape)
    potential = Potential.of(model.model, (y,), minibatches=True).on([rows])
    return potential, potential.unconstrain(x), y


def ranks(make, thin, warmup_steps, potential, truth):
    """How many of the draws of each chain are below what its data come from: ``(R, D + 1)``.

    The last column is the rank of the potential, which knows the data.
    """
    kernel, num_steps = make(), NUM_DRAWS * thin
    state = kernel.init(potential, potential.initialize(len(truth)))
    runner = Runner(kernel, potential, state, warmup_steps + num_steps, "auto")
    adaptation = kernel.adaptation(warmup_steps)
    adaptation.rejoins = False  # the place of another chain is one for other data
    generator = seeded_generator(state.z.device)
    for now, _ in runner.run(state, warmup_steps, generator, adaptation):
        state = now
    kept = [
        torch.cat([history.z, history.potential.unsqueeze(-1)], -1)
        for _, history in runner.run(state, num_steps, generator)
    ]
    value, _ = potential.value_and_grad(truth)
    draws = torch.cat(kept)[thin - 1 :: thin]
    return (draws < torch.cat([truth, value.unsqueeze(-1)], -1)).sum(0)


def p_values(found):
    """Of the chi-square test that ranks are uniform, for each column."""
    counts = torch.stack([column.bincount(minlength=NUM_DRAWS + 1) for column in found.T])
    expected = len(found) / (NUM_DRAWS + 1)
    statistic = ((counts - expected) ** 2 / expected).sum(-1)
    return torch.special.gammaincc(tensor(NUM_DRAWS / 2), statistic / 2)


@pytest.mark.parametrize("name", MODELS)
def test_each_chain_has_the_potential_of_its_own_data(name):
    model = MODELS[name]
    potential, truth, y = replicate(model, 5)
    value, grad = potential.value_and_grad(truth)
    for c in range(5):
        plain = Potential.of(model.model, (y[c : c + 1],))
        own_value, own_grad = plain.value_and_grad(truth[c : c + 1])
        torch.testing.assert_close(value[c : c + 1], own_value)
        torch.testing.assert_close(grad[c : c + 1], own_grad)


@pytest.mark.parametrize("name", MODELS)
def test_data_are_drawn_from_the_model(name):
    model = MODELS[name]
    _, y = model.draw(4000)
    drawn = pyro.infer.Predictive(_simulated(model), num_samples=4000)()["y"]
    for i in range(y.shape[1]):
        assert_same_law(y[:, i], drawn[:, i])


def _simulated(model):
    def generative():
        with pyro.poutine.uncondition():
            model.model(torch.zeros(1, model.draw(2)[1].shape[1]))

    return generative


def test_ranks_are_uniform_and_those_of_a_wrong_prior_are_not():
    potential, truth, _ = replicate(Skewed, 400)
    found = ranks(ChEES, 3, 150, potential, truth)
    assert p_values(found).min() * found.shape[1] > LEAST_P
    found = ranks(ChEES, 3, 150, potential, truth + 0.5)
    assert p_values(found).min() * found.shape[1] < LEAST_P


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kernel", SAMPLERS)
def test_ranks_are_uniform(kernel, model, record_property):
    potential, truth, _ = replicate(MODELS[model], 1000)
    found = p_values(ranks(*SAMPLERS[kernel], potential, truth))
    record_property("p_values", [round(p, 4) for p in found.tolist()])
    assert found.min() * len(found) > LEAST_P, found
