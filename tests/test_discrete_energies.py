"""Laws of the discrete energies, over all cases, against all their points."""

import copy
import itertools
import pickle

import pytest
import torch
from cases import ENERGIES_DISCRETE
from laws import FAILURE_RATE
from torch import tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.energies import RBM, ChainCRF, DiscreteEnergy, spins
from pyro_ebm.energies.enumeration import count_points, enumerate_points, log_sum_of_booleans

KNOW_LOG_Z = [name for name in ENERGIES_DISCRETE if name != "one_hot"]
SWEPT_AT_ANY_BETA = [name for name in ENERGIES_DISCRETE if name not in ("rbm", "rbm_wide")]
SWEPT_BY_THEMSELVES = [
    name
    for name in SWEPT_AT_ANY_BETA
    if type(ENERGIES_DISCRETE[name]()).sweep is not DiscreteEnergy.sweep
]


@pytest.fixture(params=ENERGIES_DISCRETE)
def energy(request):
    return ENERGIES_DISCRETE[request.param]()


def all_points(energy):
    return enumerate_points(energy.support, energy.event_shape, torch.zeros(()))


def drawn(energy, *batch, beta=1.0):
    """Draws exactly, from the list of all points."""
    points = all_points(energy)
    probs = (-beta * energy(points)).softmax(0).detach()
    return points[torch.multinomial(probs, torch.Size(batch).numel(), True).reshape(batch)]


def uniforms(energy, x):
    return torch.rand(*x.shape[: x.dim() - len(energy.event_shape)], *energy.uniform_shape)


def assert_law(x, energy, beta=1.0):
    """Asserts that draws follow the exact law: Pearson's test, rare points thrown together."""
    points = all_points(energy).flatten(1)
    probs = (-beta * energy(all_points(energy))).softmax(0).detach()
    keys = points.long() - points.long().min()
    base = int(keys.max()) + 1
    place = base ** torch.arange(keys.shape[1])
    order = torch.full((int((keys @ place).max()) + 1,), -1).scatter(
        0, keys @ place, torch.arange(len(keys))
    )
    which = order[(x.flatten(1).long() - points.long().min()) @ place]
    counts = torch.bincount(which, minlength=len(points)).double()
    expected = len(x) * probs
    common = expected > 10
    seen = torch.cat([counts[common], counts[~common].sum()[None]])
    due = torch.cat([expected[common], expected[~common].sum()[None]])
    kept = due > 0
    statistic = ((seen - due).square() / due)[kept].sum()
    freedom = int(kept.sum()) - 1
    p_value = 1 - torch.special.gammainc(tensor(freedom / 2), statistic / 2)
    assert freedom >= 3
    assert p_value > FAILURE_RATE, f"chi-square {statistic:.1f} on {freedom}: p = {p_value:.1e}"


# ---------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_shapes_are_those_of_batch_and_sites(energy, batch):
    x = drawn(energy, *batch)
    assert energy(x).shape == batch
    assert energy.conditionals(x).shape == (*batch, *energy.site_shape, energy.num_values)
    moved = energy.sweep(x, uniforms(energy, x))
    assert moved.shape == x.shape
    assert moved.dtype == x.dtype
    assert not moved.requires_grad
    assert bool(energy.support.check(moved).all())


def test_points_of_a_batch_do_not_see_one_another(energy):
    x = drawn(energy, 6)
    alone = torch.stack([energy(point) for point in x])
    torch.testing.assert_close(energy(x), alone)
    u = uniforms(energy, x)
    one_by_one = torch.stack([energy.sweep(p, v) for p, v in zip(x, u, strict=True)])
    torch.testing.assert_close(energy.sweep(x, u), one_by_one)


def test_float32_stays_float32(energy):
    x = drawn(energy, 3).float()
    single = energy.float()
    assert single(x).dtype == single.conditionals(x).dtype == torch.float32
    assert single.sweep(x, uniforms(single, x).float()).dtype == torch.float32


