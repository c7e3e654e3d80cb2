r"""Log Z by numerical integration over one to three dimensions."""

from __future__ import annotations

__all__ = ["quadrature"]

import math

import torch
from torch import Tensor

from ..distributions import Boltzmann
from ..energies.base import reference_tensor
from ..potential import unconstrained_log_density
from .base import LogZ

MAX_POINTS = 2**22


def quadrature(boltzmann: Boltzmann, *, half_width: float = 50.0, tol: float = 1e-6) -> LogZ:
    r"""Integrates a density of one to three dimensions on a grid that finds where the mass is.

    .. math::
        \log Z = \log \sum_i \Delta u \, \exp(-E(x(u_i))/T) \left| \frac{dx}{du} \right|_{u_i}

    in unconstrained space. The box first shrinks to the cells that hold all but ``1e-12`` of the
    mass, then the grid is refined until two successive values agree to ``tol``. For a smooth
    density the trapezoidal rule converges faster than any power; the stated error is the last
    change. Mass that lies between the points of the first grid, or outside of its box, is not
    seen.

    Args:
        boltzmann: The distribution, without a batch.
        half_width: Half the side of the first box in unconstrained space, in units of u.
        tol: The change in log Z, in nats, at which refinement stops.

    Returns:
        The estimate; ``std_error`` is the last change, the bounds are the value plus and minus it,
        and the ESS is the number of points.

    Raises:
        ValueError: If the distribution has a batch or more than three unconstrained dimensions, or
            if a grid of four million points does not reach ``tol``.

    Example:
        >>> from pyro_ebm.energies import DoubleWell
        >>> round(quadrature(Boltzmann(DoubleWell(beta=1.0))).value, 5)
        0.67993
    """
    bijection = torch.distributions.biject_to(boltzmann.support)
    shape = bijection.inverse_shape(boltzmann.event_shape)
    dim = shape.numel()
    if boltzmann.batch_shape or not 1 <= dim <= 3:
        raise ValueError(
            "quadrature takes one to three unconstrained dimensions and no batch, got event_shape "
            f"{tuple(boltzmann.event_shape)} and batch_shape {tuple(boltzmann.batch_shape)}; use "
            "a sampling estimator"
        )
    start = reference_tensor(boltzmann.energy)
    low, high = start.new_full((dim,), -half_width), start.new_full((dim,), half_width)
    num_points = {1: 4096, 2: 256, 3: 64}[dim]
    previous = math.nan
    while num_points**dim <= MAX_POINTS:
        value, new_low, new_high = _on_grid(boltzmann, shape, low, high, num_points)
        if abs(value - previous) < tol:
            change = abs(value - previous)
            return LogZ(value, change, float(num_points**dim), value - change, value + change)
        previous = value
        shrunk = bool(((new_high - new_low) < 0.7 * (high - low)).any())
        low, high = new_low, new_high
        num_points = num_points if shrunk else math.ceil(1.5 * num_points)
    raise ValueError(
        f"quadrature did not reach tol={tol} nats with {MAX_POINTS} points (last value "
        f"{previous:.6f}): the density may be too sharp for the grid, or not normalisable"
    )


def _on_grid(
    boltzmann: Boltzmann, shape: torch.Size, low: Tensor, high: Tensor, num_points: int
) -> tuple[float, Tensor, Tensor]:
    """Returns log Z on one grid, and the box of the cells that hold the mass."""
    axes = [torch.linspace(a, b, num_points).to(low) for a, b in zip(low, high, strict=True)]
    u = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    with torch.no_grad():
        log_density = unconstrained_log_density(boltzmann, u.reshape(-1, *shape)).double()
    spacing = (high - low).double() / (num_points - 1)
    value = (log_density.logsumexp(0) + spacing.log().sum()).item()
    weights = log_density.softmax(0).reshape((num_points,) * len(axes))
    bounds = []
    for d in range(len(axes)):
        marginal = (
            weights.sum([k for k in range(len(axes)) if k != d]) if len(axes) > 1 else weights
        )
        held = (marginal > 1e-12 / num_points).nonzero().flatten()
        pad = 2 * spacing[d].to(low)
        bounds.append((axes[d][held[0]] - pad, axes[d][held[-1]] + pad))
    new_low, new_high = (torch.stack(b) for b in zip(*bounds, strict=True))
    return value, torch.maximum(new_low, low), torch.minimum(new_high, high)
