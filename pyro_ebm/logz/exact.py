r"""Log Z without sampling: a formula, a sum that the energy knows, or one over all points.

.. math:: \log Z = \log \sum_x e^{-E(x)/T}
"""

from __future__ import annotations

__all__ = ["cooled", "exact", "known"]

import copy
import math

import torch

from ..distributions import Boltzmann
from ..energies.base import Energy, Scaled, Tempered, reference_tensor
from ..energies.boltzmann_machines import GaussianRBM
from ..energies.discrete import DiscreteEnergy
from ..energies.enumeration import MAX_POINTS, count_points, log_sum_of_points
from .base import LogZ, check_distribution


def exact(boltzmann: Boltzmann, *, max_points: int = MAX_POINTS) -> LogZ:
    r"""Evaluates log Z exactly, in float64 where the energy is discrete.

    ==================================================  ======================================
    what is known                                       ``method``
    ==================================================  ======================================
    the energy has a formula or a sum of its own:       ``"exact: Ising.log_z"`` and so on
    Kaufman's on a torus, elimination on strips and
    trees, messages on a chain, the smaller layer of
    an RBM
    else, log Z was given to the distribution           ``"exact: given"``
    else, few points in all                             ``"exact: enumeration"``, in blocks
    ==================================================  ======================================

    The temperature counts: a discrete energy that is linear in its parameters, as an Ising model
    is in coupling and field, is at T the same with these over T. The free energy of an RBM is not
    linear, and at another temperature than one there is enumeration alone.

    Args:
        boltzmann: A Boltzmann distribution without a batch.
        max_points: How many points may be enumerated.

    Returns:
        The value, with a standard error of zero.

    Raises:
        ValueError: If the distribution has a batch, or log Z is not known and the support is
            continuous or has too many points.

    Example:
        >>> import pyro_ebm as ebm
        >>> critical = ebm.Boltzmann(ebm.energies.Ising((32, 32), 1.0), temperature=2.269185)
        >>> z = exact(critical)
        >>> print(z.method, z)
        exact: Ising.log_z log Z = 952.648 ± 0.000 nats, in [952.648, 952.648], ESS inf
    """
    found = known(boltzmann, max_points)
    if found is not None:
        return found
    name = type(boltzmann.energy).__name__
    num_points = count_points(boltzmann.support, boltzmann.event_shape)
    if num_points is None:
        raise ValueError(
            f"log Z of {name} at temperature {_number(boltzmann.temperature):g} is not known, and "
            f"its support {boltzmann.support} cannot be enumerated: use pyro_ebm.logz.quadrature "
            "in up to three dimensions, pyro_ebm.logz.smc in more"
        )
    raise ValueError(
        f"log Z of {name} at temperature {_number(boltzmann.temperature):g} is not known, and its "
        f"support has {_power(num_points)} points, as many evaluations of the energy; max_points "
        f"allows {max_points}: use pyro_ebm.logz.smc, or pyro_ebm.logz.ais"
    )


@torch.no_grad()
def known(boltzmann: Boltzmann, max_points: int = MAX_POINTS) -> LogZ | None:
    """Evaluates log Z exactly where that can be done, as :func:`exact`; else ``None``.

    Args:
        boltzmann: A Boltzmann distribution without a batch.
        max_points: How many points may be enumerated.

    Raises:
        ValueError: If there is no distribution, or one with a batch.
    """
    check_distribution(boltzmann)
    if boltzmann.support is getattr(boltzmann.energy, "support", None):
        energy = cooled(boltzmann.energy, _number(boltzmann.temperature))
        if energy is not None:
            try:
                value = float(energy.log_z())
            except ValueError:
                pass  # too large a sum
            else:
                return _without_error(value, f"exact: {type(energy).__name__}.log_z")
    if boltzmann.is_normalized and not boltzmann.sums_log_z:
        return _without_error(float(boltzmann.log_z), "exact: given")
    num_points = count_points(boltzmann.support, boltzmann.event_shape)
    if num_points is None or num_points > max_points:
        return None
    value = log_sum_of_points(
        boltzmann.log_density,
        boltzmann.support,
        boltzmann.event_shape,
        reference_tensor(boltzmann.energy),
    )
    return _without_error(float(value), "exact: enumeration")


def cooled(energy: Energy, temperature: float) -> Energy | None:
    r"""Returns an energy of the law :math:`e^{-E/T}`, of which log Z may be asked.

    Args:
        energy: The energy :math:`E`.
        temperature: The temperature :math:`T`.

    Returns:
        The energy, in float64 and without a gradient if it is discrete; ``None`` if log Z is not
        to be had, or not at that temperature.

    Example:
        >>> from pyro_ebm.energies import Ising
        >>> cooled(Ising((4, 4), 0.6), 2.0).log_z() - Ising((4, 4), 0.3).log_z()
        tensor(..., dtype=torch.float64)
    """
    if isinstance(energy, Tempered):
        return cooled(energy.energy, temperature * _number(energy.temperature))
    if isinstance(energy, Scaled):
        weight = _number(energy.weight)
        return cooled(energy.energy, temperature / weight) if weight > 0 else None
    if isinstance(energy, DiscreteEnergy):
        return _with_parameters_over(energy, temperature)
    sums = energy.has_log_z or isinstance(energy, GaussianRBM)
    return energy if sums and temperature == 1 else None


def _with_parameters_over(energy: DiscreteEnergy, temperature: float) -> DiscreteEnergy | None:
    if type(energy).log_z is Energy.log_z or (temperature != 1 and not energy.linear_in):
        return None
    other = copy.copy(energy)
    values = {**energy._buffers, **energy._parameters}
    other._parameters = {}
    other._buffers = {
        name: value.detach().double() if value.is_floating_point() else value
        for name, value in values.items()
    }
    for name in energy.linear_in:
        if name in values:
            other._buffers[name] = other._buffers[name].double() / temperature
    return other


def _without_error(value: float, method: str) -> LogZ:
    return LogZ(value, 0.0, math.inf, value, value, method)


def _number(x: float | torch.Tensor) -> float:
    return float(x)


def _power(count: int) -> str:
    return f"{count}" if count < 10**6 else f"about 10^{math.log10(count):.0f}"
