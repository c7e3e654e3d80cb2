"""Where chains lie in memory: with many of them innermost, so that one instruction serves many.

Chains come first in every shape. In memory they come last where there are enough of them to fill
the registers of a processor: then a sum over the few coordinates of a chain adds whole registers,
and nothing is left over at the end of a row.
"""

from __future__ import annotations

__all__ = [
    "cat_in_order",
    "chains_innermost",
    "copy_in_order",
    "empty_like",
    "memory_order",
    "restored",
    "stored",
]

from collections.abc import Sequence

import torch
from torch import Tensor

MANY_CHAINS = 16
"""As many float32 numbers as the widest registers hold."""


def chains_innermost(z: Tensor) -> Tensor:
    """Returns flat chains ``(C, D)`` with neighbouring chains side by side, if there are many.

    Example:
        >>> chains_innermost(torch.zeros(64, 10)).stride()
        (1, 64)
        >>> chains_innermost(torch.zeros(4, 10)).stride()
        (10, 1)
    """
    return copy_in_order(z, (1, 0) if len(z) >= MANY_CHAINS else (0, 1))


def memory_order(x: Tensor) -> tuple[int, ...]:
    """Returns the dimensions of a tensor as they lie in memory, the outermost first."""
    return tuple(sorted(range(x.dim()), key=lambda i: -x.stride(i)))


def copy_in_order(x: Tensor, order: Sequence[int]) -> Tensor:
    """Copies a tensor to memory of its own, in which its dimensions lie in a given order."""
    return restored(stored(x, order).clone(memory_format=torch.contiguous_format), order)


def empty_like(x: Tensor, *leading: int) -> tuple[Tensor, Tensor]:
    """Makes room for tensors like ``x``, with leading dimensions.

    Returns:
        The same memory twice: contiguous, to be filled, and in the shape ``(*leading, *x.shape)``.
    """
    order = memory_order(x)
    room = x.new_empty(*leading, *(x.shape[i] for i in order))
    return room, restored(room, order)


def cat_in_order(parts: Sequence[Tensor]) -> Tensor:
    """Joins stacks ``(k, *shape)`` of tensors that lie in memory alike, without turning them."""
    if len(parts) == 1:
        return parts[0]
    order = memory_order(parts[0][0])
    inner = (0, *(1 + i for i in order))
    return restored(torch.cat([stored(part, inner) for part in parts]), order)


def stored(x: Tensor, order: Sequence[int]) -> Tensor:
    """Returns a view whose dimensions come in the order in which they lie in memory."""
    return x.permute(tuple(order))


def restored(x: Tensor, order: Sequence[int]) -> Tensor:
    """Undoes :func:`stored`, in the last dimensions of a stack of what it returned."""
    leading = x.dim() - len(order)
    places = sorted(range(len(order)), key=order.__getitem__)
    return x.permute((*range(leading), *(leading + place for place in places)))
