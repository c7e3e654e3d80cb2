r"""A normalising flow, on Pyro's transforms."""

from __future__ import annotations

__all__ = ["Flow"]

from collections.abc import Sequence
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.distributions import AffineTransform, Transform
from typing_extensions import Self

from ..objectives.base import no_guide
from .base import Density, Generative, Likelihood, check_data
from .training import Training, train

Layer = Literal["coupling", "autoregressive"]


class Flow(Generative):
    r"""A normalising flow: a Gaussian through maps that can be inverted.

    .. math:: x = m + s \, (f_K \circ \dots \circ f_1)(z), \quad z \sim \mathcal{N}(0, I), \qquad
        \log p(x) = \log \mathcal{N}(z; 0, I) - \sum_k \log |\det f_k'|

    in units of the mean m and spread s of the data. The likelihood is exact. Layers are

    ================ =======================================================================
    "coupling"       half of the coordinates are shifted and scaled by the other half (RealNVP)
    "autoregressive" each coordinate is shifted and scaled by those before it (MAF): the density
                     takes one pass and a draw one for each coordinate
    ================ =======================================================================

    with a permutation of the coordinates between them.

    References:
        | Density estimation using Real NVP (Dinh et al., 2017), https://arxiv.org/abs/1605.08803
        | Masked autoregressive flow (Papamakarios et al., 2017), https://arxiv.org/abs/1705.07057

    Args:
        event_shape: The shape of one point, of two coordinates or more.
        layer: What the layers are.
        num_layers: Their number K.
        hidden_sizes: The widths of the hidden layers of the network in each.
        training: How to train.

    Raises:
        ValueError: If points have one coordinate, ``layer`` is another, or ``num_layers`` is not
            positive.

    Example:
        >>> model = Flow((2,), num_layers=2, hidden_sizes=(8,), training=Training(num_steps=5))
        >>> model = model.fit(torch.randn(100, 2), progress=False)
        >>> model.sample(7).shape, model.log_prob(torch.zeros(3, 2)).kind
        (torch.Size([7, 2]), 'exact')
    """

    max_log_scale = 1.0
    r"""The limit :math:`c` of the log scale of a layer, in nats, :math:`c \tanh(f / c)`: far
    from the data the scales of layers multiply. A limit that lets gradients through, as a clamp of
    Pyro's does, does not hold training back, which then ends with infinite ones."""

    def __init__(
        self,
        event_shape: Sequence[int],
        layer: Layer = "coupling",
        num_layers: int = 8,
        hidden_sizes: Sequence[int] = (64, 64),
        training: Training | None = None,
    ) -> None:
        super().__init__(event_shape)
        dim = self.event_shape.numel()
        if dim < 2:
            raise ValueError(f"event_shape must have two coordinates or more, got {event_shape}")
        if layer not in _LAYERS:
            raise ValueError(f"layer must be one of {', '.join(_LAYERS)}, got {layer!r}")
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self.training_plan = Training() if training is None else training
        self.layer, self.num_layers, self.hidden_sizes = layer, num_layers, tuple(hidden_sizes)
        self.layers = nn.ModuleList(
            _LAYERS[layer](dim, list(hidden_sizes)) for _ in range(num_layers)
        )
        for made in self.layers:
            name = "nn" if hasattr(made, "nn") else "arn"
            setattr(made, name, _Bounded(getattr(made, name), self.max_log_scale))
        order = torch.stack([torch.randperm(dim) for _ in range(num_layers)])
        self.register_buffer("order", order if dim > 2 else torch.tensor([[1, 0]] * num_layers))
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.backwards = layer == "autoregressive"

    @property
    def law(self) -> dist.TorchDistribution:
        """The law of one flat point."""
        steps: list[Transform] = []
        for layer, order in zip(self.layers, self.order, strict=True):
            layer.clear_cache()
            steps += [layer.inv if self.backwards else layer, transforms.Permute(order)]
        steps.append(AffineTransform(self.loc, self.scale, event_dim=1))
        base = dist.Normal(torch.zeros_like(self.loc), torch.ones_like(self.loc)).to_event(1)
        return dist.TransformedDistribution(base, steps)

    def model(self, x: Tensor) -> None:
        """The Pyro model of points ``(n, *event)``."""
        pyro.module("flow", self)
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.law, obs=x.flatten(1))

    def fit(self, x: Tensor, progress: bool = True) -> Self:  # noqa: D102
        check_data("x", x, self.event_shape)
        self.history = {}
        self.loc.copy_(x.flatten(1).mean(0))
        self.scale.copy_(x.flatten(1).std(0).clamp(min=1e-3))
        self.history = train(
            self.model, no_guide, Trace_ELBO(), x, self.training_plan, progress=progress
        )
        return self

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        self.check_fitted()
        return self.law.sample((num_samples,)).reshape(num_samples, *self.event_shape)

    def as_energy(self) -> Density:  # noqa: D102
        return Density(self.event_shape, lambda x: self.law.log_prob(x.flatten(1)))

    @property
    def num_evaluations(self) -> int:
        """Passes through the layers for one draw: autoregressive ones go by coordinates."""
        return len(self.loc) if self.backwards else 1

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Likelihood:  # noqa: D102
        self.check_fitted()
        check_data("x", x, self.event_shape)
        return Likelihood("exact", self.law.log_prob(x.flatten(1)))


class _Bounded(nn.Module):
    """A network of shifts and log scales, with the latter within a limit."""

    def __init__(self, network: nn.Module, limit: float) -> None:
        super().__init__()
        self.network, self.limit = network, limit

    @property
    def permutation(self) -> Tensor:
        """The order of the coordinates, of an autoregressive network."""
        return self.network.permutation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.network(x)
        return shift, self.limit * (log_scale / self.limit).tanh()


_LAYERS = {
    "coupling": transforms.affine_coupling,
    "autoregressive": transforms.affine_autoregressive,
}
