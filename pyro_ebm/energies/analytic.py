r"""Energies with exact log Z, moments and samples: the oracles.

Parameters given as :class:`torch.nn.Parameter` are learned; anything else is data.
"""

from __future__ import annotations

__all__ = ["LOG_2PI", "Gaussian", "GaussianMixture", "Laplace"]

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from .base import Energy

LOG_2PI = math.log(2 * math.pi)


class Gaussian(Energy):
    r"""A quadratic form.

    .. math:: E(x) = \tfrac12 (x - \mu)^\top P (x - \mu), \qquad
        \log Z = \tfrac{D}{2} \log 2\pi - \tfrac12 \log |P|

    Args:
        loc: The mean :math:`\mu`, whose shape is the event shape.
        precision: The precision :math:`P`: a number or tensor that broadcasts with ``loc``
            (diagonal), or a symmetric positive definite matrix ``(D, D)`` over the D numbers of a
            point, flattened.

    Raises:
        ValueError: If ``precision`` is not positive (symmetric and definite, if a matrix) or does
            not fit ``loc``.

    Example:
        >>> energy = Gaussian(torch.zeros(2), torch.tensor([1.0, 4.0]))
        >>> energy(torch.ones(2)), energy.variance
        (tensor(2.5000), tensor([1.0000, 0.2500]))
    """

    has_log_z = True
    has_sample = True

    def __init__(self, loc: Tensor, precision: Tensor | float) -> None:
        loc = torch.as_tensor(loc)
        super().__init__(loc.shape)
        values = torch.as_tensor(precision).detach()
        square = values.shape == (loc.numel(), loc.numel())
        matrix = values.dim() == 2 and (loc.dim() == 1 or (square and values.shape != loc.shape))
        if matrix and not square:
            raise ValueError(
                f"precision of shape {tuple(values.shape)} does not fit loc of shape "
                f"{tuple(loc.shape)}"
            )
        if not matrix:
            _check_broadcast("precision", values, loc)
        if matrix and not bool(constraints.positive_definite.check(values)):
            raise ValueError(
                f"precision of shape {tuple(values.shape)} is not positive definite and symmetric "
                "to rounding; cholesky_inverse of a Cholesky factor is, inv may not be"
            )
        if not matrix and not bool((values > 0).all()):
            raise ValueError(f"precision must be positive, got {values}")
        self.matrix = matrix
        self.constant("loc", loc)
        self.constant("precision", precision if isinstance(precision, Tensor) else values.to(loc))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        d = x - self.loc
        if self.matrix:
            d = d.flatten(-self.loc.dim())
            return 0.5 * ((d @ self.precision) * d).sum(-1)
        return 0.5 * _sum_event(self.precision * d * d, self.loc.dim())

    def log_z(self) -> Tensor:  # noqa: D102
        if self.matrix:
            log_det = torch.logdet(self.precision)
        else:
            log_det = self.precision.expand(self.loc.shape).log().sum()
        return 0.5 * (self.loc.numel() * LOG_2PI - log_det)

    @property
    def mean(self) -> Tensor:
        """The mean, with the event shape."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate, with the event shape."""
        if self.matrix:
            return torch.linalg.inv(self.precision).diagonal().reshape(self.loc.shape)
        return (1 / self.precision).expand(self.loc.shape)

    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        noise = torch.randn(num_samples, *self.loc.shape).to(self.loc)
        if self.matrix:
            upper = torch.linalg.cholesky(self.precision).mT
            rows = torch.linalg.solve_triangular(upper, noise.flatten(1).mT, upper=True).mT
            return self.loc + rows.reshape(noise.shape)
        return self.loc + noise * self.precision.rsqrt()


