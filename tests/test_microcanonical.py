"""Microcanonical kernels: their dynamics, what warmup learns, and the bias of MCLMC."""

import math

import pytest
import torch
from cases import SKEWED
from laws import assert_chain_mean, assert_close, assert_follows, assert_mean, assert_same_law
from torch import tensor

import pyro_ebm as ebm
from pyro_ebm import Boltzmann
from pyro_ebm.energies import Gaussian
from pyro_ebm.kernels import MAMS, MCLMC, Info, run
from pyro_ebm.kernels.isokinetic import isokinetic_leapfrog, unit
from pyro_ebm.kernels.length import Spread
from pyro_ebm.kernels.metric import Metric
from pyro_ebm.kernels.transition import seeded_generator
from pyro_ebm.potential import Potential


def flat_potential(energy):
    return Potential.of(Boltzmann(energy))


def start(energy, num_chains):
    """Exact draws as flat chains."""
    return energy.sample(num_chains).reshape(num_chains, -1)


def move(kernel, potential, z, num_steps, **changes):
    state = kernel.init(potential, z)._replace(**changes)
    *_, (state, info) = run(kernel, potential, state, num_steps, seeded_generator(z.device))
    return state, info


def warm_up(kernel, potential, z, num_steps):
    state, adaptation = kernel.init(potential, z), kernel.adaptation(num_steps)
    generator = seeded_generator(z.device)
    *_, (state, _) = run(kernel, potential, state, num_steps, generator, adaptation)
    return state


FREE = Boltzmann(lambda x: 0 * x.sum(-1), event_shape=(2,))


# dynamics


def flow(potential, z, u, step_size, num_steps, scale=1.0):
    state = MAMS(step_size=step_size).init(potential, z)
    state, total = state._replace(metric=Metric(scale * state.metric.scale)), 0.0
    for _ in range(num_steps):
        state, u, gain = isokinetic_leapfrog(potential, state, u)
        total = total + gain
    return state, u, total


@pytest.mark.parametrize("target", ["banana", "gaussian_mixture_isotropic"])
def test_isokinetic_leapfrog_is_reversible_and_of_second_order(target):
    energy = SKEWED[target]()
    potential, z, scale = flat_potential(energy), start(energy, 50), tensor([0.7, 1.6])
    u = unit(torch.randn_like(z))
    there, v, gain = flow(potential, z, u, 0.1, 8, scale)
    torch.testing.assert_close(v.norm(dim=-1), torch.ones(50))
    back, w, loss = flow(potential, there.z, -v, 0.1, 8, scale)
    torch.testing.assert_close(back.z, z)
    torch.testing.assert_close(-w, u)
    torch.testing.assert_close(loss, -gain)

    def energy_error(step_size, num_steps):
        end, _, gain = flow(potential, z, u, step_size, num_steps, scale)
        return (end.potential - potential.value_and_grad(z)[0] + gain).abs().mean()

    assert 3.5 < energy_error(0.02, 20) / energy_error(0.01, 40) < 4.5


