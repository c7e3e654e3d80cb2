r"""The metric: the linear map from coordinates in which the target looks round to its own.

.. math:: A = \mathrm{diag}(s) \left(I + V (L - I) V^\top\right)

with the unit of length :math:`s` of each coordinate, and the stretches :math:`L` along a few
orthonormal directions :math:`V`, on top of the units; without directions, the default, it is the
diagonal metric. A kernel moves :math:`w = A^{-1} x` as it would :math:`x` with a unit metric: it
steps by :math:`A p`, and the force on :math:`p` is :math:`-A^\top \nabla U(x)`.

It is fitted so that draws and gradients look alike. With :math:`C_x` and :math:`C_g` their
covariances,

.. math:: s_i = \left(C_{x, ii} / C_{g, ii}\right)^{1/4}, \qquad A A^\top = S, \qquad
    S C_g S = C_x

where :math:`S`, the geometric mean of :math:`C_x` and :math:`C_g^{-1}`, is the metric of least
Fisher divergence. Of a Gaussian it is the covariance, free of noise as soon as there are more
draws than dimensions, since then :math:`g = \Sigma^{-1} (x - m)` at every draw.
"""

from __future__ import annotations

__all__ = ["Metric", "Stretch"]

import math
from typing import NamedTuple

import torch
from torch import Tensor

NO_STRETCH = 2.0
"""A variance within this factor of 1, in the units, is no reason for a stretch, but noise."""


FEW_DIMENSIONS = 100
"""Up to which a product with a full matrix costs little beside a gradient."""


class Stretch(NamedTuple):
    """How far a few directions are stretched; all others are left as they are."""

    directions: Tensor
    """Orthonormal columns, ``(D, k)``."""
    factors: Tensor
    """Above 1 where the target is wide, ``(k,)``."""
    matrices: tuple[Tensor, ...]
    """The matrix and its inverse, ``(D, D)``, where they are cheaper to apply than directions."""

    @classmethod
    def along(cls, directions: Tensor, factors: Tensor) -> Stretch:
        """Prepares the stretch of some directions.

        Args:
            directions: Orthonormal columns, with shape ``(D, k)``.
            factors: How far to stretch each, with shape ``(k,)``.
        """
        dim, rank = directions.shape
        if 2 * rank < dim:
            return cls(directions, factors, ())
        eye = torch.eye(dim).to(directions)
        by = torch.stack([factors, 1 / factors]).unsqueeze(1) - 1
        return cls(directions, factors, tuple(eye + (directions * by) @ directions.mT))

    def apply(self, v: Tensor, *, inverse: bool = False) -> Tensor:
        """Stretches vectors with shape ``(C, D)``, or undoes it."""
        if self.matrices:
            return v @ self.matrices[inverse].to(v.dtype)
        directions, factors = self.directions.to(v.dtype), self.factors.to(v.dtype)
        factors = 1 / factors if inverse else factors
        return v + (v @ directions * (factors - 1)) @ directions.mT


