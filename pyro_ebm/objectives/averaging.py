r"""An average of the parameters along a training run.

.. math:: \bar\theta_t = \frac{1 - \beta}{1 - \beta^t} \sum_{i=1}^t \beta^{t-i} \theta_i

The noise of single updates, which chains and minibatches leave in the parameters, averages out.
"""

from __future__ import annotations

__all__ = ["ExponentialAverage"]

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pyro.params.param_store import ParamStoreDict
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..arguments import check_between
from .memory import put


class ExponentialAverage:
    r"""Keeps an exponential moving average of parameters, without a bias to where they began.

    .. math:: \bar\theta_t = \bar\theta_{t-1} + \frac{1 - \beta}{1 - \beta^t} (\theta_t -
        \bar\theta_{t-1})

    It remembers about :math:`1 / (1 - \beta)` updates, and before that many it is the plain mean
    of all. Averaged over are the numbers that the optimizer moves: of a constrained ``pyro.param``
    those in unconstrained space.

    References:
        | Acceleration of stochastic approximation by averaging (Polyak and Juditsky, 1992),
        | https://doi.org/10.1137/0330046
        | Adam: a method for stochastic optimization (Kingma and Ba, 2015), section 3 (the
        | correction of the bias), https://arxiv.org/abs/1412.6980

    Args:
        source: A module, or Pyro's parameter store once it holds the parameters, after a first
            step. The parameters that require a gradient then are averaged.
        decay: The decay rate :math:`\beta`.

    Raises:
        ValueError: If ``decay`` is not between 0 and 1, or there is no parameter.

    Example:
        >>> energy = nn.Linear(2, 1, bias=False)
        >>> average = ExponentialAverage(energy, decay=0.5)
        >>> for value in (0.0, 3.0):
        ...     _ = nn.init.constant_(energy.weight, value)
        ...     average.update()
        >>> with average.applied():
        ...     energy.weight.tolist()
        [[2.0, 2.0]]
        >>> energy.weight.tolist()
        [[3.0, 3.0]]
    """

    def __init__(self, source: nn.Module | ParamStoreDict, decay: float = 0.999) -> None:
        check_between("decay", decay, 0, 1, inside=True)
        self._parameters = [p for _, p in source.named_parameters() if p.requires_grad]
        if not self._parameters:
            raise ValueError(
                "source has no parameter that requires a gradient; Pyro's store is filled by the "
                "first step: make one before"
            )

        def average(mean: Tensor, now: Tensor, num_before: Tensor) -> Tensor:
            weight = (1 - decay) / -torch.expm1((num_before + 1) * math.log(decay))
            return mean + weight * (now - mean)

        self._current = nn.ParameterList(self._parameters)
        self._average = AveragedModel(self._current, avg_fn=average)

    def update(self) -> None:
        """Takes the parameters as they are now into the average."""
        self._average.update_parameters(self._current)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the average so far, and of how many updates it is."""
        return dict(self._average.state_dict())

    def load_state_dict(self, found: dict[str, Tensor]) -> None:
        """Goes on from what :meth:`state_dict` of an average of as many parameters returned.

        Args:
            found: What was returned.

        Raises:
            ValueError: If they are not alike.
        """
        put(self._average.state_dict(), found)

    @torch.no_grad()
    def assign(self) -> None:
        """Sets the parameters to their average, for good; before any update this does nothing."""
        for parameter, mean in zip(self._parameters, self._average.parameters(), strict=True):
            parameter.copy_(mean)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Sets the parameters to their average within a ``with`` block, and back after it."""
        before = [parameter.detach().clone() for parameter in self._parameters]
        self.assign()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._parameters, before, strict=True):
                    parameter.copy_(value)
