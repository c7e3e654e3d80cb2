r"""The lowest point of an energy of spins, by a minimum cut.

.. math:: E(s) = -\sum_{(i, j)} J_{ij} s_i s_j - \sum_i h_i s_i

If no coupling is negative, a point is a cut of a graph: the sites that are +1 stay with a source,
to which a field :math:`h_i > 0` ties them, the others with a sink. What is cut is what E costs
above :math:`-\sum |J_{ij}| - \sum |h_i|`, in units of two, and a largest flow finds the least of
it.
"""

from __future__ import annotations

__all__ = ["SpinPairs", "lowest_spins", "spin_pairs"]

import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from .energies.alphabet import spins
from .energies.dense_boltzmann import BoltzmannMachine
from .energies.graphs import IsingGraph, MarkovRandomField
from .energies.lattice import Ising, Potts


class SpinPairs(NamedTuple):
    """Spins, their couplings in pairs and their fields."""

    edges: Tensor
    """Pairs of sites, each once, with shape ``(M, 2)``."""
    couplings: Tensor
    """The couplings J in nats, with shape ``(M,)``."""
    field: Tensor
    """The fields h in nats, with shape ``(*batch, S)``."""


def spin_pairs(energy: object) -> SpinPairs | None:
    """Reads an energy of two values at each site as one of spins, the second value being +1.

    Args:
        energy: The energy.

    Returns:
        Its couplings and fields, which give the energy but for a constant; ``None`` if it has
        more values or is not known to be a sum over pairs.
    """
    if isinstance(energy, (Ising, IsingGraph)):
        field = energy.couplings.new_zeros(()) if energy.field is None else energy.field
        return SpinPairs(
            energy.edges, energy.couplings, field.expand(energy.event_shape).flatten()
        )
    if isinstance(energy, BoltzmannMachine):
        return _machine(energy)
    if isinstance(energy, Potts) and energy.num_values == 2:
        field = energy.field if energy.has_field else energy.coupling.new_zeros(2)
        field = (field @ field.new_tensor([-0.5, 0.5])).expand(energy.event_shape).flatten()
        return SpinPairs(energy.edges, energy.couplings / 2, field)
    if isinstance(energy, MarkovRandomField) and energy.num_values == 2:
        return _random_field(energy)
    return None


def _machine(energy: BoltzmannMachine) -> SpinPairs:
    weights = (energy.weights + energy.weights.T).fill_diagonal_(0) / 2
    field = energy.bias
    if energy.support.base_constraint is not spins:  # booleans are (1 + s) / 2
        weights, field = weights / 4, field / 2 + weights.sum(-1) / 4
    edges = weights.triu(1).nonzero()
    return SpinPairs(edges, weights[edges[:, 0], edges[:, 1]], field)


def _random_field(energy: MarkovRandomField) -> SpinPairs:
    signs = energy.unary.new_tensor([-0.5, 0.5])
    tables = energy.pairwise
    if tables.dim() == 2:
        tables = (tables + tables.T) / 2
    tables = tables.expand(len(energy.edges), 2, 2)
    first, second = (tables @ signs).sum(-1) / 2, (tables.mT @ signs).sum(-1) / 2
    field = energy.unary @ signs
    field = field.index_add(-1, energy.edges[:, 0], second.expand(*field.shape[:-1], -1))
    field = field.index_add(-1, energy.edges[:, 1], first.expand(*field.shape[:-1], -1))
    return SpinPairs(energy.edges, signs @ tables @ signs, field)


