r"""A path of laws from one that is known to the target, and walkers that move along it.

.. math::
    p_\beta(z) \propto e^{-U_\beta(z)}, \qquad U_\beta = (1 - \beta) U_0 + \beta U
    = U_0 + \beta V, \qquad V = U - U_0

with :math:`e^{-U_0}` normalised, so that :math:`\log Z = \log \mathbb{E}_0[e^{-V}]` and
:math:`\frac{d}{d\beta} \log Z_\beta = -\mathbb{E}_\beta[V]`. All that an estimator needs is in the
contract :class:`Path`: exact draws of the base, V at each walker, and a move that leaves
:math:`p_\beta` invariant. States may be continuous or discrete.
"""

from __future__ import annotations

__all__ = ["Path", "Walkers", "taken"]

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound=tuple)


class Walkers(NamedTuple):
    """Points of the state space, first in every shape. A path may keep more beside them."""

    z: Tensor
    """Where they are, with shape ``(C, *state)``."""
    excess: Tensor
    """V = U - U_0 in nats and float64, ``(C,)``; infinite where U is not finite."""


class Path(ABC):
    """The contract of a path."""

    exact: bool = False
    """Whether :meth:`draw_target` draws exactly."""

    num_gradients: int = 0
    """How often U was evaluated so far, by all walkers together."""

    conditional_ess: float = 0.9
    """The effective share of particles that a step in temperature may leave, as far as a move can
    follow."""

    step_size: float | None = None
    """Where the tuning of the kernel's step size begins; ``None`` if it has none to tune."""

    largest_step_size: float = math.inf
    """The step size at which tuning ends."""

    target_accept_prob: float = 0.5
    """The acceptance at which tuning aims."""

    @abstractmethod
    def draw_base(self, num_walkers: int, generator: torch.Generator) -> Walkers:
        """Draws walkers from the base, exactly."""

    @abstractmethod
    def draw_target(self, num_walkers: int) -> Walkers:
        """Draws walkers from the target, if ``exact``."""

    @abstractmethod
    def locate(self, z: Tensor) -> Walkers:
        """Puts walkers at points ``z (C, *state)``."""

    @abstractmethod
    def move(
        self,
        walkers: Walkers,
        beta: Tensor,
        step_size: Tensor,
        num_steps: int,
        generator: torch.Generator,
    ) -> tuple[Walkers, Tensor]:
        r"""Moves walkers by a kernel that leaves :math:`p_\beta` invariant.

        Args:
            walkers: The walkers.
            beta: The inverse temperature, of all or of each: ``()`` or ``(C,)``, float64.
            step_size: The step size, of all or of each, float64; a kernel without one ignores it.
            num_steps: How often to move.
            generator: Where the noise comes from.

        Returns:
            The walkers, and the mean acceptance of each ``(C,)``.
        """

    @abstractmethod
    def refitted(self, walkers: Walkers) -> Path:
        """Returns a path to the same target from a base that is fitted to draws of it.

        Where the base cannot be fitted, the path itself.
        """


def taken(walkers: T, rows: Tensor) -> T:
    """Takes rows of walkers, all that is kept of them included."""
    return type(walkers)(*(part[rows] for part in walkers))
