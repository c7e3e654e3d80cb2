r"""A normalised distribution, such as a flow, as an energy: to multiply with others."""

from __future__ import annotations

__all__ = ["FromDistribution"]

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .base import Energy


class FromDistribution(Energy):
    r"""The energy of a normalised distribution.

    .. math:: E(x) = -\log p(x), \qquad \log Z = 0

    Any Pyro or torch distribution becomes an expert: a flow times a learned energy times a hard
    fact is ``FromDistribution(flow) + energy + fact``. Where ``distribution`` is a module that
    makes one when called, it is called anew for each evaluation, so that its parameters learn; a
    distribution made of transforms that are modules, as Pyro's flows are, learns as it is. Of any
    other distribution, the parameters are data.

    Args:
        distribution: A distribution without a batch, or a callable that returns one.

    Raises:
        ValueError: If the distribution has a batch.

    Example:
        >>> import torch.distributions as dist
        >>> energy = FromDistribution(dist.Gamma(2.0, 1.0))
        >>> energy(torch.tensor([1.0, 2.0])), energy.log_z(), energy.support
        (tensor([1.0000, 1.3069]), tensor(0.), GreaterThanEq(lower_bound=0.0))
    """

    has_log_z = True
    has_sample = True

    def __init__(self, distribution: Distribution | Callable[[], Distribution]) -> None:
        made = distribution if isinstance(distribution, Distribution) else distribution()
        if made.batch_shape:
            raise ValueError(
                f"distribution must have no batch, got batch_shape {tuple(made.batch_shape)}; "
                "declare its dimensions to be of one point with to_event(n) or Independent"
            )
        super().__init__(made.event_shape, made.support)
        parts = getattr(distribution, "transforms", [distribution])
        self.parts = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))
        self.distribution = distribution

    def _now(self) -> Distribution:
        given = self.distribution
        return given if isinstance(given, Distribution) else given()

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        distribution = self._now()
        if hasattr(distribution, "clear_cache"):
            distribution.clear_cache()  # what a flow keeps of x is of other parameters
        return -distribution.log_prob(x)

    def log_z(self) -> Tensor:  # noqa: D102
        parameter = next(self.parameters(), None)
        return torch.zeros(()) if parameter is None else parameter.new_zeros(())

    def sample(self, num_samples: int) -> Tensor:  # noqa: D102
        return self._now().sample((num_samples,))
