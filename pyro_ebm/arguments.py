"""Numbers that a user gives, checked at the edge: an error names the argument and the value."""

from __future__ import annotations

__all__ = ["check_at_least", "check_between", "check_count", "check_positive"]

import math
import numbers

from torch import Tensor


def check_positive(name: str, value: object) -> None:
    """Raises unless a number is above zero and finite.

    Args:
        name: The name of the argument.
        value: What was given.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> check_positive("step_size", float("inf"))
        Traceback (most recent call last):
        ...
        ValueError: step_size must be positive and finite, got inf
    """
    if not 0 < _number(name, value) < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def check_at_least(name: str, value: object, least: float) -> None:
    """Raises unless a number is finite, and large enough.

    Args:
        name: The name of the argument.
        value: What was given.
        least: The least that it may be.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> check_at_least("weight", -1.0, 0)
        Traceback (most recent call last):
        ...
        ValueError: weight must be at least 0, got -1.0
    """
    if not _number(name, value) >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if value == math.inf:
        raise ValueError(f"{name} must be finite, got {value}")


def check_between(name: str, value: object, low: float, high: float, *, inside: bool) -> None:
    """Raises unless a number is between two others.

    Args:
        name: The name of the argument.
        value: What was given.
        low: The lowest that it may be.
        high: The highest.
        inside: Whether it may be neither of these two.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> check_between("jitter", 2, 0, 1, inside=False)
        Traceback (most recent call last):
        ...
        ValueError: jitter must be between 0 and 1, got 2
    """
    number = _number(name, value)
    if not (low < number < high if inside else low <= number <= high):
        raise ValueError(f"{name} must be between {low} and {high}, got {value}")


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raises unless a value is a whole number, and large enough.

    Args:
        name: The name of the argument.
        value: What was given.
        least: The least that it may be.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> check_count("num_steps", 2.5)
        Traceback (most recent call last):
        ...
        ValueError: num_steps must be a whole number, got 2.5
    """
    if not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _number(name: str, value: object) -> float:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return value.item()
    if not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(value)
