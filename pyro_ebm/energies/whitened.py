"""An energy in the data's own units: centred, scaled, without correlation."""

from __future__ import annotations

__all__ = ["Whitened", "is_real"]

import torch
from pyro.distributions.transforms import LowerCholeskyAffine
from torch import Tensor
from torch.distributions import biject_to, constraints
from typing_extensions import Self

from .base import Energy


class Whitened(Energy):
    r"""Moves an energy of vectors to where the data lie, and measures space as they do.

    .. math:: E(x) = E_0(z), \qquad x = m + L z, \qquad
        \log Z = \log Z_0 + \sum_i \log L_{ii}

    Its support, all of :math:`\mathbb{R}^D`, is mapped to unconstrained space by the same affine
    map, exactly. So every chain, every noise level and every step size of a kernel or an objective
    is in units of z: where columns have scales of their own, or are correlated, one step size fits
    all directions.

    Args:
        energy: The energy :math:`E_0` of real vectors ``(D,)``.
        loc: The centre :math:`m`, with shape ``(D,)``.
        scale_tril: The lower triangular :math:`L`, with a positive diagonal, ``(D, D)``.

    Raises:
        ValueError: If ``energy`` is not over real vectors, a shape does not fit or the diagonal is
            not positive.

    Example:
        >>> from pyro_ebm.energies import Gaussian
        >>> unit = Gaussian(torch.zeros(2), 1.0)
        >>> energy = Whitened(unit, torch.tensor([5.0, 0.0]), torch.diag(torch.tensor([2.0, 1.0])))
        >>> energy(torch.tensor([[5.0, 0.0], [7.0, 0.0]]))
        tensor([0.0000, 0.5000])
        >>> Whitened.by_data(unit, energy.sample(100)).event_shape
        torch.Size([2])
    """

    def __init__(self, energy: Energy, loc: Tensor, scale_tril: Tensor) -> None:
        if energy.support is not constraints.real_vector:
            raise ValueError(
                f"energy must be over real vectors, got event_shape {tuple(energy.event_shape)} "
                f"with support {energy.support}"
            )
        (dim,) = energy.event_shape
        if loc.shape != (dim,) or scale_tril.shape != (dim, dim):
            raise ValueError(
                f"loc and scale_tril must have shapes {(dim,)} and {(dim, dim)}, got "
                f"{tuple(loc.shape)} and {tuple(scale_tril.shape)}"
            )
        if not bool((scale_tril.diagonal() > 0).all()):
            raise ValueError("scale_tril must have a positive diagonal")
        super().__init__(energy.event_shape, support=_InUnitsOf(self))
        self.energy = energy
        self.register_buffer("loc", loc)
        self.register_buffer("scale_tril", scale_tril)

    @classmethod
    def by_data(cls, energy: Energy, x: Tensor) -> Self:
        """Whitens by the mean and the covariance of data.

        Args:
            energy: The energy of whitened vectors ``(D,)``.
            x: The data, with shape ``(n, D)``.

        Raises:
            ValueError: If the covariance is singular.
        """
        rows = x.detach().double()
        covariance = torch.atleast_2d(torch.cov(rows.T))
        deviation = covariance.diagonal().sqrt()
        correlation = covariance / deviation.outer(deviation)
        factor, failed = torch.linalg.cholesky_ex(correlation.nan_to_num())
        if failed or bool((factor.diagonal() < 1e-5).any()):
            constant = [i for i, s in enumerate(deviation.tolist()) if not s > 0]
            fault = f"columns {constant} are constant" if constant else "columns are dependent"
            raise ValueError(
                f"x, with shape {tuple(x.shape)}, has a singular covariance: {fault}; drop some, "
                "or add a little noise"
            )
        scale_tril = (deviation.unsqueeze(-1) * factor).to(x)
        return cls(energy, rows.mean(0).to(x), scale_tril)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.energy(biject_to(self.support).inv(x))

    @property
    def has_log_z(self) -> bool:
        """Whether the energy within knows its own."""
        return self.energy.has_log_z

    @property
    def has_sample(self) -> bool:
        """Whether the energy within can draw."""
        return self.energy.has_sample

    def log_z(self) -> Tensor:  # noqa: D102
        return self.energy.log_z() + self.scale_tril.diagonal().log().sum()

    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        return biject_to(self.support)(self.energy.sample(num_samples))


def is_real(support: constraints.Constraint) -> bool:
    """Says whether a support is all real numbers of a shape, in whatever units.

    Example:
        >>> is_real(constraints.real_vector), is_real(constraints.positive)
        (True, False)
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real or isinstance(support, _InUnitsOf)


class _InUnitsOf(constraints.Constraint):
    """All real vectors, with the units of an energy."""

    event_dim = 1

    def __init__(self, energy: Whitened) -> None:
        self.energy = energy

    def check(self, value: Tensor) -> Tensor:
        return constraints.real_vector.check(value)

    def __repr__(self) -> str:
        return "RealVector(whitened)"


@biject_to.register(_InUnitsOf)
def _affine(support: _InUnitsOf) -> LowerCholeskyAffine:
    return LowerCholeskyAffine(support.energy.loc, support.energy.scale_tril)
