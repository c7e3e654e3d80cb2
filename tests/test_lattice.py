"""Ising and Potts models against exact formulas and published numbers.

The reference values are of P(s) = exp(K sum s_i s_j) / Z on a torus, each bond once: Kaufman's
formula (Kaufman, 1949), equal to the sum over all states (3x3, 4x4) and to the transfer matrix
(8x8) to twelve digits.
"""

import math

import pytest
import torch
from laws import assert_chain_mean
from torch import nn, tensor

import pyro_ebm as ebm
from pyro_ebm.energies import Ising, IsingGraph, Potts
from pyro_ebm.energies.elimination import elimination_order, log_z_of_pairs
from pyro_ebm.energies.graphs import greedy_colours
from pyro_ebm.energies.grid import grid_edges
from pyro_ebm.energies.kaufman import CRITICAL_COUPLING, log_z_of_torus
from pyro_ebm.engine import trace
from pyro_ebm.kernels import SwendsenWang
from pyro_ebm.potential import Potential

KAUFMAN = [
    (3, 0.1, 6.335415589931518, -0.22526464179169914),
    (3, 0.3, 7.346915902869601, -0.9876831555671015),
    (3, CRITICAL_COUPLING, 9.020213400944334, -1.6112463815311582),
    (3, 1.0, 18.69632005771564, -1.9971087312812503),
    (4, 0.1, 11.252588451586247, -0.2057134663746614),
    (4, 0.2, 11.771470358541581, -0.4561353695428472),
    (4, 0.3, 12.785523325713681, -0.8440540736238566),
    (4, CRITICAL_COUPLING, 15.521915458755283, -1.5656237876383183),
    (4, 0.5, 17.105367118731582, -1.7553802887774352),
    (4, 0.6, 20.056532884346808, -1.908069527831064),
    (8, 0.4, 56.59938876042538, -1.2223206432509133),
    (8, CRITICAL_COUPLING, 60.14178078906915, -1.4915891074397063),
    (10, 0.2, 73.45309780383303, -0.42823952793015385),
    (10, CRITICAL_COUPLING, 93.6103005102221, -1.4762429083609367),
    (10, 0.5, 103.27297541824895, -1.745431021115138),
    (16, CRITICAL_COUPLING, 238.64225663513287, -1.4530648528134766),
    (32, CRITICAL_COUPLING, 952.6480795485427, -1.433658466146248),
    (64, CRITICAL_COUPLING, 3808.672283419809, -1.423938390),
]
"""Side, coupling, log Z, and the energy per site in units of the coupling."""


@pytest.mark.parametrize(("side", "k", "log_z", "per_site"), KAUFMAN)
def test_kaufmans_formula_has_the_reference_values(side, k, log_z, per_site):
    energy = Ising((side, side), nn.Parameter(tensor(k)))
    assert energy.has_log_z
    value = energy.log_z()
    assert value.item() == pytest.approx(log_z, rel=1e-12)
    (bonds,) = torch.autograd.grad(value, energy.coupling)
    assert -bonds.item() / side**2 == pytest.approx(per_site, abs=1e-9)


@pytest.mark.parametrize("k", [0.0, 0.2, CRITICAL_COUPLING, 0.8])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 6), (7, 4)])
def test_kaufmans_formula_is_the_sum_by_elimination(shape, k):
    edges = grid_edges(shape, periodic=True)
    graph = IsingGraph(edges, tensor(k), torch.zeros(math.prod(shape)))
    torch.testing.assert_close(
        log_z_of_torus(tensor(k), *shape), graph.log_z(), rtol=1e-12, atol=0
    )


CAPACITIES = {
    (3, CRITICAL_COUPLING): 0.6287361056464946,
    (4, CRITICAL_COUPLING): 0.7832668259289095,
    (4, 0.3): 0.4409926535765569,
    (8, 0.4): 1.100475889362432,
    (10, 0.2): 0.09767815686192809,
    (10, 0.5): 0.7231648901260852,
    (10, CRITICAL_COUPLING): 1.260019634609888,
    (16, CRITICAL_COUPLING): 1.4987049594000266,
    (32, CRITICAL_COUPLING): 1.84676759003956,
}
"""The heat capacity per site, -K^2 u'(K) in nats, by side and coupling."""


