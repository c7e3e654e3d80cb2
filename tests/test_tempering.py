"""Parallel tempering: every level keeps its own law, and replicas travel as theory says."""

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import SKEWED
from laws import assert_chain_mean, assert_close, assert_follows, assert_mean, assert_same_law
from torch import tensor

import pyro_ebm as ebm
from pyro_ebm import Boltzmann
from pyro_ebm.energies import Gaussian, GaussianMixture
from pyro_ebm.kernels import GHMC, HMC, MALA, MAMS, NUTS, ULA, ParallelTempering, RandomWalk, run
from pyro_ebm.kernels.base import Kernel
from pyro_ebm.kernels.metric import Metric
from pyro_ebm.kernels.transition import Info, normal_like
from pyro_ebm.potential import Potential

BETAS = tensor([0.0, 0.1, 0.35, 0.6, 1.0], dtype=torch.float64)
SHIFT = 3.0


class Redraw(Kernel):
    """Draws anew from any normal of unit variance, to which its gradient leads at once."""

    def __init__(self, model=None):
        super().__init__(
            model,
            step_size=1.0,
            adapt_step_size=False,
            adapt_mass_matrix=False,
            target_accept_prob=0.5,
        )

    def noise(self, state, generator, *num_steps):
        return (normal_like(state.z, generator, *num_steps),)

    def step(self, potential, state, noise):
        z = state.z - state.grad + noise[0]
        value, grad = potential.value_and_grad(z)
        one = torch.ones_like(value)
        return state._replace(z=z, potential=value, grad=grad), Info(one < 0, one, one > 0)


def shifted():
    """A normal of unit variance at SHIFT from the base: between them are normals too."""
    return Boltzmann(Gaussian(torch.full((1,), SHIFT), 1.0))


def tempered_at(kernel, potential, z, betas, base=(0.0, 1.0)):
    """A state with replicas ``z (C, K - 1, D)`` at all levels but the base."""
    state = kernel.init(potential, z[:, -1])
    rows = z.transpose(0, 1).flatten(0, 1)
    value, grad = potential.value_and_grad(rows)
    return state._replace(
        replicas=state.replicas._replace(z=rows, potential=value, grad=grad),
        betas=betas,
        base_loc=torch.full_like(state.base_loc, base[0]),
        base_scale=torch.full_like(state.base_scale, base[1]),
    )


def at_levels(state):
    """The replicas of all levels but the base, with shape ``(C, K - 1, D)``."""
    return state.replicas.z.unflatten(0, (-1, len(state.z))).transpose(0, 1)


def move(kernel, potential, state, num_steps):
    *_, (state, info) = run(kernel, potential, state, num_steps, torch.Generator().manual_seed(2))
    return state, info


def shares(rejection):
    """The part of steps at which a draw of the base arrives, of Syed et al. (2021)."""
    return 1 / (2 + 2 * (rejection / (1 - rejection)).sum())


@pytest.mark.parametrize(
    ("inner", "num_steps"),
    [
        (MALA(step_size=0.15), 1),
        (MALA(step_size=0.15), 3),
        (HMC(step_size=0.4, num_steps=3), 1),
        (NUTS(step_size=0.5, max_tree_depth=3), 1),
        (GHMC(step_size=0.5), 2),
        (RandomWalk(step_size=1.0), 2),
    ],
    ids=["MALA", "MALA_3", "HMC", "NUTS", "GHMC_2", "RandomWalk_2"],
)
def test_exact_draws_at_every_level_stay_exact(inner, num_steps):
    energy, (loc, sd) = SKEWED["double_well_tilted"](), (0.5, 1.2)
    potential = Potential.of(Boltzmann(energy))
    grid = torch.linspace(-9, 9, 40_001)[:, None]
    value = potential.value_and_grad(grid)[0]
    base = -dist.Normal(loc, sd).log_prob(grid[:, 0])
    cdfs = (-(1 - BETAS[:, None]) * base - BETAS[:, None] * value).softmax(-1).cumsum(-1)
    draws = torch.searchsorted(cdfs, torch.rand(5, 6000)).T
    z = grid[draws]
    kernel = ParallelTempering(inner, num_temperatures=5, num_steps=num_steps)
    state = tempered_at(kernel, potential, z[:, 1:], BETAS, (loc, sd))
    state, _ = move(kernel, potential, state, 12)
    assert 0.2 < state.swap_prob.min() < state.swap_prob.max() < 0.97
    torch.testing.assert_close(at_levels(state)[:, -1], state.z)
    excess = (value - base)[torch.searchsorted(cdfs, torch.rand(5, 20_000)).T]
    for k in range(5):
        assert_same_law(state.excess[:, k], excess[:, k])
        if k:
            of_level = at_levels(state)[:, k - 1, 0]
            assert_follows(
                of_level + 4.5e-4 * (torch.rand(6000) - 0.5),
                lambda x, cdf=cdfs[k]: cdf[torch.searchsorted(grid[:, 0], x).clamp(max=40_000)],
            )


