"""log Z of discrete targets by walkers: the path is what it says, the estimates are right."""

import json
import math
import pathlib

import pyro
import pytest
import torch
from discrete_cases import DISCRETE, DISCRETE_KERNELS, uneven
from discrete_cases import Potts as OneHot
from laws import assert_close, assert_mean
from torch import tensor
from torch.distributions import Categorical, constraints

from pyro_ebm import Boltzmann, kernels, logz
from pyro_ebm.energies import (
    RBM,
    ChainCRF,
    Ising,
    IsingGraph,
    MarkovRandomField,
    Potts,
    spins,
)
from pyro_ebm.energies.enumeration import enumerate_points
from pyro_ebm.kernels.transition import seeded_generator
from pyro_ebm.logz import discrete
from pyro_ebm.logz.between import Between
from pyro_ebm.logz.path import taken

DIGITS = json.loads((pathlib.Path(__file__).parent / "data" / "rbm_digits.json").read_text())
DIGITS_LOG_Z = 51.31900717
TEMPERATURE = 1.3
NUM = 20_000
WALKERS = [logz.ais, logz.smc, logz.thermodynamic, logz.stepping_stone, logz.bridge]

EDGES = tensor([[3, 0], [0, 1], [1, 2], [2, 4]])
TARGETS = {
    **{name: build for name, build in DISCRETE.items() if "3x3" not in name},
    "graph": lambda: (
        IsingGraph(
            tensor([[3, 0], [0, 1], [1, 2], [2, 4]]), uneven(4, 0.1, 0.8), uneven(5, -1, 1)
        ),
        {},
    ),
    "one_hot_graph": lambda: (
        OneHot(EDGES, uneven(4, 0.1, 0.8), uneven(15, -0.8, 0.7).reshape(5, 3), one_hot=True),
        {},
    ),
    "potts_ring": lambda: (Potts((5,), 3, 0.6, uneven(15, -0.4, 0.5).reshape(5, 3)), {}),
    "rbm_4+3": lambda: (
        RBM(uneven(12, -1.6, 1.9).reshape(4, 3), uneven(4, -1.0, 0.6), uneven(3, -0.6, 0.9)),
        {},
    ),
}


def path_to(name, temperature, uniform, kernel=None):
    energy, told = TARGETS[name]()
    law = Boltzmann(energy, temperature=temperature, **told)
    path = logz.DiscretePath(law, kernel=kernel)
    shape = (*path.sites, path.num_values)
    logits = uneven(math.prod(shape), -0.7, 0.9).reshape(shape)
    return path if uniform else logz.DiscretePath(law, logits, kernel)


def all_points(path):
    law = path.boltzmann
    return path.locate(enumerate_points(law.support, law.event_shape, torch.zeros(())))


def base_log_prob(path, points):
    """Of independent sites, from the base's own definition."""
    if path.logits is None:
        return -torch.full((len(points),), path.sites.numel() * math.log(path.num_values))
    one_hot = path.alphabet.encode(points).unsqueeze(-1) == torch.arange(path.num_values)
    return (path.logits.double() * one_hot).reshape(len(points), -1).sum(-1)


def feature(walkers):
    z = walkers.z.flatten(1).double()
    weighted = z @ (torch.arange(z.shape[1]) * 0.37 + 0.2).cos().double()
    return torch.stack([walkers.excess, weighted, weighted.square()], -1)


every = pytest.mark.parametrize("name", TARGETS)
bases = pytest.mark.parametrize("uniform", [True, False], ids=["uniform", "fitted"])


@every
@bases
def test_excess_adds_up_to_log_z(name, uniform):
    path = path_to(name, TEMPERATURE, uniform)
    points = all_points(path)
    log_p = base_log_prob(path, points.z)
    assert log_p.logsumexp(0).item() == pytest.approx(0.0, abs=1e-5)
    energy, told = TARGETS[name]()
    exact = logz.exact(Boltzmann(energy, temperature=TEMPERATURE, **told)).value
    assert (log_p - points.excess).logsumexp(0).item() == pytest.approx(exact, abs=1e-5)