@pytest.mark.parametrize(("side", "coupling"), CAPACITIES)
def test_kaufmans_formula_has_derivatives_of_second_order(side, coupling):
    k = tensor(coupling, requires_grad=True)
    (slope,) = torch.autograd.grad(log_z_of_torus(k, side, side), k, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, k)
    found = (k * k * curvature).item() / side**2
    assert found == pytest.approx(CAPACITIES[side, coupling], abs=1e-8)


def test_a_critical_torus_has_the_moments_of_its_listed_states():
    """4 x 4: of the mean spin, and of two neighbours, by the sum over 65,536 states."""
    p = ebm.Boltzmann(Ising((4, 4), CRITICAL_COUPLING))
    s = p.enumerate_support()
    probs = p.log_prob(s).exp()
    m, bonds = s.mean((-2, -1)), (s * s.roll(1, -1)).mean((-2, -1))
    for moment, expected in (
        (m.abs(), 0.8438604448134206),
        (m.square(), 0.7613589085686788),
        (m**4, 0.6656912132673725),
        (bonds, 0.7828118938191554),
    ):
        assert (probs @ moment).item() == pytest.approx(expected, abs=1e-10)


def test_kaufmans_formula_neither_overflows_nor_breaks():
    k = tensor([0.0, 1e-9, CRITICAL_COUPLING, 3.0], requires_grad=True)
    value = log_z_of_torus(k, 1000, 1000)
    (bonds,) = torch.autograd.grad(value.sum(), k)
    assert bool(value.isfinite().all() & bonds.isfinite().all())
    free = value.detach() / 1e6
    assert free[0].item() == pytest.approx(math.log(2))
    assert free[2].item() == pytest.approx(0.9296953983416103, abs=1e-5)  # 2 G / pi + log(2) / 2
    assert free[3].item() == pytest.approx(6.0, abs=1e-5)


def test_onsagers_energy_is_that_of_a_large_torus():
    """T = 2 and 2.5, where the correlation length is a few sites (Onsager, 1944)."""
    for k, log_z, per_site in (
        (0.5, 1.0257928126949176, -1.7455645753125535),
        (0.4, 0.8793638207749483, -1.1060792037457927),
    ):
        coupling = tensor(k, requires_grad=True)
        value = log_z_of_torus(coupling, 256, 256)
        (bonds,) = torch.autograd.grad(value, coupling)
        ground = math.log(2) / 256**2 if k > CRITICAL_COUPLING else 0.0  # two ordered phases
        assert value.item() / 256**2 - ground == pytest.approx(log_z, abs=1e-9)
        assert -bonds.item() / 256**2 == pytest.approx(per_site, abs=1e-9)
    for k, free_energy in ((0.5, -2.0515856253898352), (0.4, -2.1984095519373708)):
        per_site = log_z_of_torus(tensor(k), 256, 256).item() / 256**2
        assert -per_site / k == pytest.approx(free_energy, abs=5e-5)  # of two ordered phases


def test_an_ordered_torus_has_yangs_magnetisation():
    """(1 - sinh(2 K)^-4)^(1/8) at T = 2 (Yang, 1952), where domains are a few sites wide."""
    kernel = SwendsenWang()
    potential = Potential.of(ebm.Boltzmann(Ising((64, 64), 0.5)))
    state, generator = kernel.init(potential, torch.ones(12, 64**2)), torch.Generator()
    generator.manual_seed(3)
    found = []
    for step in range(60):
        state, _ = kernel.step(potential, state, kernel.noise(state, generator))
        if step >= 10:
            found.append(state.z.mean(-1).abs())
    assert_chain_mean(torch.stack(found, 1), 0.911319377877496)


