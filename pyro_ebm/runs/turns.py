"""Threads take turns: Pyro's effect handlers are one stack for all threads of a process."""

from __future__ import annotations

__all__ = ["in_turn"]

import functools
import os
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from pyro import poutine

P = ParamSpec("P")
T = TypeVar("T")

_turns: dict[int, threading.RLock] = {}
"""The turn of each process: a fork must not wait for a thread that it has not got."""


def in_turn(fn: Callable[P, T]) -> Callable[P, T]:
    """Has a function wait until no other thread is in such a one, and hides it from handlers.

    Args:
        fn: What runs a model, whose handlers no other thread may see or take away.

    Example:
        >>> in_turn(max)(1, 2)
        2
    """

    @functools.wraps(fn)
    def taking_turns(*args: P.args, **kwargs: P.kwargs) -> T:
        with _turns.setdefault(os.getpid(), threading.RLock()), poutine.block():
            return fn(*args, **kwargs)

    return taking_turns
