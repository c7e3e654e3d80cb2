r"""The held-out log-likelihood of an energy, with the error of its log Z in it."""

from __future__ import annotations

__all__ = ["held_out"]

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ..distributions import Boltzmann
from ..metrics.base import Estimate
from .base import LogZ


def held_out(boltzmann: Boltzmann, x: Tensor, log_z: LogZ | Sequence[LogZ]) -> Estimate:
    r"""Averages the log-likelihood of points that the energy was not trained on.

    .. math:: \bar\ell = -\frac1n \sum_i \left(E(x_i)/T + \log Z_i\right), \qquad \mathrm{se}^2 =
        \frac{s^2}{n} + \sum_z \left(\frac{n_z}{n}\right)^2 \mathrm{se}_z^2

    with s the standard deviation of the terms. The first part is the spread of the points; the
    second moves all :math:`n_z` points of one estimate of log Z together, and is its error where
    all have the same. A log Z that is too low, as one-sided estimates are on average, makes the
    likelihood too high; with ``log_z.upper`` in place of its value it is a bound from below.

    **A conditional energy** E(x; y) has a log Z for each y: give a sequence, with the same object
    for points with the same y.

    Args:
        boltzmann: The distribution.
        x: Independent points, with shape ``(n, *batch, *event)``.
        log_z: The log Z, of any estimator, of all points alike; or a sequence of them, one for
            each point, or, of a distribution with a batch, for each of its members in order.

    Returns:
        The mean log-likelihood in nats per point, with its standard error.

    Raises:
        ValueError: If there are fewer than two points, their shape is not that of the
            distribution, or a sequence has another length.

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
    many = isinstance(log_z, Sequence) and not isinstance(log_z, LogZ)
    each = list(log_z) if many else [log_z]
    if unlike := [type(one).__name__ for one in each if not isinstance(one, LogZ)]:
        raise ValueError(
            f"log_z must be one LogZ, as an estimator returns it, or a sequence, got {unlike[0]}"
        )
    num_wanted = boltzmann.batch_shape.numel() if boltzmann.batch_shape else len(x)
    if many and len(each) != num_wanted:
        raise ValueError(
            f"log_z must be one LogZ, or a sequence of {num_wanted}, one for each "
            f"{'member of the batch' if boltzmann.batch_shape else 'point'}, got {len(each)}"
        )
    with torch.no_grad():
        log_density = boltzmann.log_density(x).double().reshape(len(x), -1)
    values = log_density.new_tensor([one.value for one in each])
    terms = log_density - (values if boltzmann.batch_shape else values.unsqueeze(-1))
    spread = terms.std().item() / math.sqrt(terms.numel())
    counts, errors = Counter(map(id, each)), {id(one): one.std_error for one in each}
    moved = [counts[key] / len(each) * error for key, error in errors.items()]
    return Estimate(terms.mean().item(), math.hypot(spread, *moved))
