"""The most probable point: exact ways against enumeration, searches against what they promise."""

import builtins
import itertools

import pytest
import torch
from discrete_cases import DISCRETE, uneven
from torch import tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.energies import (
    RBM,
    BoltzmannMachine,
    ChainCRF,
    DoubleWell,
    Ising,
    IsingGraph,
    MarkovRandomField,
    Potts,
    spins,
)
from pyro_ebm.energies.grid import grid_edges


def lowest(boltzmann):
    """The energy of the lowest of all points, for each member of a batch."""
    points = boltzmann.enumerate_support()
    return boltzmann.energy(points).min(0).values


def random_graph(num_sites, seed=3):
    pairs = tensor(list(itertools.combinations(range(num_sites), 2)))
    kept = torch.rand(len(pairs), generator=torch.Generator().manual_seed(seed)) < 0.4
    return pairs[kept]


def turned_graph():
    """Couplings of both signs that agree: those of a ferromagnet, some of its spins turned."""
    edges, signs = random_graph(12), torch.where(torch.arange(12) % 3 == 1, -1.0, 1.0)
    couplings = torch.rand(len(edges)) * signs[edges].prod(-1)
    return IsingGraph(edges, couplings, torch.randn(12))


def labels():
    """Two labels, with tables of no symmetry that attract, and scores of four data."""
    edges = grid_edges((3, 4), periodic=False)
    tables = 0.4 * torch.randn(len(edges), 2, 2)
    tables[:, 0, 0] += 2.5
    tables[:, 1, 1] += 2.5
    return MarkovRandomField(torch.randn(4, 12, 2), edges, tables)


def machine(site):
    weights = torch.rand(12, 12).triu(1)
    weights = 0.4 * (weights + weights.T)
    return BoltzmannMachine(weights, torch.randn(12) - 0.2 * weights.sum(-1), site)


CUTS = {
    "torus": lambda: Ising((3, 4), 0.4, 1.2 * torch.randn(3, 4)),
    "grid": lambda: Ising((3, 4), 0.7, 1.2 * torch.randn(3, 4), periodic=False),
    "strong_fields": lambda: Ising((3, 4), 0.2, 3 * torch.randn(3, 4), periodic=False),
    "no_field": lambda: Ising((3, 4), 0.4),
    "all_down": lambda: Ising((3, 4), 0.1, -1.0),
    "checkerboard": lambda: Ising((3, 4), -0.6, torch.randn(3, 4), periodic=False),
    "antiferromagnetic_torus": lambda: Ising((4, 4), -0.6, torch.randn(4, 4)),
    "graph": lambda: IsingGraph(random_graph(12), 0.3, torch.randn(12)),
    "turned_graph": turned_graph,
    "no_edges": lambda: IsingGraph(torch.zeros(0, 2, dtype=torch.long), 1.0, torch.randn(5)),
    "potts": lambda: Potts((3, 4), 2, 0.7, 1.5 * torch.randn(3, 4, 2)),
    "labels": labels,
    "one_table": lambda: MarkovRandomField(
        torch.randn(2, 12, 2), random_graph(12), tensor([[0.9, 0.1], [0.1, 0.3]])
    ),
    "machine_of_spins": lambda: machine(spins),
    "machine_of_booleans": lambda: machine(constraints.boolean),
}


@pytest.mark.parametrize("name", CUTS)
def test_graph_cut_is_the_lowest_of_all_points(name):
    for _ in range(5):
        p = ebm.Boltzmann(CUTS[name](), temperature=0.7)
        found = ebm.map_estimate(p, "graph_cut")
        assert found.method == "graph_cut"
        assert found.exact
        assert bool(p.support.check(found.x).all())
        torch.testing.assert_close(found.energy, p.energy(found.x))
        torch.testing.assert_close(found.energy, lowest(p), atol=1e-7, rtol=0)


