"""log Z by sampling is right within its own error, its bracket holds the truth, and it warns."""

import functools
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import ENERGIES_EXACT, ESTIMATORS
from laws import NUM_SIGMAS, assert_close, assert_mean
from torch import tensor
from torch.distributions import constraints

from pyro_ebm import Boltzmann, logz
from pyro_ebm.energies import DoubleWell, Gaussian, TwoModes
from pyro_ebm.kernels import HMC, MALA, NUTS, ULA, RandomWalk
from pyro_ebm.kernels.transition import seeded_generator
from pyro_ebm.logz.annealing import anneal
from pyro_ebm.logz.base import lognormal_error, relative_error, weight_ess
from pyro_ebm.logz.bridge import linked, met
from pyro_ebm.logz.ladder import Ladder, climb, num_levels
from pyro_ebm.logz.path import Path, Walkers
from pyro_ebm.logz.plan import scout
from pyro_ebm.logz.thermodynamic import integrated, stepped

SCALE, RATE, SHAPE = 0.7, 1.3, 2.2


def plain(energy):
    """The same as a plain callable, of which nothing is known but its value."""
    return Boltzmann(lambda x: energy(x), event_shape=energy.event_shape)


def gamma():
    """A positive support, with the Jacobian, at a temperature."""
    law = dist.Gamma(SHAPE, RATE, validate_args=False)
    p = Boltzmann(
        lambda x: -2 * (law.log_prob(x) - 0.3),
        event_shape=(),
        support=constraints.positive,
        temperature=2.0,
    )
    return p, -0.3


EXACT = {
    "gaussian": lambda: plain(ENERGIES_EXACT["gaussian_matrix"]()),
    "two_modes": lambda: plain(TwoModes(theta=-math.log(4.0))),
    "double_well": lambda: plain(DoubleWell(beta=1.5, tilt=0.6)),
    "banana": lambda: Boltzmann(ENERGIES_EXACT["banana"]()),
    "gamma": lambda: gamma()[0],
}
TRUTH = {
    "gaussian": lambda: ENERGIES_EXACT["gaussian_matrix"]().log_z().item(),
    "two_modes": lambda: 0.5 * math.log(2 * math.pi) + math.log(5.0),
    "double_well": lambda: DoubleWell(beta=1.5, tilt=0.6).log_z().item(),
    "banana": lambda: ENERGIES_EXACT["banana"]().log_z().item(),
    "gamma": lambda: -0.3,
}


@functools.cache
def planned(name):
    """With no need to look for the target, of which there are draws, all but one time."""
    pyro.set_rng_seed(3)
    target, draws = (
        EXACT[name](),
        {
            "gaussian": lambda: ENERGIES_EXACT["gaussian_matrix"]().sample(500),
            "two_modes": lambda: TwoModes(theta=0.0).sample(500),
            "banana": lambda: ENERGIES_EXACT["banana"]().sample(500),
            "gamma": lambda: dist.Gamma(SHAPE, RATE).sample((500,)),
        }.get(name, lambda: None)(),
    )
    return logz.plan(target, draws=draws)


QUICK = {"gaussian", "double_well"}
"""The targets of which every estimator is tried at once; of the others one."""

PAIRS = [
    pytest.param(
        target, name, marks=() if target in QUICK or name == "smc" else (pytest.mark.slow,)
    )
    for target in EXACT
    for name in ESTIMATORS
]


@pytest.mark.parametrize(("target", "estimator"), PAIRS)
def test_is_right_within_its_own_error_and_so_are_its_bounds(target, estimator):
    made, truth = planned(target), TRUTH[target]()
    pyro.set_rng_seed(17)
    z = ESTIMATORS[estimator](made)
    assert_close(z.value, truth, z.std_error)
    assert z.std_error < 0.1
    slack = NUM_SIGMAS * z.std_error
    assert z.lower - slack < truth < z.upper + slack
    assert z.lower <= z.value
    assert z.method.replace(" ", "_") == estimator
    if estimator != "importance":
        assert z.upper - z.lower < 2.5


@pytest.mark.parametrize("kernel", [MALA, HMC, NUTS, RandomWalk])
def test_takes_any_kernel_with_a_metropolis_step(kernel):
    pyro.set_rng_seed(5)
    target, draws = EXACT["double_well"](), DoubleWell(beta=1.5, tilt=0.6).sample(500)
    z = logz.smc(logz.plan(target, draws=draws, kernel=kernel()), num_particles=512)
    assert_close(z.value, TRUTH["double_well"](), z.std_error)


