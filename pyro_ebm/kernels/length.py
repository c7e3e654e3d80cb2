r"""Tuning of kernels that move at unit speed: how long a path, and how large an energy error.

Along a direction in which the target is a Gaussian of variance :math:`\lambda`, in the units of
the metric, the microcanonical flow swings with the period :math:`2 \pi \sqrt{\lambda (D - 1)}`.
The direction in which the target is widest takes longest.
"""

from __future__ import annotations

__all__ = ["DirectionAdaptation", "LengthAdaptation", "PathAdaptation", "Spread"]

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..ranks.group import mean, total
from .adaptation import Adaptation, When, where

if TYPE_CHECKING:
    from .isokinetic import MicrocanonicalState, PathState
    from .microcanonical import MCLMC
    from .transition import Info

NUM_PROBES = 8
"""The number of random directions by which the widest are looked for."""

FIRST_STEPS = 4.0
"""How many steps a path has at most in the first window. Each window doubles them, since the way
in from afar looks like a wide target."""

WORST = 16.0
"""The squared energy error, in units of its target, from which on a step counts as the worst."""


class Spread(NamedTuple):
    r"""The variance of draws along the directions in which it is largest.

    .. math:: \lambda = \frac{\mathrm{tr}(\Sigma' \Sigma \Sigma')}{\mathrm{tr}(\Sigma'^2)}

    with :math:`\Sigma` the covariance in this window and :math:`\Sigma'` that in the last, in the
    units of the metric: the mean of the eigenvalues weighted by their squares. Noise does not add
    up in it, as it would in a power of one covariance in many dimensions. Traces are sums over
    random probes :math:`v`, of which :math:`\Sigma' v` is kept, so that no matrix is formed.
    """

    probes: Tensor
    """The probes, ``(D, P)``. All are in float64."""
    image: Tensor
    """The probes times the covariance in the last window; in the first, the probes themselves."""
    origin: Tensor
    """What is subtracted first, so that squares keep their digits, ``(D,)``."""
    total: Tensor
    product: Tensor
    """The sum of draws times their products with the probes, ``(D, P)``."""
    squares: Tensor
    """The sum of squared products of draws with the image, 0-d."""
    count: Tensor

    @classmethod
    def begin(cls, state: PathState | MicrocanonicalState) -> Spread:
        """Begins without a draw, and without a last window."""
        dim = state.z.shape[-1]
        generator = torch.Generator().manual_seed(dim)
        probes = torch.randn(dim, NUM_PROBES, generator=generator, dtype=torch.float64)
        probes = probes.to(state.z.device)
        return cls._of(probes, probes, state)

    @classmethod
    def _of(cls, probes: Tensor, image: Tensor, state: PathState | MicrocanonicalState) -> Spread:
        origin = mean(_rows(state))[0].nan_to_num(posinf=0.0, neginf=0.0)
        zero = origin.new_zeros(())
        zeros = (torch.zeros_like(origin), torch.zeros_like(probes), zero, zero)
        return cls(probes, image / image.norm(), origin, *zeros)

    def add(self, state: PathState | MicrocanonicalState) -> Spread:
        """Learns where the chains are; one that is not finite does not count."""
        x = _rows(state) - self.origin
        finite = x.isfinite().all(-1)
        x = torch.where(finite[:, None], x, 0.0)
        return self._replace(
            total=self.total + x.sum(0),
            product=self.product + x.T @ (x @ self.probes),
            squares=self.squares + (x @ self.image).square().sum(),
            count=self.count + finite.sum(),
        )

    def of_all_ranks(self) -> Spread:
        """The sums over the chains of all ranks."""
        sums = total(self.total, self.product, self.squares, self.count)
        return Spread(self.probes, self.image, self.origin, *sums)

    def variance(self) -> Tensor:
        """The variance, 0-d; NaN without a draw."""
        mean = self.total / self.count
        return (self.squares / self.count - (mean @ self.image).square().sum()).clamp(min=0)

    def next(self, state: PathState | MicrocanonicalState) -> Spread:
        """Begins the next window."""
        mean = self.total / self.count
        image = self.product / self.count - torch.outer(mean, mean @ self.probes)
        known = image.isfinite().all() & image.any()
        return self._of(self.probes, torch.where(known, image, self.image), state)


def _rows(state: PathState | MicrocanonicalState) -> Tensor:
    return state.metric.whiten(state.z).double()


class LengthTuning(NamedTuple):
    """What was learned so far."""

    rest: tuple
    """What :class:`~pyro_ebm.kernels.adaptation.Adaptation` learned."""
    window: Spread
    spread: Tensor
    r"""The root of :math:`\lambda` in the last window that ended, 0-d; 1 before."""
    most_steps: Tensor


