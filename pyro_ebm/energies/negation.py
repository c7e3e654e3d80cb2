r"""NOT: away from what another energy finds likely, and normalisable all the same."""

from __future__ import annotations

__all__ = ["Without"]

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import softplus

from ..arguments import check_positive
from .base import Energy, Sum


class Without(Energy):
    r"""One energy, and NOT another (negation).

    .. math:: E(x) = E_1(x) - w \min(E_2(x), c)

    with a smooth minimum, :math:`c - \log(1 + e^{c - E_2})`. The plain difference ``a - w * b``
    need not be normalisable: far out, where :math:`E_2` grows, its density may grow without bound.
    Here no point gains more than :math:`w c` nats, so that :math:`Z \le e^{w c} Z_1`, and the
    result is normalisable wherever :math:`E_1` is. Well below the ceiling it is the difference.

    References:
        | Compositional visual generation with energy based models (Du, Li and Mordatch, 2020),
        | https://arxiv.org/abs/2004.06030

    Args:
        energy: The energy :math:`E_1` of what is wanted.
        avoided: The energy :math:`E_2` of what is not, bounded from below.
        ceiling: The level :math:`c`, in nats, from which on a point is far enough from it.
        weight: The weight :math:`w > 0`.

    Raises:
        ValueError: If ``weight`` or ``ceiling`` is not positive and finite, or the two energies
            disagree on the event shape or the support.

    Example:
        >>> import torch
        >>> from pyro_ebm.energies import Gaussian
        >>> wanted, avoided = Gaussian(torch.zeros(1), 1.0), Gaussian(torch.ones(1), 9.0)
        >>> away = Without(wanted, avoided, ceiling=6.0)
        >>> away(torch.tensor([[1.0], [-1.0]]))  # as if the second were at most 6 nats high
        tensor([ 0.5025, -5.5000])
    """

    def __init__(
        self,
        energy: Energy,
        avoided: Energy | Callable[[Tensor], Tensor],
        ceiling: float,
        weight: float = 1.0,
    ) -> None:
        for name, value in (("ceiling", ceiling), ("weight", weight)):
            check_positive(name, value)
        both = Sum([energy, avoided])
        super().__init__(both.event_shape, both.support)
        self.energy, self.avoided = both.terms
        self.ceiling = ceiling
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        height = self.ceiling - softplus(self.ceiling - self.avoided(x))
        return self.energy(x) - self.weight * height
