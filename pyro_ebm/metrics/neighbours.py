"""Fidelity, variety and copying, by distances to nearest neighbours."""

from __future__ import annotations

__all__ = ["PrecisionRecall", "data_copying", "precision_recall"]

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Estimate, distances, paired_rows, rows_of
from .detection import auroc


class PrecisionRecall(NamedTuple):
    """The two numbers of :func:`precision_recall`."""

    precision: Estimate
    """How much of the samples lies among the data."""
    recall: Estimate
    """How much of the data lies among the samples."""


def precision_recall(samples: Tensor, data: Tensor, k: int = 3) -> PrecisionRecall:
    r"""Estimates how many samples lie among the data, and how many data among the samples.

    .. math::
        \text{precision} = P(\exists i: |y - x_i| \le r_i), \qquad
        \text{recall} = P(\exists j: |x - y_j| \le r_j)

    for samples y, data x and the distance r of each point to its k-th neighbour within its own
    set. A model that blurs loses precision, one that leaves out modes loses recall, and a distance
    of laws would tell neither from the other. **Biased**: for one law both lie below 1, by an
    amount that depends on k, on the number of points and on the dimension. Compare with what data
    against data give, at the same numbers.

    The standard error is binomial with twice the variance, since both sets are drawn: those of one
    set judge those of the other. It is a rule of thumb, off by up to a third either way; one hit
    and one miss are added to keep it positive.

    References:
        | Improved precision and recall metric for assessing generative models
        | (Kynkäänniemi et al., 2019), https://arxiv.org/abs/1904.06991

    Args:
        samples: Samples of the model, with shape ``(n, *event)``, n more than k.
        data: Data, with shape ``(m, *event)``, m more than k.
        k: Which neighbour sets the radius.

    Returns:
        Precision and recall.

    Raises:
        ValueError: If ``k`` is not positive, a set has not more than k points or is not finite, or
            if the event shapes differ.

    Example:
        >>> data = torch.randn(300, 2)
        >>> narrow = precision_recall(0.1 * torch.randn(300, 2), data)
        >>> narrow.precision.value > 0.8, narrow.recall.value < 0.3
        (True, True)
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    y, x = paired_rows(samples, data, at_least=k + 1)
    apart = distances(y, x)
    covered_y = (apart <= _radii(x, k)).any(1)
    covered_x = (apart <= _radii(y, k).unsqueeze(-1)).any(0)
    return PrecisionRecall(_part(covered_y), _part(covered_x))


def _radii(x: Tensor, k: int) -> Tensor:
    """Returns the distance of each row to its k-th neighbour among the others."""
    return distances(x, x).fill_diagonal_(0).kthvalue(k + 1, dim=1).values


def _part(hit: Tensor) -> Estimate:
    n, hits = len(hit), hit.sum().item()
    shrunk = (hits + 1) / (n + 2)
    return Estimate(hits / n, math.sqrt(2 * shrunk * (1 - shrunk) / n))


def data_copying(samples: Tensor, train: Tensor, test: Tensor) -> Estimate:
    r"""Estimates how often a sample lies nearer to the training data than held-out data do.

    .. math:: A = P\big(d(y) < d(x)\big), \qquad d(\cdot) = \min_i |\cdot - x_i^\text{train}|

    for samples y and held-out data x, ties counted half. It is 0.5 for samples of the law of the
    data and 1 for copies of the training data; a model that blurs comes below 0.5, and one that
    draws only what is typical above it, without copying anything. Given the training data the
    distances are independent, and the standard error is that of
    :func:`~pyro_ebm.metrics.auroc`.

    References:
        | A non-parametric test to detect data-copying in generative models (Meehan et al., 2020),
        | https://arxiv.org/abs/2004.05675

    Args:
        samples: Samples of the model, with shape ``(n, *event)``, n at least 2.
        train: What the model was fitted to, with shape ``(l, *event)``.
        test: Held-out data, with shape ``(m, *event)``, m at least 2.

    Returns:
        The probability and its standard error.

    Raises:
        ValueError: If a set is too short or not finite, or if the event shapes differ.

    Example:
        >>> train, test = torch.randn(300, 2), torch.randn(200, 2)
        >>> data_copying(train[:100], train, test).value
        1.0
    """
    y, x = paired_rows(samples, test, at_least=2)
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"train and test must have one event shape, got {tuple(train.shape)} and "
            f"{tuple(test.shape)}"
        )
    seen = rows_of("train", train, 1)

    def minus_nearest(rows: Tensor) -> Tensor:
        parts = [-distances(part, seen).amin(1) for part in rows.split(256)]
        return torch.cat(parts)

    return auroc(minus_nearest(y), minus_nearest(x))
