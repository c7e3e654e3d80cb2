r"""A generative adversarial network."""

from __future__ import annotations

__all__ = ["GAN"]

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import Self

from .base import Generative, Likelihood, check_data
from .networks import mlp
from .training import Player, Training, play

Loss = Literal["non-saturating", "wasserstein"]


class GAN(Generative):
    r"""A generator that a critic cannot tell from data.

    With x of the data, :math:`y = g(z)` for :math:`z \sim \mathcal{N}(0, I)`, and the critic d:

    .. math::
        \text{non-saturating:}\quad
        L_d &= \mathbb{E} \log(1 + e^{-d(x)}) + \mathbb{E} \log(1 + e^{d(y)})
        + \tfrac{\gamma}{2} \mathbb{E} |\nabla d(x)|^2, \quad
        L_g = \mathbb{E} \log(1 + e^{-d(y)}) \\
        \text{Wasserstein:}\quad
        L_d &= \mathbb{E} \, d(y) - \mathbb{E} \, d(x)
        + \gamma \mathbb{E} (|\nabla d(u)| - 1)^2, \quad
        L_g = -\mathbb{E} \, d(y)

    with u uniform on the segment from x to y, in units of the spread of the data. Neither loss
    measures progress, and the generator may leave out modes without either showing it.

    ``log_prob`` is of kind "none". ``typicality`` is the critic, which at the optimum of the
    non-saturating game is :math:`\log p(x) - \log q(x)`, the same everywhere if the generator is
    perfect: a poor score of what is typical, and the only one that a GAN has.

    References:
        | Generative adversarial nets (Goodfellow et al., 2014), https://arxiv.org/abs/1406.2661
        | Improved training of Wasserstein GANs (Gulrajani et al., 2017),
        | https://arxiv.org/abs/1704.00028
        | Which training methods for GANs do actually converge? (Mescheder et al., 2018),
        | https://arxiv.org/abs/1801.04406 (the penalty of the non-saturating game)

    Args:
        event_shape: The shape of one point.
        latent_dim: The number of latents z.
        hidden_sizes: The widths of the hidden layers of both networks.
        loss: The game.
        penalty: The weight :math:`\gamma`; 0.1 and 1 for the two games unless given.
        training: How to train.

    Raises:
        ValueError: If ``loss`` is another, ``latent_dim`` not positive or ``penalty`` negative.

    Example:
        >>> model = GAN((2,), latent_dim=2, hidden_sizes=(8,), training=Training(num_steps=5))
        >>> model = model.fit(torch.randn(100, 2), progress=False)
        >>> model.sample(7).shape, model.log_prob(torch.zeros(3, 2)).kind
        (torch.Size([7, 2]), 'none')
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int = 16,
        hidden_sizes: Sequence[int] = (128, 128),
        loss: Loss = "non-saturating",
        penalty: float | None = None,
        training: Training | None = None,
    ) -> None:
        super().__init__(event_shape)
        if loss not in ("non-saturating", "wasserstein"):
            raise ValueError(f"loss must be 'non-saturating' or 'wasserstein', got {loss!r}")
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
        if penalty is not None and penalty < 0:
            raise ValueError(f"penalty must not be negative, got {penalty}")
        self.loss = loss
        self.wasserstein = loss == "wasserstein"
        self.penalty = (1.0 if self.wasserstein else 0.1) if penalty is None else penalty
        self.latent_dim, self.hidden_sizes = latent_dim, tuple(hidden_sizes)
        self.training_plan = Training(betas=(0.5, 0.9)) if training is None else training
        dim = self.event_shape.numel()
        self.generator = mlp([latent_dim, *hidden_sizes, dim])
        self.critic = mlp([dim, *hidden_sizes, 1])
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def fit(self, x: Tensor, progress: bool = True) -> Self:  # noqa: D102
        check_data("x", x, self.event_shape)
        self.history = {}
        flat = x.flatten(1)
        self.loc.copy_(flat.mean(0))
        self.scale.copy_(flat.std(0).clamp(min=1e-3))
        players = [
            Player("critic loss", self.critic, self._critic_loss, 5 if self.wasserstein else 1),
            Player("generator loss", self.generator, self._generator_loss),
        ]
        self.history = play(
            players, (flat - self.loc) / self.scale, self.training_plan, progress=progress
        )
        return self

    def _generate(self, num: int) -> Tensor:
        """Draws points in units of the spread of the data."""
        return self.generator(torch.randn(num, self.latent_dim).to(self.loc))

    def _critic_loss(self, x: Tensor) -> Tensor:
        y = self._generate(len(x)).detach()
        if self.wasserstein:
            u = torch.lerp(x, y, torch.rand(len(x), 1).to(x))
            excess = (self._critic_grad(u).norm(dim=-1) - 1).square().mean()
            return self.critic(y).mean() - self.critic(x).mean() + self.penalty * excess
        told = (
            functional.softplus(-self.critic(x)).mean()
            + functional.softplus(self.critic(y)).mean()
        )
        return told + 0.5 * self.penalty * self._critic_grad(x).square().sum(-1).mean()

    def _critic_grad(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.critic(x).sum(), x, create_graph=True)[0]

    def _generator_loss(self, x: Tensor) -> Tensor:
        score = self.critic(self._generate(len(x)))
        return -score.mean() if self.wasserstein else functional.softplus(-score).mean()

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        self.check_fitted()
        flat = self.loc + self.scale * self._generate(num_samples)
        return flat.reshape(num_samples, *self.event_shape)

    @property
    def num_evaluations(self) -> int:
        """One pass of the generator for one draw."""
        return 1

    def log_prob(self, x: Tensor) -> Likelihood:  # noqa: D102
        self.check_fitted()
        check_data("x", x, self.event_shape)
        return Likelihood("none")

    @torch.no_grad()
    def typicality(self, x: Tensor) -> Tensor:
        """Returns the critic at points ``(n, *event)``, with shape ``(n,)``."""
        self.check_fitted()
        return self.critic((x.flatten(1) - self.loc) / self.scale).squeeze(-1)
