r"""Log Z by numerical integration over one to three dimensions."""

from __future__ import annotations

__all__ = ["quadrature"]

import torch

from ..distributions import Boltzmann
from ..energies.base import reference_tensor
from ..summation import fit_grid, log_z_of_grid
from .base import LogZ, check_distribution


def quadrature(boltzmann: Boltzmann, *, half_width: float = 50.0, tol: float = 1e-6) -> LogZ:
    r"""Integrates a density of one to three dimensions on a grid that finds where the mass is.

    .. math::
        \log Z = \log \sum_i \Delta u \, \exp(-E(x(u_i))/T) \left| \frac{dx}{du} \right|_{u_i}

    in unconstrained space. The box first grows until next to nothing is outside of it, by the
    power with which the density falls towards its edges, then it shrinks to the cells that hold
    all but ``1e-12`` of the mass, then the grid is refined until two successive values agree to
    ``tol``. For a smooth density the trapezoidal rule converges faster than any power; the stated
    error is the last change, and what is outside. Mass that lies between the points of the first
    grid, or in a mode outside of its box, is not seen.

    Args:
        boltzmann: The distribution, without a batch.
        half_width: Half the side of the first box in unconstrained space, in units of u.
        tol: The change in log Z, in nats, at which refinement stops.

    Returns:
        The estimate; ``std_error`` is the last change and what is outside of the box, the bounds
        are the value plus and minus it, and the ESS is the number of points.

    Raises:
        ValueError: If the distribution has a batch or more than three unconstrained dimensions, or
            the density is not finite somewhere, or if a grid of four million points does not reach
            ``tol`` or the end of the mass.

    Example:
        >>> from pyro_ebm.energies import DoubleWell
        >>> round(quadrature(Boltzmann(DoubleWell(beta=1.0))).value, 5)
        0.67993
    """
    check_distribution(boltzmann)
    dim = torch.distributions.biject_to(boltzmann.support).inverse_shape(boltzmann.event_shape)
    if not 1 <= dim.numel() <= 3:
        raise ValueError(
            "quadrature takes one to three unconstrained dimensions, got event_shape "
            f"{tuple(boltzmann.event_shape)}; use a sampling estimator"
        )
    grid, change = fit_grid(boltzmann, reference_tensor(boltzmann.energy), half_width, tol)
    with torch.no_grad():
        value = log_z_of_grid(boltzmann, grid).item()
    return LogZ(
        value,
        change,
        float(grid.num_points ** len(grid.low)),
        value - change,
        value + change,
        "quadrature",
    )
