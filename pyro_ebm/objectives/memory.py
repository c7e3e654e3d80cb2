"""What objectives remember from one update to the next, as tensors, numbers and text by name."""

from __future__ import annotations

__all__ = ["GENERATOR", "as_put", "kept", "put", "shapes"]

from typing import Any

import torch
from torch import Tensor, nn

from ..ranks.divided import as_parts
from ..runs.checkpoint import compare, plain, rebuilt

PARAMETER = "parameter"
GENERATOR = "generator of"
"""By which what is kept of a generator is known: its device."""


def kept(x: Any) -> Any:  # noqa: ANN401  whatever an objective keeps for a site or a device
    """Says what has to be kept of a value.

    Raises:
        TypeError: If it cannot be kept.

    Example:
        >>> kept(torch.Generator())["generator of"]
        'cpu'
    """
    if isinstance(x, torch.Generator):
        return {GENERATOR: str(x.device), "state": x.get_state()}
    if isinstance(x, nn.Parameter):
        return {PARAMETER: x.detach()}
    return plain(x)


def as_put(x: Any, before: Any = None, device: torch.device | None = None) -> Any:  # noqa: ANN401
    """Undoes :func:`kept`; parameters and generators that are there take what was kept in place.

    Args:
        x: What it returned.
        before: What is there now, if anything.
        device: Where tensors belong, if not where they are.
    """
    if isinstance(x, dict) and GENERATOR in x:
        there = isinstance(before, torch.Generator) and str(before.device) == x[GENERATOR]
        generator = before if there else torch.Generator(x[GENERATOR])
        generator.set_state(x["state"].cpu())
        return generator
    if isinstance(x, dict) and PARAMETER in x:
        if not isinstance(before, nn.Parameter):
            return nn.Parameter(x[PARAMETER].to(device))
        put({"parameter": before}, {"parameter": x[PARAMETER]})
        return before
    return rebuilt(x, device)


def shapes(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Describes tensors by their types and shapes."""
    return {name: f"{t.dtype} of shape {tuple(t.shape)}" for name, t in tensors.items()}


@torch.no_grad()
def put(here: dict[str, Tensor], there: dict[str, Tensor]) -> None:
    """Gives tensors the values of others, in place.

    Args:
        here: The tensors.
        there: The values.

    Raises:
        ValueError: If one is missing on either side, or has another type or shape.
    """
    compare(shapes(there), shapes(here))
    for name, tensor in here.items():
        tensor.copy_(as_parts(there[name], tensor))
