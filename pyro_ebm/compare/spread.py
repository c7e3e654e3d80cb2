"""One row from several: a model trained from several seeds."""

from __future__ import annotations

__all__ = ["over_seeds"]

import math
from collections.abc import Mapping, Sequence

from ..metrics.base import Estimate
from .scorecard import COUNTS, ESTIMATES, Row


def over_seeds(rows: Mapping[int, Row]) -> Row:
    r"""Merges the rows of one model: means, and standard deviations over seeds of training.

    .. math:: \bar m = \frac1S \sum_s m_s, \qquad
        \text{spread}^2 = \frac{1}{S - 1} \sum_s (m_s - \bar m)^2

    What is missing at some seeds is averaged over the others, and the errors say at which it
    failed. Standard errors are merged as the root of their mean square: the error of a metric at
    one seed, in the mean.

    Args:
        rows: The row of each seed.

    Returns:
        The row of them all; the very row if there is one seed.

    Example:
        >>> rows = {0: Row("a", mmd=Estimate(0.1, 0.03)), 1: Row("a", mmd=Estimate(0.3, 0.04))}
        >>> row = over_seeds(rows)
        >>> row.mmd.value, round(row.spread["mmd"], 4), round(row.mmd.std_error, 4)
        (0.2, 0.1414, 0.0354)
    """
    first = next(iter(rows.values()))
    if len(rows) == 1:
        return first
    merged = Row(first.model, num_seeds=len(rows))
    merged.kind = next((row.kind for row in rows.values() if row.kind is not None), None)
    for name in ESTIMATES:
        told = [
            getattr(row, name)
            for row in rows.values()
            if getattr(row, name) is not None
            and (name not in ("log_prob", "kl") or row.kind == merged.kind)
        ]
        if told:
            setattr(merged, name, _mean(told))
            merged.spread[name] = _spread([each.value for each in told])
    merged.bracket = _middle([r.bracket for r in rows.values() if r.bracket is not None])
    for name in dict.fromkeys(name for row in rows.values() for name in row.auroc):
        told = [row.auroc[name] for row in rows.values() if name in row.auroc]
        merged.auroc[name] = _mean(told)
        merged.spread[f"auroc {name}"] = _spread([each.value for each in told])
    for name in COUNTS:
        numbers = [getattr(row, name) for row in rows.values() if getattr(row, name) is not None]
        if len({*numbers}) == 1:
            setattr(merged, name, numbers[0])
        elif numbers:
            setattr(merged, name, sum(numbers) / len(numbers))
            merged.spread[name] = _spread(numbers)
    merged.notes = list(dict.fromkeys(note for row in rows.values() for note in row.notes))
    merged.errors = [f"seed {seed}: {error}" for seed, row in rows.items() for error in row.errors]
    return merged


def _mean(told: Sequence[Estimate]) -> Estimate:
    square = sum(each.std_error**2 for each in told) / len(told)
    return Estimate(sum(each.value for each in told) / len(told), math.sqrt(square))


def _middle(brackets: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """The means of lower and upper bounds, between which the mean lies."""
    if not brackets:
        return None
    low, high = (sum(ends) / len(ends) for ends in zip(*brackets, strict=True))
    return low, high


def _spread(values: Sequence[float]) -> float:
    """The standard deviation, of which one value says nothing."""
    if len(values) < 2:
        return math.nan
    middle = sum(values) / len(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1))
