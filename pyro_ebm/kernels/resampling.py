"""Resampling: weights turned into numbers of copies."""

from __future__ import annotations

__all__ = ["systematic"]

import torch
from torch import Tensor


def systematic(weights: Tensor, generator: torch.Generator) -> Tensor:
    r"""Draws as many rows as there are weights, each in proportion, with one uniform for all.

    Row :math:`i` of :math:`n` is drawn :math:`n w_i` times on average, and never a whole time more
    or less than that.

    Args:
        weights: Weights that sum to one, with shape ``(*groups, n)``.
        generator: Where the uniforms come from.

    Returns:
        The rows drawn in each group, with shape ``(*groups, n)``.

    Example:
        >>> weights = torch.tensor([0.5, 0.0, 0.25, 0.25])
        >>> systematic(weights, torch.Generator().manual_seed(0))
        tensor([0, 0, 2, 3])
    """
    n = weights.shape[-1]
    u = weights.new_empty(*weights.shape[:-1], 1).uniform_(generator=generator)
    places = (torch.arange(n, device=weights.device) + u) / n
    return torch.searchsorted(weights.cumsum(-1), places).clamp(max=n - 1)
