"""Baselines that no network has to beat by much to be worth its while, but has to beat."""

from __future__ import annotations

__all__ = ["GaussianMixture", "Independent"]

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..energies.conditional import check_noise
from .base import Density, Generative, Likelihood, check_binary, check_data, check_known
from .gaussian_evidence import fill, unblur


class Independent(Generative):
    r"""Coordinates that know nothing of each other.

    .. math:: p(x) = \prod_i \mathcal{N}(x_i; m_i, s_i^2) \quad\text{or}\quad
        \prod_i q_i^{x_i} (1 - q_i)^{1 - x_i}, \qquad q_i = \frac{1 + \sum_n x_{ni}}{2 + N}

    The likelihood is exact: the maximum, but for Laplace's rule, without which one unseen pixel
    would make a binary image impossible.

    Args:
        event_shape: The shape of one point.
        binary: Whether points are of zeros and ones.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
        >>> Independent((2,), binary=True).fit(x).log_prob(x).value.exp()
        tensor([0.3750, 0.3750])
    """

    min_scale = 1e-3
    """The least scale of a coordinate, in units of x: a constant one has no infinite density."""

    def __init__(self, event_shape: Sequence[int], binary: bool = False) -> None:
        super().__init__(event_shape)
        self.binary = binary
        self.loc = nn.Parameter(torch.zeros(self.event_shape))
        """The means, or the probabilities of a one."""
        self.scale = None if binary else nn.Parameter(torch.ones(self.event_shape))

    @property
    def law(self) -> dist.TorchDistribution:
        """The law of one point."""
        each = dist.Bernoulli(self.loc) if self.binary else dist.Normal(self.loc, self.scale)
        return each.to_event(len(self.event_shape))

    @torch.no_grad()
    def fit(self, x: Tensor, progress: bool = True) -> Self:  # noqa: D102
        check_data("x", x, self.event_shape)
        if self.binary:
            check_binary("x", x)
            self.loc.copy_((1 + x.sum(0)) / (2 + len(x)))
        else:
            self.loc.copy_(x.mean(0))
            self.scale.copy_(x.std(0, correction=0).clamp(min=self.min_scale))
        self.history = {"loss": [-self.law.log_prob(x).mean().item()]}
        return self

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        self.check_fitted()
        return self.law.sample((num_samples,))

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Likelihood:  # noqa: D102
        self.check_fitted()
        check_data("x", x, self.event_shape)
        return Likelihood("exact", self.law.log_prob(x))

    def as_energy(self) -> Density | None:  # noqa: D102
        return None if self.binary else Density(self.event_shape, lambda x: self.law.log_prob(x))

    @torch.no_grad()
    def inpaint(
        self, x: Tensor, known: Tensor, num_draws: int = 100, warmup_steps: int = 100
    ) -> Tensor:
        """Draws unknown coordinates, of which the known say nothing."""
        self.check_fitted()
        check_data("x", x, self.event_shape)
        check_known(known, self.event_shape)
        return torch.where(known, x, self.law.sample((num_draws, len(x))).to(x))

    @torch.no_grad()
    def denoise(
        self, y: Tensor, noise: float, num_draws: int = 100, warmup_steps: int = 100
    ) -> Tensor:
        """Draws points given noisy readings, each coordinate by Bayes' rule."""
        self.check_fitted()
        check_data("y", y, self.event_shape)
        check_noise(noise, 2 if self.binary else 0)
        if self.binary:
            right, wrong = math.log1p(-noise), math.log(noise)
            log_odds = self.loc.logit() + (2 * y - 1) * (right - wrong)
            return dist.Bernoulli(logits=log_odds).sample((num_draws,)).to(y)
        precision = self.scale**-2 + noise**-2
        mean = (self.loc * self.scale**-2 + y * noise**-2) / precision
        return dist.Normal(mean, precision.rsqrt()).sample((num_draws,))