class Laplace(Energy):
    r"""Independent Laplace distributions.

    .. math:: E(x) = \sum_i |x_i - \mu_i| / b_i, \qquad \log Z = \sum_i \log 2 b_i

    Args:
        loc: The location :math:`\mu`, whose shape is the event shape.
        scale: The scale :math:`b > 0`, which broadcasts with ``loc``.

    Raises:
        ValueError: If ``scale`` is not positive.

    Example:
        >>> Laplace(torch.zeros(3), 0.5)(torch.ones(3))
        tensor(6.)
    """

    has_log_z = True
    has_sample = True

    def __init__(self, loc: Tensor, scale: Tensor | float) -> None:
        loc = torch.as_tensor(loc)
        super().__init__(loc.shape)
        scale = scale if isinstance(scale, Tensor) else torch.as_tensor(scale).to(loc)
        _check_broadcast("scale", scale, loc)
        if not bool((scale > 0).all()):
            raise ValueError(f"scale must be positive, got {scale}")
        self.constant("loc", loc)
        self.constant("scale", scale)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return _sum_event((x - self.loc).abs() / self.scale, self.loc.dim())

    def log_z(self) -> Tensor:  # noqa: D102
        return (2 * self.scale).expand(self.loc.shape).log().sum()

    @property
    def mean(self) -> Tensor:
        """The mean, with the event shape."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate, with the event shape."""
        return (2 * self.scale.square()).expand(self.loc.shape)

    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        standard = torch.distributions.Laplace(
            torch.zeros_like(self.loc), torch.ones_like(self.loc)
        )
        return self.loc + self.scale * standard.sample((num_samples,))


class GaussianMixture(Energy):
    r"""A mixture of isotropic or diagonal Gaussians, normalised: :math:`\log Z = 0`.

    .. math:: E(x) = -\log \sum_k w_k \, \mathcal{N}(x; \mu_k, \mathrm{diag}(s_k^2))

    Args:
        weights: The weights :math:`w`, positive, with shape ``(K,)``; they are normalised to one.
        locs: The means, with shape ``(K, D)``.
        scales: The standard deviations, with shape ``(K,)``, ``(K, D)`` or a number.

    Raises:
        ValueError: If the shapes disagree or a weight or scale is not positive.

    Example:
        >>> energy = GaussianMixture([0.3, 0.7], torch.tensor([[-1.0], [1.0]]), 0.5)
        >>> energy.mean, energy.log_z()
        (tensor([0.4000]), tensor(0.))
    """

    has_log_z = True
    has_sample = True

    def __init__(
        self, weights: Tensor | list[float], locs: Tensor, scales: Tensor | float
    ) -> None:
        if locs.dim() != 2:
            raise ValueError(f"locs must have shape (K, D), got {tuple(locs.shape)}")
        super().__init__(locs.shape[1:])
        weights = weights if isinstance(weights, Tensor) else torch.tensor(weights).to(locs)
        scales = scales if isinstance(scales, Tensor) else torch.tensor(scales).to(locs)
        if weights.shape != locs.shape[:1] or not bool((weights > 0).all()):
            raise ValueError(f"weights must be {len(locs)} positive numbers, got {weights}")
        if not bool((scales > 0).all()):
            raise ValueError(f"scales must be positive, got {scales}")
        self.constant("weights", weights)
        self.constant("locs", locs)
        self.constant("scales", scales)

    def _parts(self) -> tuple[Tensor, Tensor]:
        """Returns the normalised weights ``(K,)`` and the standard deviations ``(K, D)``."""
        scales = self.scales.unsqueeze(-1) if self.scales.dim() == 1 else self.scales
        return self.weights / self.weights.sum(), scales.expand(self.locs.shape)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        weights, scales = self._parts()
        z = (x.unsqueeze(-2) - self.locs) / scales
        log_normal = -0.5 * (z.square() + LOG_2PI).sum(-1) - scales.log().sum(-1)
        return -(weights.log() + log_normal).logsumexp(-1)

    def log_z(self) -> Tensor:  # noqa: D102
        return self._parts()[0].sum().log()

    @property
    def mean(self) -> Tensor:
        """The mean, with shape ``(D,)``."""
        return self._parts()[0] @ self.locs

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate, with shape ``(D,)``."""
        weights, scales = self._parts()
        return weights @ (scales.square() + self.locs.square()) - self.mean.square()

    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        weights, scales = self._parts()
        k = torch.multinomial(weights, num_samples, replacement=True)
        return self.locs[k] + scales[k] * torch.randn_like(self.locs[k])


def _check_broadcast(name: str, values: Tensor, loc: Tensor) -> None:
    ones = (1,) * (loc.dim() - values.dim())
    pairs = zip(ones + tuple(values.shape), loc.shape, strict=False)
    if values.dim() > loc.dim() or any(size not in (1, full) for size, full in pairs):
        raise ValueError(
            f"{name} of shape {tuple(values.shape)} does not broadcast to loc of shape "
            f"{tuple(loc.shape)}"
        )


def _sum_event(values: Tensor, event_dim: int) -> Tensor:
    return values.flatten(-event_dim).sum(-1) if event_dim else values
