"""The inverse Ising problem: couplings of fifty spins from draws, by two objectives."""

import math

import pytest
import torch
from laws import assert_close

import pyro_ebm as ebm
from pyro_ebm.energies import IsingGraph

SPINS, EDGES = 50, 100
SIZES = (1_000, 4_000, 16_000)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world():
    """A random graph with couplings of both signs in a skewed field, and draws from it."""
    torch.manual_seed(0)
    pairs = torch.combinations(torch.arange(SPINS))
    edges = pairs[torch.randperm(len(pairs))[:EDGES]]
    truth = IsingGraph(edges, 0.3 * torch.randn(EDGES), 0.2 + 0.3 * torch.randn(SPINS))
    x = torch.rand(sum(SIZES), SPINS).round() * 2 - 1  # one draw of each chain
    for _ in range(200):
        x = truth.sweep(x, torch.rand_like(x))
    return truth, dict(zip(SIZES, x.split(SIZES), strict=True))


def blank(truth, like):
    zeros = (torch.zeros(count, dtype=like.dtype) for count in (EDGES, SPINS))
    return IsingGraph(truth.edges, *(torch.nn.Parameter(part) for part in zeros))


def by_pseudo_likelihood(truth, x):
    energy, objective = blank(truth, x.double()), ebm.objectives.PseudoLikelihood()
    optimizer = torch.optim.LBFGS(energy.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -objective.surrogate(ebm.Boltzmann(energy), x.double()).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return energy


def by_persistent_cd(truth, x, num_steps=400):
    energy = blank(truth, x)
    objective = ebm.objectives.PersistentCD(ebm.kernels.Gibbs(), num_chains=4_000)
    optimizer = torch.optim.Adam(energy.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        optimizer.zero_grad()
        (-objective.surrogate(ebm.Boltzmann(energy), x).mean()).backward()
        optimizer.step()
        scheduler.step()
    return energy


@pytest.mark.parametrize("fit", [by_pseudo_likelihood, by_persistent_cd])
def test_the_error_of_couplings_falls_as_one_over_the_root_of_the_number_of_draws(world, fit):
    truth, draws = world
    squares = []
    for x in draws.values():
        error = fit(truth, x).coupling.detach().double() - truth.coupling
        squares.append(error.square())
    mean = torch.stack([part.mean() for part in squares])
    spread = torch.stack([part.std() / math.sqrt(EDGES) for part in squares]) / mean
    slope = 0.5 * (mean[-1] / mean[0]).log() / math.log(SIZES[-1] / SIZES[0])
    error = 0.5 * torch.hypot(spread[0], spread[-1]) / math.log(SIZES[-1] / SIZES[0])
    assert_close(slope, -0.5, error)


def test_persistent_cd_is_as_sure_as_the_cramer_rao_bound(world):
    truth, draws = world
    x = draws[SIZES[1]]
    error = by_persistent_cd(truth, x).coupling.detach().double() - truth.coupling
    i, j = truth.edges.unbind(-1)
    every = torch.cat(list(draws.values())).double()
    statistics = torch.cat([every[:, i] * every[:, j], every], -1)
    bound = torch.linalg.inv(torch.cov(statistics.T)).diagonal()[:EDGES] / len(x)
    z = error.square() / bound
    assert_close(z.mean(), 1.0, z.std() / math.sqrt(EDGES))
