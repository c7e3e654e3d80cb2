r"""A variational autoencoder, as a Pyro model with an amortised guide."""

from __future__ import annotations

__all__ = ["VAE"]

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import Self

from .base import Generative, Likelihood, check_binary, check_data
from .networks import mlp
from .training import Training, train


class VAE(Generative):
    r"""A variational autoencoder.

    .. math:: z \sim \mathcal{N}(0, I), \qquad
        x \mid z \sim \mathcal{N}(f_\theta(z), \mathrm{diag}\,s^2), \qquad
        q(z \mid x) = \mathcal{N}(m_\phi(x), \mathrm{diag}\,v_\phi(x))

    with a learned scale :math:`s` for each pixel; of binary data, x is Bernoulli with the logits
    :math:`f_\theta(z)`. It is trained on the ELBO. ``log_prob``, and
    ``typicality`` with it, is the importance-weighted bound, of kind "bound":

    .. math:: \hat\ell_K(x) = \log \frac1K \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k \mid x)}, \qquad
        z_k \sim q(z \mid x), \qquad \mathbb{E}\,\hat\ell_K(x) \le \log p(x),

    tighter with every K. Its standard error is that of the mean of the weights, by the delta
    method.

    References:
        | Auto-encoding variational Bayes (Kingma and Welling, 2014),
        | https://arxiv.org/abs/1312.6114
        | Importance weighted autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519

    Args:
        event_shape: The shape of one point.
        latent_dim: The number of latents.
        hidden_sizes: The widths of the hidden layers of the encoder; the decoder has them in
            reverse.
        training: How to train.
        num_importance: The number K of draws of the bound.
        binary: Whether points are of zeros and ones.

    Raises:
        ValueError: If ``latent_dim`` or ``num_importance`` is not positive.

    Example:
        >>> model = VAE((2,), latent_dim=1, hidden_sizes=(16,), training=Training(num_steps=5))
        >>> model = model.fit(torch.randn(100, 2), progress=False)
        >>> model.sample(7).shape, model.log_prob(torch.zeros(3, 2)).kind
        (torch.Size([7, 2]), 'bound')
    """

    min_scale = 1e-3
    """The least scale of a pixel, in units of x: a constant pixel has no infinite density."""

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int = 16,
        hidden_sizes: Sequence[int] = (256,),
        training: Training | None = None,
        num_importance: int = 256,
        *,
        binary: bool = False,
    ) -> None:
        super().__init__(event_shape)
        for name, value in {"latent_dim": latent_dim, "num_importance": num_importance}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.latent_dim, self.hidden_sizes = latent_dim, tuple(hidden_sizes)
        self.num_importance, self.binary = num_importance, binary
        self.training_plan = Training() if training is None else training
        size = self.event_shape.numel()
        self.encoder = mlp([size, *hidden_sizes, 2 * latent_dim])
        self.decoder = mlp([latent_dim, *reversed(hidden_sizes), size])
        self.raw_scale = None if binary else nn.Parameter(torch.zeros(size))

    def model(self, x: Tensor) -> None:
        """The Pyro model of points ``(n, *event)``."""
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z), obs=x.flatten(1))

    def guide(self, x: Tensor) -> None:
        """The Pyro guide of points ``(n, *event)``."""
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))

    def prior(self) -> dist.TorchDistribution:
        """The law of the latents ``(latent_dim,)``."""
        zeros = self.decoder[0].weight.new_zeros(self.latent_dim)
        return dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)

    def likelihood(self, z: Tensor) -> dist.TorchDistribution:
        """The law of flat points given latents ``(*batch, latent_dim)``."""
        if self.raw_scale is None:
            return dist.Bernoulli(logits=self.decoder(z)).to_event(1)
        scale = functional.softplus(self.raw_scale) + self.min_scale
        return dist.Normal(self.decoder(z), scale).to_event(1)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """The guide's law of latents given points ``(n, *event)``."""
        loc, raw = self.encoder(x.flatten(1)).chunk(2, dim=-1)
        return dist.Normal(loc, functional.softplus(raw) + 1e-4).to_event(1)

    def fit(self, x: Tensor, progress: bool = True) -> Self:  # noqa: D102
        check_data("x", x, self.event_shape)
        if self.raw_scale is None:
            check_binary("x", x)
        self.history = {}
        self.history = train(
            self.model, self.guide, TraceMeanField_ELBO(), x, self.training_plan, progress=progress
        )
        return self

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        self.check_fitted()
        z = self.prior().sample((num_samples,))
        return self.likelihood(z).sample().reshape(num_samples, *self.event_shape)

    @property
    def num_evaluations(self) -> int:
        """One pass of the decoder for one draw."""
        return 1

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Likelihood:
        """Draws the importance-weighted bound of points ``(n, *event)``."""
        self.check_fitted()
        check_data("x", x, self.event_shape)
        pieces = [self._bound(piece) for piece in x.split(256)]
        value, std_error = (torch.cat(column) for column in zip(*pieces, strict=True))
        return Likelihood("bound", value, std_error)

    def _bound(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.posterior(x)
        z = posterior.sample((self.num_importance,))
        log_w = self.prior().log_prob(z) + self.likelihood(z).log_prob(x.flatten(1))
        log_w = log_w - posterior.log_prob(z)
        value = log_w.logsumexp(0) - math.log(self.num_importance)
        # with one draw there is nothing to tell its error by, and the result says nan
        spread = (log_w - value).exp().var(0, correction=0) / (self.num_importance - 1 or math.nan)
        return value, spread.sqrt()
