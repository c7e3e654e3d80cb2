r"""Small data sets: real digits, and densities on the plane that are known exactly.

The digits are the 8x8 images bundled with scikit-learn, with what turns them into continuous
data (:func:`dequantize`) and into out-of-distribution data (:func:`shuffle_pixels`,
:func:`upside_down`). Each toy (:class:`Toy`) knows its density exactly: a fit to it can be judged
by :math:`\mathrm{KL}(p \,\|\, q)`, not by eye.
"""

__all__ = [
    "Digits",
    "Toy",
    "checkerboard",
    "dequantize",
    "digits",
    "eight_gaussians",
    "pinwheel",
    "rings",
    "shuffle_pixels",
    "two_modes",
    "two_moons",
    "upside_down",
]

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor


class Digits(NamedTuple):
    """Holds images, with shapes ``(n, 1, 8, 8)``, in [0, 1], and their digits ``(n,)``."""

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor


def digits(binarize: bool = False) -> Digits:
    r"""Loads the 8x8 digits bundled with scikit-learn.

    Every fifth image is held out; published numbers refer to this split. Pixels are multiples
    of 1/16: see :func:`dequantize` before fitting a density to them.

    References:
        | Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998),
        | https://doi.org/10.24432/C50P49

    Args:
        binarize: Whether to return 1 for pixels of at least one half and 0 for the others.

    Returns:
        The images, of the default dtype, and their labels.

    Raises:
        ImportError: If scikit-learn is not installed.

    Example:
        >>> from pyro_ebm.datasets import digits
        >>> digits().train.shape, digits().test.shape
        (torch.Size([1437, 1, 8, 8]), torch.Size([360, 1, 8, 8]))
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits needs scikit-learn: pip install pyro_ebm[compare]") from error

    bundle = load_digits()
    images = torch.from_numpy(bundle.images / 16).to(torch.get_default_dtype()).unsqueeze(1)
    labels = torch.from_numpy(bundle.target).long()
    if binarize:
        images = (images >= 0.5).to(images)
    held_out = torch.arange(len(images)) % 5 == 0
    return Digits(images[~held_out], images[held_out], labels[~held_out], labels[held_out])


def dequantize(x: Tensor, levels: int = 17, generator: Generator | None = None) -> Tensor:
    r"""Spreads discrete values uniformly over their cells.

    .. math:: y = \frac{k + u}{L}, \quad k = (L - 1) x, \quad u \sim \mathcal{U}(0, 1)

    A density :math:`q` of the continuous data bounds a likelihood of the discrete data from
    below: for :math:`D` values per example, by Jensen's inequality,

    .. math:: \log P(x) = \log E_u\,q(y) - D \log L \ge E_u \log q(y) - D \log L.

    References:
        | A note on the evaluation of generative models (Theis et al., 2016), section 3.1,
        | https://arxiv.org/abs/1511.01844

    Args:
        x: The values, multiples of :math:`1 / (L - 1)` in [0, 1], of any shape.
        levels: The number of levels :math:`L \ge 2`: 17 for the digits.
        generator: The source of :math:`u`.

    Returns:
        The continuous values, strictly inside (0, 1), with the shape of ``x``.

    Raises:
        ValueError: If ``levels`` is less than 2, or ``x`` is not on the grid of the levels.

    Example:
        >>> import torch
        >>> from pyro_ebm.datasets import dequantize
        >>> y = dequantize(torch.tensor([0.0, 0.5, 1.0]), levels=3)
        >>> (3 * y).floor()
        tensor([0., 1., 2.])
    """
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    k = ((levels - 1) * x).round()
    on_grid = (k >= 0) & (k < levels) & (k / (levels - 1)).to(x).isclose(x)
    if not (x.is_floating_point() and on_grid.all()):
        raise ValueError(
            f"x must hold floating multiples of 1/{levels - 1} in [0, 1], got {x.dtype} values "
            f"from {x.min().item():.4g} to {x.max().item():.4g}; rescale x or set levels="
        )
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    eps = torch.finfo(x.dtype).eps
    return ((k + u) / levels).clamp(eps, 1 - eps)


def shuffle_pixels(images: Tensor, generator: Generator | None = None) -> Tensor:
    r"""Permutes the pixels of each image, each by a permutation of its own.

    What is left in distribution is the histogram of each image: a score that still takes
    shuffled digits for digits looks at ink, not at shape.

    Args:
        images: The images, with shape ``(n, channels, height, width)``.
        generator: The source of the permutations.

    Returns:
        The shuffled images, with the shape of ``images``.

    Raises:
        ValueError: If ``images`` has another number of dimensions.

    Example:
        >>> import torch
        >>> from pyro_ebm.datasets import shuffle_pixels
        >>> shuffle_pixels(torch.arange(4.0).reshape(1, 1, 2, 2)).sum()
        tensor(6.)
    """
    pixels = _checked(images).flatten(2)
    n, _, size = pixels.shape
    order = torch.rand(n, 1, size, generator=generator, device=images.device).argsort(-1)
    return pixels.gather(2, order.expand_as(pixels)).reshape(images.shape)


def upside_down(images: Tensor) -> Tensor:
    r"""Turns each image by half a turn.

    Harder to detect than shuffled pixels, and not to perfection: a turned 0, 1 or 8 is still a
    digit, and a turned 6 is a 9.

    Args:
        images: The images, with shape ``(n, channels, height, width)``.

    Returns:
        The turned images, with the shape of ``images``.

    Raises:
        ValueError: If ``images`` has another number of dimensions.

    Example:
        >>> import torch
        >>> from pyro_ebm.datasets import upside_down
        >>> upside_down(torch.arange(4.0).reshape(1, 1, 2, 2)).flatten()
        tensor([3., 2., 1., 0.])
    """
    return _checked(images).flip(-2, -1)


def _checked(images: Tensor) -> Tensor:
    if images.dim() != 4:
        raise ValueError(f"images must be (n, channels, height, width), got {tuple(images.shape)}")
    return images


class Toy:
    r"""A density on the plane that is drawn from and evaluated exactly.

    ``two_moons``, two half circles, and ``rings``, four circles, are blurred by a round Gaussian;
    ``eight_gaussians`` lie on a circle; ``pinwheel`` is five Gaussians wound into arms;
    ``checkerboard`` is uniform on dark squares, with log density -inf elsewhere; ``two_modes`` are
    Gaussians of weights 0.8 and 0.2 with nothing between them. The mass outside of [-6, 6]² is
    below 1e-8.

    References:
        | The moons are scikit-learn's; the others those of FFJORD (Grathwohl et al., 2019),
        | https://arxiv.org/abs/1810.01367, with the winding of the pinwheel made to keep areas.

    Example:
        >>> from pyro_ebm.datasets import two_moons
        >>> x = two_moons(1000)
        >>> x.shape, two_moons.log_prob(x).shape
        (torch.Size([1000, 2]), torch.Size([1000]))
    """

    half_width = 6.0
    """Half the side of the square around the origin that holds all mass but 1e-8."""

    def __call__(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draws ``n`` points, with shape ``(n, 2)``, of the default dtype."""
        raise NotImplementedError

    @property
    def modes(self) -> tuple[Tensor, Tensor] | None:
        """Centres ``(K, 2)`` and weights ``(K,)``, where the density has modes far apart."""
        return None

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns the normalised log density ``(*batch,)``, in nats, at points ``(*batch, 2)``."""
        if x.shape[-1:] != (2,) or not x.is_floating_point():
            raise ValueError(f"x must hold floats (*batch, 2), got {x.dtype} {tuple(x.shape)}")
        return self._log_prob(x)

    def _log_prob(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class _Blobs(Toy):
    """Round Gaussians, of equal weight unless weights are given."""

    def __init__(
        self,
        centers: list[tuple[float, float]],
        noise: float,
        weights: list[float] | None = None,
        far_apart: bool = False,
    ) -> None:
        self.centers, self.noise, self.far_apart = centers, noise, far_apart
        self.weights = weights or [1 / len(centers)] * len(centers)

    def __call__(self, n: int, generator: Generator | None = None) -> Tensor:
        if len(set(self.weights)) == 1:
            k = torch.randint(len(self.centers), (n,), generator=generator)
        else:
            k = torch.tensor(self.weights).multinomial(n, replacement=True, generator=generator)
        return torch.tensor(self.centers)[k] + self.noise * torch.randn(n, 2, generator=generator)

    def _log_prob(self, x: Tensor) -> Tensor:
        z = (x.unsqueeze(-2) - x.new_tensor(self.centers)) / self.noise
        log_terms = -z.square().sum(-1) / 2 - math.log(2 * math.pi * self.noise**2)
        return (log_terms + x.new_tensor(self.weights).log()).logsumexp(-1)

    @property
    def modes(self) -> tuple[Tensor, Tensor] | None:
        if not self.far_apart:
            return None
        return torch.tensor(self.centers), torch.tensor(self.weights)


class _Rings(Toy):
    """Equal circles, blurred: the radius follows Rice's law, the angle is uniform."""

    radii, noise = [0.75, 1.5, 2.25, 3.0], 0.08

    def __call__(self, n: int, generator: Generator | None = None) -> Tensor:
        radius = torch.tensor(self.radii)[torch.randint(4, (n,), generator=generator)]
        angle = 2 * math.pi * torch.rand(n, generator=generator)
        circle = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
        return circle + self.noise * torch.randn(n, 2, generator=generator)

    def _log_prob(self, x: Tensor) -> Tensor:
        r, radii = x.norm(dim=-1, keepdim=True), x.new_tensor(self.radii)
        bessel = torch.special.i0e(r * radii / self.noise**2).log()
        log_terms = bessel - ((r - radii) / self.noise).square() / 2
        return log_terms.logsumexp(-1) - math.log(4 * 2 * math.pi * self.noise**2)