def test_neighbours_swap_as_a_loop_over_them_would():
    """The rule, chain by chain and pair by pair, on the same noise."""
    energy = SKEWED["banana"]()
    potential = Potential.of(Boltzmann(energy))
    kernel = ParallelTempering(RandomWalk(step_size=1e-13), num_temperatures=5)
    state = tempered_at(kernel, potential, energy.sample(40 * 4).reshape(40, 4, 2), BETAS)
    for t in range(4):
        noise = kernel.noise(state, torch.Generator().manual_seed(t))
        normal, uniform, *_ = noise
        moved, _ = kernel.step(potential, state, noise)
        for c in range(40):
            z = [normal[c], *at_levels(state)[c]]
            v = [
                energy(x) + dist.Normal(0.0, 1.0).log_prob(x).sum() for x in z
            ]  # U - U_0, both of them in nats
            for k in range(t % 2, 4, 2):
                better = BETAS[k] * v[k] + BETAS[k + 1] * v[k + 1]
                better = better - BETAS[k] * v[k + 1] - BETAS[k + 1] * v[k]
                if uniform[c, k] < better.exp():
                    z[k], z[k + 1], v[k], v[k + 1] = z[k + 1], z[k], v[k + 1], v[k]
            torch.testing.assert_close(at_levels(moved)[c], torch.stack(z[1:]))
            torch.testing.assert_close(moved.excess[c], torch.stack(v))
        state = moved


@pytest.mark.parametrize("make", [MALA, RandomWalk])
def test_each_level_moves_by_its_own_step_and_units_at_its_own_temperature(make):
    energy, inner = SKEWED["banana"](), make(step_size=0.1)
    potential = Potential.of(Boltzmann(energy))
    kernel = ParallelTempering(inner, num_temperatures=5)
    z = energy.sample(30 * 4).reshape(30, 4, 2)
    steps, units = tensor([0.9, 0.5, 0.3, 0.2]), torch.rand(4, 2) + 0.5
    state = tempered_at(kernel, potential, z, BETAS)._replace(
        step_size=steps[-1],
        metric=Metric(units[-1]),
        step_ratio=steps / steps[-1],
        scale_ratio=units / units[-1],
    )
    normal, _, xi, uniform = kernel.noise(state, torch.Generator().manual_seed(1))
    never = torch.ones(30, 4)
    moved, info = kernel.step(potential, state, (normal, never, xi, uniform))
    for k, beta in enumerate(BETAS[1:].tolist()):
        level = Potential.of(
            Boltzmann((1 - beta) * Gaussian(torch.zeros(2), 1.0) + beta * energy, event_shape=(2,))
        )
        alone = inner.init(level, z[:, k])._replace(step_size=steps[k], metric=Metric(units[k]))
        alone, of_level = inner.step(level, alone, (xi[:, k], uniform[:, k]))
        torch.testing.assert_close(at_levels(moved)[:, k], alone.z)
        torch.testing.assert_close(moved.accept_prob[:, k], of_level.accept_prob)
    assert torch.equal(info.accepted, of_level.accepted)


