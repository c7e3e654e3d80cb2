r"""Log Z as a finite sum: over the points of a discrete support, or over those of a grid.

.. math:: \log Z = \log \sum_i w_i \exp(-E(x_i)/T)

On a discrete support all weights are one and the sum is exact. On a continuous one the points are
a grid in unconstrained space, the weights its cells with the Jacobian, and the trapezoidal rule
converges, for a smooth density, faster than any power. Both are differentiable in whatever the
energy depends on.
"""

from __future__ import annotations

__all__ = ["Grid", "enumerate_support", "fit_grid", "log_z_of_grid"]

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import biject_to

from .arguments import check_positive
from .distributions import Boltzmann
from .energies.enumeration import MAX_POINTS, enumerate_points
from .potential import unconstrained_log_density


class Grid(NamedTuple):
    """A box of unconstrained space, and how many points each of its sides has."""

    low: Tensor
    """The lower corner, with shape ``(D,)``."""
    high: Tensor
    """The upper corner, with shape ``(D,)``."""
    num_points: int
    """The number of points on each side."""

    def axes(self) -> list[Tensor]:
        """Returns the coordinates of the points on each side."""
        sides = zip(self.low, self.high, strict=True)
        return [torch.linspace(a, b, self.num_points).to(self.low) for a, b in sides]

    def points(self) -> Tensor:
        """Returns the points, with shape ``(num_points ** D, D)``."""
        mesh = torch.meshgrid(*self.axes(), indexing="ij")
        return torch.stack(mesh, dim=-1).reshape(-1, len(self.low))

    def spacing(self) -> Tensor:
        """Returns the distance of neighbours along each side, with shape ``(D,)``."""
        return (self.high - self.low).double() / (self.num_points - 1)


def fit_grid(
    boltzmann: Boltzmann, like: Tensor, half_width: float = 50.0, tol: float = 1e-6
) -> tuple[Grid, float]:
    """Finds a grid that holds the mass of a density of one to three dimensions.

    The box first grows until what is outside of it, by the power with which the density falls
    towards its edges, is less than ``tol`` of the mass; then it shrinks to the cells that hold all
    but ``1e-12`` of it; then the grid is refined until two successive values of log Z agree to
    ``tol``. Mass that lies between the points of the first grid, or in a mode outside of the first
    box, is not seen.

    Args:
        boltzmann: The distribution, or a batch of them, for all of which the grid is to serve.
        like: A tensor whose dtype and device the points have.
        half_width: Half the side of the first box in unconstrained space, in units of u.
        tol: The change in log Z, in nats, at which refinement stops.

    Returns:
        The grid, and the largest last change of log Z in nats, with what is outside of the box.

    Raises:
        ValueError: If the distribution has more than three unconstrained dimensions, if its
            density is not finite at some point, or if a grid of four million points, over the
            members of the batch together, does not reach ``tol`` or the end of the mass.
    """
    dim = biject_to(boltzmann.support).inverse_shape(boltzmann.event_shape).numel()
    check_positive("half_width", half_width)
    check_positive("tol", tol)
    if not 1 <= dim <= 3:
        raise ValueError(
            "quadrature takes one to three unconstrained dimensions, got event_shape "
            f"{tuple(boltzmann.event_shape)}"
        )
    corner = like.new_full((dim,), half_width)
    grid = Grid(-corner, corner, {1: 4096, 2: 256, 3: 64}[dim])
    previous = torch.full((), math.nan, dtype=torch.float64)
    outside = math.inf
    while grid.num_points**dim * boltzmann.batch_shape.numel() <= MAX_POINTS:
        with torch.no_grad():
            log_density = _log_density(boltzmann, grid)
        _check_finite(grid, log_density)
        if outside >= tol:
            outside = max(_outside(marginal) for marginal in _marginals(grid, log_density))
        if outside >= tol:
            grid = Grid(2 * grid.low, 2 * grid.high, 2 * grid.num_points)
            continue
        value = log_density.logsumexp(0) + grid.spacing().log().sum()
        change = (value - previous).abs().max().item()
        if change < tol:
            return grid, change + outside
        previous = value
        grid = _shrunk(grid, log_density)
    if outside >= tol:
        raise ValueError(
            f"quadrature did not reach tol={tol} nats with {MAX_POINTS} points: mass "
            f"lies further out than {grid.high[0].item() / 2:g} in unconstrained space, for the "
            "density has heavy tails, or is not normalisable"
        )
    raise ValueError(
        f"quadrature did not reach tol={tol} nats with {MAX_POINTS} points (last value "
        f"{previous.flatten()[0].item():.6f}): the density may be too sharp for the grid, or not "
        "normalisable"
    )


