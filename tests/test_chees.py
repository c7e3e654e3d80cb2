"""What is special to ChEES: its lengths, and how warmup finds them."""

import math

import pytest
import torch
from cases import SKEWED
from laws import assert_chain_mean, assert_close, assert_follows
from torch import tensor

import pyro_ebm as ebm
from pyro_ebm import Boltzmann
from pyro_ebm.energies import Gaussian
from pyro_ebm.kernels import HMC, ChEES, run
from pyro_ebm.kernels.chees import POWER, _slope
from pyro_ebm.kernels.hamiltonian import trajectory
from pyro_ebm.kernels.metric import Metric
from pyro_ebm.kernels.transition import State, seeded_generator
from pyro_ebm.potential import Potential


def flat_potential(energy):
    return Potential.of(Boltzmann(energy))


def ridge(correlation, sd):
    covariance = tensor([[1.0, correlation], [correlation, 1.0]])
    precision = torch.linalg.inv(covariance * torch.outer(sd, sd))
    return Gaussian(torch.zeros(2), precision)


def sample(target, num_chains, num_samples=300, warmup_steps=300, **kwargs):
    mcmc = ebm.MCMC(
        ChEES(target, **kwargs), num_samples, warmup_steps, num_chains, disable_progbar=True
    )
    mcmc.run()
    return mcmc


def test_the_time_of_a_trajectory_is_its_jitter_times_twice_the_length():
    energy = Gaussian(torch.zeros(2), 1.0)
    potential = flat_potential(energy)
    kernel = ChEES(step_size=0.1, length=0.62, max_steps=9)
    state = kernel.init(potential, torch.randn(5, 2))
    momentum, uniform, _ = kernel.noise(state, torch.Generator().manual_seed(0))
    for jitter, steps in ((0.0, 1), (0.05, 1), (0.5, 7), (0.7, 9), (0.99, 9)):
        moved, info = kernel.step(potential, state, (momentum, uniform, tensor(jitter)))
        assert info.num_steps.eq(steps).all()
        hmc = HMC(step_size=0.1, num_steps=steps, jitter=0.0)
        other, _ = hmc.step(
            potential, hmc.init(potential, state.z), (momentum, uniform, tensor(0.5))
        )
        assert torch.equal(moved.z, other.z)


def test_jitter_is_uniform_and_evenly_spread():
    kernel = ChEES()
    state = kernel.init(flat_potential(Gaussian(torch.zeros(1), 1.0)), torch.randn(3, 1))
    generator = torch.Generator().manual_seed(0)
    blocks = torch.stack([kernel.noise(state, generator, 64)[2] for _ in range(400)])
    for place in (0, 1, 37):
        assert_follows(blocks[:, place], lambda x: x)
    counts = torch.stack([torch.histc(block, 64, 0, 1) for block in blocks])
    assert counts.max() <= 2  # one to a cell, but for rounding at the borders
    assert blocks.ge(0).all()
    assert blocks.lt(1).all()
    alone = torch.stack([kernel.noise(state, generator)[2] for _ in range(2000)])
    assert_follows(alone, lambda x: x)


def test_slope_is_the_derivative_of_the_criterion_by_the_log_of_the_length():
    energy = SKEWED["banana"]()
    potential = flat_potential(energy)
    scale, centre = tensor([0.8, 1.7]), tensor([0.3, -0.2])
    kernel = ChEES(step_size=1e-3)
    state = kernel.init(potential, energy.sample(50))._replace(metric=Metric(scale), centre=centre)
    momentum = torch.randn(50, 2)
    weight = torch.rand(50)
    weight[3] = 0.0

    def criterion(num_steps):
        end, p = trajectory(potential, State(*state[:5]), momentum, tensor(num_steps))
        gain = (((end.z - centre) / scale) ** 2 - ((state.z - centre) / scale) ** 2).sum(-1)
        time = num_steps * 1e-3
        return (weight * gain**2 / 4 / time**POWER).sum() / weight.sum(), end, p, time

    middle, end, p, time = criterion(700)  # of a time other than one, which hides its powers
    expected = (criterion(710)[0] - criterion(690)[0]) / math.log(710 / 690)
    end.z[3], p[3] = math.nan, math.inf  # rejected for sure
    got = _slope(state, end, p, weight, tensor(time))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * middle.item())


@pytest.mark.parametrize("num_chains", [4, 64])
@pytest.mark.parametrize("correlation", [0.0, 0.99])
def test_length_fits_the_longest_direction_in_any_units(correlation, num_chains):
    sd = tensor([0.02, 50.0])
    mcmc = sample(Boltzmann(ridge(correlation, sd)), num_chains)
    longest = (sd / mcmc.state.metric.scale).mean() * math.sqrt(1 + correlation)
    assert 0.4 < mcmc.state.length / longest < 2.0
    draws = mcmc.get_samples(group_by_chain=True)["x"] / sd
    if num_chains > 4:
        assert_chain_mean(draws, torch.zeros(2))
        assert_chain_mean(draws**2, torch.ones(2))


def test_length_is_frozen_after_warmup_and_left_alone_on_request():
    target = Boltzmann(SKEWED["banana"]())
    mcmc = sample(target, 16, 50, 100)
    kernel, length = mcmc.kernel, mcmc.state.length.clone()
    *_, (state, _) = run(kernel, mcmc.potential, mcmc.state, 20, seeded_generator(length.device))
    assert state.length == length
    fixed = sample(target, 16, 50, 100, length=0.7, adapt_length=False)
    assert fixed.state.length == tensor(0.7)


def test_harmonic_acceptance_lands_at_its_target():
    mcmc = sample(Boltzmann(Gaussian(torch.zeros(20), 1.0)), 64, 300, 300)
    rate = mcmc.sample_stats["acceptance_rate"]
    harmonic = 1 / (1 / rate.clamp(min=1e-3)).mean(0)
    batches = harmonic.view(10, -1).mean(-1)
    tail = mcmc.warmup_stats["acceptance_rate"][:, -60:]
    late = (1 / (1 / tail.clamp(min=1e-3)).mean(0)).view(10, -1).mean(-1)
    error = math.hypot(batches.std() / math.sqrt(10), late.std() / math.sqrt(10))
    assert_close(harmonic.mean(), mcmc.kernel.target_accept_prob, error)


def test_trajectories_stay_within_max_steps():
    mcmc = sample(Boltzmann(ridge(0.999, torch.ones(2))), 16, 50, 200, max_steps=5)
    assert mcmc.sample_stats["n_steps"].max() == 5
    assert mcmc.warmup_stats["n_steps"].max() == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChEES(length=0.0), "length must be positive and finite, got 0.0"),
        (lambda: ChEES(max_steps=0), "max_steps must be at least 1, got 0"),
        (lambda: ChEES(step_size=-1.0), "step_size must be positive and finite, got -1.0"),
    ],
)
def test_refuses_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
