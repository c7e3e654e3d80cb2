r"""Pareto-smoothed weights, and the shape of their tail.

The largest weights of an importance sample follow a generalized Pareto law

.. math:: p(w) = \frac{1}{\sigma} \left(1 + k \frac{w - u}{\sigma}\right)^{-1/k - 1}, \qquad w > u

and have moments of order less than :math:`1/k` only: with :math:`k > 1/2` the variance of their
mean is infinite, with :math:`k > 1` the mean itself.
"""

from __future__ import annotations

__all__ = ["fit_pareto", "smoothed"]

import math

import torch
from torch import Tensor

FEWEST = 5
"""The weights that a tail has to have."""
PRIOR_WEIGHT, PRIOR_SHAPE = 10.0, 0.5
"""The weakly informative prior of the shape: as that many weights of that shape."""


def smoothed(log_weights: Tensor) -> tuple[Tensor, float]:
    r"""Replaces the largest weights by the quantiles of the Pareto law that fits them.

    They are as many as a fifth of all or :math:`3 \sqrt n`, whichever is less, without those that
    are equal to the next in order, as in a discrete space. None becomes larger than the largest
    was.

    References:
        | Pareto smoothed importance sampling (Vehtari, Simpson, Gelman, Yao and Gabry, 2024),
        | https://jmlr.org/papers/v25/19-556.html

    Args:
        log_weights: The logs of at least 25 weights, with shape ``(n,)``.

    Returns:
        The logs of the smoothed weights, in their places, and the shape k: infinite if the tail
        cannot be fitted or has fewer than five weights, minus infinity if all of it is equal, as
        in a small discrete space.

    Example:
        >>> log_weights = torch.randn(1000, generator=torch.Generator().manual_seed(0))
        >>> _, k_hat = smoothed(0.1 * log_weights)
        >>> k_hat < 0.3
        True
    """
    n = len(log_weights)
    num_tail = math.ceil(min(0.2 * n, 3 * math.sqrt(n)))
    ordered, order = log_weights.double().sort()
    most, cut = ordered[-1], ordered[-num_tail - 1]
    if cut == most:
        return log_weights.double(), -math.inf
    num_tail = int((ordered > cut).sum())
    if num_tail < FEWEST:
        return log_weights.double(), math.inf
    tail = (ordered[-num_tail:] - most).exp() - (cut - most).exp()
    if not bool(cut.isfinite() & (tail > 0).all()):
        return log_weights.double(), math.inf
    shape, scale = fit_pareto(tail)
    quantile = (torch.arange(num_tail).to(tail) + 0.5) / num_tail
    risen = scale * torch.special.expm1(-shape * torch.log1p(-quantile)) / shape
    ordered[-num_tail:] = ((risen + (cut - most).exp()).log()).clamp(max=0) + most
    return torch.empty_like(ordered).scatter_(0, order, ordered), shape


def fit_pareto(excess: Tensor) -> tuple[float, float]:
    r"""Fits shape and scale of a generalized Pareto law, by Zhang and Stephens.

    References:
        | A new and efficient estimation method for the generalized Pareto distribution (Zhang and
        | Stephens, 2009), https://doi.org/10.1198/tech.2009.08017

    Args:
        excess: How far each is above the threshold, rising, positive, with shape ``(n,)``.
    """
    n = len(excess)
    num_points = 30 + math.isqrt(n)
    grid = torch.arange(1, num_points + 1).to(excess) - 0.5
    quartile = excess[int(n / 4 + 0.5) - 1]
    b = (1 - (num_points / grid).sqrt()) / (3 * quartile) + 1 / excess[-1]
    k = torch.log1p(-b.unsqueeze(-1) * excess).mean(-1)
    likelihood = n * ((-b / k).log() - k - 1)
    b = (likelihood.softmax(0) * b).sum()
    k = torch.log1p(-b * excess).mean()
    scale = (-k / b).item()
    shape = (n * k.item() + PRIOR_WEIGHT * PRIOR_SHAPE) / (n + PRIOR_WEIGHT)
    return shape, scale