def test_tunes_the_step_size_of_each_rung():
    made = planned("gaussian")
    z = logz.ais(made, num_chains=128, num_rungs=60, reverse=False)
    low, high = z.rungs.accept_prob[1:-1].chunk(2)
    for part in (low, high):  # the length of a trajectory, and with it the acceptance, is random
        assert_close(part.mean(), made.path.target_accept_prob, 0.01 + part.std() / 30**0.5)


@pytest.mark.parametrize("kernel", [MALA, HMC, NUTS])
def test_walkers_keep_the_energies_of_where_they_are(kernel):
    target, draws = EXACT["banana"](), ENERGIES_EXACT["banana"]().sample(500)
    base = dist.Normal(0.5, 2.0).expand([2]).to_event(1)
    path = logz.plan(target, draws=draws, base=base, kernel=kernel()).path
    generator = seeded_generator(torch.device("cpu"))
    start = path.draw_base(200, generator)
    beta, step_size = torch.rand(200), 0.2 + torch.rand(200)
    moved, accept_prob = path.move(start, beta, step_size, 3, generator)
    for name, kept, fresh in zip(moved._fields, moved, path.locate(moved.z), strict=True):
        torch.testing.assert_close(kept, fresh, msg=name)
    stayed = (moved.z == start.z).all(-1)
    assert 0 <= accept_prob.min() < accept_prob.max() <= 1
    assert 0 < stayed.sum() < 200 or kernel is NUTS


def test_gradients_are_those_of_the_energies_along_the_coordinates():
    path = logz.plan(
        EXACT["banana"](),
        draws=ENERGIES_EXACT["banana"]().sample(500),
        base=dist.Normal(0.5, 2.0).expand([2]).to_event(1),
    ).path
    z, step = torch.randn(4, 2), 1e-5
    here = path.locate(z)
    for i, unit in enumerate(torch.eye(2)):
        up, down = path.locate(z + step * unit), path.locate(z - step * unit)
        for rise, grad in (
            (up.value - down.value, here.grad),
            (up.base_value - down.base_value, here.base_grad),
        ):
            torch.testing.assert_close(rise / (2 * step), grad[:, i], rtol=1e-6, atol=1e-6)


def test_thermodynamic_rule_is_right_to_fourth_order():
    """Exact draws at the rungs from N(0, 1) to N(0, 1/4), of which there are few."""
    betas = torch.linspace(0, 1, 6) ** 1.5
    x = torch.randn(4000, 64, 6) / (1 + 3 * betas).sqrt()
    ladder = Ladder(
        betas, 1.5 * x.square() - 0.5 * math.log(2 * math.pi), x[..., -1], betas, betas
    )
    truth = 0.5 * math.log(2 * math.pi) - math.log(2)
    for rule in (integrated, stepped, linked):
        z = rule(ladder)
        assert_close(z.value, truth, z.std_error)
        assert z.std_error < 0.003
        assert z.lower < truth < z.upper


def test_the_error_of_many_spans_counts_that_neighbours_share_draws():
    """Those of a rung serve the spans on both of its sides, with opposite signs: few chains."""
    betas = torch.linspace(0, 1, 6) ** 1.5
    truth, off = 0.5 * math.log(2 * math.pi) - math.log(2), []
    for _ in range(400):
        x = torch.randn(50, 16, 6) / (1 + 3 * betas).sqrt()
        excess = 1.5 * x.square() - 0.5 * math.log(2 * math.pi)
        z = linked(Ladder(betas, excess, x[..., -1], betas, betas))
        off.append((z.value - truth) ** 2 - z.std_error**2)
    assert_mean(tensor(off), 0.0)


def narrow():
    """Far from a base that is given and wide: walkers have to be resampled on the way."""
    return plain(Gaussian(tensor([3.0, -2.0]), tensor([30.0, 50.0])))


def test_the_bridge_has_bounds_as_tight_as_its_draws_allow():
    """Of log ratios that are normal on both sides, log Z is 0, and 1 is their divergence."""
    of_base = torch.randn(128_000) - 0.5
    of_target = torch.randn(64, 2000) + 0.5
    z = met(of_base, of_target, float(of_target.numel()))
    assert_close(z.value, 0.0, z.std_error)
    assert z.lower < 0 < z.upper
    assert z.upper - z.lower < 4 * NUM_SIGMAS * z.std_error


