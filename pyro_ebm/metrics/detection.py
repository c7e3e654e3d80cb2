"""How well a score tells in-distribution from out-of-distribution examples."""

from __future__ import annotations

__all__ = ["auroc"]

import math

import torch
from torch import Tensor

from .base import Estimate, rows_of


def auroc(scores_in: Tensor, scores_out: Tensor) -> Estimate:
    r"""Computes the area under the ROC curve of a score that is high in distribution.

    .. math:: A = P(s_\text{in} > s_\text{out}) + \tfrac{1}{2} P(s_\text{in} = s_\text{out})

    It is 1 for a perfect detector, 0.5 for a useless one and 0 for a perfect one with the wrong
    sign: pass minus the energy, not the energy. All pairs count, by ranks, exactly.

    The standard error is Hanley and McNeil's, exact for exponential scores and some 10 % off for
    Gaussian scores of very unequal numbers; it is 0 where the scores do not overlap.

    References:
        | The Meaning and Use of the Area under a Receiver Operating Characteristic (ROC) Curve
        | (Hanley and McNeil, 1982), equations 1 and 2,
        | https://doi.org/10.1148/radiology.143.1.7063747

    Args:
        scores_in: The scores of in-distribution examples, with shape ``(n,)``, n at least 2.
        scores_out: The scores of out-of-distribution examples, with shape ``(m,)``, m at least 2.

    Returns:
        The area and its standard error.

    Raises:
        ValueError: If the scores are too few, not finite or not one-dimensional.

    Example:
        >>> import torch
        >>> from pyro_ebm.metrics import auroc
        >>> print(auroc(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 0.0])).value)  # 5½ / 6
        0.9166666666666666
    """
    for name, scores in {"scores_in": scores_in, "scores_out": scores_out}.items():
        if scores.dim() != 1:
            raise ValueError(
                f"{name} must hold one number per example, with shape (n,), got shape "
                f"{tuple(scores.shape)}"
            )
    s_in = rows_of("scores_in", scores_in, at_least=2).flatten()
    s_out = rows_of("scores_out", scores_out, at_least=2).flatten().sort().values
    below = torch.searchsorted(s_out, s_in, right=False)
    not_above = torch.searchsorted(s_out, s_in, right=True)
    n, m = len(s_in), len(s_out)
    area = (below + not_above).sum().item() / (2 * n * m)

    a = min(max(area, 0.5 / (n * m)), 1 - 0.5 / (n * m))  # half a pair short of certainty
    two_in = a / (2 - a)  # P(two in-distribution scores both exceed one outside)
    two_out = 2 * a**2 / (1 + a)  # P(one in-distribution score exceeds two outside)
    variance = a * (1 - a) + (n - 1) * (two_in - a**2) + (m - 1) * (two_out - a**2)
    return Estimate(area, math.sqrt(max(0.0, variance) / (n * m)))
