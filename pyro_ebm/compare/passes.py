"""How much work training is, counted: passes of points through the networks of a model."""

from __future__ import annotations

__all__ = ["Passes"]

import math

from torch import Tensor, nn
from typing_extensions import Self


class Passes:
    r"""Counts passes of single points through the networks of a model, while it is open.

    .. math:: \frac{\sum_l n_l |W_l|}{\sum_l |W_l|}

    with :math:`n_l` the number of points that went through layer l, linear or convolutional, of
    :math:`|W_l|` weights. A point that goes through every network once is one pass; through a
    generator that holds half of the weights, half a one. A gradient goes the way back of its pass
    and is not counted apart.

    Args:
        model: The model.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))
        >>> with Passes(network) as passes:
        ...     _ = network(torch.zeros(5, 3, 2)), network[0](torch.zeros(9, 2))
        >>> passes.count  # 15 points, and 9 through 16 of 24 weights
        21.0
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = [m for m in model.modules() if isinstance(m, _LAYERS)]
        self.products = 0

    def __enter__(self) -> Self:
        self._hooks = [layer.register_forward_pre_hook(self._count) for layer in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        inner = 1 if isinstance(layer, nn.Linear) else layer.weight.dim() - 1
        points = math.prod(given[0].shape[: given[0].dim() - inner])
        self.products += points * layer.weight.numel()

    @property
    def count(self) -> float | None:
        """The passes so far; nothing of a model without such layers, or whose work is hidden."""
        weights = sum(layer.weight.numel() for layer in self.layers)
        return self.products / weights if self.products else None


_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