def test_pairs_swap_and_draws_of_the_base_arrive_as_often_as_theory_says():
    r"""Two normals at distance d swap with probability 2 Phi(-d / sqrt 2)."""
    potential = Potential.of(shifted())
    kernel = ParallelTempering(Redraw(), num_temperatures=5)
    z = torch.randn(400, 4, 1) + SHIFT * BETAS[1:, None]
    state, _ = move(kernel, potential, tempered_at(kernel, potential, z, BETAS), 50)
    zero = torch.zeros_like
    state = state._replace(
        num_swaps=zero(state.num_swaps),
        swap_prob_sum=zero(state.swap_prob_sum),
        num_restarts=zero(state.num_restarts),
    )
    state, _ = move(kernel, potential, state, 300)
    exact = 2 * dist.Normal(0.0, 1.0).cdf(-SHIFT * BETAS.diff() / math.sqrt(2))
    assert_mean(state.swap_prob_sum / 300, exact)
    assert_mean(state.num_restarts / 300, shares(1 - exact))
    torch.testing.assert_close(state.barrier, (1 - state.swap_prob).sum().item())


def test_warmup_places_levels_so_that_all_pairs_reject_alike():
    potential = Potential.of(shifted())
    kernel = ParallelTempering(Redraw(), num_temperatures=6, base=dist.Normal(0.0, 1.0))
    state = kernel.init(potential, torch.randn(100, 1) + SHIFT)
    adaptation = kernel.adaptation(400)
    generator = torch.Generator().manual_seed(5)
    *_, (state, _) = run(kernel, potential, state, 400, generator, adaptation)
    assert state.num_swaps == 0
    # The last round is 60 steps, its draws are independent, and no rejection varies by more
    # than 1/2; an error of a sum of rejections moves a level by its part of the whole.
    error = math.sqrt(5 * 0.25 / (60 * 100)) / (5 * 0.32)
    assert_close(state.betas, torch.linspace(0, 1, 6), torch.full((6,), error).clamp(min=1e-9))
    assert state.betas[0] == 0
    assert state.betas[-1] == 1
    after, _ = move(kernel, potential, state, 100)
    for field in ("betas", "base_loc", "base_scale", "step_size", "step_ratio"):
        assert torch.equal(getattr(after, field), getattr(state, field))
    assert torch.equal(after.metric.scale, state.metric.scale)
    assert torch.equal(after.base_loc, torch.zeros(1))  # it was given


def test_warmup_fits_the_base_and_tunes_each_level():
    sd = tensor([0.01, 1.0, 100.0])
    loc = tensor([5.0, 0.0, -50.0])
    energy = Gaussian(loc, sd**-2)
    kernel = ParallelTempering(MALA(Boltzmann(energy)), num_temperatures=4)
    mcmc = ebm.MCMC(
        kernel, 200, 400, 64, initial_params={"x": energy.sample(64)}, disable_progbar=True
    )
    mcmc.run()
    state = mcmc.state
    # The last round of the fit is 60 steps of 64 chains: four independent draws each, at least.
    assert_close((state.base_loc - loc) / sd, torch.zeros(3), torch.full((3,), 1 / 16))
    assert_close((state.base_scale / sd / 1.5).log(), torch.zeros(3), torch.full((3,), 1 / 22))
    precision = (1 - state.betas[1:, None]) / state.base_scale**2 + state.betas[1:, None] / sd**2
    units = (state.metric.scale * state.scale_ratio * precision.sqrt()).log()
    assert_close(units, torch.zeros(3, 3), torch.full((3, 3), 1 / 50))
    # The last window of dual averaging sees 80 steps of 64 chains: sd of its mean acceptance.
    rate = mcmc.sample_stats["acceptance_rate"].mean()
    assert_close(rate, 0.574, 0.4 / math.sqrt(80 * 8))
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    assert_chain_mean((draws - loc) / sd, torch.zeros(3))
    assert_chain_mean(((draws - loc) / sd) ** 2, torch.ones(3))


