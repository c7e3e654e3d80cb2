r"""Exponential families by their sufficient statistics."""

from __future__ import annotations

__all__ = ["ExponentialFamily"]

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.distributions import constraints

from .base import Energy, module_of


class ExponentialFamily(Energy):
    r"""The energy that is linear in some statistics of a point.

    .. math:: E(x) = -\theta^\top T(x), \qquad \nabla_\theta \log Z = \mathbb{E}[T(x)]

    At the maximum of the likelihood the expected statistics are those of the data, and of all
    distributions with these this one has the largest entropy. Whether Z is finite depends on
    :math:`\theta`, and is not checked.

    Args:
        statistics: The statistics T, from ``(*batch, *event)`` to ``(*batch, D)``.
        natural: The natural parameters :math:`\theta`, in nats, with shape ``(D,)``.
        event_shape: The shape of one point.
        support: Where the family lives; all real numbers unless given.

    Raises:
        ValueError: If ``natural`` is no vector; in use, if the statistics have another shape.

    Example:
        >>> import torch
        >>> def moments(x):
        ...     return torch.stack([x, x.square()], dim=-1)
        >>> family = ExponentialFamily(moments, torch.tensor([1.0, -0.5]), event_shape=())
        >>> family(torch.tensor([0.0, 2.0])), family.expected(torch.tensor([0.0, 2.0]))
        (tensor([-0., -0.]), tensor([1., 2.]))
    """

    def __init__(
        self,
        statistics: Callable[[Tensor], Tensor],
        natural: Tensor,
        event_shape: Sequence[int],
        support: constraints.Constraint | None = None,
    ) -> None:
        super().__init__(event_shape, support)
        if natural.dim() != 1:
            raise ValueError(f"natural must have shape (D,), got {tuple(natural.shape)}")
        self.module = module_of(statistics)
        self.statistics = statistics
        self.constant("natural", natural)

    def _statistics(self, x: Tensor) -> Tensor:
        values = self.statistics(x)
        batch = x.shape[: x.dim() - len(self.event_shape)]
        if values.shape != batch + self.natural.shape:
            raise ValueError(
                f"statistics must map x of shape {tuple(x.shape)} to shape "
                f"{tuple(batch + self.natural.shape)}, one number for each natural parameter, got "
                f"{tuple(values.shape)}"
            )
        return values

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return -(self._statistics(x) @ self.natural)

    def expected(self, x: Tensor) -> Tensor:
        """Averages the statistics over points: those of data, or of draws, to compare.

        Args:
            x: Points, with shape ``(*batch, *event)``.

        Returns:
            Their mean statistics, with shape ``(D,)``.
        """
        return self._statistics(x).reshape(-1, len(self.natural)).mean(0)
