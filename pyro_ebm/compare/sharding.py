"""Cells of a comparison, one model from one seed each, that ranks share."""

from __future__ import annotations

__all__ = ["Cell", "check_common", "measured"]

import hashlib
import pickle
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..ranks.errors import agreed
from ..ranks.group import alone, gathered, num_ranks, rank
from .scorecard import Row


class Cell(NamedTuple):
    """What a cell leaves to the card."""

    row: Row
    samples: Tensor | None = None
    """For the figures, those of the first seed alone: the same holds of all below."""
    scores: dict[str, Tensor] = {}  # noqa: RUF012 - a NamedTuple does not change
    history: dict[str, list[float]] = {}  # noqa: RUF012
    draws: dict[str, Tensor] | None = None
    """Paths of the chains that drew the samples, if any did."""


def measured(cells: Sequence[Callable[[], Cell]]) -> list[Cell]:
    """Measures each cell on one rank, as a single process would.

    Ranks take cells in turn, and tell each other once, when all are measured.

    Args:
        cells: What measures each, in the same order on every rank.

    Returns:
        All cells, in their order, on every rank.

    Raises:
        RuntimeError: If a rank ends, or is later than ``ebm.ranks.start(timeout=)`` allows.

    Example:
        >>> [cell.row.model for cell in measured([lambda: Cell(Row("a")), lambda: Cell(Row("b"))])]
        ['a', 'b']
    """
    num = num_ranks()
    if num == 1:
        return [cell() for cell in cells]
    own = cells[rank() :: num]
    with agreed(), alone():
        said = pickle.dumps([cell() for cell in own])
    parts = [pickle.loads(part) for part in _of_all_ranks(said)]
    return [parts[i % num][i // num] for i in range(len(cells))]


def check_common(names: Sequence[str], sets: Sequence[Tensor], *others: object) -> None:
    """Checks that every rank has the same models and the same data.

    Args:
        names: The names of the models.
        sets: The data.
        others: Whatever else decides what is measured.

    Raises:
        ValueError: If they differ.
    """
    if num_ranks() == 1:
        return
    digest = hashlib.sha256(repr((list(names), others)).encode())
    for x in sets:
        digest.update(repr((tuple(x.shape), x.dtype)).encode())
        digest.update(x.detach().cpu().contiguous().numpy().tobytes())
    if len({*_of_all_ranks(digest.digest())}) > 1:
        raise ValueError(
            "compare measures each model on one rank, and every rank must come with the same "
            "models, data and settings, but they differ: load all data on each rank, from one seed"
        )


def _of_all_ranks(said: bytes) -> list[bytes]:
    """Joins what each rank has to say, the first rank's first."""
    counts = gathered(torch.tensor([len(said)])).tolist()
    row = torch.from_numpy(np.frombuffer(said, np.uint8).copy())
    return [part.numpy().tobytes() for part in gathered(row).split(counts)]