class GaussianMixture(Generative):
    r"""A mixture of Gaussians with covariances of their own, by expectation maximisation.

    .. math:: p(x) = \sum_k w_k \, \mathcal{N}(x; m_k, \Sigma_k)

    The likelihood is exact. The fit is scikit-learn's, from k-means, and a local maximum.

    Args:
        event_shape: The shape of one point.
        num_components: The number of Gaussians.
        min_variance: What is added to the diagonal of each covariance, in units of x squared.

    Raises:
        ValueError: If ``num_components`` is not positive; in ``fit``, if there are fewer points.

    Example:
        >>> model = GaussianMixture((2,), num_components=3).fit(torch.randn(100, 2))
        >>> model.sample(5).shape, model.log_prob(torch.zeros(4, 2)).kind
        (torch.Size([5, 2]), 'exact')
    """

    def __init__(
        self, event_shape: Sequence[int], num_components: int = 10, min_variance: float = 1e-4
    ) -> None:
        super().__init__(event_shape)
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1, got {num_components}")
        self.num_components, self.min_variance = num_components, min_variance
        dim = self.event_shape.numel()
        self.weights = nn.Parameter(torch.full((num_components,), 1 / num_components))
        self.locs = nn.Parameter(torch.zeros(num_components, dim))
        self.covariances = nn.Parameter(torch.eye(dim).repeat(num_components, 1, 1))

    @property
    def law(self) -> dist.TorchDistribution:
        """The law of one flat point."""
        parts = dist.MultivariateNormal(self.locs, self.covariances)
        return dist.MixtureSameFamily(dist.Categorical(self.weights), parts)

    @property
    def num_parameters(self) -> int:
        """The number of numbers that the fit sets: a covariance is symmetric, weights sum to 1."""
        num, dim = self.locs.shape
        return num * (dim + dim * (dim + 1) // 2) + num - 1

    @torch.no_grad()
    def fit(self, x: Tensor, progress: bool = True) -> Self:  # noqa: D102
        from sklearn.mixture import GaussianMixture as Estimator

        check_data("x", x, self.event_shape)
        if len(x) < self.num_components:
            raise ValueError(
                f"x must have at least num_components={self.num_components} rows, got {len(x)}"
            )
        seed = int(torch.randint(2**31, ()))
        estimator = Estimator(
            self.num_components, reg_covar=self.min_variance, max_iter=500, random_state=seed
        )
        estimator.fit(x.flatten(1).double().cpu().numpy())
        found = estimator.weights_, estimator.means_, estimator.covariances_
        for parameter, value in zip(self.parameters(), found, strict=True):
            parameter.copy_(torch.from_numpy(value))
        self.history = {"loss": [-self.log_density(x).mean().item()]}
        return self

    def log_density(self, x: Tensor) -> Tensor:
        """Evaluates log p in nats at points ``(n, *event)``, with shape ``(n,)``."""
        return self.law.log_prob(x.flatten(1))

    def as_energy(self) -> Density:  # noqa: D102
        return Density(self.event_shape, self.log_density)

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        self.check_fitted()
        return self.law.sample((num_samples,)).reshape(num_samples, *self.event_shape)

    @torch.no_grad()
    def inpaint(
        self, x: Tensor, known: Tensor, num_draws: int = 100, warmup_steps: int = 100
    ) -> Tensor:
        """Draws unknown coordinates given the known, exactly."""
        self.check_fitted()
        check_data("x", x, self.event_shape)
        check_known(known, self.event_shape)
        draws = fill(self.law, x.flatten(1), known.flatten(), num_draws)
        return draws.to(x).reshape(num_draws, *x.shape)

    @torch.no_grad()
    def denoise(
        self, y: Tensor, noise: float, num_draws: int = 100, warmup_steps: int = 100
    ) -> Tensor:
        """Draws points given noisy readings, exactly."""
        self.check_fitted()
        check_data("y", y, self.event_shape)
        check_noise(noise)
        return unblur(self.law, y.flatten(1), noise, num_draws).to(y).reshape(num_draws, *y.shape)

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Likelihood:  # noqa: D102
        self.check_fitted()
        check_data("x", x, self.event_shape)
        return Likelihood("exact", self.log_density(x))
