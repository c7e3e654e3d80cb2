r"""Spins and labels on the sites of any sparse graph: pairwise Markov random fields.

.. math:: E(x) = -\sum_i u_i(x_i) - \sum_{(i, j)} w_{ij}(x_i, x_j)

An edge costs the same whatever the size of the graph, and sites of one colour move together.
"""

from __future__ import annotations

__all__ = ["IsingGraph", "MarkovRandomField", "greedy_colours"]

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from .alphabet import spins
from .discrete import DiscreteEnergy, structure
from .elimination import log_z_of_pairs


def greedy_colours(num_sites: int, edges: Tensor) -> Tensor:
    """Colours a graph so that no neighbours have the same colour, sites of many neighbours first.

    Args:
        num_sites: The number of sites.
        edges: Pairs of sites, with shape ``(M, 2)``.

    Returns:
        Colours from 0, at most one more of them than a site has neighbours, with shape
        ``(num_sites,)``.
    """
    neighbours: list[list[int]] = [[] for _ in range(num_sites)]
    for i, j in edges.tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    colours = [-1] * num_sites
    for site in sorted(range(num_sites), key=lambda i: -len(neighbours[i])):
        taken = {colours[other] for other in neighbours[site]}
        colours[site] = next(c for c in range(num_sites) if c not in taken)
    return torch.tensor(colours)


class _Arrows(nn.Module):
    """The edges into some sites, each seen from the side of the other site."""

    def __init__(self, sites: Tensor, edges: Tensor) -> None:
        super().__init__()
        edge = torch.arange(len(edges)).repeat(2)
        at_second = torch.arange(2).repeat_interleave(len(edges))  # whether it is into the second
        target, source = edges.T.flatten(), edges.flip(1).T.flatten()
        kept = torch.isin(target, sites)
        self.register_buffer("sites", sites, persistent=False)
        place = torch.searchsorted(sites, target[kept])
        self.register_buffer("target", place, persistent=False)
        self.register_buffer("source", source[kept], persistent=False)
        self.register_buffer("edge", edge[kept], persistent=False)
        self.register_buffer("at_second", at_second[kept], persistent=False)


class _Graph(DiscreteEnergy):
    """An energy of edges, by what arrives at each site along them."""

    def __init__(self, num_sites: int, edges: Tensor, site: constraints.Constraint) -> None:
        with structure():
            edges = _checked_edges(num_sites, edges)
            colours = greedy_colours(num_sites, edges)
        super().__init__((num_sites,), constraints.independent(site, 1), colours)
        self.register_buffer("edges", edges)
        with structure():
            everywhere = torch.arange(num_sites)
            self._arrows = _Arrows(everywhere, edges)
            groups = (everywhere[colours == c] for c in range(self.num_colours))
            self._groups = nn.ModuleList(_Arrows(group, edges) for group in groups)

    def _log_weights(self, x: Tensor, arrows: _Arrows) -> Tensor:
        """Evaluates minus the energy of each value at some sites, the others being as they are."""
        raise NotImplementedError

    def conditionals(self, x: Tensor) -> Tensor:
        return self._log_weights(x, self._arrows)

    @torch.no_grad()
    def sweep(self, x: Tensor, uniform: Tensor, beta: float | Tensor = 1.0) -> Tensor:
        x = x.clone()
        per_site = isinstance(beta, Tensor) and beta.dim() > 1 and beta.shape[-2] > 1
        for arrows in self._groups:
            own = beta[..., arrows.sites, :] if per_site else beta
            below = (own * self._log_weights(x, arrows)).softmax(-1).cumsum(-1)[..., :-1]
            places = (uniform[..., arrows.sites].unsqueeze(-1) >= below).sum(-1)
            x[..., arrows.sites] = self.alphabet.decode(places, x)
        return x


