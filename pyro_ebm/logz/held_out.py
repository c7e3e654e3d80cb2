r"""The held-out log-likelihood of an energy, with the error of its log Z in it."""

from __future__ import annotations

__all__ = ["held_out"]

import math

import torch
from torch import Tensor

from ..distributions import Boltzmann
from ..metrics.base import Estimate
from .base import LogZ


def held_out(boltzmann: Boltzmann, x: Tensor, log_z: LogZ) -> Estimate:
    r"""Averages the log-likelihood of points that the energy was not trained on.

    .. math:: \bar\ell = -\frac1n \sum_i E(x_i)/T - \log Z, \qquad \mathrm{se}^2 =
        \frac{s_E^2}{n} + \mathrm{se}^2_{\log Z}

    The first term is the spread of the points, the second moves all of them together. A log Z that
    is too low, as one-sided estimates are on average, makes the likelihood too high; with
    ``log_z.upper`` in place of its value it is a bound from below.

    Args:
        boltzmann: The distribution.
        x: Independent points, with shape ``(n, *batch, *event)``.
        log_z: Its log Z, of any estimator; for a batch, that of one of its members, all alike.

    Returns:
        The mean log-likelihood in nats per point, with its standard error.

    Raises:
        ValueError: If there are fewer than two points, or their shape is not that of the
            distribution.

    Example:
        >>> import pyro_ebm as ebm
        >>> p = ebm.Boltzmann(lambda x: 0.5 * x.square(), event_shape=())
        >>> z = ebm.logz.quadrature(p)
        >>> held_out(p, torch.tensor([-1.0, 0.0, 1.0]), z).value
        -1.252...
    """
    shape = boltzmann.batch_shape + boltzmann.event_shape
    if len(x) < 2 or x.shape[1:] != shape:
        raise ValueError(
            f"x must have shape (n, *batch, *event), here (n, {', '.join(map(str, shape))}), with "
            f"two points or more, got {tuple(x.shape)}"
        )
    with torch.no_grad():
        log_density = boltzmann.log_density(x).double().flatten()
    spread = log_density.std().item() / math.sqrt(len(log_density))
    return Estimate(log_density.mean().item() - log_z.value, math.hypot(spread, log_z.std_error))