@pytest.mark.parametrize("shape", [(4, 4), (3, 3), (3, 4)])
def test_an_antiferromagnet_is_not_a_magnet_on_an_odd_torus(shape):
    energy = Ising(shape, tensor(-0.5))
    points = ebm.Boltzmann(energy).enumerate_support()
    torch.testing.assert_close(energy.log_z(), (-energy(points)).logsumexp(0))
    same = bool(torch.isclose(energy.log_z(), Ising(shape, tensor(0.5)).log_z()))
    assert same == all(side % 2 == 0 for side in shape)


def test_a_side_of_two_is_refused_since_it_would_double_its_bonds():
    with pytest.raises(ValueError, match=r"at least 3, got \(4, 2\).*joined twice"):
        Ising((4, 2), 0.3)
    assert Ising((4, 2), 0.3, periodic=False)(torch.ones(4, 2)).item() == pytest.approx(-3.0)


@pytest.mark.parametrize(("size", "k"), [(4, 0.3), (16, 0.5), (64, 1.0)])
def test_a_ring_and_a_chain_have_their_closed_forms(size, k):
    ring = Ising((size,), nn.Parameter(tensor(k)))
    a, b = size * math.log(2 * math.cosh(k)), size * math.log(2 * math.sinh(k))
    assert ring.log_z().item() == pytest.approx(a + math.log1p(math.exp(b - a)), rel=1e-12)
    chain = Ising((size,), nn.Parameter(tensor(k)), periodic=False)
    exact = size * math.log(2) + (size - 1) * math.log(math.cosh(k))
    assert chain.log_z().item() == pytest.approx(exact, rel=1e-12)
    (bonds,) = torch.autograd.grad(chain.log_z(), chain.coupling)
    assert bonds.item() / (size - 1) == pytest.approx(math.tanh(k))
    assert ring.has_log_z
    assert chain.has_log_z


RINGS = {
    (4, 0.3): (2.9571277285336004, 0.3137745644616407),
    (4, 0.5): (3.297642004809911, 0.5363436039908245),
    (4, 1.0): (4.79771374748815, 0.900412681424898),
    (8, 0.3): (5.899955467532726, 0.2914755340221246),
    (8, 0.5): (6.508171117277646, 0.4656492509823606),
    (8, 1.0): (9.122649352006219, 0.8176628754344892),
    (16, 0.3): (11.799807210464149, 0.29131262090195487),
    (16, 0.5): (13.012191325754054, 0.46212451847298075),
    (16, 1.0): (18.043577653163656, 0.7685692241726801),
    (64, 0.3): (47.19922883109668, 0.2913126124515909),
    (64, 0.5): (52.04874800116626, 0.46211715726000974),
    (64, 1.0): (72.12339273368484, 0.7615941708086126),
}
"""log Z and the correlation of neighbours, by the transfer matrix."""


@pytest.mark.parametrize(("size", "k"), RINGS)
def test_a_ring_has_the_reference_values(size, k):
    ring = Ising((size,), nn.Parameter(tensor(k)))
    (bonds,) = torch.autograd.grad(ring.log_z(), ring.coupling)
    log_z, correlation = RINGS[size, k]
    assert ring.log_z().item() == pytest.approx(log_z, abs=1e-9)
    assert bonds.item() / size == pytest.approx(correlation, abs=1e-9)


def test_a_strip_is_summed_over_its_width():
    """A field on a 12 x 40 strip: its derivative is the mean magnetisation, which a field sets."""
    field = nn.Parameter(tensor(0.2))
    strip = Ising((12, 40), 0.0, field, periodic=False)
    assert strip.log_z().item() == pytest.approx(480 * math.log(2 * math.cosh(0.2)))
    (spin,) = torch.autograd.grad(strip.log_z(), field)
    assert spin.item() / 480 == pytest.approx(math.tanh(0.2))
    torch.testing.assert_close(
        Ising((5, 30), 0.4, 0.1, periodic=False).log_z(),
        Ising((30, 5), 0.4, 0.1, periodic=False).log_z(),
    )


def test_a_field_of_zero_changes_nothing():
    plain, with_field = Ising((8, 8), 0.4), Ising((8, 8), 0.4, 0.0)
    assert plain.has_log_z
    assert not with_field.has_log_z
    torch.testing.assert_close(plain.log_z(), with_field.log_z(), rtol=1e-12, atol=0)


