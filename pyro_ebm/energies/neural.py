r"""Neural energies, normalisable for every weight.

A network alone may fall without bound, and then has no distribution. Each energy here tilts a wide
Gaussian by a network of bounded slope,

.. math:: E(x) = f_\theta(x) + |x|^2 / (2 s^2)

so that :math:`Z < \infty` whatever :math:`\theta` is.
"""

from __future__ import annotations

__all__ = ["MLP", "Conv"]

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .base import Energy


class _Tilted(Energy):
    """A network that tilts a Gaussian of standard deviation ``base_scale``."""

    def __init__(self, event_shape: Sequence[int], network: nn.Module, base_scale: float) -> None:
        super().__init__(event_shape)
        if not base_scale > 0:
            raise ValueError(
                f"base_scale must be positive (math.inf for no base), got {base_scale}"
            )
        self.network = network
        self.base_scale = base_scale

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.dim() - len(self.event_shape)]
        tilt = self.network(x.reshape(-1, *self.event_shape)).reshape(batch)
        return tilt + x.reshape(*batch, -1).square().sum(-1) / (2 * self.base_scale**2)


class MLP(_Tilted):
    r"""A multilayer perceptron over vectors (or flattened tensors), with SiLU between layers.

    .. math:: E(x) = f_\theta(x) + |x|^2 / (2 s^2)

    Args:
        event_shape: The shape of one point.
        hidden_sizes: The widths of the hidden layers.
        base_scale: The standard deviation :math:`s` of the Gaussian base, in units of x. It should
            be several times the spread of the data.

    Raises:
        ValueError: If ``base_scale`` is not positive.

    Example:
        >>> energy = MLP(event_shape=(2,))
        >>> energy(torch.zeros(5, 3, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        hidden_sizes: Sequence[int] = (128, 128),
        base_scale: float = 10.0,
    ) -> None:
        sizes = [torch.Size(event_shape).numel(), *hidden_sizes]
        layers: list[nn.Module] = [nn.Flatten(1) if len(event_shape) else nn.Unflatten(0, (-1, 1))]
        for size_in, size_out in pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), nn.SiLU()]
        super().__init__(event_shape, nn.Sequential(*layers, nn.Linear(sizes[-1], 1)), base_scale)


class Conv(_Tilted):
    r"""A small convolutional network over images, with SiLU between layers and no normalisation.

    Each layer but the first halves the image; the last feature map is flattened into one linear
    unit.

    .. math:: E(x) = f_\theta(x) + |x|^2 / (2 s^2)

    Args:
        event_shape: The shape ``(channels, height, width)`` of one image.
        channels: The widths of the convolutional layers.
        base_scale: The standard deviation :math:`s` of the Gaussian base, in units of x.

    Raises:
        ValueError: If ``event_shape`` is not that of an image or ``base_scale`` is not positive.

    Example:
        >>> energy = Conv(event_shape=(1, 8, 8))
        >>> energy(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        channels: Sequence[int] = (32, 64, 64),
        base_scale: float = 10.0,
    ) -> None:
        if len(event_shape) != 3:
            raise ValueError(
                f"event_shape must be (channels, height, width), got {tuple(event_shape)}; "
                "use MLP for other shapes"
            )
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(pairwise([event_shape[0], *channels])):
            layers += [nn.Conv2d(c_in, c_out, 3, stride=2 if i else 1, padding=1), nn.SiLU()]
        height, width = event_shape[1:]
        for _ in channels[1:]:
            height, width = (height + 1) // 2, (width + 1) // 2
        layers += [nn.Flatten(1), nn.Linear(channels[-1] * height * width, 1)]
        super().__init__(event_shape, nn.Sequential(*layers), base_scale)