def lowest_spins(pairs: SpinPairs) -> Tensor | None:
    r"""Finds spins of lowest energy where couplings do not contradict each other.

    Negative couplings are welcome if turning some spins round makes all couplings positive, as
    on a checkerboard; around every cycle there is then an even number of them. The point is the
    lowest one up to a rounding of couplings and fields to a part in :math:`2^{29}` of the largest.

    References:
        | Exact maximum a posteriori estimation for binary images (Greig, Porteous and Seheult,
        | 1989), https://doi.org/10.1111/j.2517-6161.1989.tb01764.x
        | What energy functions can be minimized via graph cuts? (Kolmogorov and Zabih, 2004),
        | https://doi.org/10.1109/TPAMI.2004.1262177

    Args:
        pairs: Couplings and fields.

    Returns:
        Spins, as floats, with shape ``(*batch, S)``; ``None`` if the couplings are frustrated.

    Raises:
        ImportError: If SciPy is not installed.
        ValueError: If a coupling or a field is not finite.

    Example:
        >>> edges, couplings = torch.tensor([[0, 1], [1, 2]]), torch.tensor([1.0, 1.0])
        >>> lowest_spins(SpinPairs(edges, couplings, torch.tensor([0.5, -0.2, 0.1])))
        tensor([1., 1., 1.])
    """
    for name, values in (("couplings", pairs.couplings), ("field", pairs.field)):
        if not bool(values.isfinite().all()):
            raise ValueError(f"{name} must be finite for a graph cut, got {values.detach()}")
    edges, couplings = pairs.edges.cpu(), pairs.couplings.detach().double().cpu()
    fields = pairs.field.detach().double().cpu()
    turned = _turned(edges, couplings, fields.shape[-1])
    if turned is None:
        return None
    rows = fields.reshape(-1, fields.shape[-1])
    found = torch.stack([turned * _cut(edges, couplings.abs(), turned * row) for row in rows])
    return found.reshape(fields.shape).to(pairs.field)


def _turned(edges: Tensor, couplings: Tensor, num_sites: int) -> Tensor | None:
    """Finds signs of sites that leave no coupling negative, if there are."""
    csgraph, matrix = _scipy()
    tied = couplings != 0
    first, second = edges[tied].unbind(-1)
    across = num_sites * (couplings[tied] < 0)
    # Each site twice, as it is and turned: a negative coupling joins the one to the other.
    ends = torch.cat([first, first + num_sites])
    others = torch.cat([second + across, second + (num_sites - across)])
    graph = matrix(2 * num_sites, ends, others, torch.ones(len(ends)))
    _, islands = csgraph.connected_components(graph, directed=False)
    plain, turned = torch.as_tensor(islands).split(num_sites)
    return None if bool((plain == turned).any()) else 1 - 2 * (plain > turned).double()


def _cut(edges: Tensor, couplings: Tensor, field: Tensor) -> Tensor:
    """Finds the lowest spins where no coupling is negative."""
    csgraph, matrix = _scipy()
    num_sites = len(field)
    sites, source, sink = torch.arange(num_sites), num_sites, num_sites + 1
    first, second = edges.unbind(-1)
    starts = torch.cat([first, second, torch.where(field > 0, source, sites)])
    ends = torch.cat([second, first, torch.where(field > 0, sites, sink)])
    capacities = torch.cat([couplings, couplings, field.abs()])
    # Scaled by a power of two, so that numbers of few digits are not rounded at all.
    _, exponent = math.frexp(capacities.max())
    whole = torch.ldexp(capacities, torch.tensor(29 - exponent)).round().int()
    graph = matrix(num_sites + 2, starts, ends, whole)
    left = graph - csgraph.maximum_flow(graph, source, sink).flow
    left.eliminate_zeros()
    reached = csgraph.breadth_first_order(left, source, return_predecessors=False)
    found = -torch.ones(num_sites + 2, dtype=torch.double)
    found[torch.as_tensor(reached).long()] = 1.0
    return found[:num_sites]


def _scipy() -> tuple[ModuleType, Callable[..., object]]:
    """Imports what finds cuts, and a maker of sparse matrices from rows, columns and values."""
    try:
        from scipy.sparse import csgraph, csr_matrix
    except ImportError as error:
        raise ImportError(
            "a graph cut needs SciPy: pip install 'pyro_ebm[cut]', or search with "
            "method='annealing'"
        ) from error

    def matrix(size: int, rows: Tensor, columns: Tensor, values: Tensor) -> object:
        return csr_matrix((values.numpy(), (rows.numpy(), columns.numpy())), (size, size))

    return csgraph, matrix