def test_a_sum_that_is_too_large_says_so():
    with pytest.raises(ValueError, match=r"too large a sum.*pyro_ebm\.logz"):
        Ising((32, 32), 0.3, 0.1).log_z()
    with pytest.raises(ValueError, match="log Z is not known"):
        _ = ebm.Boltzmann(Ising((32, 32), 0.3, 0.1)).log_z


@pytest.mark.parametrize("kind", ["ising", "potts"])
def test_a_field_from_data_gives_each_datum_its_own_law(kind):
    ising = kind == "ising"
    fields = torch.randn(4, 3, 3) if ising else torch.randn(4, 3, 3, 2)

    def lattice(field):
        return Ising((3, 3), 0.3, field) if ising else Potts((3, 3), 2, 0.3, field)

    energy = lattice(fields)
    p = ebm.Boltzmann(energy)
    assert p.batch_shape == (4,)
    x, u = p.sample((5,)), torch.rand(5, 4, 3, 3)
    assert x.shape == u.shape
    for i in range(4):
        alone = lattice(fields[i])
        torch.testing.assert_close(p.log_prob(x)[:, i], ebm.Boltzmann(alone).log_prob(x[:, i]))
        torch.testing.assert_close(energy.log_z()[i], alone.log_z())
        torch.testing.assert_close(energy.conditionals(x)[:, i], alone.conditionals(x[:, i]))
        assert torch.equal(energy.sweep(x, u)[:, i], alone.sweep(x[:, i], u[:, i]))
    torch.testing.assert_close(
        lattice(fields.reshape(2, 2, *fields.shape[1:])).log_z(), energy.log_z().reshape(2, 2)
    )


def test_potts_has_the_reference_value():
    """Three states on a 3x3 torus at the critical coupling log(1 + sqrt 3), by enumeration."""
    energy = Potts((3, 3), 3, math.log(1 + math.sqrt(3)))
    assert energy.log_z().item() == pytest.approx(19.688939731847, abs=1e-11)


def test_two_states_of_potts_are_an_ising_model():
    """2 [x = y] = 1 + s t, so that K s t = 2 K [x = y] - K."""
    k, field = 0.35, torch.randn(4, 3)
    ising = Ising((4, 3), k, field)
    potts = Potts((4, 3), 2, 2 * k, torch.stack([-field, field], -1))
    x = torch.randint(2, (6, 4, 3)).to(field)
    torch.testing.assert_close(ising(2 * x - 1), potts(x) + 24 * k)
    torch.testing.assert_close(ising.log_z(), potts.log_z() - 24 * k)


def test_elimination_takes_the_better_order():
    star = [(0, i) for i in range(1, 40)]
    assert elimination_order(40, star, 3)[0] != 0
    unary, pairwise = torch.randn(40, 2), torch.randn(39, 2, 2)
    leaves = (unary[1:, None, :] + pairwise).logsumexp(-1).sum(0)
    torch.testing.assert_close(
        log_z_of_pairs(unary, star, pairwise), (unary[0] + leaves).logsumexp(0)
    )
    with pytest.raises(ValueError, match="more than 3 of them"):
        elimination_order(5, [(i, j) for i in range(5) for j in range(i)], 3)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (3, 5), (4, 4, 6)])
def test_bonds_are_counted_once_and_join_two_colours(shape, periodic):
    edges = grid_edges(shape, periodic)
    energy = Ising(shape, 1.0, periodic=periodic)
    assert len(edges.sort(-1).values.unique(dim=0)) == len(edges)
    assert energy(torch.ones(shape)).item() == -len(edges)
    x = torch.randn(3, *shape).sign()
    by_edge = x.flatten(1)[:, edges].prod(-1).sum(-1)
    torch.testing.assert_close(energy.bonds(x), by_edge)
    ends = energy.colours.flatten()[edges]
    assert bool((ends[:, 0] != ends[:, 1]).all())
    odd = periodic and any(side % 2 for side in shape)
    assert energy.num_colours == (3 if odd else 2)


