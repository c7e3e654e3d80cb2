r"""Cluster moves: whole islands of spins at once, where single ones hardly move.

Bonds are laid between neighbours that agree, and the sites joined by them, a cluster, change
together. The joint law of spins and bonds (Edwards and Sokal) has the target as its marginal.
"""

from __future__ import annotations

__all__ = ["PairCouplings", "SwendsenWang", "check_pairs_are_all", "connected_components"]

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..discrete import DiscreteTarget, KnownConditionals
from ..distributions import Boltzmann
from ..potential import Model, Potential
from .discrete import DiscreteKernel, DiscreteState
from .transition import Info, uniform_like


class PairCouplings(Protocol):
    """An energy of pairs of sites, which are numbered with the last side of an event fastest.

    It may also have a ``field``: in nats, a number or one for each site for spins; for integers
    one for each value, with shape ``(K,)`` or ``(*sites, K)``.
    """

    edges: Tensor
    """Pairs of sites, each once, with shape ``(M, 2)``."""
    couplings: Tensor
    """What agreement of a pair is worth in nats, with shape ``(M,)``; or ``(R, M)``, and fields
    likewise, where each of the points that are moved has its own."""


class SwendsenWang(DiscreteKernel):
    r"""Swendsen-Wang moves of the Ising and Potts models, in any field, on any graph.

    For spins, with :math:`E = -\sum_{ij} J_{ij} s_i s_j - \sum_i h_i s_i` and :math:`\beta = 1/T`,

    .. math::
        P(\text{bond}_{ij}) &= 1 - \exp(-2 \beta J_{ij} s_i s_j)
        \quad \text{where } J_{ij} s_i s_j > 0, \text{ else } 0 \\
        P(\text{flip of cluster } C) &= \frac{1}{1 + \exp(2 \beta \sum_{i \in C} h_i s_i)}

    For integers, with :math:`E = -\sum_{ij} J_{ij} [x_i = x_j] - \sum_i h_{i, x_i}` and
    :math:`J \geq 0`, a bond between equal values has the probability :math:`1 - \exp(-\beta
    J_{ij})`, and a cluster takes the value k with probability in proportion to :math:`\exp(\beta
    \sum_{i \in C} h_{ik})`. Every cluster is drawn at every step. The invariant law is
    :math:`e^{-U}`, exactly, and nothing is rejected.

    At the critical point chains forget in a few steps what single flips take thousands of sweeps
    for. In a strong field, or with couplings of both signs that cannot all be satisfied, clusters
    are either frozen or as large as the whole, and :class:`~pyro_ebm.kernels.Gibbs` is better. The
    energy has to say its ``edges`` and ``couplings``, as
    :class:`~pyro_ebm.kernels.cluster.PairCouplings` has it.

    References:
        | Nonuniversal critical dynamics in Monte Carlo simulations (Swendsen and Wang, 1987),
        | https://doi.org/10.1103/PhysRevLett.58.86
        | Generalization of the Fortuin-Kasteleyn-Swendsen-Wang representation (Edwards and Sokal,
        | 1988), https://doi.org/10.1103/PhysRevD.38.2009

    Args:
        model: A :class:`~pyro_ebm.Boltzmann` of an energy with couplings, if any.

    Raises:
        ValueError: In use, if the energy says no couplings, the temperature is a tensor of more
            than one number, or a coupling of integers is negative; with its own target, if
            ``edges``, ``couplings`` and ``field`` are not all there is to the energy.

    Example:
        >>> import pyro_ebm as ebm
        >>> from torch.distributions import constraints
        >>> class Ring(ebm.energies.DiscreteEnergy):
        ...     edges = torch.stack([torch.arange(6), (torch.arange(6) + 1) % 6], -1)
        ...     couplings = torch.full((6,), 0.5)
        ...
        ...     def forward(self, x):
        ...         return -0.5 * (x * x.roll(1, -1)).sum(-1)
        >>> target = ebm.Boltzmann(Ring((6,), constraints.independent(ebm.energies.spins, 1)))
        >>> mcmc = ebm.MCMC(SwendsenWang(target), 50, 0, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        torch.Size([8, 50, 6])
    """

    branch_free = False

    def __init__(self, model: Model | Boltzmann | None = None) -> None:
        super().__init__(model)

    def bind(  # noqa: D102
        self, args: tuple, kwargs: dict, initial_params: dict[str, Tensor] | None
    ) -> Potential:
        potential = super().bind(args, kwargs, initial_params)
        check_pairs_are_all(self.target_of(potential), potential)
        return potential

    def target_of(self, potential: Potential) -> KnownConditionals:  # noqa: D102
        target = super().target_of(potential)
        energy = getattr(target, "energy", None)
        if not (hasattr(energy, "edges") and hasattr(energy, "couplings")):
            raise ValueError(
                "SwendsenWang needs an energy with edges (M, 2) and couplings (M,), such as "
                f"energies.Ising, got {type(energy).__name__}: sample with kernels.Gibbs"
            )
        if isinstance(target.temperature, Tensor) and target.temperature.dim():
            raise ValueError(
                "temperature must be one number for SwendsenWang, got shape "
                f"{tuple(target.temperature.shape)}"
            )
        return target

    def look(self, target: KnownConditionals, z: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        couplings, num_edges = target.energy.couplings, len(target.energy.edges)
        if not _are_spins(target) and bool((couplings < 0).any()):
            raise ValueError(
                "couplings of values that are not spins must not be negative for SwendsenWang, "
                f"got {couplings.min().item():.4g}: sample with kernels.Gibbs"
            )
        points = z[0].numel() // target.energy.event_shape.numel()
        num_uniforms = points * (num_edges + target.energy.site_shape.numel())
        return target.value(z), z.new_empty(len(z), num_uniforms, 0)

    def noise(  # noqa: D102
        self, state: DiscreteState, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        like = state.z.new_empty(1).expand(state.changes.shape[:2])
        return (uniform_like(like, generator, *num_steps),)

    @torch.no_grad()
    def step(  # noqa: D102
        self, potential: Potential, state: DiscreteState, noise: tuple[Tensor, ...]
    ) -> tuple[DiscreteState, Info]:
        target = self.target_of(potential)
        energy = target.energy
        num_sites, num_edges = energy.site_shape.numel(), len(energy.edges)
        rows = state.z.reshape(-1, *energy.event_shape)
        rows = target.places(rows.flatten(1)) if target.alphabet.one_hot else rows.flatten(1)
        beta = target.beta
        if isinstance(beta, Tensor):
            beta = beta.repeat_interleave(len(rows) // len(beta)).unsqueeze(-1)
        beta = beta / target.temperature
        of_bonds, of_clusters = noise[0].reshape(len(rows), -1).split([num_edges, num_sites], -1)
        first, second = energy.edges.unbind(-1)
        agree = rows.index_select(1, first) == rows.index_select(1, second)
        strength = beta * energy.couplings
        if _are_spins(target):
            agree, strength = agree == (strength > 0), 2 * strength.abs()
        bonded = agree & (of_bonds < -torch.expm1(-strength))
        cluster = _clusters(bonded, energy.edges, num_sites)
        uniform = of_clusters.flatten().index_select(0, cluster)
        change = _turned if _are_spins(target) else _redrawn
        z = change(target, rows, beta, cluster, uniform).reshape(state.z.shape)
        value = target.value(z)
        accepted = torch.ones_like(value, dtype=torch.bool)
        moved = state._replace(z=z, potential=value)
        return moved, Info(~value.isfinite(), torch.ones_like(value), accepted)


def _turned(
    target: KnownConditionals,
    rows: Tensor,
    beta: Tensor | float,
    cluster: Tensor,
    uniform: Tensor,
) -> Tensor:
    """Turns clusters of spins ``(R, S)`` round or not, by what their field says."""
    field = getattr(target.energy, "field", None)
    flip = uniform < 0.5
    if field is not None:
        pull = (beta * _each_site(field, target.energy.site_shape) * rows).flatten()
        total = torch.zeros_like(pull).index_add_(0, cluster, pull)
        flip = uniform < torch.sigmoid(-2 * total).index_select(0, cluster)
    return torch.where(flip.reshape(rows.shape), -rows, rows)


def _redrawn(
    target: KnownConditionals,
    rows: Tensor,
    beta: Tensor | float,
    cluster: Tensor,
    uniform: Tensor,
) -> Tensor:
    """Draws the value of each cluster of sites ``(R, S)`` anew, by what their field says."""
    field, num_values = getattr(target.energy, "field", None), target.num_values
    if field is None:
        places = (uniform * num_values).long()
    else:
        pull = _each_site(field, (*target.energy.site_shape, num_values))
        pull = pull.unflatten(-1, (-1, num_values)) * torch.as_tensor(beta).unsqueeze(-1)
        pull = pull.expand(*rows.shape, num_values).flatten(0, 1)
        total = torch.zeros_like(pull).index_add_(0, cluster, pull)
        below = total.softmax(-1).cumsum(-1)[:, :-1].index_select(0, cluster)
        places = (uniform.unsqueeze(-1) >= below).sum(-1)
    return target.points(places.reshape(rows.shape), uniform)


def _each_site(field: Tensor, shape: Sequence[int]) -> Tensor:
    """Lays out fields for all points alike ``(1, *)``, or for each its own ``(R, *)``, flat."""
    size = math.prod(shape)
    if field.numel() % size:
        field = field.expand(shape)  # all sites share it
    return field.reshape(-1, size)


def _clusters(bonded: Tensor, edges: Tensor, num_sites: int) -> Tensor:
    """Names the cluster of each site of each point by the first of its sites, ``(R * S,)``.

    Sites that follow one another, as those along the last side of a grid do, are joined to runs
    without a search, and the graph that is searched is that of the runs.

    Args:
        bonded: Which edges have a bond, with shape ``(R, M)``.
        edges: Pairs of sites, with shape ``(M, 2)``.
        num_sites: The number of sites S.
    """
    num_points, (first, second) = len(bonded), edges.unbind(-1)
    follows, others = ((second - first == 1) == so for so in (True, False))
    follows, others = follows.nonzero().squeeze(-1), others.nonzero().squeeze(-1)
    ahead = bonded.index_select(1, follows).to(torch.uint8)
    begins = ahead.new_zeros(num_points, num_sites).index_add_(1, second[follows], ahead) == 0
    run = begins.flatten().cumsum(0) - 1
    at = bonded.index_select(1, others).flatten().nonzero().squeeze(-1)
    point = at.div(len(others), rounding_mode="floor") if len(others) else at
    edge, offset = others.index_select(0, at - point * len(others)), point * num_sites
    ends = (run.index_select(0, end.index_select(0, edge) + offset) for end in (first, second))
    starts = begins.flatten().nonzero().squeeze(-1)
    joined = connected_components(len(starts), *ends)
    return starts.index_select(0, joined).index_select(0, run)


def connected_components(num_nodes: int, first: Tensor, second: Tensor) -> Tensor:
    """Names the connected component of each node of a graph by one of its nodes.

    In rounds: every node is hooked to its smallest neighbour, if that is smaller, the trees that
    come of it are made flat, and their roots are the nodes of the next round.

    Args:
        num_nodes: The number of nodes N.
        first: One end of each edge, with shape ``(M,)``; an edge may join a node with itself.
        second: The other end, with shape ``(M,)``.

    Returns:
        The node, with shape ``(N,)``.

    Example:
        >>> connected_components(5, torch.tensor([0, 3]), torch.tensor([2, 4]))
        tensor([0, 1, 0, 3, 3])
    """
    nodes = torch.arange(num_nodes, device=first.device)
    high, low = torch.maximum(first, second), torch.minimum(first, second)
    parent = nodes.scatter_reduce(0, high, low, "amin")
    above = parent.index_select(0, parent)
    while not torch.equal(above, parent):
        parent = above.index_select(0, above)
        above = parent.index_select(0, parent)
    first, second = parent.index_select(0, first), parent.index_select(0, second)
    apart = (first != second).nonzero().squeeze(-1)
    if not len(apart):
        return parent
    is_root = parent == nodes
    number = is_root.cumsum(0) - 1
    roots = is_root.nonzero().squeeze(-1)
    ends = (number.index_select(0, end.index_select(0, apart)) for end in (first, second))
    joined = connected_components(len(roots), *ends)
    return roots.index_select(0, joined).index_select(0, number.index_select(0, parent))


def _are_spins(target: DiscreteTarget) -> bool:
    return target.alphabet.lowest < 0 and target.num_values == 2


def check_pairs_are_all(target: KnownConditionals, potential: Potential) -> None:
    """Refuses an energy of which couplings and field are not all, up to a constant.

    Args:
        target: The target, with such an energy.
        potential: Its potential.

    Raises:
        ValueError: If there is more to it.
    """
    energy, sites = target.energy, target.energy.site_shape
    z = potential.initialize(8)
    alike = torch.arange(target.num_values, device=z.device).unsqueeze(-1)
    alike = target.points(alike.expand(-1, target.num_sites(z)), z)
    x = target.rows.of(torch.cat([z, alike]), energy.event_shape)
    places = target.alphabet.encode(x).flatten(-len(sites))
    first, second = energy.edges.unbind(-1)
    agree = (places[..., first] == places[..., second]).to(energy.couplings.dtype)
    field, num_values = getattr(energy, "field", None), target.num_values
    if field is not None:
        field = _each_site(field, sites if _are_spins(target) else (*sites, num_values))
        field = field.reshape(*(places.shape[1:-1] if len(field) > 1 else ()), -1)
    if _are_spins(target):
        said = (energy.couplings * (2 * agree - 1)).sum(-1)
        if field is not None:
            said = said + (field * (2 * places - 1)).sum(-1)
    else:
        said = (energy.couplings * agree).sum(-1)
        if field is not None:
            field = field.unflatten(-1, (-1, num_values)).expand(*places.shape, -1)
            said = said + field.gather(-1, places.unsqueeze(-1)).sum((-2, -1))
    found = energy(x) + said
    scale = max(1.0, said.abs().max().item())
    if (found - found[0]).abs().max() > torch.finfo(found.dtype).eps ** 0.5 * scale:
        raise ValueError(
            f"edges, couplings and field are not all of the energy of {type(energy).__name__}, so "
            "that to draw by them would be to draw from another law: use kernels.Gibbs"
        )
