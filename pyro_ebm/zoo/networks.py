"""The networks that models of the zoo have in common."""

from __future__ import annotations

__all__ = ["mlp"]

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Makes linear layers of these widths, from input to output, with SiLU between them.

    Args:
        sizes: The widths.

    Example:
        >>> [type(layer).__name__ for layer in mlp([2, 8, 1])]
        ['Linear', 'SiLU', 'Linear']
    """
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), nn.SiLU()]
    return nn.Sequential(*layers[:-1])