class Metric(NamedTuple):
    """The map; its inverse is the change of coordinates that makes the target round."""

    scale: Tensor
    """The unit of length of each coordinate, ``(D,)``."""
    stretch: Stretch | tuple[()] = ()
    """That of directions, in these units; empty for a diagonal metric."""

    @classmethod
    def unit(cls, z: Tensor, rank: int | None) -> Metric:
        """The metric that leaves all as it is.

        Args:
            z: Chains, with shape ``(C, D)``.
            rank: How many directions may be stretched later, ``None`` for all if they are few.
        """
        dim = z.shape[-1]
        if rank is None:
            rank = dim if dim <= FEW_DIMENSIONS else 0
        rank = min(rank, dim)
        scale = z.new_ones(dim)
        if not rank:
            return cls(scale)
        return cls(scale, Stretch.along(torch.eye(dim, rank).to(z), z.new_ones(rank)))

    def move(self, v: Tensor, size: Tensor | float) -> Tensor:
        """How far a velocity leads.

        Args:
            v: The velocity in round coordinates, with shape ``(C, D)``.
            size: A factor.

        Returns:
            The factor times :math:`A v`, with shape ``(C, D)``.
        """
        return size * self.scale * self._stretched(v)

    def force(self, grad: Tensor, size: Tensor | float) -> Tensor:
        r"""The gradient by round coordinates.

        Args:
            grad: The gradient by the target's own, with shape ``(C, D)``.
            size: A factor.

        Returns:
            The factor times :math:`A^\top g`, with shape ``(C, D)``.
        """
        return self._stretched(size * self.scale * grad)

    def drift(self, grad: Tensor, size: Tensor | float) -> Tensor:
        r"""How far a force leads: a factor times :math:`A A^\top g`, with shape ``(C, D)``."""
        if not self.stretch:
            return size * self.scale**2 * grad
        return self.move(self.force(grad, 1.0), size)

    def whiten(self, x: Tensor) -> Tensor:
        """Where points are in round coordinates: :math:`A^{-1} x`, with shape ``(C, D)``."""
        return self._stretched(x / self.scale, inverse=True)

    def widest(self, spread: Tensor) -> Tensor:
        """The largest standard deviation in round coordinates, 0-d.

        Args:
            spread: The variances of draws ``(D,)``; with a stretch, their covariance ``(D, D)``,
                and all directions count.
        """
        if not self.stretch:
            return (spread.sqrt() / self.scale).max()
        round_ = self.whiten(self.whiten(spread).mT)
        return torch.linalg.eigvalsh(_known(round_)).max().clamp(min=0).sqrt()

    def fit(self, spread: Tensor, count: Tensor) -> Metric:
        r"""The metric of some draws.

        A coordinate of which they say nothing keeps its unit, and is not stretched. With a
        stretch, :math:`D` draws from a Gaussian of which this metric is right, but for its
        units, are added to them, which matters while there are few. Of the eigenvalues of
        :math:`S` in the new units the furthest from 1 are kept, as many as there are directions.

        Args:
            spread: The variances of draws and of gradients in float64, ``(2, D)``; with a stretch,
                their covariances, ``(2, D, D)``.
            count: The number of draws, 0-d.
        """
        if not self.stretch:
            return Metric(_units(*spread, self.scale)[0])
        variance = spread.diagonal(dim1=-2, dim2=-1)
        scale, usable = _units(*variance, self.scale.double())
        eye = torch.eye(len(scale)).to(scale)
        area = scale * scale[:, None]
        spread = torch.stack([spread[0] / area, spread[1] * area])
        of_z, of_grad = torch.where(usable & usable[:, None], spread, eye)
        of_z, of_grad = self._on_both_sides(of_z, inverse=True), self._on_both_sides(of_grad)
        share = len(scale) / (len(scale) + count)
        mean = _geometric_mean(of_z.lerp(eye, share), of_grad.lerp(eye, share))
        values, vectors = torch.linalg.eigh(_known(self._on_both_sides(mean)))
        log = values.clamp(min=torch.finfo(values.dtype).tiny).log()
        log = log.where(log.abs() > math.log(NO_STRETCH), 0.0)
        kept = log.abs().topk(len(self.stretch.factors)).indices
        dtype = self.scale.dtype
        stretch = Stretch.along(vectors[:, kept].to(dtype), (log[kept] / 2).exp().to(dtype))
        return Metric(scale.to(dtype), stretch)

    def _stretched(self, v: Tensor, *, inverse: bool = False) -> Tensor:
        return self.stretch.apply(v, inverse=inverse) if self.stretch else v

    def _on_both_sides(self, matrix: Tensor, *, inverse: bool = False) -> Tensor:
        return self._stretched(self._stretched(matrix, inverse=inverse).mT, inverse=inverse)


def _units(of_z: Tensor, of_grad: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The units by variances, and where they are known; elsewhere they are as they were."""
    found = (of_z / of_grad) ** 0.25
    usable = found.isfinite() & (found > 0)
    return torch.where(usable, found.to(scale.dtype), scale), usable


def _geometric_mean(of_z: Tensor, of_grad: Tensor) -> Tensor:
    """The positive solution of S G S = C."""
    root = torch.linalg.cholesky_ex(of_grad).L
    values, vectors = torch.linalg.eigh(_known(root.mT @ of_z @ root))
    half = vectors * values.clamp(min=0) ** 0.25
    half = torch.linalg.solve_triangular(root.mT, half, upper=True)
    return half @ half.mT


def _known(matrix: Tensor) -> Tensor:
    """The matrix, or the identity if not all of it is finite, which eigh refuses."""
    return torch.where(matrix.isfinite().all(), matrix, torch.eye(len(matrix)).to(matrix))