def test_annealing_meets_the_graph_cut_of_a_large_grid():
    for _ in range(3):
        p = ebm.Boltzmann(Ising((16, 16), 0.5, torch.randn(16, 16)))
        exact, annealed = ebm.map_estimate(p), ebm.map_estimate(p, "annealing")
        assert (exact.method, annealed.method) == ("graph_cut", "annealing")
        torch.testing.assert_close(annealed.energy, exact.energy)
        assert exact.energy < p.energy(p.sample((100,))).min()


def test_graph_cut_is_not_rounded_where_numbers_have_few_digits():
    field = tensor([0.5, -0.25, 2.0**-20])  # the last decides a tie
    edges = tensor([[0, 1]])
    found = ebm.map_estimate(ebm.Boltzmann(IsingGraph(edges, 0.125, field)), "graph_cut")
    assert found.x.tolist() == [1.0, -1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_point_has_the_dtype_of_the_energy(dtype):
    field = torch.randn(3, 4, dtype=dtype)
    for method in ("graph_cut", "enumeration", "annealing", "icm"):
        found = ebm.map_estimate(
            ebm.Boltzmann(Ising((3, 4), tensor(0.3, dtype=dtype), field)), method
        )
        assert found.x.dtype == found.energy.dtype == dtype


def test_viterbi_is_the_lowest_of_all_labels():
    crf = ChainCRF(torch.randn(6, 5, 3), torch.randn(3, 3), tensor([5, 4, 3, 2, 1, 5]))
    p = ebm.Boltzmann(crf)
    found = ebm.map_estimate(p)
    assert (found.method, found.exact) == ("viterbi", True)
    torch.testing.assert_close(found.energy, lowest(p))


def test_viterbi_of_a_long_chain_is_where_annealing_arrives():
    p = ebm.Boltzmann(ChainCRF(2 * torch.randn(4, 40, 3), torch.randn(3, 3)))
    annealed = ebm.map_estimate(p, "annealing", num_starts=16)
    torch.testing.assert_close(annealed.energy, ebm.map_estimate(p).energy)


@pytest.mark.parametrize("name", DISCRETE)
def test_annealing_finds_the_lowest_of_a_small_target(name):
    energy, told = DISCRETE[name]()
    p = ebm.Boltzmann(energy, **told)
    found = ebm.map_estimate(p, "annealing", num_sweeps=60)
    assert (found.method, found.exact) == ("annealing", False)
    torch.testing.assert_close(found.energy, lowest(p))
    best = ebm.map_estimate(p, "exact")
    assert best.exact
    torch.testing.assert_close(best.energy, lowest(p), atol=1e-7, rtol=0)


def test_annealing_serves_an_energy_that_has_summed_units_out():
    rbm = RBM(1.5 * torch.randn(6, 4), torch.randn(6), torch.randn(4))
    p = ebm.Boltzmann(rbm)
    torch.testing.assert_close(ebm.map_estimate(p, "annealing", num_sweeps=60).energy, lowest(p))


def test_annealing_beats_icm_where_couplings_contradict_each_other():
    edges = grid_edges((12, 12), periodic=True)
    glass = IsingGraph(edges, torch.randn(len(edges)), torch.zeros(144))
    p = ebm.Boltzmann(glass)
    icm = ebm.map_estimate(p, "icm", num_starts=32)
    annealed = ebm.map_estimate(p, num_starts=32)
    assert annealed.method == "annealing"
    assert annealed.energy < icm.energy


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("method", ["icm", "annealing"])
def test_search_ends_where_no_site_alone_would_move(name, method):
    energy, told = DISCRETE[name]()
    p = ebm.Boltzmann(energy, **told)
    found = ebm.map_estimate(p, method, num_starts=1, num_sweeps=20)
    points = p.enumerate_support()
    differs = points != found.x
    if name in ("one_hot_5x3", "curved_one_hot"):
        differs = differs.any(-1)
    neighbours = points[differs.reshape(len(points), -1).sum(-1) == 1]
    assert len(neighbours)
    assert p.energy(neighbours).min() >= found.energy - 1e-9


def test_icm_stays_at_a_local_minimum_that_is_not_the_lowest():
    """A ring in a field that pulls down: all up is stable, and wrong."""
    ring = Ising((8,), 1.0, -0.5)
    p = ebm.Boltzmann(ring)
    ends = {ebm.map_estimate(p, "icm", num_starts=1).energy.item() for _ in range(40)}
    assert len(ends) > 1
    assert min(ends) == pytest.approx(ebm.map_estimate(p).energy.item())


def test_padding_stays_and_does_not_hold_the_rest_back():
    p = ebm.Boltzmann(ChainCRF(torch.randn(5, 6, 3), torch.randn(3, 3), tensor([2, 3, 4, 5, 6])))
    for method in ("icm", "annealing"):
        found = ebm.map_estimate(p, method, num_starts=128)
        torch.testing.assert_close(found.energy, lowest(p))


def test_each_member_of_a_batch_has_its_own_point():
    fields = torch.randn(3, 12, 2)
    edges, table = grid_edges((3, 4), periodic=False), 0.6 * torch.eye(2)
    together = ebm.Boltzmann(MarkovRandomField(fields, edges, table))
    for method in ("graph_cut", "enumeration", "annealing", "icm"):
        found = ebm.map_estimate(together, method)
        assert found.x.shape == (3, 12)
        assert found.energy.shape == (3,)
    found = ebm.map_estimate(together, "annealing", num_sweeps=60)
    for field, energy in zip(fields, found.energy, strict=True):
        alone = ebm.Boltzmann(MarkovRandomField(field, edges, table))
        torch.testing.assert_close(ebm.map_estimate(alone).energy, energy)


def test_independent_copies_share_the_exact_point():
    p = ebm.Boltzmann(Ising((3, 4), 0.3, torch.randn(3, 4))).expand([5])
    assert ebm.map_estimate(p).x.shape == (5, 3, 4)
    assert ebm.map_estimate(p, "annealing").energy.shape == (5,)


def test_search_follows_the_global_seed():
    p = ebm.Boltzmann(Ising((8, 8), -0.4, torch.randn(8, 8)))
    ends = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        ends.append(ebm.map_estimate(p, "icm", num_starts=1).x)
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_a_lost_start_finds_its_way_from_infinite_energy():
    def barred(x):
        energy = -(uneven(6, 0.1, 0.9) * x).sum(-1)
        return energy.where(x[..., 0] == 1, torch.inf)

    support = constraints.independent(constraints.boolean, 1)
    p = ebm.Boltzmann(barred, event_shape=(6,), support=support)
    assert ebm.map_estimate(p, "icm").x.tolist() == [1.0] * 6


def test_refuses_what_it_cannot_do():
    frustrated = ebm.Boltzmann(Ising((3, 3), -0.5))
    with pytest.raises(ValueError, match="couplings contradict each other"):
        ebm.map_estimate(frustrated, "graph_cut")
    with pytest.raises(ValueError, match="no ChainCRF"):
        ebm.map_estimate(frustrated, "viterbi")
    large = ebm.Boltzmann(Ising((5, 5), -0.5))
    with pytest.raises(ValueError, match="65,536"):
        ebm.map_estimate(large, "enumeration")
    with pytest.raises(ValueError, match="method='annealing'"):
        ebm.map_estimate(large, "exact")
    with pytest.raises(ValueError, match="method must be one of"):
        ebm.map_estimate(large, "anneal")
    with pytest.raises(ValueError, match="num_starts"):
        ebm.map_estimate(large, num_starts=0)
    with pytest.raises(ValueError, match="finitely many values"):
        ebm.map_estimate(ebm.Boltzmann(DoubleWell()))
    with pytest.raises(ValueError, match="must be finite"):
        ebm.map_estimate(ebm.Boltzmann(Ising((3, 3), 0.5, torch.inf)), "graph_cut")


def test_graph_cut_without_scipy_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pyro_ebm"):
        ebm.map_estimate(ebm.Boltzmann(Ising((3, 3), 0.5)))
