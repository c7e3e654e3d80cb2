"""Whether a rung of the engine gives the numbers of the rung below, as far as these are numbers.

A step may multiply rounding: along a narrow ridge, in a long trajectory, where a covariance can
hardly be factorized. What the last bits decide, no other order of the same sums can give again;
all else it must.
"""

from __future__ import annotations

__all__ = ["check", "check_native"]

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NUM_SHAKES = 3
MARGIN = 1000.0
"""How many times as far off as the worst of a few shaken results native code may be."""


def check(got: Any, expected: Any) -> None:  # noqa: ANN401 - tensors, nested in any way
    """Raises if a rung does not give what the one below gave, to the coarsest precision in it.

    Args:
        got: Tensors, nested.
        expected: Tensors, nested in the same way.

    Raises:
        RuntimeError: If a number differs.
    """
    if not all(bool(same.all()) for same in _same(got, expected)):
        raise RuntimeError("the graph gives other numbers than the model: is it random?")


def check_native(native: Callable, below: Callable, args: tuple) -> None:
    """Raises if native code does not give what Python gives, as far as that is determined.

    To the coarsest precision in it; or, where that fails, to 1000 times what the number itself
    changes by if the last bit of all arguments and of all that is made of them is shaken, whole
    numbers apart: the worst of three tries. The global generator is not used.

    Args:
        native: The compiled function, from nested tensors to nested tensors.
        below: The function itself.
        args: Real arguments.

    Raises:
        RuntimeError: If a number differs by more, or if the last bits decide most of a tensor, so
            that there is nothing to check.

    Example:
        >>> sine, point = lambda x: x.sin(), (torch.linspace(0.0, 9.0, 5),)
        >>> check_native(sine, sine, point)
        >>> check_native(lambda x: x.cos(), sine, point)
        Traceback (most recent call last):
        RuntimeError: native code gives other numbers than the graph
    """
    got, expected = native(*args), below(*args)
    if all(bool(same.all()) for same in _same(got, expected)):
        return
    generator = torch.Generator().manual_seed(0)
    worst = [torch.zeros_like(old, dtype=torch.double) for old in _tensors(expected)]
    for _ in range(NUM_SHAKES):
        with _Shaking(generator) as shaking:
            shaken = below(*tree_map(shaking.shaken, args))
        found = map(_distance, _tensors(shaken), _tensors(expected))
        worst = [torch.maximum(a, b) for a, b in zip(worst, found, strict=True)]
    for old, far, same in zip(_tensors(expected), worst, _same(got, expected, worst), strict=True):
        if not same.all():
            raise RuntimeError("native code gives other numbers than the graph")
        if old.dim() and (far > _coarse(old)).double().mean() > 0.5:
            raise RuntimeError("the last bits decide most numbers: native code cannot be checked")


def _tensors(nested: Any) -> list[Tensor]:  # noqa: ANN401
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]


def _same(got: Any, expected: Any, off: list[Tensor] | None = None) -> Iterator[Tensor]:  # noqa: ANN401
    """Says of each number whether it is as expected, up to a multiple of what it may be off."""
    pairs = list(zip(_tensors(got), _tensors(expected), strict=True))
    of_numbers = [torch.finfo(old.dtype).eps for _, old in pairs if old.is_floating_point()]
    coarsest = max(of_numbers, default=0.0)
    for k, (new, old) in enumerate(pairs):
        eps = coarsest if old.is_floating_point() else 0.0
        scale = _scale(old) if eps else 0.0
        same = new.isclose(old, eps**0.5, 100 * eps * scale, equal_nan=True)
        yield same if off is None else same | (_distance(new, old) <= MARGIN * off[k])


def _distance(new: Tensor, old: Tensor) -> Tensor:
    """How far numbers lie from one another; one that is none, infinitely far from all others."""
    new, old = new.double(), old.double()
    same = (new == old) | (new.isnan() & old.isnan())
    return (new - old).abs().nan_to_num(torch.inf).masked_fill(same, 0.0)


class _Shaking(TorchDispatchMode):
    """Rounds all that is computed under it up or down by one more unit of the last place."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def shaken(self, x: Any) -> Any:  # noqa: ANN401
        """Whole numbers may be counts and are left as they are."""
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            return x
        with torch.utils._python_dispatch._disable_current_modes():
            up = torch.randint(2, x.shape, generator=self._generator).to(x)
            moved = x * (1 + torch.finfo(x.dtype).eps * (2 * up - 1))
            return torch.where(x == x.round(), x, moved)

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:  # noqa: ANN401
        found = func(*args, **kwargs or {})
        shares = any(result.alias_info for result in func._schema.returns)
        return found if shares else tree_map(self.shaken, found)


def _scale(x: Tensor) -> float:
    """The largest of all that are numbers."""
    return x.abs().nan_to_num(0.0, 0.0).max().item() if x.numel() else 0.0


def _coarse(x: Tensor) -> float:
    """An error that leaves hardly a digit."""
    return torch.finfo(x.dtype).eps ** 0.25 * _scale(x) if x.is_floating_point() else 0.5
