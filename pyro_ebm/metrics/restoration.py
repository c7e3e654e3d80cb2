"""How near points are that were restored from part of the evidence."""

from __future__ import annotations

__all__ = ["restoration_error"]

import math

from torch import Tensor

from .base import Estimate, paired_rows


def restoration_error(draws: Tensor, x: Tensor, known: Tensor | None = None) -> Estimate:
    r"""Computes the mean squared error of the mean of draws, for each coordinate.

    .. math:: \frac1n \sum_i \frac1{|U|} \sum_{j \in U} (\bar x_{ij} - x_{ij})^2, \qquad
        \bar x_i = \frac1S \sum_s x_i^{(s)}

    The posterior mean of the law of the data has the least of it in expectation, so that a better
    model restores better; of zeros and ones it is the Brier score. **Biased** upwards, by the
    variance of the mean of a finite number of draws. Its standard error is that of a mean over
    points.

    Args:
        draws: Draws of each restored point, with shape ``(S, n, *event)``, n at least 2.
        x: The points, with shape ``(n, *event)``.
        known: Coordinates that were known and do not count, booleans with shape ``(*event)``.

    Returns:
        The error, in units of x squared.

    Raises:
        ValueError: If shapes do not fit, a value is not finite, or all is known.

    Example:
        >>> import torch
        >>> x = torch.zeros(2, 2)
        >>> draws = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 3.0], [0.0, 1.0]]])
        >>> restoration_error(draws, x, torch.tensor([True, False])).value
        2.5
    """
    if draws.dim() != x.dim() + 1 or not len(draws):
        raise ValueError(
            f"draws must have shape (num_draws, *{tuple(x.shape)}), got {tuple(draws.shape)}"
        )
    found, truth = paired_rows(draws.double().mean(0), x, at_least=2)
    if len(found) != len(truth):
        raise ValueError(f"draws restore {len(found)} points, but x holds {len(truth)}")
    squares = (found - truth).square()
    if known is not None:
        if known.shape != x.shape[1:] or bool(known.all()):
            raise ValueError(
                f"known must have the event shape {tuple(x.shape[1:])} and leave something "
                f"unknown, got shape {tuple(known.shape)}"
            )
        squares = squares[:, ~known.flatten()]
    each = squares.mean(1)
    return Estimate(each.mean().item(), each.std().item() / math.sqrt(len(each)))