class _Pinwheel(Toy):
    """Equal elongated Gaussians, turned by an angle of the radius alone: that keeps areas."""

    middle, scale = [2.0, 0.0], [0.6, 0.2]

    def __call__(self, n: int, generator: Generator | None = None) -> Tensor:
        noise = torch.tensor(self.scale) * torch.randn(n, 2, generator=generator)
        arm = torch.randint(5, (n,), generator=generator)
        z = torch.tensor(self.middle) + noise
        return self._turn(z, self._winding(z) + 2 * math.pi / 5 * arm)

    def _log_prob(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(-2)
        z = self._turn(x, -self._winding(x) - 2 * math.pi / 5 * torch.arange(5).to(x))
        noise = (z - x.new_tensor(self.middle)) / x.new_tensor(self.scale)
        log_terms = -noise.square().sum(-1) / 2 - math.log(2 * math.pi * math.prod(self.scale))
        return log_terms.logsumexp(-1) - math.log(5)

    def _winding(self, x: Tensor) -> Tensor:
        return 0.25 * (x.norm(dim=-1) / 2).exp()

    def _turn(self, x: Tensor, angle: Tensor) -> Tensor:
        c, s = angle.cos(), angle.sin()
        return torch.stack([c * x[..., 0] - s * x[..., 1], s * x[..., 0] + c * x[..., 1]], -1)


class _Checkerboard(Toy):
    """Uniform on the eight dark squares, of side 2, of a board of four by four."""

    def __call__(self, n: int, generator: Generator | None = None) -> Tensor:
        column = torch.randint(-2, 2, (n,), generator=generator)
        row = 2 * torch.randint(-1, 1, (n,), generator=generator) + column % 2
        u = torch.rand(n, 2, generator=generator)
        u = u * (1 - torch.finfo(u.dtype).eps)  # so that no sum rounds into the next square
        return 2 * (torch.stack([column, row], -1) + u)

    def _log_prob(self, x: Tensor) -> Tensor:
        column, row = (x / 2).floor().unbind(-1)
        on_board = (x >= -4).all(-1) & (x < 4).all(-1)
        dark = on_board & ((column + row) % 2 == 0)
        return torch.full_like(column, -math.log(32)).masked_fill(~dark, -math.inf)


# a moon's 32 centers lie as close as its noise is wide: along the arc they ripple by 1e-8
_moon = [(math.cos(t), math.sin(t)) for t in (math.pi * (i + 0.5) / 32 for i in range(32))]
_compass = [(math.cos(math.pi * i / 4), math.sin(math.pi * i / 4)) for i in range(8)]

two_moons = _Blobs(_moon + [(1 - c, 0.5 - s) for c, s in _moon], noise=0.1)
eight_gaussians = _Blobs([(8**0.5 * c, 8**0.5 * s) for c, s in _compass], 8**-0.5, far_apart=True)
two_modes = _Blobs([(-2.5, -1.0), (2.5, 1.0)], 0.5, [0.8, 0.2], far_apart=True)
rings = _Rings()
pinwheel = _Pinwheel()
checkerboard = _Checkerboard()