class LengthAdaptation(Adaptation):
    r"""Tunes a length beside the step size and the metric, by the :class:`Spread` of the draws.

    Args:
        kernel: Says what to adapt, and to what acceptance.
        warmup_steps: The number of steps in which to do it.
    """

    def begin(self, state: PathState | MicrocanonicalState) -> tuple:  # noqa: D102
        one = torch.ones_like(state.step_size)
        return LengthTuning(super().begin(state), Spread.begin(state), one, FIRST_STEPS * one)

    def learn(  # noqa: D102
        self, tuning: tuple, state: PathState | MicrocanonicalState, info: Info, when: When
    ) -> tuple[tuple, PathState | MicrocanonicalState]:
        rest, window, spread, most_steps = tuning
        window = window.add(state)
        rest, state = super().learn(rest, state, info, when)
        if self.ending:
            closing, seen = when.closing & rest.window.count.eq(0), window.of_all_ranks()
            found = seen.variance().sqrt().to(spread)
            spread = torch.where(closing & found.isfinite() & (found > 0), found, spread)
            window = where(closing, seen.next(state), window)
            most_steps = torch.where(closing, 2, 1) * most_steps
        tuning = LengthTuning(rest, window, spread, most_steps)
        return tuning, state._replace(length=self.length(tuning, state))

    @abstractmethod
    def length(self, tuning: LengthTuning, state: PathState | MicrocanonicalState) -> Tensor:
        """Says what length suits what was learned, 0-d.

        Args:
            tuning: What was learned.
            state: Where the chains are.
        """


class PathAdaptation(LengthAdaptation):
    r"""Tunes a path to a quarter of the slowest period, which forgets where it began.

    .. math:: L = \tfrac{\pi}{2} \sqrt{\lambda (D - 1)}

    A step as long as the path is all that is ever needed: from there on, an acceptance above the
    target does not lengthen it.

    Args:
        kernel: Says what to adapt, and to what acceptance.
        warmup_steps: The number of steps in which to do it.
    """

    def learn(  # noqa: D102
        self, tuning: tuple, state: PathState, info: Info, when: When
    ) -> tuple[tuple, PathState]:
        most = torch.where(state.step_size >= 2 * state.length, self.target, 1.0)
        accept_prob = info.accept_prob.minimum(most.to(info.accept_prob))
        return super().learn(tuning, state, info._replace(accept_prob=accept_prob), when)

    def length(self, tuning: LengthTuning, state: PathState) -> Tensor:  # noqa: D102
        quarter = math.pi / 2 * math.sqrt(state.z.shape[-1] - 1) * tuning.spread
        return quarter.minimum(tuning.most_steps * state.step_size)


class DirectionAdaptation(LengthAdaptation):
    r"""Tunes the step size to an energy error, and the length to :math:`\sqrt{\lambda D}`.

    Dual averaging sees an acceptance of :math:`1 - \min(\xi, b) / b`, with :math:`\xi` the squared
    energy error of a step of a chain over its target and :math:`b` its worst, and aims at
    :math:`1 - 1/b`. A step that was not finite counts as the worst.

    Args:
        kernel: Says what to adapt, and to what energy error.
        warmup_steps: The number of steps in which to do it.
    """

    def __init__(self, kernel: MCLMC, warmup_steps: int) -> None:
        super().__init__(kernel, warmup_steps)
        self._variance = kernel.energy_variance
        self._given = kernel.length is not None

    def begin(self, state: MicrocanonicalState) -> tuple:  # noqa: D102
        return super().begin(state), state.potential.double() + state.kinetic

    def learn(  # noqa: D102
        self, tuning: tuple, state: MicrocanonicalState, info: Info, when: When
    ) -> tuple[tuple, MicrocanonicalState]:
        tuning, before = tuning
        xi = (info.energy - before).square() / (state.z.shape[-1] * self._variance)
        xi = xi.nan_to_num(nan=WORST).clamp(max=WORST).where(~info.diverging, WORST)
        accept_prob = (1 - xi / WORST).to(state.z.dtype)
        tuning, state = super().learn(tuning, state, info._replace(accept_prob=accept_prob), when)
        return (tuning, info.energy), state

    def update(self, state: MicrocanonicalState, info: Info) -> MicrocanonicalState:  # noqa: D102
        after = super().update(state, info)
        jump = state.potential.double() - after.potential  # of a chain that went on elsewhere
        return after._replace(kinetic=after.kinetic + jump)

    def length(self, tuning: LengthTuning, state: MicrocanonicalState) -> Tensor:  # noqa: D102
        return state.length if self._given else math.sqrt(state.z.shape[-1]) * tuning.spread
