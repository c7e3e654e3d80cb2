r"""An autoregressive model: one coordinate after the other."""

from __future__ import annotations

__all__ = ["Autoregressive"]

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import AutoRegressiveNN
from torch import Tensor
from torch.nn import functional
from typing_extensions import Self

from ..objectives.base import no_guide
from .base import Density, Generative, Likelihood, check_binary, check_data, check_known
from .training import Training, train


class Autoregressive(Generative):
    r"""A masked autoencoder for distribution estimation (MADE).

    .. math:: p(x) = \prod_i p(x_i \mid x_1, \dots, x_{i - 1})

    One masked network gives all conditionals in one pass: Bernoulli for binary data, else a
    mixture of Gaussians, in units of the mean and spread of the data. The likelihood is exact; a
    draw takes a pass for each coordinate.

    References:
        | MADE: masked autoencoder for distribution estimation (Germain et al., 2015),
        | https://arxiv.org/abs/1502.03509

    Args:
        event_shape: The shape of one point, of two coordinates or more, taken in their order.
        hidden_sizes: The widths of the hidden layers.
        num_components: The number of Gaussians of each conditional.
        training: How to train.
        binary: Whether points are of zeros and ones.

    Raises:
        ValueError: If points have one coordinate or ``num_components`` is not positive.

    Example:
        >>> model = Autoregressive((2,), hidden_sizes=(8,), training=Training(num_steps=5))
        >>> model = model.fit(torch.randn(100, 2), progress=False)
        >>> model.sample(7).shape, model.log_prob(torch.zeros(3, 2)).kind
        (torch.Size([7, 2]), 'exact')
    """

    min_scale = 1e-3
    """The least scale of a Gaussian, in units of the spread of the data."""

    def __init__(
        self,
        event_shape: Sequence[int],
        hidden_sizes: Sequence[int] = (256, 256),
        num_components: int = 8,
        training: Training | None = None,
        *,
        binary: bool = False,
    ) -> None:
        super().__init__(event_shape)
        dim = self.event_shape.numel()
        if dim < 2:
            raise ValueError(f"event_shape must have two coordinates or more, got {event_shape}")
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1, got {num_components}")
        self.training_plan = Training() if training is None else training
        self.hidden_sizes, self.num_components = tuple(hidden_sizes), num_components
        self.binary = binary
        self.network = AutoRegressiveNN(
            dim,
            list(hidden_sizes),
            param_dims=[1] if binary else [num_components] * 3,
            permutation=torch.arange(dim),
            nonlinearity=torch.nn.SiLU(),
        )
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def conditionals(self, x: Tensor) -> dist.TorchDistribution:
        """Gives the law of each coordinate given those before it.

        Args:
            x: Flat points, with shape ``(*batch, D)``.

        Returns:
            Laws with batch shape ``(*batch, D)``.
        """
        found = self.network((x - self.loc) / self.scale)
        if self.binary:
            return dist.Bernoulli(logits=found)
        num_batch_dims = x.dim() - 1
        logits, locs, raw = (
            part.reshape(*x.shape[:-1], -1, x.shape[-1]).movedim(num_batch_dims, -1)
            for part in found
        )
        scale = self.scale.unsqueeze(-1)
        parts = dist.Normal(
            self.loc.unsqueeze(-1) + scale * locs,
            scale * (functional.softplus(raw) + self.min_scale),
        )
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)

    def model(self, x: Tensor) -> None:
        """The Pyro model of points ``(n, *event)``."""
        pyro.module("autoregressive", self)
        flat = x.flatten(1)
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.conditionals(flat).to_event(1), obs=flat)

    def fit(self, x: Tensor, progress: bool = True) -> Self:  # noqa: D102
        check_data("x", x, self.event_shape)
        self.history = {}
        if self.binary:
            check_binary("x", x)
        else:
            self.loc.copy_(x.flatten(1).mean(0))
            self.scale.copy_(x.flatten(1).std(0).clamp(min=1e-3))
        self.history = train(
            self.model, no_guide, Trace_ELBO(), x, self.training_plan, progress=progress
        )
        return self

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        self.check_fitted()
        x = torch.zeros_like(self.loc).repeat(num_samples, 1)
        for i in range(x.shape[1]):
            x[:, i] = self.conditionals(x).sample()[:, i]
        return x.reshape(num_samples, *self.event_shape)

    def as_energy(self) -> Density | None:  # noqa: D102
        if self.binary:
            return None  # its conditionals are those given the coordinates before alone
        return Density(self.event_shape, self._log_density)

    def _log_density(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.conditionals(flat).log_prob(flat).sum(-1)

    @torch.no_grad()
    def inpaint(
        self, x: Tensor, known: Tensor, num_draws: int = 100, warmup_steps: int = 100
    ) -> Tensor:
        """Draws unknown coordinates, exactly where all known ones come before them."""
        self.check_fitted()
        check_data("x", x, self.event_shape)
        check_known(known, self.event_shape)
        num_known = int(known.sum())
        if not bool(known.flatten()[:num_known].all()):
            return super().inpaint(x, known, num_draws, warmup_steps)
        rows = x.flatten(1).repeat(num_draws, 1)
        for i in range(num_known, rows.shape[1]):
            rows[:, i] = self.conditionals(rows).sample()[:, i]
        return rows.reshape(num_draws, *x.shape)

    @property
    def num_evaluations(self) -> int:
        """A pass for each coordinate of one draw."""
        return len(self.loc)

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Likelihood:  # noqa: D102
        self.check_fitted()
        check_data("x", x, self.event_shape)
        return Likelihood("exact", self._log_density(x))
