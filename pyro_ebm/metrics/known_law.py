"""Against a law that is known: divergence by quadrature, and the weights of its modes."""

from __future__ import annotations

__all__ = ["ModeWeights", "kl_divergence", "mode_weights"]

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Estimate, paired_rows


def kl_divergence(
    log_p: Callable[[Tensor], Tensor],
    log_q: Callable[[Tensor], Tensor],
    half_width: float = 6.0,
    num_cells: int = 240,
) -> Estimate:
    r"""Integrates the divergence of one density of the plane from another.

    .. math:: \mathrm{KL}(p \,\|\, q) = \int p(x) \log \frac{p(x)}{q(x)} \, dx

    by the midpoint rule, which a kink between cells does not trouble. Its stated error is the
    change from cells of twice the side. It is infinite where q leaves out what p has.

    Args:
        log_p: The log density p, in nats, of points ``(n, 2)``; it must be normalised.
        log_q: The log density q, in nats. It is evaluated only where p has mass.
        half_width: Half the side of the square around the origin that holds the mass of p.
        num_cells: The number of cells along a side, even.

    Returns:
        The divergence in nats, and its error.

    Raises:
        ValueError: If ``num_cells`` is not even and positive, or p does not integrate to 1 over
            the square, to a thousandth.

    Example:
        >>> p = torch.distributions.Normal(torch.zeros(2), torch.tensor([0.3, 0.5]))
        >>> q = torch.distributions.Normal(torch.ones(2), 1.0)
        >>> kl = kl_divergence(lambda x: p.log_prob(x).sum(-1), lambda x: q.log_prob(x).sum(-1))
        >>> exact = torch.distributions.kl_divergence(p, q).sum().item()
        >>> abs(kl.value - exact) < 1e-5
        True
    """
    if num_cells < 2 or num_cells % 2:
        raise ValueError(f"num_cells must be even and positive, got {num_cells}")
    coarse, fine = (
        _integral(log_p, log_q, half_width, cells) for cells in (num_cells // 2, num_cells)
    )
    change = 0.0 if fine == coarse else abs(fine - coarse)
    return Estimate(fine, change)


def _integral(
    log_p: Callable[[Tensor], Tensor],
    log_q: Callable[[Tensor], Tensor],
    half_width: float,
    num_cells: int,
) -> float:
    width = 2 * half_width / num_cells
    middles = -half_width + width * (torch.arange(num_cells) + 0.5)
    points = torch.cartesian_prod(middles, middles)
    with torch.no_grad():
        log_mass = log_p(points).double() + 2 * math.log(width)
        mass = log_mass.exp()
        if abs(mass.sum().item() - 1) > 1e-3:
            raise ValueError(
                f"log_p integrates to {mass.sum().item():.4g} over the square of half_width="
                f"{half_width}, not to 1: it is not normalised, or its mass lies elsewhere"
            )
        inside = mass > 1e-12
        log_mass, mass, points = log_mass[inside], mass[inside], points[inside]
        there = torch.cat([log_q(part).double() for part in points.split(20_000)])
    return (mass * (log_mass - 2 * math.log(width) - there)).sum().item()


class ModeWeights(NamedTuple):
    """The two numbers of :func:`mode_weights`."""

    error: Estimate
    """The total variation between the weights of the modes and those found."""
    num_found: int
    """How many modes have at least a tenth of their weight."""


def mode_weights(samples: Tensor, centres: Tensor, weights: Tensor) -> ModeWeights:
    r"""Estimates how far a sample is from the weights of known modes.

    .. math:: \tfrac12 \sum_k |\hat w_k - w_k|

    where each point belongs to the nearest centre. **Biased** upwards, as no absolute value is
    negative: a sample of the law itself is off by its noise. The standard error is multinomial,
    to first order.

    Args:
        samples: Samples, with shape ``(n, *event)``, n at least 2.
        centres: The centre of each mode, with shape ``(K, *event)``.
        weights: The weight of each mode, with shape ``(K,)``; they sum to 1.

    Returns:
        The error of the weights, and how many modes were found.

    Raises:
        ValueError: If shapes do not fit, a value is not finite, or the weights are no weights.

    Example:
        >>> centres = torch.tensor([[-2.0], [2.0]])
        >>> found = mode_weights(centres[[0, 0, 0, 1]], centres, torch.tensor([0.5, 0.5]))
        >>> found.error.value, found.num_found
        (0.25, 2)
    """
    x, at = paired_rows(samples, centres, at_least=2)
    w = weights.double()
    if w.shape != (len(at),) or bool((w <= 0).any()) or abs(w.sum().item() - 1) > 1e-5:
        raise ValueError(
            f"weights must be positive and sum to 1, one for each of {len(at)} centres, got "
            f"{weights.tolist()}"
        )
    found = torch.bincount(torch.cdist(x, at).argmin(1), minlength=len(at)).double() / len(x)
    sign = (found - w).sign()
    variance = ((found * sign.square()).sum() - (found * sign).sum().square()) / 4 / len(x)
    error = Estimate(0.5 * (found - w).abs().sum().item(), math.sqrt(max(0.0, variance.item())))
    return ModeWeights(error, int((found > 0.1 * w).sum()))
