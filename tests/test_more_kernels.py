"""What is special to the random walk and the underdamped kernels."""

import math

import pytest
import torch
from cases import SKEWED
from laws import assert_chain_mean, assert_close, assert_mean, assert_same_law
from torch import tensor

import pyro_ebm as ebm
from pyro_ebm import Boltzmann
from pyro_ebm.energies import Gaussian
from pyro_ebm.kernels import GHMC, MALA, MAMS, MCLMC, RandomWalk, UnderdampedLangevin, run
from pyro_ebm.kernels.metric import Metric
from pyro_ebm.kernels.transition import seeded_generator
from pyro_ebm.potential import Potential

STANDARD = Gaussian(torch.zeros(1, dtype=torch.float64), 1.0)


def flat_potential(energy):
    return Potential.of(Boltzmann(energy))


def start(energy, num_chains):
    """Exact draws as flat chains."""
    return energy.sample(num_chains).reshape(num_chains, -1)


def move(kernel, potential, z, num_steps, **changes):
    state = kernel.init(potential, z)._replace(**changes)
    *_, (state, info) = run(kernel, potential, state, num_steps, seeded_generator(z.device))
    return state, info


def assert_variance(samples, truth):
    """Asserts the variance of independent normal samples ``(N,)``."""
    assert_close(samples.var(), truth, truth * math.sqrt(2 / len(samples)))


def assert_uncorrelated(x, y):
    """Asserts that two standardised samples ``(N,)`` are not correlated."""
    assert_mean((x - x.mean()) * (y - y.mean()), 0.0)


# random walk


@pytest.mark.parametrize(("step_size", "acceptance"), [(1.0, 0.704833), (2.38, 0.444906)])
def test_random_walk_accepts_as_often_as_theory_says(step_size, acceptance):
    kernel = RandomWalk(step_size=step_size)
    _, info = move(kernel, flat_potential(STANDARD), torch.randn(40_000, 1), 1)
    assert_mean(info.accept_prob, acceptance)
    assert_mean(info.accepted, acceptance)


def test_random_walk_moves_by_its_formula():
    potential = flat_potential(Gaussian(torch.zeros(2), 1.0))
    kernel = RandomWalk(step_size=0.5)
    state = kernel.init(potential, tensor([[1.0, 2.0]]))._replace(
        metric=Metric(tensor([1.0, 3.0]))
    )
    xi = tensor([[0.4, -0.2]])
    moved, info = kernel.step(potential, state, (xi, torch.ones(1) * 0.1))
    torch.testing.assert_close(moved.z, tensor([[1.2, 1.7]]))
    lower, _ = kernel.step(potential, moved, (-xi, torch.zeros(1)))
    torch.testing.assert_close(lower.z, state.z)
    assert info.accept_prob.item() == 1  # downhill
    _, uphill = kernel.step(potential, moved, (-xi, torch.ones(1) * 0.99))
    assert_close(uphill.accept_prob, math.exp(-(5 - 1.2**2 - 1.7**2) / 2), 1e-12)
    assert not uphill.accepted.any()


def test_random_walk_does_not_look_at_the_gradient():
    energy = SKEWED["banana"]()
    potential = flat_potential(energy)
    kernel = RandomWalk(step_size=0.7)
    state = kernel.init(potential, start(energy, 200))
    noise = kernel.noise(state, torch.Generator().manual_seed(8))
    blind = state._replace(grad=torch.full_like(state.grad, math.nan))
    assert torch.equal(
        kernel.step(potential, state, noise)[0].z, kernel.step(potential, blind, noise)[0].z
    )


@pytest.mark.parametrize("make", [RandomWalk, GHMC, MAMS])
def test_warmup_meets_the_target_acceptance_on_badly_scaled_targets(make):
    sd = tensor([0.01, 1.0, 100.0])
    energy = Gaussian(torch.zeros(3), sd**-2)
    kernel = make(Boltzmann(energy))
    z = {"x": energy.sample(64)}
    mcmc = ebm.MCMC(kernel, 100, 400, 64, initial_params=z, disable_progbar=True)
    mcmc.run()
    assert_close((mcmc.state.metric.scale / sd).log(), torch.zeros(3), torch.full((3,), 0.05))
    # The last window of dual averaging sees 80 steps of 64 chains: sd of its mean acceptance.
    rate = mcmc.sample_stats["acceptance_rate"].mean()
    assert_close(rate, kernel.target_accept_prob, 0.4 / math.sqrt(80 * 8))
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    assert_chain_mean(draws / sd, torch.zeros(3))
    assert_chain_mean((draws / sd) ** 2, torch.ones(3))


