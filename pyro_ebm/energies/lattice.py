r"""Spins and labels on a grid.

.. math::
    E(s) = -K \sum_{\langle ij \rangle} s_i s_j - \sum_i h_i s_i, \qquad
    E(x) = -K \sum_{\langle ij \rangle} [x_i = x_j] - \sum_i h_{i, x_i}

over the bonds of neighbours, each counted once.
"""

from __future__ import annotations

__all__ = ["Ising", "Potts"]

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from .alphabet import spins
from .discrete import DiscreteEnergy, structure
from .elimination import log_z_of_pairs
from .grid import grid_colours, grid_edges, sum_of_neighbours
from .kaufman import log_z_of_torus


class _Lattice(DiscreteEnergy):
    """A coupling between neighbours on a grid, and a field."""

    linear_in = ("coupling", "field")

    def __init__(
        self,
        shape: Sequence[int],
        coupling: float | Tensor,
        periodic: bool,
        site: constraints.Constraint,
    ) -> None:
        shape = tuple(shape)
        smallest = 3 if periodic else 1
        if not shape or min(shape) < smallest:
            raise ValueError(
                f"shape must be sides of at least {smallest}, got {shape}"
                + ("; neighbours across a side of 2 would be joined twice" if periodic else "")
            )
        if torch.as_tensor(coupling).dim():
            raise ValueError(
                f"coupling must be one number, got shape {tuple(coupling.shape)}; give each bond "
                "its own with IsingGraph or MarkovRandomField"
            )
        support = constraints.independent(site, len(shape))
        with structure():
            colours, edges = grid_colours(shape, periodic), grid_edges(shape, periodic)
        super().__init__(shape, support, colours)
        self.shape = shape
        self.periodic = periodic
        self.dims = tuple(range(-len(shape), 0))
        self.constant("coupling", coupling)
        self.register_buffer("edges", edges, persistent=False)

    @property
    def couplings(self) -> Tensor:
        """What each of the ``edges (M, 2)`` is worth in nats, with shape ``(M,)``."""
        return self.coupling.expand(len(self.edges))

    def bonds(self, x: Tensor) -> Tensor:
        r"""Adds up the bonds of a point: what the coupling multiplies in :math:`-E`.

        Args:
            x: Points, with shape ``(*batch, *event)``.

        Returns:
            The sum, with shape ``(*batch,)``.
        """
        total = 0
        for dim in self.dims:
            side = x.shape[dim]
            ahead = x.roll(-1, dim)
            if not self.periodic:
                x_d, ahead = x.narrow(dim, 0, side - 1), ahead.narrow(dim, 0, side - 1)
            else:
                x_d = x
            total = total + self._bond(x_d, ahead).flatten(-len(self.dims)).sum(-1)
        return total

    def _bond(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_z_by_elimination(self, unary: Tensor, table: Tensor) -> Tensor:
        """Sums out the sites of a grid whose longest side comes first, row by row."""
        sides = self.event_shape
        order = sorted(range(len(sides)), key=lambda d: -sides[d])
        edges = grid_edges([sides[d] for d in order], self.periodic)
        batch = unary.dim() - len(sides) - 1
        unary = unary.permute(*range(batch), *(batch + d for d in order), -1)
        unary = unary.flatten(batch, -2)
        return log_z_of_pairs(unary, edges.tolist(), table.expand(len(edges), *table.shape))


class Ising(_Lattice):
    r"""The Ising model on a grid of any dimension.

    .. math:: E(s) = -K \sum_{\langle ij \rangle} s_i s_j - \sum_i h_i s_i, \qquad
        s_i \in \{-1, +1\}

    ``conditionals`` and ``sweep`` are exact; a sweep moves all sites of one colour of the
    checkerboard at once (three colours on a torus with an odd side). :meth:`log_z` is Kaufman's
    formula on a torus of two dimensions without a field, and elsewhere a sum over one row at a
    time: any ring or chain, open strips up to 17 sites wide, tori up to 8. All are
    differentiable in coupling and field. ``has_log_z``, by which a distribution is normalised by
    itself, stands for the cheap ones: Kaufman's, rings and chains. Where it does not, pass
    ``log_z=energy.log_z()``.

    References:
        | Crystal statistics II (Kaufman, 1949), https://doi.org/10.1103/PhysRev.76.1232

    Args:
        shape: The sides of the grid.
        coupling: The coupling :math:`K`, in nats: positive aligns neighbours.
        field: The field :math:`h`, in nats, a number, or one for each site, with shape
            ``(*batch, *shape)``; none if not given. One that comes from data, such as an image to
            restore, has a batch: each datum then has its own law.
        periodic: Whether opposite edges are joined (a torus).

    Raises:
        ValueError: If a side is too short (a periodic one of 2 would double its bonds), or the
            coupling or field has another shape; in :meth:`log_z`, if the sum is too large.

    Example:
        >>> torus = Ising((4, 4), coupling=0.3)
        >>> torus(torch.ones(4, 4)), torus.log_z()
        (tensor(-9.6000), tensor(12.7855))
        >>> torus.sweep(torch.ones(7, 4, 4), torch.rand(7, 4, 4)).shape
        torch.Size([7, 4, 4])
    """

    def __init__(
        self,
        shape: Sequence[int],
        coupling: float | Tensor,
        field: float | Tensor | None = None,
        periodic: bool = True,
    ) -> None:
        super().__init__(shape, coupling, periodic, spins)
        self.has_field = field is not None
        if self.has_field:
            size = torch.as_tensor(field).shape
            if size and size[-len(self.dims) :] != self.event_shape:
                raise ValueError(
                    f"field must be a number or have the shape {tuple(self.event_shape)} of the "
                    f"grid, with a batch in front or none, got {tuple(size)}"
                )
            self.batch_shape = size[: -len(self.dims)]
            self.constant("field", field)
        else:
            self.field = None

    def _bond(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        energy = -self.coupling * self.bonds(x)
        if self.has_field:
            energy = energy - (self.field * x).flatten(-len(self.dims)).sum(-1)
        return energy

    def local_field(self, x: Tensor) -> Tensor:
        r"""Evaluates what each spin feels: :math:`a_i = K \sum_j s_j + h_i`.

        Args:
            x: Points, with shape ``(*batch, *event)``.

        Returns:
            Half the log odds of +1 in nats, with the shape of ``x``.
        """
        local = self.coupling * sum_of_neighbours(x, self.dims, self.periodic)
        return local + self.field if self.has_field else local

    def conditionals(self, x: Tensor) -> Tensor:  # noqa: D102
        local = self.local_field(x)
        return torch.stack([-local, local], dim=-1)

    @torch.no_grad()
    def sweep(self, x: Tensor, uniform: Tensor, beta: float | Tensor = 1.0) -> Tensor:  # noqa: D102
        if isinstance(beta, Tensor) and beta.dim():
            beta = beta.squeeze(-1)
        shift, slope, one = uniform.logit(), 2 * beta * self.coupling, x.new_ones(())
        if self.has_field:
            shift = shift + 2 * beta * self.field
        for colour in range(self.num_colours):
            log_odds = sum_of_neighbours(x, self.dims, self.periodic).mul_(slope).add_(shift)
            x = torch.where(self.colours == colour, one.copysign(log_odds), x)
        return x

    @property
    def has_log_z(self) -> bool:
        """Whether log Z is cheap at any size: a ring, a chain, or a torus without a field."""
        return len(self.dims) == 1 or self._on_torus

    @property
    def _on_torus(self) -> bool:
        return len(self.dims) == 2 and self.periodic and not self.has_field

    def log_z(self) -> Tensor:  # noqa: D102
        if self._on_torus:
            even = all(side % 2 == 0 for side in self.event_shape)
            if even or bool(self.coupling >= 0):
                height, width = sorted(self.event_shape)
                coupling = self.coupling.double().abs()
                return log_z_of_torus(coupling, height, width).to(self.coupling.dtype)
        local = self.field if self.has_field else torch.zeros_like(self.coupling)
        signs = torch.tensor([-1.0, 1.0]).to(self.coupling)
        unary = local.expand(self.batch_shape + self.event_shape).unsqueeze(-1) * signs
        return self._log_z_by_elimination(unary, self.coupling * torch.outer(signs, signs))


class Potts(_Lattice):
    r"""The Potts model on a grid of any dimension.

    .. math:: E(x) = -K \sum_{\langle ij \rangle} [x_i = x_j] - \sum_i h_{i, x_i}, \qquad
        x_i \in \{0, \dots, q - 1\}

    A site is an integer, so that a point is as large as its grid, whatever the number of values.
    Two values are the :class:`Ising` model at half the coupling. :meth:`log_z` is a sum over one
    row at a time, for grids that are narrow enough.

    Args:
        shape: The sides of the grid.
        num_values: The number of values q.
        coupling: The coupling :math:`K`, in nats: positive makes neighbours equal.
        field: The field :math:`h`, in nats, with shape ``(q,)`` or ``(*batch, *shape, q)``; none
            if not given. One that comes from data may have a batch, as that of :class:`Ising`.
        periodic: Whether opposite edges are joined (a torus).

    Raises:
        ValueError: If a side is too short (a periodic one of 2 would double its bonds), there are
            fewer than two values, or the coupling or field has another shape; in :meth:`log_z`, if
            the sum is too large.

    Example:
        >>> potts = Potts((3, 3), num_values=3, coupling=0.5)
        >>> potts(torch.zeros(3, 3)), potts.conditionals(torch.zeros(3, 3))[0, 0]
        (tensor(-9.), tensor([2., 0., 0.]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_values: int,
        coupling: float | Tensor,
        field: Tensor | None = None,
        periodic: bool = True,
    ) -> None:
        if num_values < 2:
            raise ValueError(f"num_values must be at least 2, got {num_values}")
        super().__init__(
            shape, coupling, periodic, constraints.integer_interval(0, num_values - 1)
        )
        self.has_field = field is not None
        if self.has_field:
            own = torch.Size((*self.event_shape, num_values))
            if field.shape != (num_values,) and field.shape[-len(own) :] != own:
                raise ValueError(
                    f"field must have shape ({num_values},) or {tuple(own)}, with a batch in "
                    f"front or none, got {tuple(field.shape)}"
                )
            self.batch_shape = field.shape[: -len(own)]
            self.constant("field", field)
        else:
            self.field = None

    def _bond(self, x: Tensor, y: Tensor) -> Tensor:
        return (x == y).to(self.coupling.dtype)

    def _one_hot(self, x: Tensor) -> Tensor:
        values = torch.arange(self.num_values, device=x.device)
        return (x.unsqueeze(-1) == values).to(self.coupling.dtype)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        energy = -self.coupling * self.bonds(x)
        if self.has_field:
            energy = energy - (self.field * self._one_hot(x)).flatten(-len(self.dims) - 1).sum(-1)
        return energy.to(x.dtype) if x.is_floating_point() else energy

    def conditionals(self, x: Tensor) -> Tensor:  # noqa: D102
        dims = [dim - 1 for dim in self.dims]
        local = self.coupling * sum_of_neighbours(self._one_hot(x), dims, self.periodic)
        return local + self.field if self.has_field else local

    @torch.no_grad()
    def sweep(self, x: Tensor, uniform: Tensor, beta: float | Tensor = 1.0) -> Tensor:  # noqa: D102
        if isinstance(beta, Tensor) and beta.dim():
            beta = beta.squeeze(-1)
        fields = self.field.unbind(-1) if self.has_field else ()
        for colour in range(self.num_colours):
            logits = []  # one value after the other: a last side of q would be slow to go through
            for k in range(self.num_values):
                around = sum_of_neighbours((x == k).to(uniform.dtype), self.dims, self.periodic)
                around.mul_(self.coupling)
                logits.append((around + fields[k] if fields else around) * beta)
            top = functools.reduce(torch.maximum, logits)
            below = list(itertools.accumulate((logit - top).exp_() for logit in logits))
            level = uniform * below[-1]
            places = sum((level >= mass).to(x.dtype) for mass in below[:-1])
            x = torch.where(self.colours == colour, places, x)
        return x

    @property
    def has_log_z(self) -> bool:
        """Whether log Z is cheap at any size: a ring or a chain."""
        return len(self.dims) == 1

    def log_z(self) -> Tensor:  # noqa: D102
        like = self.coupling
        unary = self.field if self.has_field else like.new_zeros(self.num_values)
        table = self.coupling * torch.eye(self.num_values).to(like)
        unary = unary.expand(*self.batch_shape, *self.event_shape, self.num_values)
        return self._log_z_by_elimination(unary, table)
