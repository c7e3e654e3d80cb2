r"""Neural energies, normalisable for every weight.

A network alone may fall without bound, and then has no distribution. Each energy here tilts a wide
Gaussian by a network of bounded slope,

.. math:: E(x) = f_\theta(x) + |x|^2 / (2 s^2)

so that :math:`Z < \infty` whatever :math:`\theta` is. A classifier is such an energy too, one for
each class (:class:`Classifier`).
"""

from __future__ import annotations

__all__ = ["MLP", "Classifier", "Conv"]

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .base import Energy, reference_tensor


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
        tilt = self.network(x.reshape(-1, *self.event_shape))
        return tilt.reshape(self._batch_shape(x)) + self._base(x)

    def _batch_shape(self, x: Tensor) -> torch.Size:
        return x.shape[: x.dim() - len(self.event_shape)]

    def _base(self, x: Tensor) -> Tensor:
        squares = x.reshape(*self._batch_shape(x), -1).square()
        return squares.sum(-1) / (2 * self.base_scale**2)


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
        self.hidden_sizes = tuple(hidden_sizes)


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
        self.channels = tuple(channels)


class Classifier(_Tilted):
    r"""A classifier read as an energy: the joint energy model (JEM) of a point and its label.

    A network of logits :math:`f_\theta(x)_y` says how the energy of each class tilts the base,

    .. math::
        E(x, y) &= -f_\theta(x)_y + |x|^2 / (2 s^2) \\
        E(x) &= -\log \sum_y \exp f_\theta(x)_y + |x|^2 / (2 s^2) \\
        p(y \mid x) &= \operatorname{softmax}_y f_\theta(x)

    so that :math:`\log p(x, y) = \log p(x) + \log p(y \mid x)` exactly. Called with
    points alone, it is the energy :math:`E(x)`; with ``y=`` too it is :math:`E(x, y)`, of which
    :meth:`given` makes the energy of :math:`p(x \mid y)`. A model that observes both,

    .. code-block:: python

        pyro.sample("x", Boltzmann(energy), obs=x)
        pyro.sample("y", energy.label(x), obs=y)

    learns both from one network, the first site by an objective. Z is finite for every
    :math:`\theta` if the logits grow no faster than linearly in x.

    References:
        | Your classifier is secretly an energy based model and you should treat it like one
        | (Grathwohl et al., 2020), https://arxiv.org/abs/1912.03263

    Args:
        event_shape: The shape of one point.
        network: The logits, from points ``(n, *event)`` to ``(n, num_classes)``.
        base_scale: The standard deviation :math:`s` of the Gaussian base, in units of x.

    Raises:
        ValueError: If ``base_scale`` is not positive; in use, if the network does not return two
            or more logits for each point, or if a label is none of its classes.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 3))
        >>> energy = Classifier((2,), network)
        >>> x = torch.zeros(5, 2)
        >>> energy(x).shape, energy.given(2)(x).shape, energy.label(x).probs.shape
        (torch.Size([5]), torch.Size([5]), torch.Size([5, 3]))
    """

    def __init__(
        self, event_shape: Sequence[int], network: nn.Module, base_scale: float = 10.0
    ) -> None:
        super().__init__(event_shape, network, base_scale)

    def logits(self, x: Tensor) -> Tensor:
        r"""Evaluates the logits :math:`f_\theta(x)`.

        Args:
            x: Points, with shape ``(*batch, *event)``.

        Returns:
            The logits in nats, with shape ``(*batch, num_classes)``.
        """
        points = x.reshape(-1, *self.event_shape)
        logits = self.network(points)
        if logits.dim() != 2 or len(logits) != len(points) or logits.shape[1] < 2:
            raise ValueError(
                f"network must map points of shape {tuple(points.shape)} to logits of shape "
                f"({len(points)}, num_classes) with two classes or more, got "
                f"{tuple(logits.shape)}"
            )
        return logits.reshape(*self._batch_shape(x), -1)

    def label(self, x: Tensor) -> dist.Categorical:
        r"""Returns :math:`p(y \mid x)`.

        Args:
            x: Points, with shape ``(*batch, *event)``.

        Returns:
            The distribution of the label, with batch shape ``(*batch,)``.
        """
        return dist.Categorical(logits=self.logits(x))

    def given(self, y: Tensor | int) -> Callable[[Tensor], Tensor]:
        r"""Returns the energy of :math:`p(x \mid y)`, which is :math:`E(x, y)` at that label.

        Args:
            y: The label, or labels of a shape that broadcasts with the batch of points.

        Returns:
            A partial of this module, as every conditional energy: it learns and samples as such.
        """
        like = reference_tensor(self)
        with torch.no_grad():
            num_classes = self.logits(like.new_zeros(1, *self.event_shape)).shape[-1]
        y = torch.as_tensor(y, device=like.device)
        if y.is_floating_point() or bool(((y < 0) | (y >= num_classes)).any()):
            raise ValueError(f"y must hold integers from 0 to {num_classes - 1}, got {y}")
        return partial(self, y=y.long())

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        r"""Evaluates :math:`E(x)`, or :math:`E(x, y)` where labels are given.

        Args:
            x: Points, with shape ``(*batch, *event)``.
            y: Labels, of a shape that broadcasts with the batch.

        Returns:
            The energy in nats, with the shape of the batch.
        """
        logits, base = self.logits(x), self._base(x)
        if y is None:
            return base - logits.logsumexp(-1)
        batch = torch.broadcast_shapes(base.shape, y.shape)
        chosen = logits.expand(*batch, -1).gather(-1, y.expand(batch).unsqueeze(-1))
        return base - chosen.squeeze(-1)