def test_integers_are_points_too(energy):
    x = drawn(energy, 3)
    torch.testing.assert_close(energy(x.long()), energy(x))
    torch.testing.assert_close(energy.conditionals(x.long()), energy.conditionals(x))


@pytest.mark.parametrize("name", KNOW_LOG_Z)
def test_log_z_has_the_dtype_of_the_energy(name):
    assert ENERGIES_DISCRETE[name]().float().log_z().dtype == torch.float32


def test_all_parameters_learn(energy):
    x = drawn(energy, 8)
    parameters = list(energy.parameters())
    grads = torch.autograd.grad((energy(x) * torch.randn(8)).sum(), parameters)
    assert parameters
    assert all(bool((grad != 0).any()) for grad in grads)


def test_copies_are_equal_and_independent(energy):
    x = drawn(energy, 4)
    before = energy(x).detach()
    for copied in (copy.deepcopy(energy), pickle.loads(pickle.dumps(energy))):
        torch.testing.assert_close(copied(x).detach(), before, rtol=0, atol=0)
        with torch.no_grad():
            for value in copied.parameters():
                value.mul_(0.5)
        torch.testing.assert_close(energy(x).detach(), before, rtol=0, atol=0)
        copied.load_state_dict(energy.state_dict())
        torch.testing.assert_close(copied(x).detach(), before, rtol=0, atol=0)


# --------------------------------------------------------------------- conditionals and sweeps


def test_conditionals_are_those_of_the_energy(energy):
    x = drawn(energy, 5)
    places = energy.alphabet.encode(x)
    conditionals = energy.conditionals(x).log_softmax(-1)
    for index in itertools.product(*map(range, energy.site_shape)):
        here = (slice(None), *index)
        values = []
        for k in range(energy.num_values):
            changed = places.clone()
            changed[here] = k
            values.append(-energy(energy.alphabet.decode(changed, x, energy.num_values)))
        expected = torch.stack(values, -1).log_softmax(-1)
        torch.testing.assert_close(conditionals[here], expected)


def test_sites_of_one_colour_do_not_interact(energy):
    x, other = drawn(energy, 20), drawn(energy, 20)
    for colour in range(energy.num_colours):
        own = energy.colours == colour
        mask = own.unsqueeze(-1) if energy.alphabet.one_hot else own
        changed = torch.where(mask, other, x)
        before = energy.conditionals(x).log_softmax(-1)[:, own]
        after = energy.conditionals(changed).log_softmax(-1)[:, own]
        torch.testing.assert_close(before, after)


def test_a_sweep_leaves_the_law_invariant(energy):
    x = drawn(energy, 20_000)
    assert_law(energy.sweep(x, uniforms(energy, x)), energy)


@pytest.mark.parametrize("name", SWEPT_AT_ANY_BETA)
def test_a_sweep_at_another_temperature_leaves_that_law_invariant(name):
    energy = ENERGIES_DISCRETE[name]()
    x = drawn(energy, 20_000, beta=0.4)
    assert_law(energy.sweep(x, uniforms(energy, x), 0.4), energy, 0.4)


def test_sweeps_reach_the_law_from_one_point(energy):
    x = all_points(energy)[:1].expand(10_000, *energy.event_shape)
    for _ in range(60):
        x = energy.sweep(x, uniforms(energy, x))
    assert_law(x, energy)


@pytest.mark.parametrize("name", SWEPT_BY_THEMSELVES)
def test_a_fast_sweep_is_the_plain_one(name):
    energy = ENERGIES_DISCRETE[name]()
    x = drawn(energy, 7)
    u = uniforms(energy, x)
    ones = (1,) * len(energy.site_shape)
    each, everywhere = torch.rand(7, *ones, 1), torch.rand(7, *energy.site_shape, 1)
    for beta in (1.0, 0.3, tensor(0.3), each, everywhere):
        plain = DiscreteEnergy.sweep(energy, x, u, beta)
        torch.testing.assert_close(energy.sweep(x, u, beta), plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["rbm", "rbm_wide"])