def test_isokinetic_leapfrog_has_the_jacobian_that_it_says():
    r"""The gain of kinetic energy is minus the log Jacobian on phase space."""
    energy = SKEWED["banana"]()
    potential, z = flat_potential(energy), tensor([[0.8, -0.3]])
    angle = tensor([0.9])

    def chart(point):
        u = torch.stack([point[2:].cos(), point[2:].sin()], dim=-1)
        end, v, gain = flow(potential, point[None, :2], u, 0.4, 3)
        return torch.cat([end.z[0], torch.atan2(v[:, 1], v[:, 0])]), gain

    point, h = torch.cat([z[0], angle]), 1e-6
    columns = [(chart(point + h * e)[0] - chart(point - h * e)[0]) / (2 * h) for e in torch.eye(3)]
    log_jacobian = torch.stack(columns, dim=1).det().abs().log()
    torch.testing.assert_close(-chart(point)[1][0], log_jacobian, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(("force", "cosine"), [(0.0, 0.0), (1e-300, 0.0), (1e6, -1.0)])
def test_the_direction_stays_on_the_sphere_under_any_force(force, cosine):
    """Against, along, across and almost against: all but the first turn to where it pulls."""
    potential = Potential.of(Boltzmann(lambda x: force * x[..., 0], event_shape=(3,)))
    u = unit(tensor([[1.0, 0, 0], [-1.0, 0, 0], [0.0, 1.0, 0], [1.0, 1e-6, 0]]))
    _, v, gain = flow(potential, torch.zeros(4, 3), u, 0.1, 2)
    torch.testing.assert_close(v.norm(dim=-1), torch.ones(4))
    assert gain.isfinite().all()
    torch.testing.assert_close(v[:2], u[:2])
    torch.testing.assert_close(v[2, 0], tensor(cosine))


# MAMS


@pytest.mark.parametrize("jitter", [0.0, 1.0])
@pytest.mark.parametrize("step_size", [0.4, 1.8])
@pytest.mark.parametrize("target", ["banana", "gaussian_mixture_isotropic", "mixture_plane"])
def test_mams_leaves_skewed_targets_invariant_at_any_step(target, step_size, jitter):
    energy = SKEWED[target]()
    potential, z = flat_potential(energy), start(energy, 20_000)
    kernel = MAMS(step_size=step_size, num_steps=3, jitter=jitter)
    state, info = move(kernel, potential, z, 6, metric=Metric(tensor([0.7, 1.6])))
    assert info.accepted.any()
    assert info.num_steps.eq(3).all()
    fresh = start(energy, 20_000)
    assert_same_law(state.potential, potential.value_and_grad(fresh)[0])
    for d in range(2):
        assert_same_law(state.z[:, d], fresh[:, d])


def test_mams_in_many_dimensions():
    energy = Gaussian(torch.zeros(30), torch.linspace(0.5, 2.0, 30))
    z = start(energy, 4000)
    state, info = move(MAMS(step_size=1.2, num_steps=4), flat_potential(energy), z, 8)
    assert 0.5 < info.accept_prob.mean() < 0.999
    squares = 2 * state.potential  # chi-squared, less a constant
    squares = squares - 2 * energy(torch.zeros(30))
    assert_mean(squares, 30.0)
    assert_mean((squares - 30) ** 2, 60.0)


@pytest.mark.parametrize("target", ["banana", "gaussian_mixture_isotropic", "mixture_plane"])
def test_mams_leaves_skewed_targets_invariant_at_any_length(target):
    energy = SKEWED[target]()
    potential, z = flat_potential(energy), start(energy, 20_000)
    kernel = MAMS(step_size=0.9, jitter=0.8)
    state, _ = move(kernel, potential, z, 6, metric=Metric(tensor([0.7, 1.6])), length=tensor(2.5))
    fresh = start(energy, 20_000)
    assert_same_law(state.potential, potential.value_and_grad(fresh)[0])
    for d in range(2):
        assert_same_law(state.z[:, d], fresh[:, d])


def free_flights(kernel, num_transitions, **changes):
    """The length and the number of steps of paths without a force, the same for all chains."""
    potential = Potential.of(FREE)
    state = kernel.init(potential, torch.zeros(7, 2))._replace(**changes)
    lengths, steps, last = [], [], state.z
    generator = torch.Generator().manual_seed(0)
    for moved, info in run(kernel, potential, state, num_transitions, generator):
        lengths.append((moved.z - last).norm(dim=-1))
        steps.append(info.num_steps)
        last = moved.z
        assert (moved.step_size, moved.length) == (state.step_size, state.length)
    lengths, steps = torch.stack(lengths), torch.stack(steps)
    torch.testing.assert_close(lengths, lengths[:, :1].expand_as(lengths))
    assert steps.eq(steps[:, :1]).all()
    return lengths[:, 0], steps[:, 0]


def test_mams_draws_its_length_and_takes_no_larger_step_than_its_own():
    kernel = MAMS(step_size=0.2, jitter=0.4)
    lengths, steps = free_flights(kernel, 500, length=tensor(1.0))
    assert_follows(lengths, lambda t: ((t - 0.6) / 0.8).clamp(0, 1))
    assert torch.equal(steps, (lengths / 0.2 - 1e-9).ceil().long())


@pytest.mark.parametrize("length", [1e-3, 1e9])
def test_mams_survives_lengths_that_no_step_size_suits(length):
    lengths, steps = free_flights(MAMS(step_size=0.2), 3, length=tensor(length))
    if length < 1:
        assert steps.eq(1).all()
        assert (lengths <= 1.5 * length).all()
    else:
        assert steps.eq(1024).all()
        torch.testing.assert_close(lengths, torch.full((3,), 1024 * 0.2))


def test_mams_with_a_given_number_of_steps_jitters_their_size():
    lengths, steps = free_flights(MAMS(step_size=0.1, num_steps=5, jitter=0.4), 500)
    assert steps.eq(5).all()
    assert_follows(lengths, lambda t: ((t - 0.3) / 0.4).clamp(0, 1))


def spread_of(*windows):
    """The variance that is found in the last window."""
    first = MAMS().init(
        flat_potential(Gaussian(torch.zeros(windows[0].shape[-1]), 1.0)), windows[0]
    )
    spread = Spread.begin(first)
    for z in windows:
        spread = spread.next(first) if spread.count else spread
        for part in z.chunk(4):
            spread = spread.add(first._replace(z=part))
    return spread.variance()


def test_the_spread_is_not_raised_by_noise():
    """A hundred draws in sixty dimensions: a power of one covariance has a spread above 2."""
    estimates = torch.stack([spread_of(*torch.randn(2, 100, 60)) for _ in range(300)])
    assert_mean(estimates, 99 / 100)


def test_the_spread_is_the_variance_in_the_widest_directions():
    wide, far = torch.ones(60), 1000 * torch.arange(60.0)
    wide[7] = 6.0
    estimates = torch.stack(
        [spread_of(*(far + wide * torch.randn(2, 2000, 60))) for _ in range(100)]
    )
    first = MAMS().init(flat_potential(Gaussian(torch.zeros(60), 1.0)), torch.zeros(1, 60))
    image = wide[:, None] ** 2 * Spread.begin(first).probes
    truth = (wide[:, None] * image).square().sum() / image.square().sum()
    noise = wide.square().sum() / 2000  # what the last window adds to each eigenvalue, at most
    assert 0.9 * 36 < truth < 36
    assert_close(estimates.mean(), truth, estimates.std() / math.sqrt(100) + noise / 5)


def test_the_spread_does_not_count_what_is_not_finite():
    z = torch.randn(2, 400, 3)
    with_holes = torch.cat([z, torch.full((2, 4, 3), math.inf)], dim=1)
    torch.testing.assert_close(spread_of(*with_holes), spread_of(*z))


def slow_gaussian(dim):
    """Badly scaled, with one long diagonal, which no diagonal metric takes away."""
    sd = torch.logspace(-2, 2, dim)
    along = torch.ones(dim) / math.sqrt(dim)
    covariance = (torch.eye(dim) + 24 * torch.outer(along, along)) * sd * sd[:, None]
    return Gaussian(torch.zeros(dim), torch.linalg.inv(covariance)), covariance


def test_warmup_finds_a_quarter_of_the_slowest_period():
    energy, covariance = slow_gaussian(10)
    z = start(energy, 100)
    state = warm_up(MAMS(), flat_potential(energy), z, 400)
    whitened = covariance / state.metric.scale / state.metric.scale[:, None]
    quarter = math.pi / 2 * math.sqrt(9 * torch.linalg.eigvalsh(whitened)[-1])
    # About a thousand draws of a window: the relative error of a variance, halved by the root.
    assert_close(state.length / quarter, 1.0, 0.5 * math.sqrt(2 / 500))


def test_a_path_of_a_given_number_of_steps_is_left_alone():
    energy, _ = slow_gaussian(3)
    mcmc = ebm.MCMC(MAMS(Boltzmann(energy), num_steps=2), 10, 40, 20, disable_progbar=True)
    mcmc.run()
    assert mcmc.sample_stats["n_steps"].eq(2).all()


def test_a_step_size_does_not_run_away_where_one_step_is_the_path():
    """All is accepted, whatever the step."""
    kernel = MAMS()
    state = kernel.init(Potential.of(FREE), torch.randn(50, 2))
    adaptation = kernel.adaptation(300)
    info = Info(diverging=torch.zeros(50).bool(), accept_prob=torch.ones(50))
    for _ in range(300):
        z = torch.randn(50, 2)
        state = adaptation.update(state._replace(z=z, grad=z), info)
    assert 1.2 < state.length < 2
    assert state.step_size < 5 * state.length


def test_paths_are_short_until_the_first_windows_have_ended():
    """From afar, where a slow way in looks like a wide target."""
    energy = Gaussian(torch.tensor([1000.0, 0.0]), torch.tensor([1.0, 1e4]))
    mcmc = ebm.MCMC(MAMS(Boltzmann(energy)), 10, 400, 8, disable_progbar=True)
    mcmc.run()
    steps = mcmc.warmup_stats["n_steps"][0]
    ends = [12, 24, 40, 60]
    for window, (begun, ended) in enumerate(zip([0, *ends], ends, strict=False)):
        # Half as long again by jitter, and a step for the change of the step size.
        assert steps[begun + 1 : ended].max() <= 1.5 * 4 * 2**window + 1


def test_warmup_makes_mams_mix_on_a_slow_target_from_the_default_start():
    energy, covariance = slow_gaussian(10)
    mcmc = ebm.MCMC(MAMS(Boltzmann(energy)), 200, 400, 32, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    assert_chain_mean(draws / covariance.diag().sqrt(), torch.zeros(10))
    assert_chain_mean(draws**2 / covariance.diag(), torch.ones(10))
    assert not mcmc.sample_stats["diverging"].any()


# MCLMC


def moments(step_size, num_steps, dim=10, num_chains=8000):
    """The excess of the second moments of a standard Gaussian, with its standard error, and the
    variance of the energy error per dimension, after ``num_steps`` from exact draws."""
    kernel, potential = MCLMC(step_size=step_size), flat_potential(Gaussian(torch.zeros(dim), 1.0))
    first = kernel.init(potential, torch.randn(num_chains, dim))
    squares, energies = [], []
    for state, info in run(kernel, potential, first, num_steps, seeded_generator(first.z.device)):
        squares.append(state.z.square().mean(-1) - 1)
        energies.append(info.energy)
    torch.testing.assert_close(state.momentum.norm(dim=-1), torch.ones(num_chains))
    late = torch.stack(squares[num_steps // 2 :]).mean(0)
    variance = torch.stack(energies).diff(dim=0).square().mean() / dim
    return late.mean(), late.std() / math.sqrt(num_chains), variance


def test_mclmc_has_a_bias_that_vanishes_with_the_square_of_its_step():
    large, error_of_large, _ = moments(2.4, 60)
    small, error_of_small, _ = moments(1.2, 240, num_chains=20_000)
    assert large > 10 * error_of_large
    assert small > 5 * error_of_small
    ratio = large / small
    relative = ((error_of_large / large) ** 2 + (error_of_small / small) ** 2).sqrt()
    assert_close(ratio, 4.0, ratio * relative)
    assert ratio - 5 * ratio * relative > 2  # neither of first order
    assert ratio + 5 * ratio * relative < 8  # nor of third


@pytest.mark.parametrize("dim", [4, 30])
def test_mclmc_has_the_bias_that_its_energy_error_says(dim):
    bias, error, variance = moments(0.7 * math.sqrt(dim), 30, dim)
    digits = 0.005  # to which the factor is documented
    assert_close(bias / variance ** (1 / 3), 0.45, error / variance ** (1 / 3) + digits)


def test_warmup_gives_mclmc_the_energy_error_and_the_bias_asked_for():
    sd = torch.logspace(-2, 2, 10)
    energy = Gaussian(torch.zeros(10), sd**-2)
    kernel = MCLMC(Boltzmann(energy), energy_variance=1e-3)
    start_at = {"x": energy.sample(200)}
    mcmc = ebm.MCMC(kernel, 200, 400, 200, initial_params=start_at, disable_progbar=True)
    mcmc.run()
    per_chain = mcmc.sample_stats["energy"].diff(dim=1).square().mean(1) / 10
    # The last window of dual averaging sees 80 steps of 200 chains, counted as 8 each.
    tuning = 1e-3 * math.sqrt(2 / (80 * 8))
    assert_close(per_chain.mean(), 1e-3, tuning + per_chain.std() / math.sqrt(200))
    assert_close((mcmc.state.metric.scale / sd).log(), torch.zeros(10), torch.full((10,), 0.05))
    excess = (mcmc.get_samples(group_by_chain=True)["x"] / sd).square().mean((1, 2)) - 1
    error = excess.std() / math.sqrt(200)
    assert excess.mean() > 5 * error
    of_tuning = 0.045 / 3 * math.sqrt(2 / (80 * 8))
    assert_close(excess.mean(), 0.45 * 1e-3 ** (1 / 3), error + of_tuning)


def test_mclmc_learns_how_far_to_go_and_leaves_alone_what_is_given():
    energy, covariance = slow_gaussian(10)
    potential, z = flat_potential(energy), start(energy, 100)
    state = warm_up(MCLMC(), potential, z, 400)
    whitened = covariance / state.metric.scale / state.metric.scale[:, None]
    length = math.sqrt(10 * torch.linalg.eigvalsh(whitened)[-1])
    assert_close(state.length / length, 1.0, 0.5 * math.sqrt(2 / 200))
    fixed = MCLMC(step_size=0.01, length=3.0, adapt_step_size=False, adapt_mass_matrix=False)
    state = warm_up(fixed, potential, z, 40)
    assert (state.step_size, state.length) == (0.01, 3.0)
    assert state.metric.scale.eq(1).all()


def test_the_tuner_of_mclmc_sees_steps_that_are_not_finite():
    """In a box without a force there is no other error: every 16th step, by its target."""
    box = Boltzmann(
        lambda x: torch.where(x.abs().amax(-1) < 1, 0 * x.sum(-1), math.nan), event_shape=(3,)
    )
    z = 2 * torch.rand(200, 3) - 1
    potential = Potential.of_batch(box, (200,), z)
    kernel = MCLMC(adapt_mass_matrix=False)
    state = warm_up(kernel, potential, z, 300)
    infos = [info for _, info in run(kernel, potential, state, 100, seeded_generator(z.device))]
    rate = torch.stack([info.diverging for info in infos]).double().mean(0)
    tuning = math.sqrt(1 / 16 / (60 * 8))
    assert_close(rate.mean(), 1 / 16, tuning + rate.std() / math.sqrt(200))


def test_mclmc_forgets_its_direction_over_its_length():
    """Free flight: the direction correlates by about exp(-path / length)."""
    potential = Potential.of(Boltzmann(lambda x: 0 * x.sum(-1), event_shape=(50,)))
    kernel = MCLMC(step_size=0.1, length=2.0)
    state, _ = move(kernel, potential, torch.zeros(4000, 50), 1)
    u = state.momentum
    later, _ = move(kernel, potential, state.z, 20, momentum=u, begun=torch.ones(()))
    cosine = (u * later.momentum).sum(-1)
    assert_close(cosine.mean(), math.exp(-1), cosine.std() / math.sqrt(4000) + 0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MAMS(num_steps=0), "num_steps must be at least 1, got 0"),
        (lambda: MAMS(jitter=1.5), "jitter must be between 0 and 1, got 1.5"),
        (lambda: MCLMC(length=0.0), "length must be positive and finite, got 0.0"),
        (
            lambda: MCLMC(energy_variance=-1.0),
            "energy_variance must be positive and finite, got -1.0",
        ),
        (
            lambda: MAMS().init(Potential.of(FREE), torch.zeros(3, 1)),
            "MAMS needs a target of at least 2 dimensions, got 1: use HMC instead",
        ),
        (
            lambda: MCLMC().init(Potential.of(FREE), torch.zeros(3, 1)),
            "MCLMC needs a target of at least 2 dimensions, got 1: use HMC instead",
        ),
    ],
)
def test_refuses_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
