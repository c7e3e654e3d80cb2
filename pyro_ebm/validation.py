"""Nothing is checked for a while: what a tracer cannot look at, and where nan has to stay nan."""

from __future__ import annotations

__all__ = ["unvalidated"]

import contextlib
from collections.abc import Iterator
from unittest import mock

import pyro
from torch import Tensor
from torch.distributions import Distribution


@contextlib.contextmanager
def unvalidated() -> Iterator[None]:
    """Keeps every distribution from checking its arguments and values.

    A distribution that was expanded, as the priors of a :class:`~pyro.nn.PyroModule` mostly are,
    goes by what held when it was made, and ``pyro.validation_enabled(False)`` alone does not
    reach it.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> prior = dist.Normal(0.0, 1.0).expand([2])
        >>> with unvalidated():
        ...     prior.log_prob(torch.tensor([torch.nan, 0.0])).isnan()
        tensor([ True, False])
    """
    with (
        pyro.validation_enabled(False),
        mock.patch.object(Distribution, "_validate_sample", _accept),
    ):
        yield


def _accept(self: Distribution, value: Tensor) -> None:
    pass