# underdamped


@pytest.mark.parametrize("precision", [1.0, 2.5])
@pytest.mark.parametrize("step_size", [0.5, 1.0])
def test_baoab_has_the_exact_variance_of_x_and_its_known_bias_of_p(step_size, precision):
    energy = Gaussian(torch.zeros(1), precision)
    kernel = UnderdampedLangevin(step_size=step_size, friction=1.3)
    state, _ = move(kernel, flat_potential(energy), start(energy, 40_000), 40)
    assert_variance(state.z[:, 0], 1 / precision)
    assert_variance(state.momentum[:, 0], 1 - step_size**2 * precision / 4)
    assert_mean(state.momentum, torch.zeros(1))
    assert_uncorrelated(state.z[:, 0], state.momentum[:, 0])


@pytest.mark.parametrize("friction", [0.3, 2.0])
def test_underdamped_motion_forgets_at_the_known_rate(friction):
    """A free particle: the momentum correlates by exp(-friction * time)."""
    potential = Potential.of(Boltzmann(lambda x: 0 * x.sum(-1), event_shape=(1,)))
    kernel = UnderdampedLangevin(step_size=0.25, friction=friction)
    state, _ = move(kernel, potential, torch.zeros(40_000, 1), 1)
    p, z = state.momentum, state.z
    later, _ = move(kernel, potential, z, 6, momentum=p, begun=torch.ones(()))
    assert_mean(p * later.momentum, tensor([math.exp(-friction * 6 * 0.25)]))
    assert_variance(later.momentum[:, 0], 1.0)
    # The mean displacement by p is its integral, split at the middle of each step.
    c = math.exp(-friction * 0.25)
    reach = 0.125 * (1 + c) * sum(c**i for i in range(6))
    assert_mean(p * (later.z - z), tensor([reach]))


def test_underdamped_langevin_moves_by_its_formula():
    energy = SKEWED["banana"]()
    z, p, xi = tensor([[1.0, -0.5]]), tensor([[0.3, 0.8]]), tensor([[-0.4, 0.6]])
    s, h, c = tensor([0.7, 1.6]), 0.4, math.exp(-0.9 * 0.4)
    kernel = UnderdampedLangevin(step_size=h, friction=0.9)
    potential = flat_potential(energy)
    state = kernel.init(potential, z)._replace(metric=Metric(s), momentum=p, begun=torch.ones(()))
    moved, info = kernel.step(potential, state, (xi,))
    p = p - h / 2 * s * energy.grad(z)
    z = z + h / 2 * s * p
    p = c * p + math.sqrt(1 - c * c) * xi
    z = z + h / 2 * s * p
    p = p - h / 2 * s * energy.grad(z)
    torch.testing.assert_close(moved.z, z)
    torch.testing.assert_close(moved.momentum, p)
    torch.testing.assert_close(info.energy, energy(z) + 0.5 * p.square().sum(-1))


@pytest.mark.parametrize("make", [UnderdampedLangevin, MCLMC])
def test_unadjusted_kernels_turn_back_from_a_non_finite_energy(make):
    wall = Boltzmann(lambda x: torch.where(x[..., 0] > 0, x.sum(-1), math.nan), event_shape=(2,))
    z = torch.full((500, 2), 0.5)
    kernel, potential = make(step_size=0.9), Potential.of_batch(wall, (500,), z)
    state, _ = move(kernel, potential, z, 1)
    turned, info = move(
        kernel, potential, state.z, 1, momentum=state.momentum, begun=torch.ones(())
    )
    assert info.diverging.any()
    stay = info.diverging
    torch.testing.assert_close(turned.z[stay], state.z[stay])
    torch.testing.assert_close(turned.momentum[stay], -state.momentum[stay])
    assert turned.potential.isfinite().all()
    assert turned.grad.isfinite().all()


