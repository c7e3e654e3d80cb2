r"""The values that each site of a discrete point takes.

A point of :math:`S` sites is coded by :math:`S` places :math:`0, \dots, K - 1` in an alphabet of
:math:`K` values: booleans 0 and 1, spins -1 and +1, the integers of an interval, or one-hot
vectors, where a site is a vector and its place that of the one.
"""

from __future__ import annotations

__all__ = ["Alphabet", "alphabet_of", "spins"]

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints


class _Spins(constraints.Constraint):
    """The values -1 and +1."""

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        return (value == 1) | (value == -1)


spins = _Spins()
"""The support of a spin: -1 or +1, as physics has it."""


class Alphabet(NamedTuple):
    """The values of a site.

    Example:
        >>> signs = alphabet_of(constraints.independent(spins, 1))
        >>> signs.encode(torch.tensor([1.0, -1.0])), signs.decode(torch.tensor([0, 1]))
        (tensor([1, 0]), tensor([-1.,  1.]))
    """

    lowest: int
    """The first value."""
    step: int
    """How far it is from a value to the next."""
    size: int
    """The number of values K; 0 for one-hot vectors, whose length is not in their support."""
    one_hot: bool
    """Whether a site is a one-hot vector, along the last dimension of an event."""

    def encode(self, x: Tensor) -> Tensor:
        """Maps points to the places of their values.

        Args:
            x: Points, with shape ``(*batch, *event)``.

        Returns:
            Places, as integers, with shape ``(*batch, *sites)``.
        """
        x = x.long() if x.dtype == torch.bool else x
        return x.argmax(-1) if self.one_hot else ((x - self.lowest) / self.step).round().long()

    def decode(self, places: Tensor, like: Tensor | None = None, size: int = 0) -> Tensor:
        """Maps places to points, the reverse of that.

        Args:
            places: Integers, with shape ``(*batch, *sites)``.
            like: A tensor whose dtype the points have; the default dtype if not given.
            size: The length of one-hot vectors.
        """
        dtype = torch.get_default_dtype() if like is None else like.dtype
        if self.one_hot:
            values = torch.arange(size, device=places.device)
            return (places.unsqueeze(-1) == values).to(dtype)
        return (self.lowest + self.step * places).to(dtype)


def alphabet_of(support: constraints.Constraint) -> Alphabet | None:
    """Finds the alphabet of a support.

    Args:
        support: The support of one point.

    Returns:
        The alphabet; ``None`` if the support is continuous, infinite, or not one alphabet for all
        sites.
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(support, _Spins):
        return Alphabet(-1, 2, 2, False)
    if isinstance(support, type(constraints.boolean)):
        return Alphabet(0, 1, 2, False)
    if isinstance(support, type(constraints.one_hot)):
        return Alphabet(0, 1, 0, True)
    bounds = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if isinstance(support, constraints.integer_interval):
        bounds = tuple(torch.as_tensor(bound) for bound in bounds)
        if all(bound.numel() == 1 for bound in bounds):
            low, high = (int(bound) for bound in bounds)
            return Alphabet(low, 1, high - low + 1, False)
    return None
