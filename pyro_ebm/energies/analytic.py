r"""Energies with exact log Z, moments and samples: the oracles.

Parameters given as :class:`torch.nn.Parameter` are learned; anything else is data.
"""

from __future__ import annotations

__all__ = [
    "Banana",
    "DoubleWell",
    "Funnel",
    "Gaussian",
    "GaussianMixture",
    "Laplace",
    "TwoModes",
]

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
            (diagonal), or a symmetric positive definite matrix ``(D, D)`` for a vector ``loc``.

    Raises:
        ValueError: If ``precision`` is not positive (definite) or does not fit ``loc``.

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
        matrix = isinstance(precision, Tensor) and precision.dim() == 2 and loc.dim() == 1
        positive = constraints.positive_definite if matrix else constraints.positive
        values = torch.as_tensor(precision).detach()
        if matrix and values.shape != (len(loc), len(loc)):
            raise ValueError(
                f"precision of shape {tuple(values.shape)} does not fit loc of shape "
                f"{tuple(loc.shape)}"
            )
        if not matrix and torch.broadcast_shapes(values.shape, loc.shape) != loc.shape:
            raise ValueError(
                f"precision of shape {tuple(values.shape)} does not broadcast to loc of shape "
                f"{tuple(loc.shape)}"
            )
        if not bool(positive.check(values).all()):
            raise ValueError(f"precision must be positive (definite), got {values}")
        self.matrix = matrix
        self.constant("loc", loc)
        self.constant("precision", precision if isinstance(precision, Tensor) else values.to(loc))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        d = x - self.loc
        if self.matrix:
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
            return torch.linalg.inv(self.precision).diagonal()
        return (1 / self.precision).expand(self.loc.shape)

    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        noise = torch.randn(num_samples, *self.loc.shape).to(self.loc)
        if self.matrix:
            upper = torch.linalg.cholesky(self.precision).mT
            return self.loc + torch.linalg.solve_triangular(upper, noise.mT, upper=True).mT
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
        weights = torch.as_tensor(weights).to(locs)
        scales = torch.as_tensor(scales).to(locs)
        scales = scales.unsqueeze(-1) if scales.dim() == 1 else scales
        if weights.shape != locs.shape[:1] or not bool((weights > 0).all()):
            raise ValueError(f"weights must be {len(locs)} positive numbers, got {weights}")
        if not bool((scales > 0).all()):
            raise ValueError(f"scales must be positive, got {scales}")
        self.constant("weights", weights / weights.sum())
        self.constant("locs", locs)
        self.constant("scales", scales.expand(locs.shape).contiguous())

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        z = (x.unsqueeze(-2) - self.locs) / self.scales
        log_normal = -0.5 * (z.square() + LOG_2PI).sum(-1) - self.scales.log().sum(-1)
        return -(self.weights.log() + log_normal).logsumexp(-1)

    def log_z(self) -> Tensor:  # noqa: D102
        return self.weights.new_zeros(())

    @property
    def mean(self) -> Tensor:
        """The mean, with shape ``(D,)``."""
        return self.weights @ self.locs

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate, with shape ``(D,)``."""
        return self.weights @ (self.scales.square() + self.locs.square()) - self.mean.square()

    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        k = torch.multinomial(self.weights, num_samples, replacement=True)
        return self.locs[k] + self.scales[k] * torch.randn_like(self.locs[k])


class TwoModes(Energy):
    r"""Two unit Gaussians on a line, told apart only by the weight of the second.

    .. math:: E(x) = -\log\left(e^{-(x - a)^2/2} + e^{-\theta} e^{-(x - b)^2/2}\right), \qquad
        \log Z = \tfrac12 \log 2\pi + \log(1 + e^{-\theta})

    The toy on which score matching and persistent chains fail to learn :math:`\theta` when the
    modes are far apart (Carbone, Hua, Coste and Vanden-Eijnden, 2023,
    https://arxiv.org/abs/2305.19414).

    Args:
        theta: The parameter :math:`\theta`; the second mode has weight :math:`1/(1 + e^\theta)`.
        a: The first mode.
        b: The second mode.

    Example:
        >>> energy = TwoModes(theta=-math.log(4.0))
        >>> energy.weight, energy.mean
        (tensor(0.8000), tensor(6.))
    """

    has_log_z = True
    has_sample = True

    def __init__(self, theta: Tensor | float = 0.0, a: float = -10.0, b: float = 10.0) -> None:
        super().__init__(())
        self.constant("theta", theta)
        self.a = a
        self.b = b

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        first = -0.5 * (x - self.a).square()
        second = -self.theta - 0.5 * (x - self.b).square()
        return -torch.logaddexp(first, second)

    def log_z(self) -> Tensor:  # noqa: D102
        return 0.5 * LOG_2PI + torch.nn.functional.softplus(-self.theta)

    @property
    def weight(self) -> Tensor:
        """The weight of the mode at b."""
        return torch.sigmoid(-self.theta)

    @property
    def mean(self) -> Tensor:
        """The mean, a 0-d tensor."""
        return self.a + self.weight * (self.b - self.a)

    @property
    def variance(self) -> Tensor:
        """The variance, a 0-d tensor."""
        return 1 + self.weight * (1 - self.weight) * (self.b - self.a) ** 2

    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        second = (torch.rand(num_samples).to(self.theta) < self.weight).to(self.theta)
        return self.a + (self.b - self.a) * second + torch.randn(num_samples).to(self.theta)


class DoubleWell(Energy):
    r"""A double well on a line, tilted to one side if asked.

    .. math:: E(x) = \beta (x^2 - 1)^2 + c x

    Normaliser and moments come from the trapezoidal rule on a fine grid, which is exact to
    rounding for so smooth and fast a decay; samples invert the cumulative sum on that grid (error
    below 1e-5 in x).

    Args:
        beta: The depth :math:`\beta > 0` of the wells, in nats.
        tilt: The slope :math:`c`; positive favours the left well.

    Raises:
        ValueError: If ``beta`` is not positive.

    Example:
        >>> round(DoubleWell(beta=1.0).log_z().item(), 5)
        0.67993
    """

    has_log_z = True
    has_sample = True

    def __init__(self, beta: float = 1.0, tilt: float = 0.0) -> None:
        super().__init__(())
        if not beta > 0:
            raise ValueError(f"beta must be positive, got {beta}")
        self.constant("beta", beta)
        self.constant("tilt", tilt)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.beta * (x.square() - 1).square() + self.tilt * x

    def _grid(self) -> tuple[Tensor, Tensor, float]:
        """Returns points, their unnormalised log density and the spacing."""
        reach = (
            1
            + (50 / self.beta.item()) ** 0.25
            + (abs(self.tilt.item()) / self.beta.item()) ** (1 / 3)
        )
        x = torch.linspace(-reach, reach, 200_001, dtype=torch.float64, device=self.beta.device)
        return x, -self(x), 2 * reach / 200_000

    def _moment(self, power: int) -> Tensor:
        x, log_density, _ = self._grid()
        return (log_density.softmax(0) * x**power).sum().to(self.beta)

    def log_z(self) -> Tensor:  # noqa: D102
        _, log_density, dx = self._grid()
        return (log_density.logsumexp(0) + math.log(dx)).to(self.beta)

    @property
    def mean(self) -> Tensor:
        """The mean, a 0-d tensor."""
        return self._moment(1)

    @property
    def variance(self) -> Tensor:
        """The variance, a 0-d tensor."""
        return self._moment(2) - self._moment(1).square()

    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        x, log_density, dx = self._grid()
        cdf = log_density.softmax(0).cumsum(0)
        u = torch.rand(num_samples, dtype=torch.float64).to(x)
        cell = torch.searchsorted(cdf, u).clamp(max=len(x) - 1)
        below = torch.where(cell > 0, cdf[cell - 1], 0.0)
        within = (u - below) / (cdf[cell] - below).clamp(min=1e-300)
        return (x[cell] + (within - 0.5) * dx).to(self.beta)


class Banana(Energy):
    r"""A curved Gaussian in the plane.

    .. math:: x_0 \sim \mathcal{N}(0, s^2), \qquad x_1 \sim \mathcal{N}(c (x_0^2 - s^2), 1), \qquad
        \log Z = \log 2\pi s

    Args:
        scale: The standard deviation :math:`s` of the first coordinate.
        curvature: The curvature :math:`c`.

    Example:
        >>> Banana().variance
        tensor([100.,  19.])
    """

    has_log_z = True
    has_sample = True

    def __init__(self, scale: float = 10.0, curvature: float = 0.03) -> None:
        super().__init__((2,))
        self.constant("scale", scale)
        self.constant("curvature", curvature)

    def _ridge(self, x0: Tensor) -> Tensor:
        return self.curvature * (x0.square() - self.scale.square())

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x0, x1 = x.unbind(-1)
        return 0.5 * ((x0 / self.scale).square() + (x1 - self._ridge(x0)).square())

    def log_z(self) -> Tensor:  # noqa: D102
        return LOG_2PI + self.scale.log()

    @property
    def mean(self) -> Tensor:
        """The mean, with shape ``(2,)``."""
        return self.scale.new_zeros(2)

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate, with shape ``(2,)``."""
        return torch.stack([self.scale**2, 1 + 2 * self.curvature**2 * self.scale**4])

    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        x0, noise = torch.randn(2, num_samples).to(self.scale)
        return torch.stack([self.scale * x0, self._ridge(self.scale * x0) + noise], dim=-1)


class Funnel(Energy):
    r"""Neal's funnel: a scale and the coordinates that share it.

    .. math:: x_0 \sim \mathcal{N}(0, s^2), \qquad x_i \sim \mathcal{N}(0, e^{x_0}), \qquad
        \log Z = \tfrac{D}{2} \log 2\pi + \log s

    The coordinates :math:`x_i` have a heavy tail: variance :math:`e^{s^2/2}`, rarely seen in a
    sample.

    Args:
        num_dims: The dimension :math:`D`, at least two.
        scale: The standard deviation :math:`s` of the log variance.

    Raises:
        ValueError: If ``num_dims`` is below two.

    Example:
        >>> Funnel(3)(torch.zeros(4, 3))
        tensor([0., 0., 0., 0.])
    """

    has_log_z = True
    has_sample = True

    def __init__(self, num_dims: int = 10, scale: float = 3.0) -> None:
        if num_dims < 2:
            raise ValueError(f"num_dims must be at least 2, got {num_dims}")
        super().__init__((num_dims,))
        self.constant("scale", scale)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x0, rest = x[..., 0], x[..., 1:]
        coordinates = rest.square().sum(-1) * (-x0).exp() + rest.shape[-1] * x0
        return 0.5 * ((x0 / self.scale).square() + coordinates)

    def log_z(self) -> Tensor:  # noqa: D102
        return 0.5 * self.event_shape.numel() * LOG_2PI + self.scale.log()

    @property
    def mean(self) -> Tensor:
        """The mean, with shape ``(D,)``."""
        return self.scale.new_zeros(self.event_shape)

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate, with shape ``(D,)``."""
        rest = (self.scale**2 / 2).exp().expand(self.event_shape.numel() - 1)
        return torch.cat([self.scale.square().reshape(1), rest])

    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        noise = torch.randn(num_samples, *self.event_shape).to(self.scale)
        x0 = self.scale * noise[:, :1]
        return torch.cat([x0, (x0 / 2).exp() * noise[:, 1:]], dim=-1)


def _sum_event(values: Tensor, event_dim: int) -> Tensor:
    return values.flatten(-event_dim).sum(-1) if event_dim else values
