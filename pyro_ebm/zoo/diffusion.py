r"""A denoising diffusion model, by a network of the noise or of an energy."""

from __future__ import annotations

__all__ = ["Diffusion"]

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Self

from .base import Generative, Likelihood, check_data
from .networks import mlp
from .training import Player, Training, play


class Diffusion(Generative):
    r"""Denoising diffusion: noise is added in many steps, and a network learns to take it off.

    .. math::
        q(x_t \mid x_0) &= \mathcal{N}(\sqrt{\bar\alpha_t} \, x_0, (1 - \bar\alpha_t) I) \\
        p(x_{t-1} \mid x_t) &= \mathcal{N}(\mu_\theta(x_t, t), \sigma_t^2 I), \qquad
        \mu_\theta(x, t) = \frac{1}{\sqrt{\alpha_t}} \Big(x -
        \frac{\beta_t}{\sqrt{1 - \bar\alpha_t}} \, \epsilon_\theta(x, t)\Big)

    with :math:`\bar\alpha_t` falling along a cosine, in units of the mean and spread of the data.
    Training minimises :math:`\mathbb{E} |\epsilon - \epsilon_\theta(x_t, t)|^2`, denoising score
    matching at all noise levels. The variances are then those that maximise the bound on the
    training data: with the mean :math:`\tilde\mu_t` and the variance :math:`\tilde\beta_t` of
    :math:`q(x_{t-1} \mid x_t, x_0)`,

    .. math:: \sigma_t^2 = \tilde\beta_t + \tfrac1D \mathbb{E} |\tilde\mu_t - \mu_\theta|^2

    As an ``"energy"`` the network is a scalar, and

    .. math:: \epsilon_\theta(x, t) = \nabla_x E_\theta(x, t), \qquad
        \text{score} = -\epsilon_\theta / \sqrt{1 - \bar\alpha_t},

    so that the learned scores are those of a density, at the price of a second derivative.

    ``log_prob`` is of kind "bound": the variational bound of the very chain that ``"ancestral"``
    draws from, all its terms drawn ``num_bound`` times. ``"langevin"`` draws by annealed Langevin
    steps with the same scores, and is biased by their number and size.

    References:
        | Denoising diffusion probabilistic models (Ho et al., 2020),
        | https://arxiv.org/abs/2006.11239
        | Improved denoising diffusion probabilistic models (Nichol and Dhariwal, 2021),
        | https://arxiv.org/abs/2102.09672 (the cosine)
        | Analytic-DPM (Bao et al., 2022), https://arxiv.org/abs/2201.06503 (the variances, there
        | from the norm of the score)
        | Generative modeling by estimating gradients of the data distribution (Song and Ermon,
        | 2019), https://arxiv.org/abs/1907.05600

    Args:
        event_shape: The shape of one point.
        network: Whether the network gives the noise or an energy.
        hidden_sizes: The widths of its hidden layers.
        num_levels: The number T of noise levels.
        sampler: How to draw.
        training: How to train.
        num_bound: How often the bound is drawn, twice or more, which gives its standard error.

    Raises:
        ValueError: If ``network`` or ``sampler`` is another, or a count too small.

    Example:
        >>> model = Diffusion((2,), hidden_sizes=(8,), training=Training(num_steps=5))
        >>> model = model.fit(torch.randn(100, 2), progress=False)
        >>> model.sample(7).shape, model.log_prob(torch.zeros(3, 2)).kind
        (torch.Size([7, 2]), 'bound')
    """

    num_langevin = 10
    """How many Langevin steps are made at each level."""
    langevin_step = 0.1
    """Their step size, in units of the variance of the noise."""

    def __init__(
        self,
        event_shape: Sequence[int],
        network: Literal["noise", "energy"] = "noise",
        hidden_sizes: Sequence[int] = (256, 256),
        num_levels: int = 100,
        sampler: Literal["ancestral", "langevin"] = "ancestral",
        training: Training | None = None,
        num_bound: int = 4,
    ) -> None:
        super().__init__(event_shape)
        if network not in ("noise", "energy"):
            raise ValueError(f"network must be 'noise' or 'energy', got {network!r}")
        if sampler not in ("ancestral", "langevin"):
            raise ValueError(f"sampler must be 'ancestral' or 'langevin', got {sampler!r}")
        if num_levels < 2 or num_bound < 2:
            raise ValueError(
                f"num_levels and num_bound must be at least 2, got {num_levels} and {num_bound}"
            )
        self.sampler, self.num_bound, self.num_levels = sampler, num_bound, num_levels
        self.hidden_sizes = tuple(hidden_sizes)
        self.training_plan = Training(ema=0.995) if training is None else training
        dim = self.event_shape.numel()
        self.is_energy = network == "energy"
        self.network = mlp([dim + _TIMES, *hidden_sizes, 1 if self.is_energy else dim])
        t = torch.arange(num_levels + 1, dtype=torch.float64) / num_levels
        alpha_bar = ((t + 0.008) / 1.008 * math.pi / 2).cos().square()
        beta = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.5)
        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(0)])
        below = beta * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
        self.register_buffer("alpha_bar", alpha_bar[1:].float())
        self.register_buffer("beta", beta.float())
        self.register_buffer("variance_below", below.float())
        self.register_buffer("variance", below.float())
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def arguments(self) -> dict[str, object]:  # noqa: D102
        kind = "energy" if self.is_energy else "noise"
        return super().arguments() | {"network": kind}

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        r"""Evaluates the noise in noisy points, in its own standard deviations.

        Args:
            x: Noisy points in units of the data, with shape ``(n, D)``.
            t: The level of each, 0 the finest, with shape ``(n,)``.

        Returns:
            :math:`\epsilon_\theta`, with shape ``(n, D)``.
        """
        time = _embedded((t + 1) / len(self.beta)).to(x)
        if not self.is_energy:
            return self.network(torch.cat([x, time], -1))
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            energy = self.network(torch.cat([x, time], -1)).sum()
            return torch.autograd.grad(energy, x, create_graph=self.training)[0]

    def fit(self, x: Tensor, progress: bool = True) -> Self:  # noqa: D102
        check_data("x", x, self.event_shape)
        self.history = {}
        flat = x.flatten(1)
        self.loc.copy_(flat.mean(0))
        self.scale.copy_(flat.std(0).clamp(min=1e-3))
        flat = (flat - self.loc) / self.scale
        self.train()
        player = Player("loss", self.network, self._loss)
        history = play([player], flat, self.training_plan, progress=progress)
        self.eval()
        some = flat[torch.randint(len(flat), (_FOR_VARIANCES,), device=x.device)]
        for level in range(len(self.beta)):
            error = self._error(some, level).mean().item() / flat.shape[-1]
            self.variance[level] = self.variance_below[level] + error
        self.history = history
        return self

    def _noisy(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Adds noise of the levels t to points, and returns the noise, too."""
        noise, kept = torch.randn_like(x), self.alpha_bar[t].unsqueeze(-1)
        return kept.sqrt() * x + (1 - kept).sqrt() * noise, noise

    def _loss(self, x: Tensor) -> Tensor:
        t = torch.randint(len(self.beta), (len(x),), device=x.device)
        noisy, noise = self._noisy(x, t)
        return (noise - self.noise(noisy, t)).square().sum(-1).mean()

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        self.check_fitted()
        x = torch.randn(num_samples, len(self.loc)).to(self.loc)
        move = self._denoise if self.sampler == "ancestral" else self._settle
        for level in reversed(range(len(self.beta))):
            x = move(x, torch.full((num_samples,), level, device=x.device))
        return (self.loc + self.scale * x).reshape(num_samples, *self.event_shape)

    def _mean(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The mean of the level below, given the noise."""
        beta, kept = self.beta[t].unsqueeze(-1), self.alpha_bar[t].unsqueeze(-1)
        return (x - beta / (1 - kept).sqrt() * noise) / (1 - beta).sqrt()

    def _denoise(self, x: Tensor, t: Tensor) -> Tensor:
        spread = self.variance[t].sqrt().unsqueeze(-1)
        return self._mean(x, t, self.noise(x, t)) + spread * torch.randn_like(x)

    def _settle(self, x: Tensor, t: Tensor) -> Tensor:
        """Moves points by Langevin steps at their level, in units of its noise."""
        spread = (1 - self.alpha_bar[t]).sqrt().unsqueeze(-1)
        for _ in range(self.num_langevin):
            push = -self.langevin_step * spread * self.noise(x, t)
            x = x + push + math.sqrt(2 * self.langevin_step) * spread * torch.randn_like(x)
        return x

    @property
    def num_evaluations(self) -> int:
        """A pass for each level, or for each Langevin step, of one draw."""
        return len(self.beta) * (1 if self.sampler == "ancestral" else self.num_langevin)

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Likelihood:
        """Draws the variational bound of points ``(n, *event)``."""
        self.check_fitted()
        check_data("x", x, self.event_shape)
        flat = (x.flatten(1) - self.loc) / self.scale
        draws = torch.stack([self._bound(flat) for _ in range(self.num_bound)])
        value = draws.mean(0) - self.scale.log().sum()
        return Likelihood("bound", value, draws.std(0) / math.sqrt(self.num_bound))

    @torch.no_grad()
    def _error(self, x: Tensor, level: int) -> Tensor:
        """Draws the squared distance of the two means of the level below: ``(n,)``."""
        t = torch.full((len(x),), level, device=x.device)
        noisy, noise = self._noisy(x, t)
        beta, kept = self.beta[level], self.alpha_bar[level]
        squares = (noise - self.noise(noisy, t)).square().sum(-1)
        return squares * beta.square() / ((1 - beta) * (1 - kept))

    def _bound(self, x: Tensor) -> Tensor:
        """Draws the bound once, every level, in units of the data: ``(n,)``."""
        dim, last = x.shape[-1], self.alpha_bar[-1]
        bound = -0.5 * (last * x.square() - last - (1 - last).log()).sum(-1)
        for level, (variance, below) in enumerate(
            zip(self.variance, self.variance_below, strict=True)
        ):
            if level:
                divergence = 0.5 * dim * (below / variance - 1 - (below / variance).log())
            else:
                divergence = 0.5 * dim * (2 * math.pi * variance).log()
            bound = bound - divergence - self._error(x, level) / (2 * variance)
        return bound


_FOR_VARIANCES = 4096
"""How many noisy points of each level say its variance."""

_FREQUENCIES = (1.0, 2.0, 4.0, 8.0)
_TIMES = 1 + 2 * len(_FREQUENCIES)


def _embedded(t: Tensor) -> Tensor:
    """Maps times in (0, 1] to features, with shape ``(n, 9)``."""
    angles = math.pi * t.unsqueeze(-1) * torch.tensor(_FREQUENCIES, device=t.device)
    return torch.cat([t.unsqueeze(-1), angles.sin(), angles.cos()], -1)