class IsingGraph(_Graph):
    r"""The Ising model on any graph: each edge with a coupling, each site with a field.

    .. math:: E(s) = -\sum_{(i, j)} J_{ij} s_i s_j - \sum_i h_i s_i, \qquad s_i \in \{-1, +1\}

    An edge stands once, in either direction. :meth:`log_z` sums out one site after the other: it
    is exact for trees, rings, strips and small graphs, and refuses those in which too many sites
    are tied together.

    Args:
        edges: Pairs of sites, with shape ``(M, 2)``.
        coupling: The couplings :math:`J`, in nats, with shape ``(M,)``, or one number.
        field: The fields :math:`h`, in nats, with shape ``(S,)``.

    Raises:
        ValueError: If an edge joins a site to itself or to none, or stands twice, or a shape does
            not fit; in :meth:`log_z`, if the sum is too large.

    Example:
        >>> triangle = IsingGraph(torch.tensor([[0, 1], [1, 2], [2, 0]]), -0.5, torch.zeros(3))
        >>> triangle(torch.tensor([1.0, 1.0, -1.0])), triangle.log_z()
        (tensor(-0.5000), tensor(2.3359))
    """

    linear_in = ("coupling", "field")

    def __init__(self, edges: Tensor, coupling: float | Tensor, field: Tensor) -> None:
        if field.dim() != 1:
            raise ValueError(f"field must have shape (S,), got {tuple(field.shape)}")
        super().__init__(len(field), edges, spins)
        size = torch.as_tensor(coupling).shape
        if size not in (torch.Size(), edges.shape[:1]):
            raise ValueError(
                f"coupling must be a number or have shape ({len(edges)},), one for each edge, got "
                f"{tuple(size)}"
            )
        self.constant("coupling", coupling)
        self.constant("field", field)

    @property
    def couplings(self) -> Tensor:
        """What each of the ``edges (M, 2)`` is worth in nats, with shape ``(M,)``."""
        return self.coupling.expand(len(self.edges))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        i, j = self.edges.unbind(-1)
        return -(self.coupling * x[..., i] * x[..., j]).sum(-1) - (self.field * x).sum(-1)

    def local_field(self, x: Tensor) -> Tensor:
        r"""Evaluates what each spin feels: :math:`a_i = \sum_j J_{ij} s_j + h_i`.

        Args:
            x: Points, with shape ``(*batch, S)``.

        Returns:
            Half the log odds of +1 in nats, with shape ``(*batch, S)``.
        """
        return self._local(x, self._arrows)

    def _local(self, x: Tensor, arrows: _Arrows) -> Tensor:
        coupling = self.couplings[arrows.edge]
        field = self.field[arrows.sites].expand(*x.shape[:-1], -1)
        return field.index_add(-1, arrows.target, coupling * x[..., arrows.source])

    def _log_weights(self, x: Tensor, arrows: _Arrows) -> Tensor:
        local = self._local(x, arrows)
        return torch.stack([-local, local], dim=-1)

    @torch.no_grad()
    def sweep(self, x: Tensor, uniform: Tensor, beta: float | Tensor = 1.0) -> Tensor:  # noqa: D102
        num_sites = len(self.field)
        if isinstance(beta, Tensor) and beta.dim():
            beta = beta.squeeze(-1).expand(x.shape).reshape(-1, num_sites).T
        each_site = isinstance(beta, Tensor) and beta.dim() > 0
        # All chains of a site side by side, so that an edge adds one row to another.
        rows = x.reshape(-1, num_sites).T.clone(memory_format=torch.contiguous_format)
        shift, one = uniform.reshape(-1, num_sites).T.logit(), x.new_ones(())
        for arrows in self._groups:
            coupling = self.couplings[arrows.edge]
            local = self.field[arrows.sites].unsqueeze(-1).repeat(1, rows.shape[1])
            local.index_add_(0, arrows.target, coupling.unsqueeze(-1) * rows[arrows.source])
            local.mul_(2 * (beta[arrows.sites] if each_site else beta))
            rows[arrows.sites] = one.copysign(local.add_(shift[arrows.sites]))
        return rows.T.reshape(x.shape).contiguous()

    def log_z(self) -> Tensor:  # noqa: D102
        signs = torch.tensor([-1.0, 1.0]).to(self.field)
        pairwise = self.couplings[:, None, None] * torch.outer(signs, signs)
        return log_z_of_pairs(self.field.unsqueeze(-1) * signs, self.edges.tolist(), pairwise)