def test_finds_the_weight_of_a_mode_that_no_chain_began_in():
    """Two modes 8 standard deviations apart; all chains begin in the lesser one."""
    modes = GaussianMixture([0.8, 0.2], tensor([[-4.0, 0.0], [4.0, 0.0]]), tensor([1.0, 1.0]))
    begin = {"x": tensor([4.0, 0.0]) + torch.randn(48, 2)}

    def left(mcmc):
        mcmc.run()
        return (mcmc.get_samples(group_by_chain=True)["x"][..., 0] < 0).double().mean(1)

    def sampler(kernel):
        return ebm.MCMC(kernel, 300, 300, 48, initial_params=begin, disable_progbar=True)

    alone = left(sampler(HMC(Boltzmann(modes), step_size=0.7, adapt_step_size=False)))
    assert 0.8 - alone.mean() > 5 * alone.std() / math.sqrt(48)
    mcmc = sampler(ParallelTempering(MALA(Boltzmann(modes))))
    weight = left(mcmc)
    assert_mean(weight, 0.8)
    assert ((weight > 0) & (weight < 1)).all()  # each chain has seen both
    state, num_steps = mcmc.state, 300
    assert state.num_swaps == num_steps
    assert state.num_restarts.min() > 0
    rates = state.swap_prob_sum / num_steps
    error = rates.std(0) / math.sqrt(48)
    last_round = math.sqrt(1 + num_steps / 45)  # 45 steps placed the levels
    assert_close(rates.mean(0), rates.mean().expand(7), error * last_round)


