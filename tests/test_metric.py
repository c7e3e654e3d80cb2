"""The metric is the matrix it says, kernels move by it, and warmup finds that of a Gaussian."""

import math
import shutil

import pytest
import torch
from cases import KERNELS, METROPOLISED, SKEWED
from laws import assert_chain_mean, assert_same_law
from torch import tensor

import pyro_ebm as ebm
from pyro_ebm import Boltzmann
from pyro_ebm.energies import Gaussian
from pyro_ebm.kernels import HMC, MALA, NUTS, ChEES, ParallelTempering, run
from pyro_ebm.kernels.acceleration import Runner
from pyro_ebm.kernels.adaptation import Moments
from pyro_ebm.kernels.hamiltonian import leapfrog
from pyro_ebm.kernels.metric import NO_STRETCH, Metric, Stretch
from pyro_ebm.kernels.transition import State, seeded_generator
from pyro_ebm.potential import Potential

MOVED_BY_METRIC = [name for name in KERNELS if name not in ("ULA", "SGLD", "ParallelTempering")]
STRETCHABLE = [name for name in METROPOLISED if name != "ParallelTempering"]

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")


def flat_potential(energy):
    return Potential.of(Boltzmann(energy))


def a_metric(dim, rank):
    """One whose units do not commute with its directions, so that it is not symmetric."""
    directions = torch.linalg.qr(torch.randn(dim, rank)).Q
    return Metric(
        torch.linspace(0.6, 1.7, dim), Stretch.along(directions, torch.linspace(2.2, 0.4, rank))
    )


def dense(metric):
    """The matrix, by the formula."""
    matrix = torch.eye(len(metric.scale))
    if metric.stretch:
        v, factors, _ = metric.stretch
        matrix = matrix + v @ torch.diag(factors - 1) @ v.T
    return torch.diag(metric.scale) @ matrix


def covariance(values):
    rotation = torch.linalg.qr(torch.randn(len(values), len(values))).Q
    return rotation @ torch.diag(values) @ rotation.T