class MarkovRandomField(_Graph):
    r"""A pairwise Markov random field: labels on a graph, with scores that data may give.

    .. math:: E(x) = -\sum_i u_i(x_i) - \sum_{(i, j)} w_{ij}(x_i, x_j), \qquad
        x_i \in \{0, \dots, K - 1\}

    The unary scores may be computed from data and have a batch: the energy is then that of a
    distribution with a batch shape, one law for each datum. Couplings that depend on the
    two labels alone, such as those of a Potts model, are one table for all edges
    (``coupling * torch.eye(K)``). :meth:`log_z` sums out one site after the other, as that of
    :class:`IsingGraph`; for a chain see :class:`ChainCRF`.

    Args:
        unary: The scores :math:`u` of each label at each site, in nats, with shape
            ``(*batch, S, K)``.
        edges: Pairs of sites, with shape ``(M, 2)``.
        pairwise: The scores :math:`w` of pairs of labels, in nats, with shape ``(M, K, K)`` or
            ``(K, K)``; the first index is the label of the first site.

    Raises:
        ValueError: If an edge joins a site to itself or to none, or stands twice, or a shape does
            not fit; if one table serves all edges and is not symmetric; in :meth:`log_z`, if the
            sum is too large.

    Example:
        >>> edges = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
        >>> field = MarkovRandomField(torch.zeros(5, 4, 3), edges, 0.5 * torch.eye(3))
        >>> field(torch.zeros(5, 4)), field.log_z().shape
        (tensor([-2., -2., -2., -2., -2.]), torch.Size([5]))
    """

    linear_in = ("unary", "pairwise")

    def __init__(self, unary: Tensor, edges: Tensor, pairwise: Tensor) -> None:
        if unary.dim() < 2 or unary.shape[-1] < 2:
            raise ValueError(
                "unary must have shape (*batch, S, K) with two labels or more, got "
                f"{tuple(unary.shape)}"
            )
        num_sites, num_values = unary.shape[-2:]
        super().__init__(num_sites, edges, constraints.integer_interval(0, num_values - 1))
        square = (num_values, num_values)
        if pairwise.shape not in (square, (len(edges), *square)):
            raise ValueError(
                f"pairwise must have shape {square} or {(len(edges), *square)}, got "
                f"{tuple(pairwise.shape)}"
            )
        if pairwise.dim() == 2 and not torch.equal(pairwise, pairwise.T):
            raise ValueError(
                "pairwise is one table for all edges and must be symmetric, since an edge has no "
                f"direction, got {pairwise.detach()}; for edges with one, give each its own "
                "table: pairwise.expand(len(edges), -1, -1)"
            )
        self.batch_shape = unary.shape[:-2]
        self.constant("unary", unary)
        self.constant("pairwise", pairwise)

    def _tables(self) -> Tensor:
        tables = self.pairwise
        if tables.dim() == 2:
            tables = (tables + tables.T) / 2  # it stays symmetric as it learns
        return tables.expand(len(self.edges), *tables.shape[-2:])

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        places = x.long()
        shape = torch.broadcast_shapes(x.shape, self.unary.shape[:-1])
        chosen = self.unary.expand(*shape, -1).gather(-1, places.expand(shape).unsqueeze(-1))
        i, j = self.edges.unbind(-1)
        each = torch.arange(len(i), device=i.device)
        tied = self._tables()[each, places[..., i], places[..., j]]
        energy = -chosen.squeeze(-1).sum(-1) - tied.sum(-1)
        return energy.to(x.dtype) if x.is_floating_point() else energy

    def _log_weights(self, x: Tensor, arrows: _Arrows) -> Tensor:
        tables = self._tables()
        tables = torch.stack([tables.mT, tables])  # the first, for arrows at the first site
        rows = tables[arrows.at_second, arrows.edge, x[..., arrows.source].long()]
        shape = torch.broadcast_shapes(x.shape[:-1], self.batch_shape)
        unary = self.unary[..., arrows.sites, :].expand(*shape, -1, -1)
        return unary.index_add(-2, arrows.target, rows.expand(*shape, -1, -1))

    def log_z(self) -> Tensor:  # noqa: D102
        return log_z_of_pairs(self.unary, self.edges.tolist(), self._tables())


def _checked_edges(num_sites: int, edges: Tensor) -> Tensor:
    if edges.dim() != 2 or edges.shape[1] != 2 or edges.is_floating_point():
        raise ValueError(
            f"edges must be integers of shape (M, 2), got {edges.dtype} of {tuple(edges.shape)}"
        )
    if edges.numel() and not bool(((edges >= 0) & (edges < num_sites)).all()):
        raise ValueError(f"edges must join sites 0 to {num_sites - 1}, got {edges}")
    loops = edges[edges[:, 0] == edges[:, 1], 0]
    if loops.numel():
        raise ValueError(
            f"edges join sites {loops.tolist()} to themselves: what a site owes to itself belongs "
            "in its field or unary scores"
        )
    pairs = edges.sort(-1).values
    unique, counts = pairs.unique(dim=0, return_counts=True)
    if len(unique) < len(edges):
        raise ValueError(
            f"edges {unique[counts > 1].tolist()} stand more than once (an edge has no "
            "direction): add up their couplings"
        )
    return edges.long()
