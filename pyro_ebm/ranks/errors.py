"""An error on one rank is an error on all: none waits for one that has left."""

from __future__ import annotations

__all__ = ["agreed", "first_ahead"]

import contextlib
import json
from collections.abc import Iterator

import torch

from .group import gathered, num_ranks, rank

KINDS = (OSError, ValueError, RuntimeError)
"""What is raised on other ranks as what it is; anything else is a RuntimeError there."""


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """At its end an error on one rank is raised on all.

    What ranks do together has no place within it: some would be at it, and some at its end.

    Raises:
        Exception: That of this rank; else that of the first rank that has one.

    Example:
        >>> with agreed():
        ...     data = [1, 2, 3]
    """
    if num_ranks() == 1:
        yield
        return
    error = None
    try:
        yield
    except Exception as own:  # noqa: BLE001  raised below, when the others know of it
        error = own
    _tell(error)


@contextlib.contextmanager
def first_ahead() -> Iterator[None]:
    """Within it the first rank goes ahead, and the others follow when it is through.

    At its end all are through; an error on one is raised on all, and of one on the first rank the
    others do not begin.
    """
    if num_ranks() > 1 and rank() > 0:
        _tell(None)
        with agreed():
            yield
        return
    with agreed():
        yield
    if num_ranks() > 1:
        _tell(None)


def _tell(error: Exception | None) -> None:
    """Says how this rank has fared, and raises what is wrong here or elsewhere."""
    said = b""
    if error is not None:
        kind = next((kind for kind in KINDS if isinstance(error, kind)), RuntimeError)
        text = str(error) if isinstance(error, KINDS) else f"{type(error).__name__}: {error}"
        number = getattr(error, "errno", None)
        if kind is OSError and number is not None:
            text = f"{error.strerror}: {error.filename}"
        said = json.dumps([rank(), kind.__name__, number, text]).encode() + b"\n"
    heard = bytes(gathered(torch.tensor(list(said), dtype=torch.uint8)).tolist())
    if error is not None:
        raise error
    if heard:
        where, name, number, text = json.loads(heard.partition(b"\n")[0])
        kind = next(kind for kind in KINDS if kind.__name__ == name)
        text = f"{text} (on rank {where})"
        raise kind(number, text) if number is not None else kind(text)