def wide_and_narrow(dim):
    """A covariance that no units bring near to a sphere in any direction."""
    values = torch.cat([torch.linspace(0.01, 0.02, dim // 2), torch.linspace(50, 100, dim // 2)])
    return covariance(values)


@pytest.mark.parametrize("rank", [0, 2, 5])
def test_maps_are_those_of_the_matrix(rank):
    metric = a_metric(5, rank) if rank else Metric(torch.rand(5))
    matrix, x = dense(metric), torch.randn(7, 5)
    for size in (0.3, tensor(0.3), torch.rand(7, 1)):
        torch.testing.assert_close(metric.move(x, size), size * x @ matrix.T)
        torch.testing.assert_close(metric.force(x, size), size * x @ matrix)
        torch.testing.assert_close(metric.drift(x, size), size * x @ matrix @ matrix.T)
    torch.testing.assert_close(metric.whiten(x), x @ torch.linalg.inv(matrix).T)
    spread = covariance(tensor([4.0, 3.0, 1.0, 0.1, 0.02]))
    inverse = torch.linalg.inv(matrix)
    if rank:
        expected = torch.linalg.eigvalsh(inverse @ spread @ inverse.T).max().sqrt()
        torch.testing.assert_close(metric.widest(spread), expected)
    else:
        expected = (inverse @ spread.diag().sqrt()).max()
        torch.testing.assert_close(metric.widest(spread.diag()), expected)


@pytest.mark.parametrize("kernel", MOVED_BY_METRIC)
def test_a_metric_is_a_change_of_coordinates(kernel):
    """A kernel with a metric makes the steps that it makes without in round coordinates."""
    energy, metric = SKEWED["banana"](), a_metric(2, 1)
    matrix, recipe = dense(metric), KERNELS[kernel]()
    own = flat_potential(energy)
    round_ = Potential.of(Boltzmann(lambda w: energy(w @ matrix.T), event_shape=(2,)))
    start = energy.sample(300)
    here = recipe.init(own, start)._replace(metric=metric)
    there = recipe.init(round_, metric.whiten(start))
    for seed in range(3):
        noise = recipe.noise(here, torch.Generator().manual_seed(seed))
        here, info = recipe.step(own, here, noise)
        there, expected = recipe.step(round_, there, noise)
        torch.testing.assert_close(here.z, metric.move(there.z, 1.0))
        if info.accept_prob is not None:
            torch.testing.assert_close(info.accept_prob, expected.accept_prob)
        if kernel == "ChEES":
            torch.testing.assert_close(here.slope, there.slope)


def test_leapfrog_is_of_second_order_in_any_metric():
    energy, metric = SKEWED["banana"](), a_metric(2, 1)
    potential, z, p = flat_potential(energy), energy.sample(20), torch.randn(20, 2)

    def energy_error(step_size, num_steps):
        state, end = HMC(step_size=step_size).init(potential, z)._replace(metric=metric), p
        before = state.potential + 0.5 * p.square().sum(-1)
        for _ in range(num_steps):
            state, end = leapfrog(potential, state, end)
        return (state.potential + 0.5 * end.square().sum(-1) - before).abs().mean()

    assert 3.5 < energy_error(0.02, 20) / energy_error(0.01, 40) < 4.5


@pytest.mark.parametrize("target", ["banana", "gaussian_mixture_isotropic"])
@pytest.mark.parametrize("kernel", STRETCHABLE)
def test_leaves_exact_draws_of_a_skewed_target_invariant(kernel, target):
    energy, recipe = SKEWED[target](), KERNELS[kernel]()
    potential, z = flat_potential(energy), energy.sample(6000)
    state = recipe.init(potential, z)._replace(metric=a_metric(2, 1))
    *_, (state, _) = run(recipe, potential, state, 12, seeded_generator(z.device))
    assert (state.z != z).any(-1).double().mean() > 0.9
    fresh = energy.sample(20_000)
    for d in range(2):
        assert_same_law(state.z[:, d], fresh[:, d])
    assert_same_law(state.z.sum(-1), fresh.sum(-1))


@pytest.mark.parametrize("dim", [2, 6])
def test_fit_of_a_gaussian_is_its_covariance(dim):
    sigma = wide_and_narrow(dim)
    spread = torch.stack([sigma, torch.linalg.inv(sigma)])
    metric = Metric.unit(torch.zeros(1, dim), dim).fit(spread, tensor(math.inf))
    matrix = dense(metric)
    torch.testing.assert_close(matrix @ matrix.T, sigma, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(metric.widest(sigma), tensor(1.0), rtol=1e-6, atol=0.0)


def test_few_draws_of_a_gaussian_lead_to_its_covariance():
    """Those added from the last metric leave no trace in the end."""
    sigma = wide_and_narrow(6)
    z = torch.randn(24, 6) @ torch.linalg.cholesky(sigma).T
    draws = torch.stack([z, z @ torch.linalg.inv(sigma)])
    spread = torch.stack([x.T.cov(correction=0) for x in draws])
    metric = Metric.unit(z, 6)
    for _ in range(200):
        metric = metric.fit(spread, tensor(24.0))
    matrix = dense(metric)
    torch.testing.assert_close(matrix @ matrix.T, sigma, rtol=1e-6, atol=1e-6)


def test_the_furthest_directions_are_kept_and_noise_is_not():
    along = torch.ones(5) / math.sqrt(5)
    sigma = torch.eye(5) + 99 * torch.outer(along, along)
    spread = torch.stack([sigma, torch.linalg.inv(sigma)])
    metric = Metric.unit(torch.zeros(1, 5), 1).fit(spread, tensor(math.inf))
    torch.testing.assert_close((along @ metric.stretch.directions).abs(), torch.ones(1))
    torch.testing.assert_close(metric.scale * metric.stretch.factors, torch.full((5,), 10.0))
    inside = torch.eye(5) + 0.9 * (math.sqrt(NO_STRETCH) - 1) * torch.outer(along, along)
    spread = torch.stack([inside, torch.linalg.inv(inside)])
    assert metric.fit(spread, tensor(math.inf)).stretch.factors.eq(1).all()


@pytest.mark.parametrize("rank", [0, 3])
def test_fit_leaves_alone_what_it_knows_nothing_of(rank):
    z = torch.randn(50, 3)
    grad = z * tensor([4.0, 0.0, 0.25])
    spread = torch.stack([x.T.cov(correction=0) if rank else x.var(0) for x in (z, grad)])
    metric = Metric.unit(z, rank).fit(spread, tensor(50.0))
    torch.testing.assert_close(metric.scale, tensor([0.5, 1.0, 2.0]))
    if rank:
        torch.testing.assert_close(dense(metric)[1], tensor([0.0, 1.0, 0.0]))
        nothing = a_metric(3, 3)._replace(scale=metric.scale)
        nothing = nothing.fit(torch.full((2, 3, 3), math.nan), tensor(50.0))
        torch.testing.assert_close(nothing.scale, metric.scale)


def test_without_draws_the_stretch_stays():
    metric = a_metric(5, 2)
    fitted = metric.fit(torch.stack([covariance(torch.rand(5))] * 2), tensor(0.0))
    torch.testing.assert_close(dense(fitted._replace(scale=metric.scale)), dense(metric))


def test_covariances_are_those_of_all_finite_draws():
    z = 1e6 + torch.randn(5, 40, 3) @ torch.randn(3, 3)
    grad = torch.randn(5, 40, 3)
    grad[2, 7, 1], z[3, 0, 0] = math.inf, math.nan
    states = [State(x, x.sum(-1), g, tensor(1.0), None) for x, g in zip(z, grad, strict=True)]
    window, alone = Moments.begin(states[0], products=True), Moments.begin(states[0])
    for state in states:
        window, alone = window.add(state), alone.add(state)
    known = (z.isfinite() & grad.isfinite()).all(-1)
    expected = torch.stack([x[known].T.cov(correction=0) for x in (z, grad)])
    torch.testing.assert_close(window.spread, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(window.variance, alone.variance, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("make", [HMC, MALA, NUTS, ChEES])
def test_warmup_finds_the_covariance_of_a_gaussian(make):
    sigma = wide_and_narrow(4)
    energy = Gaussian(torch.zeros(4), torch.linalg.inv(sigma))
    mcmc = ebm.MCMC(
        make(Boltzmann(energy), metric_rank=99), 1, 200, num_chains=32, disable_progbar=True
    )
    mcmc.run()
    matrix = dense(mcmc.state.metric)
    share = 4 / (4 + 32 * 60)  # of what is added to the draws of the last window
    torch.testing.assert_close(matrix @ matrix.T, sigma, rtol=share, atol=share)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [20, 100])
def test_directions_shorten_the_trajectories_on_a_rotated_gaussian(dim):
    sigma = covariance(torch.logspace(-2, 2, dim))
    target = Boltzmann(Gaussian(torch.zeros(dim), torch.linalg.inv(sigma)))
    num_steps = []
    for rank in (0, dim):
        kernel = ChEES(target, metric_rank=rank)
        mcmc = ebm.MCMC(kernel, 100, 300, num_chains=64, disable_progbar=True)
        mcmc.run()
        num_steps.append(mcmc.sample_stats["n_steps"].double().mean())
    assert num_steps[0] > 10 * num_steps[1]
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    assert_chain_mean(draws, torch.zeros(dim))
    assert_chain_mean(draws**2, sigma.diag())


def end_of_run(kernel, compile):
    energy = SKEWED["banana"]()
    potential = flat_potential(energy)
    torch.manual_seed(3)
    state = kernel.init(potential, energy.sample(16))
    state = state._replace(metric=a_metric(2, 1))
    runner = Runner(kernel, potential, state, 1000, compile)
    *_, (state, _) = runner.run(state, 8, torch.Generator().manual_seed(4))
    return state, runner.rung.name


@pytest.mark.parametrize("kernel", STRETCHABLE)
def test_the_graph_gives_the_same_numbers_bit_for_bit(kernel):
    eager, _ = end_of_run(KERNELS[kernel](metric_rank=1), False)
    graph, rung = end_of_run(KERNELS[kernel](metric_rank=1), "auto")
    assert rung == "graph"
    assert torch.equal(graph.z, eager.z)


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kernel", STRETCHABLE)
def test_native_code_gives_the_same_numbers_to_rounding(kernel):
    eager, _ = end_of_run(KERNELS[kernel](metric_rank=1), False)
    native, rung = end_of_run(KERNELS[kernel](metric_rank=1), True)
    assert rung == "native"
    torch.testing.assert_close(native.z, eager.z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dim", "rank"), [(3, 3), (100, 100), (101, 0)])
def test_all_directions_of_few_dimensions_are_stretched_unless_told_otherwise(dim, rank):
    metric = Metric.unit(torch.zeros(2, dim), None)
    assert (len(metric.stretch.factors) if metric.stretch else 0) == rank


def test_a_target_alone_is_sampled_in_round_coordinates():
    covariance = tensor([[1.0, 0.99], [0.99, 1.0]])
    target = Boltzmann(Gaussian(torch.zeros(2), torch.linalg.inv(covariance)))
    mcmc = ebm.MCMC(target, 1, warmup_steps=200, num_chains=32, disable_progbar=True)
    mcmc.run()
    matrix = mcmc.state.metric.move(torch.eye(2), 1.0)
    # Without noise but for the two draws that are added to the 1,920 of the last window.
    torch.testing.assert_close(matrix.mT @ matrix, covariance, rtol=2 / 1920, atol=0.0)


def test_a_rank_above_the_dimension_is_the_dimension():
    state = HMC(metric_rank=7).init(flat_potential(SKEWED["banana"]()), torch.zeros(3, 2))
    assert state.metric.stretch.directions.shape == (2, 2)
    assert HMC().init(flat_potential(SKEWED["banana"]()), torch.zeros(3, 2)).metric.stretch == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HMC(metric_rank=-1), "metric_rank must be at least 0.*got -1"),
        (lambda: ChEES(metric_rank=None, adapt_mass_matrix=False), "metric_rank must be.*None"),
        (lambda: ParallelTempering(ChEES(metric_rank=None)), "metric_rank must be 0.*got None"),
        (lambda: NUTS(metric_rank=2, adapt_mass_matrix=False), "metric_rank must be.*got 2"),
        (lambda: ParallelTempering(MALA(metric_rank=3)), "metric_rank must be 0.*got 3"),
    ],
)
def test_refuses_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
