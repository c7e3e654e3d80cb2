r"""Landscapes on which samplers and objectives fail in known ways, with exact answers.

Parameters given as :class:`torch.nn.Parameter` are learned; anything else is data.
"""

from __future__ import annotations

__all__ = ["Banana", "DoubleWell", "Funnel", "TwoModes"]

import math

import torch
from torch import Tensor

from ..arguments import check_count, check_positive
from .analytic import LOG_2PI
from .base import Energy


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
        check_positive("beta", beta)
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

    Raises:
        ValueError: If ``scale`` is not positive.

    Example:
        >>> Banana().variance
        tensor([100.,  19.])
    """

    has_log_z = True
    has_sample = True

    def __init__(self, scale: float = 10.0, curvature: float = 0.03) -> None:
        super().__init__((2,))
        check_positive("scale", scale)
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
        ValueError: If ``num_dims`` is below two or ``scale`` is not positive.

    Example:
        >>> Funnel(3)(torch.zeros(4, 3))
        tensor([0., 0., 0., 0.])
    """

    has_log_z = True
    has_sample = True

    def __init__(self, num_dims: int = 10, scale: float = 3.0) -> None:
        check_count("num_dims", num_dims, least=2)
        check_positive("scale", scale)
        super().__init__((num_dims,))
        self.num_dims = num_dims
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