# generalised HMC


@pytest.mark.parametrize("friction", [0.2, 3.0])
@pytest.mark.parametrize("target", ["banana", "double_well_tilted"])
def test_ghmc_leaves_position_and_momentum_invariant(target, friction):
    energy = SKEWED[target]()
    potential = flat_potential(energy)
    z = start(energy, 20_000)
    kernel = GHMC(step_size=0.6, friction=friction)
    momentum, begun = torch.randn_like(z), torch.ones(())
    state, info = move(kernel, potential, z, 9, momentum=momentum, begun=begun)
    assert info.accepted.double().mean() < 0.98  # rejections are put to the test
    fresh = start(energy, 20_000)
    assert_same_law(state.potential, potential.value_and_grad(fresh)[0])
    for d in range(z.shape[1]):
        assert_same_law(state.z[:, d], fresh[:, d])
        assert_same_law(state.momentum[:, d], torch.randn(20_000))
        assert_uncorrelated(state.z[:, d], state.momentum[:, d])
        assert_uncorrelated(state.grad[:, d], state.momentum[:, d])


def test_ghmc_flips_the_momentum_on_rejection_and_only_then():
    energy = SKEWED["banana"]()
    potential = flat_potential(energy)
    kernel = GHMC(step_size=1.0, friction=1e-9)  # the momentum is all but kept
    z = start(energy, 300)
    momentum, begun = torch.randn_like(z), torch.ones(())
    state = kernel.init(potential, z)._replace(momentum=momentum, begun=begun)
    xi = torch.zeros_like(z)
    rejected, info = kernel.step(potential, state, (xi, torch.ones(300)))
    assert not info.accepted.any()
    torch.testing.assert_close(rejected.momentum, -momentum)
    torch.testing.assert_close(rejected.z, z)
    torch.testing.assert_close(
        info.energy, potential.value_and_grad(z)[0] + 0.5 * momentum.square().sum(-1)
    )
    there, info = kernel.step(potential, state, (xi, torch.zeros(300)))
    assert info.accepted.all()
    back, _ = kernel.step(
        potential, there._replace(momentum=-there.momentum), (xi, -torch.ones(300))
    )
    torch.testing.assert_close(back.z, z)
    torch.testing.assert_close(-back.momentum, momentum)


def test_ghmc_that_forgets_at_once_is_mala():
    energy = SKEWED["banana"]()
    potential, z = flat_potential(energy), start(energy, 400)
    xi, uniform, metric = torch.randn_like(z), torch.rand(400), Metric(tensor([0.7, 1.6]))
    mala, ghmc = MALA(step_size=0.18), GHMC(step_size=0.6, friction=1e9)
    a, of_a = mala.step(potential, mala.init(potential, z)._replace(metric=metric), (xi, uniform))
    state = ghmc.init(potential, z)._replace(metric=metric, momentum=z, begun=torch.ones(()))
    b, of_b = ghmc.step(potential, state, (xi, uniform))
    torch.testing.assert_close(a.z, b.z)
    torch.testing.assert_close(of_a.accept_prob, of_b.accept_prob)


@pytest.mark.parametrize("make", [UnderdampedLangevin, GHMC])
def test_the_first_step_draws_the_momentum_and_later_ones_keep_it(make):
    kernel = make(step_size=1e-9, friction=1.0)
    potential = flat_potential(STANDARD)
    first, _ = move(kernel, potential, torch.randn(20_000, 1), 1)
    assert_variance(first.momentum[:, 0], 1.0)
    second, _ = move(kernel, potential, first.z, 1, momentum=first.momentum, begun=first.begun)
    torch.testing.assert_close(second.momentum, first.momentum, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomWalk(step_size=0.0), "step_size must be positive and finite, got 0.0"),
        (lambda: UnderdampedLangevin(step_size=0.1, friction=0.0), "friction must be positive"),
        (lambda: GHMC(friction=-1.0), "friction must be positive and finite, got -1.0"),
    ],
)
def test_refuses_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
