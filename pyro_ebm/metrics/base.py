"""An estimate with its standard error, and samples as rows: what all metrics share."""

from __future__ import annotations

__all__ = ["Estimate", "distances", "paired_rows", "rows_of"]

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    r"""Holds an estimate and its standard error.

    It prints down to the first digit that the standard error leaves in doubt.

    Args:
        value: The estimate.
        std_error: Its standard error.

    Example:
        >>> from pyro_ebm.metrics import Estimate
        >>> print(Estimate(0.01234, 0.00087))
        0.0123 ± 0.0009
    """

    value: float
    std_error: float

    def __str__(self) -> str:
        if not (math.isfinite(self.value) and 0 < self.std_error < math.inf):
            return f"{self.value:.4g} ± {self.std_error:.4g}"
        decimals = max(0, -math.floor(math.log10(self.std_error)))
        return f"{self.value:.{decimals}f} ± {self.std_error:.{decimals}f}"


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Returns all distances, without the cancellation of |x|² + |y|² - 2 x·y."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def paired_rows(x: Tensor, y: Tensor, at_least: int) -> tuple[Tensor, Tensor]:
    """Returns both samples as float64 rows of one width."""
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            "x and y must have one event shape, got shapes "
            f"{tuple(x.shape)} and {tuple(y.shape)}; reshape one of them to (n, *event)"
        )
    return rows_of("x", x, at_least), rows_of("y", y, at_least)


def rows_of(name: str, x: Tensor, at_least: int) -> Tensor:
    """Returns a sample as finite float64 rows, with shape (n, d)."""
    if x.dim() == 0 or len(x) < at_least:
        raise ValueError(
            f"{name} needs at least {at_least} rows, got shape {tuple(x.shape)}; the first "
            "dimension counts the examples"
        )
    bad = (~x.isfinite()).sum().item()
    if bad:
        raise ValueError(
            f"{name} must be finite, got {bad} non-finite of {x.numel()} values; drop these rows "
            "and report how many there were"
        )
    return x.detach().double().reshape(len(x), -1)