def test_an_rbm_refuses_to_temper_its_free_energy(name):
    energy = ENERGIES_DISCRETE[name]()
    x = drawn(energy, 3)
    energy.sweep(x, uniforms(energy, x), torch.ones(3, 1, 1))
    with pytest.raises(ValueError, match=r"temper rbm\.joint\(\)"):
        energy.sweep(x, uniforms(energy, x), 0.5)
    with pytest.raises(ValueError, match=r"temper rbm\.joint\(\)"):
        energy.sweep(x, uniforms(energy, x), tensor([1.0, 0.5, 1.0]).reshape(3, 1, 1))
    with pytest.raises(ValueError, match="uniform_shape"):
        energy.sweep(x, torch.rand_like(x))


# ----------------------------------------------------------------------------------------- sums


@pytest.mark.parametrize("name", KNOW_LOG_Z)
def test_log_z_is_the_sum_over_all_points(name):
    energy = ENERGIES_DISCRETE[name]()
    points = all_points(energy)
    expected = (-energy(points)).logsumexp(0)
    torch.testing.assert_close(energy.log_z(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", KNOW_LOG_Z)
def test_gradient_of_log_z_is_minus_the_mean_gradient_of_the_energy(name):
    energy = ENERGIES_DISCRETE[name]()
    points = all_points(energy)
    parameters = list(energy.parameters())
    probs = (-energy(points)).softmax(0).detach()
    expected = torch.autograd.grad(-(probs * energy(points)).sum(), parameters)
    torch.testing.assert_close(torch.autograd.grad(energy.log_z(), parameters), expected)


def test_a_sum_in_blocks_is_the_sum_at_once():
    weights = torch.randn(12, requires_grad=True)
    exact = (1 + weights.exp()).log().sum()

    def log_weight(rows):
        assert len(rows) <= 2**9
        return rows @ weights

    value = log_sum_of_booleans(log_weight, 12, weights, width=2**12)
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(
        torch.autograd.grad(value, weights), torch.autograd.grad(exact, weights)
    )


@pytest.mark.parametrize(
    ("support", "event_shape", "count"),
    [
        (constraints.boolean, (), 2),
        (constraints.independent(spins, 2), (2, 3), 64),
        (constraints.independent(constraints.integer_interval(-1, 2), 1), (3,), 64),
        (constraints.one_hot, (5,), 5),
        (constraints.independent(constraints.one_hot, 1), (2, 3), 9),
        (constraints.real, (), None),
        (constraints.nonnegative_integer, (), None),
    ],
)
def test_a_support_lists_each_of_its_points_once(support, event_shape, count):
    assert count_points(support, event_shape) == count
    if count is None:
        with pytest.raises(ValueError, match="cannot be enumerated"):
            enumerate_points(support, event_shape, torch.zeros(()))
        return
    points = enumerate_points(support, event_shape, torch.zeros(()))
    assert points.shape == (count, *event_shape)
    assert len(points.unique(dim=0)) == count
    assert bool(support.check(points).all())


# ------------------------------------------------------------------------------ as distributions


def test_a_small_distribution_is_normalised_and_drawn_exactly(energy):
    p = ebm.Boltzmann(energy)
    assert p.is_normalized
    points = p.enumerate_support()
    assert points.shape == (len(all_points(energy)), *energy.event_shape)
    torch.testing.assert_close(p.log_prob(points).exp().sum(), tensor(1.0))
    assert_law(p.sample((10_000,)), energy)


@pytest.mark.parametrize("name", ["ising_ring", "random_field_potts", "one_hot", "rbm"])
def test_a_small_distribution_is_normalised_at_any_temperature(name):
    energy = ENERGIES_DISCRETE[name]()
    p = ebm.Boltzmann(energy, temperature=tensor([0.5, 2.0]))
    points = all_points(energy).unsqueeze(1)
    torch.testing.assert_close(p.log_prob(points).exp().sum(0), torch.ones(2))
    assert_law(ebm.Boltzmann(energy, temperature=2.5).sample((10_000,)), energy, 0.4)


@pytest.mark.parametrize("name", ["ising_torus_field", "potts_open", "dbm"])
def test_pseudolikelihood_asks_the_energy_for_its_conditionals(name):
    energy = ENERGIES_DISCRETE[name]()
    x = drawn(energy, 4)
    plain = ebm.Boltzmann(
        lambda x: energy(x), event_shape=energy.event_shape, support=energy.support
    )
    for law in ("PseudoLikelihood", "RatioMatching"):
        objective = getattr(ebm.objectives, law)()
        if law == "RatioMatching" and energy.num_values > 2:
            continue
        values = [objective.surrogate(p, x) for p in (ebm.Boltzmann(energy), plain)]
        torch.testing.assert_close(*values)
    for temperature in (2.5, tensor([0.5, 1.0, 2.0, 3.0])):
        warm = [
            ebm.objectives.PseudoLikelihood().surrogate(p, x)
            for p in (
                ebm.Boltzmann(energy, temperature=temperature),
                ebm.Boltzmann(
                    lambda x: energy(x),
                    event_shape=energy.event_shape,
                    support=energy.support,
                    temperature=temperature,
                ),
            )
        ]
        torch.testing.assert_close(*warm)


def test_pseudolikelihood_serves_spins_and_one_hot_vectors():
    energy = ENERGIES_DISCRETE["one_hot"]()
    x = drawn(energy, 5)
    conditionals = energy.conditionals(x).log_softmax(-1)
    expected = (conditionals * x).sum((-1, -2))
    law = ebm.Boltzmann(energy)
    torch.testing.assert_close(ebm.objectives.PseudoLikelihood().surrogate(law, x), expected)
    law = ebm.Boltzmann(lambda x: energy(x), event_shape=(3, 2), support=energy.support)
    torch.testing.assert_close(ebm.objectives.PseudoLikelihood().surrogate(law, x), expected)
    value = ebm.objectives.EnergyDiscrepancy(0.3).surrogate(law, x)
    assert value.shape == (5,)


def test_a_discrete_energy_wants_an_alphabet():
    with pytest.raises(ValueError, match="support must be booleans, spins"):
        DiscreteEnergy((2,), constraints.real_vector)


def test_energies_of_a_batch_of_laws():
    """One law for each datum: log Z, draws and plates have its batch."""
    unary = torch.randn(4, 5, 3)
    crf = ChainCRF(unary, torch.randn(3, 3))
    p = ebm.Boltzmann(crf)
    assert p.batch_shape == (4,)
    assert p.sample((6,)).shape == (6, 4, 5)
    x = p.sample()
    assert p.log_prob(x).shape == (4,)
    for i in range(4):
        alone = ebm.Boltzmann(ChainCRF(unary[i], crf.transitions))
        torch.testing.assert_close(p.log_prob(x)[i], alone.log_prob(x[i]))
    assert p.enumerate_support().shape == (3**5, 4, 5)
    assert p.enumerate_support(expand=False).shape == (3**5, 1, 5)
    hot = ebm.Boltzmann(crf, temperature=2.0)
    points = hot.enumerate_support()
    torch.testing.assert_close(hot.log_prob(points).exp().sum(0), torch.ones(4))
    assert hot.sample((7,)).shape == (7, 4, 5)


def test_the_start_of_an_rbm_fits_the_data():
    data = (torch.rand(1000, 5) < tensor([0.1, 0.3, 0.5, 0.7, 0.9])).double()
    rbm = RBM.initial(5, 2, data)
    with torch.no_grad():
        rbm.weights.zero_()
    torch.testing.assert_close(rbm.visible_bias.sigmoid(), (data.sum(0) + 1) / 1002)
    assert len(list(rbm.parameters())) == 3


def test_a_sweep_leaves_its_argument_alone(energy):
    for batch in ((), (1,), (3,)):
        x = drawn(energy, *batch)
        kept = x.clone()
        energy.sweep(x, uniforms(energy, x))
        assert torch.equal(x, kept)