@every
@bases
@pytest.mark.parametrize("temperature", [1.0, TEMPERATURE])
def test_moves_leave_the_law_between_invariant(name, uniform, temperature):
    path = path_to(name, temperature, uniform)
    accept_prob = check_invariance(path)
    assert (accept_prob == 1).all()


def check_invariance(path):
    """At two temperatures, of each walker its own or of all."""
    generator = seeded_generator(torch.device("cpu"))
    points = all_points(path)
    log_base = base_log_prob(path, points.z)
    halves = []
    for beta in (0.35, 0.8):
        law = Categorical(logits=log_base - beta * points.excess)
        start = taken(points, law.sample((NUM // 2,)))
        halves.append((beta, law.probs, start))
    start = type(points)(*map(torch.cat, zip(*(h[2] for h in halves), strict=True)))
    each = tensor([h[0] for h in halves], dtype=torch.float64).repeat_interleave(NUM // 2)
    moved, accept_prob = path.move(start, each, each, 1, generator)
    assert torch.equal(path.locate(moved.z).excess, moved.excess)
    for rows, (beta, probs, begin) in zip(torch.arange(NUM).chunk(2), halves, strict=True):
        exact = probs.double() @ feature(points)
        by_each = feature(taken(moved, rows))
        assert_close(by_each.mean(0), exact, by_each.std(0) / math.sqrt(len(rows)))
        one = tensor(beta, dtype=torch.float64)
        together, _ = path.move(begin, one, one, 1, generator)
        by_one = feature(together)
        assert_close(by_one.mean(0), exact, by_one.std(0) / math.sqrt(len(rows)))
    return accept_prob


WITH_CLUSTERS = ["ising_3x4", "potts_ring", "graph", "one_hot_graph"]
BY_KERNEL = [
    (kernel, name)
    for kernel in DISCRETE_KERNELS
    for name in (*WITH_CLUSTERS, "one_hot_5x3", "curved_integers", "rbm_4+3")
    if kernel != "DiscreteTempering" and (kernel != "SwendsenWang" or name in WITH_CLUSTERS)
]


@bases
@pytest.mark.parametrize(("kernel", "name"), BY_KERNEL)
def test_any_kernel_leaves_the_law_between_invariant(kernel, name, uniform):
    path = path_to(name, TEMPERATURE, uniform, DISCRETE_KERNELS[kernel]())
    accept_prob = check_invariance(path)
    assert ((accept_prob >= 0) & (accept_prob <= 1)).all()
    begin = path.draw_base(50, seeded_generator(torch.device("cpu")))
    one = tensor(0.7, dtype=torch.float64)
    after, _ = path.move(begin, one, one, 3, seeded_generator(torch.device("cpu")))
    assert not torch.equal(after.z, begin.z)


@every
@bases
def test_changes_between_are_those_of_its_potential(name, uniform):
    """At a temperature of each walker's own; they are exact where the conditionals are known."""
    path = path_to(name, TEMPERATURE, uniform)
    if path.energy is None:
        return
    points = all_points(path)
    beta = torch.linspace(0.1, 0.9, len(points.z), dtype=torch.float64)
    between = Between(path, beta, points)
    z = points.z.flatten(1)
    value, changes = between.value_and_changes(z)
    for site in range(changes.shape[1]):
        for place in range(path.num_values):
            where = torch.full((len(z),), site), torch.full((len(z),), place)
            after = between.value(between.with_place(z, *where))
            torch.testing.assert_close(changes[:, site, place].double(), after - value)


def test_clusters_turn_a_magnet_that_sweeps_leave_as_it_is():
    path = logz.DiscretePath(Boltzmann(Ising((6, 6), 1.0)))
    one = tensor(1.0, dtype=torch.float64)
    generator = seeded_generator(torch.device("cpu"))
    moved, _ = path.move(path.locate(torch.ones(300, 6, 6)), one, one, 20, generator)
    assert_mean(moved.z.mean((-2, -1)), 0.0)


@pytest.mark.parametrize("name", ["potts_ring", "rbm_4+3"])
def test_walkers_move_alike_in_blocks(name, monkeypatch):
    monkeypatch.setattr(discrete, "BLOCK", 30_000)
    assert (check_invariance(path_to(name, TEMPERATURE, uniform=False)) == 1).all()


@pytest.mark.parametrize("name", TARGETS)
def test_clusters_turn_where_pairs_attract_each_other_and_nothing_else(name):
    kernel = path_to(name, TEMPERATURE, uniform=True).kernel
    assert isinstance(kernel, kernels.SwendsenWang) == (name in WITH_CLUSTERS)


def test_the_gain_of_a_base_is_what_its_entropy_lacks():
    path = path_to("potts_ring", 1.0, uniform=False)
    points = all_points(path)
    log_p = base_log_prob(path, points.z)
    lacks = (log_p.exp() * (log_p + 5 * math.log(3))).sum()
    assert path.gain == pytest.approx(lacks.item(), rel=1e-6)
    assert path_to("potts_ring", 1.0, uniform=True).gain == 0


@pytest.mark.parametrize("estimator", WALKERS)
def test_estimators_take_any_kernel(estimator):
    target, exact = LARGER["ising with a field"]()
    pyro.set_rng_seed(14)
    made = logz.plan(target, kernel=kernels.DiscreteMALA(step_size=0.3))
    assert 0.01 < made.step_sizes.min() < made.step_sizes.max() <= 10
    z = estimator(made)
    assert_close(z.value, exact, z.std_error)
    assert z.std_error < 0.15


@every
@bases
def test_base_is_drawn_from_as_it_is_counted(name, uniform):
    path = path_to(name, 1.0, uniform)
    points, drawn = all_points(path), path.draw_base(NUM, seeded_generator(torch.device("cpu")))
    exact = base_log_prob(path, points.z).exp().double()
    for fn in (feature, lambda w: feature(w).square()):
        assert_close(fn(drawn).mean(0), exact @ fn(points), fn(drawn).std(0) / math.sqrt(NUM))


LARGER = {
    "ising 3x3": lambda: (Boltzmann(Ising((3, 3), 0.44068679350977)), 9.020213400944),
    "ising 4x4": lambda: (Boltzmann(Ising((4, 4), 0.3)), 12.785523325714),
    "ising 4x4 at T": lambda: (Boltzmann(Ising((4, 4), 0.6), temperature=2.0), 12.785523325714),
    "ising with a field": lambda: known(Ising((4, 4), 0.3, uneven(16, -0.1, 0.9).reshape(4, 4))),
    "potts": lambda: (Boltzmann(Potts((3, 3), 3, math.log(1 + math.sqrt(3)))), 19.688939731847),
    "chain": lambda: known(
        ChainCRF(uneven(30, -0.8, 0.7).reshape(10, 3), uneven(9, -0.4, 0.9).reshape(3, 3))
    ),
    "labels": lambda: known(
        MarkovRandomField(
            uneven(30, -1.4, 1.5).reshape(10, 3),
            torch.stack([torch.arange(9), torch.arange(1, 10)], -1),
            uneven(81, -0.8, 0.9).reshape(9, 3, 3),
        )
    ),
    "rbm": lambda: known(
        RBM(uneven(96, -1.6, 1.9).reshape(16, 6), uneven(16, -1.0, 0.6), uneven(6, -0.6, 0.9))
    ),
    "rbm at T": lambda: known(
        RBM(uneven(36, -1.6, 1.9).reshape(9, 4), uneven(9, -1.0, 0.6), uneven(4, -0.6, 0.9)), 2.0
    ),
    "plain spins": lambda: known(*DISCRETE["curved_spins"]()),
}


def known(energy, told=1.0):
    told = {"temperature": told} if isinstance(told, float) else told
    law = Boltzmann(energy, **told)
    return law, logz.exact(law).value


EVERY = {"ising 4x4 at T", "ising with a field"}
"""The targets of which every estimator is tried; of the others one, in turn."""

PAIRS = [
    pytest.param(name, estimator, id=f"{name}-{estimator.__name__}")
    for i, name in enumerate(LARGER)
    for k, estimator in enumerate(WALKERS)
    if name in EVERY or i % len(WALKERS) == k
]


@pytest.mark.parametrize(("name", "estimator"), PAIRS)
def test_estimators_are_right_within_their_error(name, estimator):
    target, exact = LARGER[name]()
    pyro.set_rng_seed(11)
    z = estimator(target)
    assert_close(z.value, exact, z.std_error)
    assert z.std_error < 0.15
    assert z.lower - 3 * z.std_error < exact < z.upper + 3 * z.std_error
    assert z.num_gradients > 0


@pytest.mark.parametrize("name", ["ising with a field", "chain", "plain spins"])
def test_importance_is_right_within_its_error_where_weights_tie(name):
    target, exact = LARGER[name]()
    pyro.set_rng_seed(12)
    z = logz.importance(target)
    assert z.k_hat <= 0.7
    assert_close(z.value, exact, z.std_error)
    assert z.std_error < 0.1
    assert z.lower < exact < z.upper


def test_importance_says_where_independent_sites_are_too_far():
    target = Boltzmann(Ising((8, 8), 0.44))
    pyro.set_rng_seed(13)
    with pytest.warns(UserWarning, match="Give draws of the target .* or use pyro_ebm.logz.ais"):
        z = logz.importance(target)
    assert z.lower < 60.076307527215


def test_critical_torus():
    pyro.set_rng_seed(2)
    z = logz.ais(Boltzmann(Ising((8, 8), 0.44)), num_chains=128)
    assert_close(z.value, 60.076307527215, z.std_error)
    assert z.std_error < 0.08


def digits():
    return Boltzmann(RBM(*(tensor(DIGITS[name]) for name in "Wbc")))


def test_digits_from_a_fitted_base():
    pyro.set_rng_seed(4)
    made = logz.plan(digits())
    far = logz.scout(logz.DiscretePath(digits()), torch.Generator().manual_seed(0))
    assert made.path.logits is not None
    assert made.lengths[-1] < far.lengths[-1]
    z = logz.smc(made, num_particles=1024)
    assert_close(z.value, DIGITS_LOG_Z, z.std_error)


def test_data_give_the_base_and_the_hidden_units_follow():
    pyro.set_rng_seed(5)
    energy = RBM(uneven(96, -1.6, 1.9).reshape(16, 6), uneven(16, -1.0, 0.6), uneven(6, -0.6, 0.9))
    target = Boltzmann(energy)
    draws = target.sample((500,))
    made = logz.plan(target, draws=draws)
    assert made.path.logits.shape == (22, 2)
    shares = made.path.logits.exp()[..., 1]
    given = torch.cat([draws, energy.hidden_given_visible(draws).mean], -1).mean(0)
    spread = 5 * 0.5 / math.sqrt(500)
    assert ((shares - (0.05 + 0.9 * given)).abs() < spread).all()
    z = logz.stepping_stone(made)
    assert_close(z.value, logz.exact(target).value, z.std_error)


def test_bracket_stays_open_where_the_base_is_the_visible_bias_alone():
    """The trap: visible units are off by their biases, and on with the hidden ones."""
    target = Boltzmann(
        RBM(torch.full((20, 8), 0.8), torch.full((20,), -4.0), torch.full((8,), -4.0))
    )
    exact = logz.exact(target).value
    biases = torch.cat([torch.full((20,), -4.0), torch.zeros(8)])
    trap = logz.DiscretePath(target, torch.stack([torch.zeros(28), biases], -1))
    pyro.set_rng_seed(1)
    made = logz.scout(trap, torch.Generator().manual_seed(6))
    with pytest.warns(UserWarning, match="the bracket of log Z has not closed"):
        bad = logz.smc(made)
    assert bad.upper - bad.lower > 3
    assert bad.lower < exact < bad.upper
    good = logz.smc(target)
    assert_close(good.value, exact, good.std_error)
    assert good.std_error < 0.1


def test_estimate_goes_by_annealing_where_no_sum_is_to_be_had():
    target, exact = LARGER["rbm at T"]()
    assert logz.estimate(target).value == exact
    pyro.set_rng_seed(3)
    field = uneven(30, -0.3, 0.5)
    law = Boltzmann(
        lambda x: -(x * field).sum(-1),
        event_shape=(30,),
        support=constraints.independent(spins, 1),
    )
    z = logz.estimate(law)
    assert z.method == "ais"
    assert_close(z.value, (2 * field.double().cosh()).log().sum(), z.std_error)


def test_exact_draws_are_used_in_reverse():
    energy = ChainCRF(uneven(30, -0.8, 0.7).reshape(10, 3), uneven(9, -0.4, 0.9).reshape(3, 3))
    path = logz.DiscretePath(Boltzmann(energy))
    assert path.exact
    assert not logz.DiscretePath(Boltzmann(energy, temperature=2.0)).exact
    z = path.draw_target(NUM).z
    marginals = energy.marginals()[..., 1:].double()
    share = torch.stack([(z == k).double().mean(0) for k in (1, 2)], -1)
    assert_close(share, marginals, (marginals * (1 - marginals) / NUM).sqrt())


class Biased(IsingGraph):
    """There is more to it than it says of pairs."""

    def forward(self, x):
        return super().forward(x) - 0.5 * x[..., 0] * x[..., 1] * x[..., 2]


WRONG = {
    r"logits must have shape \(3, 3, 2\)": lambda: logz.DiscretePath(
        Boltzmann(Ising((3, 3), 0.2)), torch.zeros(3, 3)
    ),
    "must be booleans, spins, integers": lambda: logz.DiscretePath(
        Boltzmann(lambda x: x**2, event_shape=())
    ),
    "base must be None": lambda: logz.plan(
        Boltzmann(Ising((3, 3), 0.2)), base=torch.distributions.Bernoulli(0.5)
    ),
    r"kernel must be one of sites .* got HMC": lambda: logz.smc(
        Boltzmann(Ising((3, 3), 0.2)), kernel=kernels.HMC()
    ),
    "got DiscreteTempering": lambda: logz.smc(
        Boltzmann(Ising((3, 3), 0.2)), kernel=kernels.DiscreteTempering(kernels.Gibbs())
    ),
    "kernel must come without a target": lambda: logz.ais(
        Boltzmann(Ising((3, 3), 0.2)), kernel=kernels.Gibbs(Boltzmann(Ising((3, 3), 0.2)))
    ),
    "SwendsenWang needs an energy with edges": lambda: logz.ais(
        Boltzmann(RBM(torch.ones(3, 2), torch.zeros(3), torch.zeros(2))),
        kernel=kernels.SwendsenWang(),
    ),
    "couplings of values that are not spins must not be negative": lambda: logz.plan(
        Boltzmann(DISCRETE["bipartite_5+3"]()[0]), kernel=kernels.SwendsenWang()
    ),
    "edges, couplings and field are not all": lambda: logz.plan(
        Boltzmann(Biased(tensor([[0, 1], [1, 2]]), 0.3, torch.zeros(3))),
        kernel=kernels.SwendsenWang(),
    ),
    r"draws must have shape \(n, \*event\)": lambda: logz.plan(
        Boltzmann(Ising((3, 3), 0.2)), draws=torch.ones(5, 9)
    ),
    "support .* must be continuous: a flow": lambda: logz.flow(
        Boltzmann(Ising((3, 3), 0.2)), torch.ones(200, 3, 3)
    ),
    "must be booleans, spins": lambda: logz.smc(
        Boltzmann(lambda x: x, event_shape=(), support=constraints.nonnegative_integer)
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_refuses_and_names_the_argument(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