def test_replicas_carry_chains_between_modes():
    """Every pair swaps in its turn: else no chain would come from the base to the target."""
    made = planned("two_modes")
    ladder = climb(made, 64, 400, num_levels(made), seeded_generator(torch.device("cpu")))
    above = made.path.points(Walkers(ladder.z, ladder.z)).squeeze(-1) > 0
    crossed = above.any(0) & ~above.all(0)
    assert crossed.double().mean() > 0.9


def test_smc_finds_the_way_from_a_base_that_is_far():
    base = dist.Normal(0.0, 3.0).expand([2]).to_event(1)
    z = logz.smc(narrow(), base=base, reverse=False, conditional_ess=0.5)
    assert_close(z.value, math.log(2 * math.pi) - 0.5 * math.log(1500), z.std_error)
    assert 0.05 < z.std_error < 0.3


def test_temperatures_keep_the_share_of_particles_that_was_asked_for():
    made = logz.plan(narrow(), base=dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    walkers = made.path.draw_base(4000, seeded_generator(torch.device("cpu")))
    for share in (0.5, 0.9):
        gap = math.sqrt(-math.log(share))
        betas = made.rungs(math.ceil(made.lengths[-1].item() / gap))
        weights = (-(betas[1] - betas[0]) * walkers.excess).exp()
        kept = weights.sum().square() / (len(weights) * weights.square().sum())
        assert abs(kept.item() - share) < 0.12
    assert bool((betas.diff() > 0).all())


def test_weights_of_both_directions_are_unbiased_with_few_rungs():
    """E[w] = Z and E[r] = 1 / Z at any schedule, where the weights of one rung are no use."""
    made, truth = planned("gaussian"), TRUTH["gaussian"]()
    generator = seeded_generator(torch.device("cpu"))
    betas, num = made.rungs(3), 20_000
    up, _ = anneal(made, made.path.draw_base(num, generator), betas, generator)
    x = ENERGIES_EXACT["gaussian_matrix"]().sample(num)
    down, _ = anneal(made, made.path._at(x), betas.flip(0), generator)
    for log_w, sign in ((up[-1], 1), (down[-1], -1)):
        weights = (log_w - sign * truth).exp()
        assert_close(weights.mean(), 1.0, weights.std() / math.sqrt(num))
    assert up[-1].mean() < truth < -down[-1].mean()


def test_a_base_on_a_constrained_support_has_its_jacobian():
    z = logz.smc(gamma()[0], base=dist.Exponential(0.4), num_particles=1024, reverse=False)
    assert_close(z.value, -0.3, z.std_error)


@pytest.mark.slow
def test_a_learned_base_overlaps_where_a_normal_one_does_not():
    energy = ENERGIES_EXACT["banana"]()
    target, draws = Boltzmann(energy), energy.sample(4000)
    law = logz.flow(target, draws)
    plain_z = logz.importance(logz.plan(target, draws=draws), num_samples=4000)
    z = logz.importance(logz.plan(target, draws=draws, base=law), num_samples=4000)
    assert_close(z.value, energy.log_z(), z.std_error)
    assert z.ess > 1.3 * plain_z.ess


def test_warns_of_a_base_that_misses_a_mode():
    """The forward weights of the missed mode never turn up: they agree on half of Z."""
    target = Boltzmann(TwoModes(theta=-math.log(4.0)))
    missing = dist.Normal(-10.0, 1.0)
    with pytest.warns(UserWarning, match=r"bracket of log Z has not closed: 0\.9\d+ ± 0\.0"):
        z = logz.ais(target, base=missing, num_chains=128, num_rungs=16)
    assert z.lower < TRUTH["two_modes"]() < z.upper
    assert z.value < TRUTH["two_modes"]() - 1.0


def test_warns_of_an_energy_that_cannot_be_normalised():
    """Tails of |x|^(-0.6): what the run that looks for it finds has no meaning."""
    target = Boltzmann(lambda x: 0.3 * (1 + x.square()).log().sum(-1), event_shape=(2,))
    with pytest.warns(UserWarning, match="not\\s*normalisable"):
        logz.ais(target, num_chains=64, num_rungs=16)


@pytest.mark.slow
def test_refuses_an_energy_that_never_rises():
    target = Boltzmann(lambda x: 0 * x.sum(-1), event_shape=(2,))
    with pytest.raises(ValueError, match=r"walkers spread .* or the energy is not normalisable"):
        logz.ais(target, num_chains=64, num_rungs=16)


@pytest.mark.filterwarnings("ignore:chains that look for the target run off")  # a hard wall
def test_says_when_a_base_covers_no_point_of_the_target():
    def walled(x):
        return torch.where(x > 0, x, torch.inf)

    with pytest.raises(ValueError, match="not finite at any draw of the base"):
        logz.ais(Boltzmann(walled, event_shape=()), base=dist.Normal(-30.0, 1.0))


def test_an_infinite_energy_loses_its_walkers_and_no_more():
    def walled(x):
        return torch.where(x > 0, x.square(), torch.inf)

    z = logz.smc(Boltzmann(walled, event_shape=()), base=dist.Normal(0.5, 1.0))
    truth = 0.5 * math.log(math.pi / 4)
    assert_close(z.value, truth, z.std_error)
    assert z.lower < truth < z.upper < truth + 0.3


class Spins(Path):
    """Three bits with a given energy, from fair coins, moved by single flips."""

    states = torch.tensor(list(itertools.product([0, 1], repeat=3)))
    energies = tensor([0.0, 1.0, -1.0, 2.5, 0.3, -2.0, 1.5, 0.7])

    def excess(self, z):
        at = (z * tensor([4, 2, 1])).sum(-1)
        return self.energies[at].double() - 3 * math.log(2)

    def locate(self, z):
        return Walkers(z, self.excess(z))

    def draw_base(self, num_walkers, generator):
        return self.locate(torch.randint(2, (num_walkers, 3), generator=generator))

    def draw_target(self, num_walkers):
        raise NotImplementedError

    def refitted(self, walkers):
        return self

    def move(self, walkers, beta, step_size, num_steps, generator):
        for _ in range(num_steps):
            rows = torch.arange(len(walkers.z))
            site = torch.randint(3, (len(rows),), generator=generator)
            flipped = walkers.z.clone()
            flipped[rows, site] = 1 - flipped[rows, site]
            there = self.locate(flipped)
            accept_prob = (beta * (walkers.excess - there.excess)).exp().clamp(max=1)
            taken = torch.rand(len(rows), generator=generator) < accept_prob
            walkers = Walkers(
                torch.where(taken[:, None], there.z, walkers.z),
                torch.where(taken, there.excess, walkers.excess),
            )
        return walkers, accept_prob


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_path_through_discrete_states_plugs_in(estimator):
    made = scout(Spins(), seeded_generator(torch.device("cpu")))
    z = ESTIMATORS[estimator](made)
    assert_close(z.value, (-Spins.energies).logsumexp(0), z.std_error)


def test_follows_the_seed():
    target = EXACT["double_well"]()
    found = []
    for _ in range(2):
        pyro.set_rng_seed(1)
        found.append(logz.smc(target, num_particles=256).value)
    assert found[0] == found[1]


def test_held_out_likelihood_has_the_error_of_points_and_of_log_z():
    energy = Gaussian(tensor([0.5, -1.0]), tensor([2.0, 0.5]))
    known = logz.LogZ(energy.log_z().item(), 0.0, math.inf, 0.0, 0.0)
    unsure = known._replace(std_error=0.3)
    x = energy.sample(4000)
    found = logz.held_out(Boltzmann(energy), x, known)
    assert_close(found.value, -(1 + energy.log_z()).item(), found.std_error)
    assert found.std_error == pytest.approx(1 / math.sqrt(4000), rel=0.1)
    assert logz.held_out(Boltzmann(energy), x, unsure).std_error == pytest.approx(
        math.hypot(0.3, found.std_error)
    )


def test_each_condition_has_its_own_log_z():
    biases = tensor([[0.8, -0.4, 1.3], [-1.1, 0.5, 0.2]])

    def energy(x, y):
        return -(x * biases[y]).sum(-1) - 0.7 * (1 + y) * x[..., 0] * x[..., 2]

    def law(y):
        support = constraints.independent(constraints.boolean, 1)
        return Boltzmann(functools.partial(energy, y=y), event_shape=(3,), support=support)

    y = (torch.rand(600) < 0.3).long()
    x = torch.stack([law(one).sample() for one in y])
    of = [logz.exact(law(one)) for one in (0, 1)]
    assert abs(of[0].value - of[1].value) > 0.3
    found = logz.held_out(law(y), x, [of[one] for one in y])
    each = torch.stack([law(one).log_prob(point) for one, point in zip(y, x, strict=True)])
    assert found.value == pytest.approx(each.mean().item(), abs=1e-5)
    assert found.std_error == pytest.approx(each.std().item() / math.sqrt(600), rel=1e-4)
    unsure = [z._replace(std_error=error) for z, error in zip(of, (0.1, 0.3), strict=True)]
    share = y.double().mean().item()
    together = math.hypot(found.std_error, 0.1 * (1 - share), 0.3 * share)
    again = logz.held_out(law(y), x, [unsure[one] for one in y])
    assert again.std_error == pytest.approx(together)
    with pytest.raises(ValueError, match="sequence of 600, one for each point, got 2"):
        logz.held_out(law(y), x, of)


def test_members_of_a_batch_have_their_own_log_z():
    loc = tensor([0.0, 3.0])
    batch = Boltzmann(lambda x: 0.5 * (x - loc).square() * loc.exp(), event_shape=()).expand([2])
    x = loc + torch.randn(500, 2) * (-loc / 2).exp()
    each = [
        logz.LogZ(0.5 * math.log(2 * math.pi) - 0.5 * one, 0.0, math.inf, 0.0, 0.0)
        for one in loc.tolist()
    ]
    found = logz.held_out(batch, x, each)
    exact = dist.Normal(loc, (-loc / 2).exp()).log_prob(x)
    assert found.value == pytest.approx(exact.mean().item(), abs=1e-5)
    with pytest.raises(ValueError, match="sequence of 2, one for each member of the batch, got 1"):
        logz.held_out(batch, x, each[:1])


def test_choice_is_exact_then_quadrature_then_walkers():
    energy = Gaussian(torch.zeros(2), 1.0)
    assert logz.estimate(Boltzmann(energy)) == logz.LogZ(
        *[math.log(2 * math.pi), 0.0, math.inf, math.log(2 * math.pi), math.log(2 * math.pi)],
        "exact: Gaussian.log_z",
    )
    assert logz.estimate(Boltzmann(energy, temperature=3.0)).method == "quadrature"
    four = Gaussian(torch.zeros(4), tensor([1.0, 0.5, 2.0, 10.0]))
    z = logz.estimate(plain(four))
    assert z.method == "smc"
    assert_close(z.value, four.log_z(), z.std_error)


def test_draws_stand_in_for_the_run_that_looks_for_the_target():
    energy = TwoModes(theta=-math.log(4.0), a=-40.0, b=300.0)
    made = logz.plan(plain(energy), draws=energy.sample(1000))
    z = logz.smc(made, num_particles=1024)
    assert_close(z.value, energy.log_z(), z.std_error)


def test_plot_shows_the_path():
    z = logz.smc(planned("banana"), num_particles=256)
    assert [ax.get_ylabel() for ax in z.plot().get_axes()] == [
        "log Z at beta (nats)",
        "effective part of walkers",
        "acceptance",
    ]
    assert z.rungs.log_z[-1].item() == z.value
    with pytest.raises(ValueError, match="importance followed no path"):
        logz.importance(planned("gaussian")).plot()


def test_warns_of_weights_with_a_heavy_tail():
    narrow_base = dist.Normal(0.0, 0.3)
    wide = plain(Gaussian(tensor(0.0), 1.0))
    with pytest.warns(UserWarning, match=r"tail of shape k_hat = [01]\.\d+, above 0.7"):
        assert logz.importance(wide, base=narrow_base).k_hat > 0.7


def test_smoothed_weights_are_those_of_arviz():
    arviz = pytest.importorskip("arviz")
    normal = torch.randn(2000)
    apart = [spread * normal for spread in (0.3, 1.0, 3.0)]
    tied = [0.4 * (2 * normal).round(), 1.5 * normal.round()]
    for log_weights in apart + tied:
        ours, shape = logz.pareto.smoothed(log_weights)
        theirs, k = arviz.psislw(log_weights.numpy())
        assert shape == pytest.approx(float(k), abs=1e-8)
        both = ours - ours.logsumexp(0), tensor(theirs)
        if any(log_weights is one for one in tied):  # which of equals is the larger is arbitrary
            both = [one.sort().values for one in both]
        torch.testing.assert_close(*both)


TARGET = EXACT["double_well"]
WRONG = {
    "num_chains must be a multiple of 16": lambda: logz.ais(TARGET(), num_chains=40),
    "num_rungs must be at least 1, got 0": lambda: logz.ais(TARGET(), num_chains=64, num_rungs=0),
    "num_islands must be at least 8": lambda: logz.smc(TARGET(), num_islands=4),
    "conditional_ess must be between 0 and 1, got 1": lambda: logz.smc(
        TARGET(), conditional_ess=1.0
    ),
    "num_rungs 3, got 64, 200 and 2": lambda: logz.thermodynamic(TARGET(), num_rungs=2),
    "num_steps 10 ": lambda: logz.stepping_stone(TARGET(), num_steps=3),
    "num_chains must be at least 8, num_steps 4": lambda: logz.bridge(TARGET(), num_chains=4),
    "num_samples must be at least 100": lambda: logz.importance(TARGET(), num_samples=30),
    "kernel must have a Metropolis step, got ULA": lambda: logz.smc(
        TARGET(), kernel=ULA(step_size=0.1)
    ),
    "kernel must come without a target": lambda: logz.smc(TARGET(), kernel=MALA(TARGET())),
    "a plan has its kernel and base": lambda: logz.smc(planned("gaussian"), kernel=MALA()),
    r"log Z is of one distribution, got batch_shape \(3,\)": lambda: logz.ais(
        TARGET().expand([3])
    ),
    r"of one distribution, got batch_shape \(2,\)": lambda: logz.estimate(TARGET().expand([2])),
    "draws must have shape .*, with 100 draws or more": lambda: logz.flow(
        TARGET(), torch.zeros(20)
    ),
    "base must be normalised": lambda: logz.ais(TARGET(), base=TARGET()),
    r"base must be over one point, with event_shape \(\)": lambda: logz.ais(
        TARGET(), base=dist.Normal(torch.zeros(2), 1.0)
    ),
    r"draws must have shape \(n, \*event\)": lambda: logz.plan(TARGET(), draws=torch.zeros(9, 2)),
    "base and draws are of one point of a Boltzmann": lambda: logz.plan(
        lambda: None, base=dist.Normal(0.0, 1.0)
    ),
    r"x must have shape \(n, \*batch, \*event\)": lambda: logz.held_out(
        TARGET(), torch.zeros(5, 2), logz.quadrature(TARGET())
    ),
    "log_z must be one LogZ.*got float": lambda: logz.held_out(TARGET(), torch.zeros(5), 1.5),
    "log_z must be one LogZ.*got Tensor": lambda: logz.held_out(
        TARGET(), torch.zeros(2), [tensor(1.5), tensor(1.5)]
    ),
    r"kernel must be one of sites .* as support Boolean.* is discrete": lambda: logz.smc(
        Boltzmann(lambda x: x, event_shape=(), support=constraints.boolean), kernel=MALA()
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_refuses_and_names_the_argument(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


def test_the_error_of_few_estimates_that_spread_widely_covers():
    """Of 32 log-normal ones: by the spread of the estimates themselves 89 % would be covered."""
    logs = torch.randn(4000, 32)
    values = logs.logsumexp(1) - math.log(32)
    errors = torch.stack([lognormal_error(one) for one in logs])
    covered = ((values - 0.5).abs() < 1.96 * errors).double().mean().item()
    assert abs(covered - 0.945) < 5 * math.sqrt(0.95 * 0.05 / 4000)
    lost = torch.cat([logs[0], tensor([-math.inf])])
    assert lognormal_error(lost) == relative_error(lost)


def test_the_effective_number_of_weights_has_its_formula_whatever_their_scale():
    log_weights = 7.0 + tensor([1.0, 2.0, 3.0]).log()
    torch.testing.assert_close(weight_ess(log_weights), tensor(36.0 / 14.0))


@pytest.mark.parametrize("kernel", [MALA, HMC])
def test_walkers_with_a_step_size_each_move_as_they_do_with_one(kernel):
    target = Boltzmann(Gaussian(tensor([1.0, -2.0]), tensor([[2.0, 0.5], [0.5, 1.0]])))
    path = logz.plan(target, kernel=kernel()).path
    walkers = path.draw_base(40, torch.Generator().manual_seed(1))
    sizes = tensor([0.1, 0.3]).repeat(20)

    def moved(step_size):
        generator = torch.Generator().manual_seed(2)
        return path.move(walkers, tensor(0.7), step_size, 1, generator)[0].z

    for size in (0.1, 0.3):
        own = sizes == size
        torch.testing.assert_close(moved(sizes)[own], moved(tensor(size))[own])