def test_a_constrained_model_has_its_law_and_its_evidence():
    def model(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("y", dist.Poisson(rate).expand([3]).to_event(1), obs=y)

    y = tensor([1.0, 0.0, 4.0])
    kernel = ParallelTempering(MALA(model), num_temperatures=5)
    mcmc = ebm.MCMC(kernel, 1, 300, 500, disable_progbar=True)
    mcmc.run(y)
    assert_follows(
        mcmc.get_samples()["rate"], lambda x: torch.special.gammainc(tensor(7.0), 4 * x)
    )
    betas, steps = mcmc.state.betas, []
    for state, _ in run(kernel, mcmc.potential, mcmc.state, 50, torch.Generator().manual_seed(3)):
        steps.append((-betas.diff() * state.excess[:, :-1]).exp())
    ratios = torch.stack(steps).mean(0)  # stepping stones, by chain
    error = (ratios.std(0) / ratios.mean(0) / math.sqrt(500)).square().sum().sqrt()
    log_z = math.lgamma(7) - 7 * math.log(4) - math.log(24)
    assert_close(ratios.mean(0).log().sum(), log_z, error)


def test_before_warmup_nothing_is_tempered_and_draws_that_are_exact_stay_so():
    modes = GaussianMixture([0.8, 0.2], tensor([[-1.5], [1.5]]), tensor([0.8, 0.8]))
    potential = Potential.of(Boltzmann(modes))
    kernel = ParallelTempering(
        MALA(step_size=0.01), num_temperatures=3, base=dist.Normal(0.5, 2.0)
    )
    z = modes.sample(8000)
    state, _ = move(kernel, potential, kernel.init(potential, z), 20)
    assert torch.equal(state.betas, tensor([0.0, 1.0, 1.0]))
    assert state.num_restarts.double().mean() > 1
    assert_same_law(state.z[:, 0], modes.sample(20_000)[:, 0])


def test_a_draw_of_the_base_where_the_target_is_not_finite_never_rises():
    def half_line(x):
        return torch.where(x > 0, x, math.nan).squeeze(-1)

    z = torch.empty(2000, 3, 1).exponential_()
    potential = Potential.of(Boltzmann(half_line, event_shape=(1,)))
    kernel = ParallelTempering(RandomWalk(step_size=0.5), num_temperatures=4)
    betas = tensor([0.0, 0.2, 0.5, 1.0])
    state, _ = move(kernel, potential, tempered_at(kernel, potential, z, betas), 40)
    assert state.excess[:, 0].isinf().any()
    assert state.excess[:, 1:].isfinite().all()
    assert state.replicas.potential.isfinite().all()
    assert_follows(state.z[:, 0], lambda x: 1 - (-x).exp())


def test_chains_do_not_see_one_another_at_any_level():
    energy = SKEWED["banana"]()
    potential = Potential.of(Boltzmann(energy))
    kernel = ParallelTempering(MAMS(step_size=0.6), num_temperatures=5, num_steps=2)
    z = energy.sample(20 * 4).reshape(20, 4, 2)
    state = tempered_at(kernel, potential, z, BETAS)
    one = tempered_at(kernel, potential, z[:1], BETAS)
    for t in range(6):
        noise = kernel.noise(state, torch.Generator().manual_seed(t))
        own = tuple(part[:1] if part.dim() else part for part in noise)
        state, _ = kernel.step(potential, state, noise)
        one, _ = kernel.step(potential, one, own)
        torch.testing.assert_close(at_levels(one), at_levels(state)[:1])
        torch.testing.assert_close(one.excess, state.excess[:1])


@pytest.mark.parametrize("inner", [MALA(step_size=0.2), HMC(step_size=0.4, num_steps=3)])
def test_serves_an_objective_and_contrastive_divergence_has_no_bias_at_the_truth(inner):
    modes = GaussianMixture([0.8, 0.2], tensor([[-1.5], [1.5]]), tensor([0.8, 0.8]))
    kernel, x = ParallelTempering(inner, num_temperatures=3), modes.sample(6000)
    contrastive = ebm.objectives.ContrastiveDivergence(kernel, num_steps=5)
    assert_mean(contrastive.surrogate(Boltzmann(modes), x), 0.0)
    persistent = ebm.objectives.PersistentCD(kernel, num_chains=200, num_steps=3)
    assert persistent.surrogate(Boltzmann(modes), x).isfinite().all()
    assert persistent.chains["x"].shape == (200, 1)


@pytest.mark.parametrize("inner", [MALA, HMC])
def test_a_traced_run_over_any_kernel_has_the_numbers_of_an_eager_one(inner):
    def end(compile):
        pyro.set_rng_seed(5)
        kernel = ParallelTempering(inner(shifted()), num_temperatures=3)
        mcmc = ebm.MCMC(kernel, 60, 60, 8, compile=compile, disable_progbar=True)
        mcmc.run()
        return mcmc.get_samples()["x"], mcmc.engine

    draws, engine = end("auto")
    assert engine.startswith("graph")
    assert torch.equal(draws, end(False)[0])


def test_a_kernel_and_its_state_are_pickled():
    kernel = ParallelTempering(MALA(shifted()), num_temperatures=3, base=dist.Normal(0.0, 2.0))
    mcmc = ebm.MCMC(pickle.loads(pickle.dumps(kernel)), 5, 20, disable_progbar=True)
    mcmc.run()
    state = pickle.loads(pickle.dumps(mcmc.state))
    assert torch.equal(state.swap_prob, mcmc.state.swap_prob)
    assert state.barrier == mcmc.state.barrier


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParallelTempering(shifted()), r"untempered kernel such as HMC\(model\), got Bo"),
        (lambda: ParallelTempering(ParallelTempering(MALA())), "got ParallelTempering"),
        (lambda: ParallelTempering(MALA(), num_temperatures=1), "at least 2, got 1"),
        (lambda: ParallelTempering(MALA(), num_steps=0), "num_steps must be at least 1, got 0"),
        (
            lambda: ebm.MCMC(ParallelTempering(ULA(shifted(), step_size=0.1)), 2, 2).run(),
            "kernel must have a Metropolis step, got ULA: use MALA or HMC",
        ),
        (
            lambda: ParallelTempering(MALA(), base=dist.Normal(torch.zeros(3), 1.0)).init(
                Potential.of(shifted()), torch.zeros(4, 1)
            ),
            r"base must be a normal of shape \(1,\).* got \(3,\)",
        ),
    ],
)
def test_refuses_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