TREE = tensor([[0, 1], [2, 1], [3, 0]])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Ising((3, 4), 0.4, torch.randn(3, 4)),
        lambda: Ising((2, 5), 0.4, periodic=False),
        lambda: IsingGraph(TREE, torch.randn(3), torch.randn(4)),
        lambda: IsingGraph(TREE, -0.3, torch.randn(4)),
    ],
    ids=["torus", "open", "graph", "graph_of_one_coupling"],
)
def test_edges_and_couplings_are_all_there_is_to_spins(make):
    energy = make()
    x = torch.randn(6, *energy.event_shape).sign()
    flat = x.flatten(1)
    field = torch.zeros(()) if energy.field is None else energy.field.flatten()
    i, j = energy.edges.unbind(-1)
    assert energy.couplings.shape == (len(energy.edges),)
    expected = -(energy.couplings * flat[:, i] * flat[:, j]).sum(-1) - (field * flat).sum(-1)
    torch.testing.assert_close(energy(x), expected)


def test_edges_and_couplings_are_all_there_is_to_labels():
    energy = Potts((3, 4), 3, 0.4, torch.randn(3, 4, 3))
    x = torch.randint(3, (6, 3, 4)).double()
    flat, field = x.flatten(1).long(), energy.field.reshape(12, 3)
    i, j = energy.edges.unbind(-1)
    agreed = (energy.couplings * (flat[:, i] == flat[:, j])).sum(-1)
    torch.testing.assert_close(energy(x), -agreed - field[torch.arange(12), flat].sum(-1))


def test_greedy_colours_join_no_neighbours():
    edges = torch.combinations(torch.arange(30))
    edges = edges[torch.rand(len(edges)) < 0.2]
    colours = greedy_colours(30, edges)
    assert bool((colours[edges[:, 0]] != colours[edges[:, 1]]).all())
    degrees = torch.bincount(edges.flatten(), minlength=30)
    assert int(colours.max()) <= int(degrees.max())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ising((), 0.3), "shape must be sides"),
        (lambda: Ising((4, 4), torch.ones(2)), "coupling must be one number"),
        (lambda: Ising((4, 4), 0.3, torch.ones(4)), r"field must be a number or have the shape"),
        (lambda: Potts((4, 4), 1, 0.3), "num_values must be at least 2, got 1"),
        (lambda: Potts((4, 4), 3, 0.3, torch.ones(2)), r"field must have shape \(3,\)"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_inverse_ising_by_exact_moments():
    """Neighbours on a 4x4 torus correlate by 0.42203 at K = 0.3: K comes back from that."""
    energy = Ising((4, 4), nn.Parameter(tensor(0.1)))
    for _ in range(30):
        (bonds,) = torch.autograd.grad(energy.log_z(), energy.coupling, create_graph=True)
        (curvature,) = torch.autograd.grad(bonds, energy.coupling)
        with torch.no_grad():
            energy.coupling -= (bonds / 32 - 0.4220270368119276) / (curvature / 32)
    assert energy.coupling.item() == pytest.approx(0.3, abs=1e-9)


MADE_FROM_A_COUPLING = {
    "ising": lambda k: Ising((4, 3), k),
    "potts": lambda k: Potts((4, 3), 2, k),
    "graph": lambda k: IsingGraph(grid_edges((4, 3), False), k, torch.linspace(0.0, 1.0, 12)),
}


@pytest.mark.parametrize("name", MADE_FROM_A_COUPLING)
def test_an_energy_that_a_traced_function_makes_is_in_its_graph(name):
    """As a model does at each run: what depends on the shape alone is no part of the trace."""
    make, x = MADE_FROM_A_COUPLING[name], torch.ones(4, 3)
    x = x.flatten() if name == "graph" else x
    rung = trace(lambda k: make(k)(x), (tensor(0.3),))
    assert rung.name == "graph"
    assert torch.equal(rung.fn(tensor(0.5)), make(tensor(0.5))(x))