def log_z_of_grid(boltzmann: Boltzmann, grid: Grid) -> Tensor:
    """Sums a density over a grid, differentiably.

    Args:
        boltzmann: The distribution.
        grid: The grid.

    Returns:
        Log Z in nats and in float64, with the batch shape.
    """
    return _log_density(boltzmann, grid).logsumexp(0) + grid.spacing().log().sum()


def enumerate_support(boltzmann: Boltzmann, like: Tensor) -> Tensor:
    """Lists all points of a discrete support, up to four million of them.

    Args:
        boltzmann: A distribution over booleans, spins, integers of an interval, or one-hot
            vectors, or over a tensor of these.
        like: A tensor whose dtype and device the points have.

    Returns:
        The points, with shape ``(n, *event)``.

    Raises:
        ValueError: If the support is not one of these, or has more than four million points.
    """
    return enumerate_points(boltzmann.support, boltzmann.event_shape, like)


def _log_density(boltzmann: Boltzmann, grid: Grid) -> Tensor:
    """Evaluates the density at each point for each member of the batch: ``(n, *batch)``."""
    shape = biject_to(boltzmann.support).inverse_shape(boltzmann.event_shape)
    batch = boltzmann.batch_shape
    u = grid.points().reshape(-1, *(1,) * len(batch), *shape)
    u = u.expand(len(u), *batch, *shape)
    return unconstrained_log_density(boltzmann, u).double()


def _check_finite(grid: Grid, log_density: Tensor) -> None:
    bad = (log_density.isnan() | (log_density == math.inf)).reshape(len(log_density), -1).any(-1)
    if bool(bad.any()):
        raise ValueError(
            f"the log density is not finite at {int(bad.sum())} of the {len(bad)} points of the "
            f"grid, the first of which is {grid.points()[bad.nonzero()[0, 0]].tolist()} in "
            "unconstrained space"
        )


def _marginals(grid: Grid, log_density: Tensor) -> list[Tensor]:
    """Sums the mass over all axes but one, for each of them: ``(num_points,)``."""
    dim = len(grid.low)
    weights = log_density.softmax(0).reshape(len(log_density), -1).mean(-1)
    weights = weights.reshape((grid.num_points,) * dim)
    if dim == 1:
        return [weights]
    return [weights.sum([k for k in range(dim) if k != d]) for d in range(dim)]


def _outside(marginal: Tensor) -> float:
    r"""Estimates the mass beyond both ends of an axis, in units of that between them.

    A density that falls like :math:`d^{-p}` with the distance d from the median has the mass
    :math:`m d / (p - 1)` beyond the distance at which it is m. One that falls faster has less.
    """
    median = int((marginal.cumsum(0) < 0.5).sum())
    found = 0.0
    for side, distance in ((marginal, median), (marginal.flip(0), len(marginal) - 1 - median)):
        inside = distance // 8
        here, nearer = side[0].item(), side[inside].item()
        if here > 0 and inside:
            power = math.log(max(nearer, here) / here) / math.log(distance / (distance - inside))
            found += here * distance / (power - 1) if power > 1 else math.inf
        elif here > 0:
            found = math.inf
    return found


def _shrunk(grid: Grid, log_density: Tensor) -> Grid:
    """Cuts off the cells without mass; where that gains little, makes the grid finer."""
    bounds, marginals = [], _marginals(grid, log_density)
    steps = grid.spacing().to(grid.low)
    for axis, step, marginal in zip(grid.axes(), steps, marginals, strict=True):
        held = (marginal > 1e-12 / grid.num_points).nonzero().flatten()
        bounds.append((axis[held[0]] - 2 * step, axis[held[-1]] + 2 * step))
    low, high = (torch.stack(side) for side in zip(*bounds, strict=True))
    low, high = torch.maximum(low, grid.low), torch.minimum(high, grid.high)
    shrunk = bool(((high - low) < 0.7 * (grid.high - grid.low)).any())
    return Grid(low, high, grid.num_points if shrunk else math.ceil(1.5 * grid.num_points))
