"""Hamiltonian Monte Carlo that finds the length of its trajectories by itself."""

from __future__ import annotations

__all__ = ["ChEES", "ChEESState"]

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import check_count, check_positive
from ..distributions import Boltzmann
from ..potential import Model, Potential
from ..ranks.group import num_ranks, total
from .adaptation import Adaptation, Moments, Tuning, When, harmonic_mean, where
from .base import Kernel
from .hamiltonian import accept, trajectory
from .metric import Metric
from .transition import Info, State, normal_like, uniform_like

POWER = 0.5
"""The power of the length by which the criterion is divided. Undivided it has a maximum in every
later period too and runs off along curved ridges; divided by the length itself, the draws are so
close to one another that means are worth less than variances. Of 1/2 and 3/4, the former gave
5 to 20 % more effective draws for a gradient on most targets tried and a lower R-hat, and on
a banana the same within what seeds differ by."""

SETTLING_STEPS = 20
"""The most leapfrog steps while chains may still be far out. After that each window allows four
times as many, since the way in looks like a wide target until a window has none of it."""


WINDOWS = (0.03, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.8)
"""The parts of warmup after which the metric is set anew. All but the last are short: a few chains
still on their way spoil the metric, and with it step size and length, until a window has none."""


class ChEESState(NamedTuple):
    """What the next step of :class:`ChEES` needs."""

    z: Tensor
    """Unconstrained chains, with shape ``(C, D)``."""
    potential: Tensor
    """U at ``z`` in nats, with shape ``(C,)``."""
    grad: Tensor
    """The gradient of U at ``z``, with shape ``(C, D)``."""
    step_size: Tensor
    """The step size of all chains, 0-d."""
    metric: Metric
    """The units of length of coordinates and directions."""
    length: Tensor
    """The mean length of a trajectory in time, 0-d."""
    centre: Tensor
    """The mean of the target as far as it is known, ``(D,)``."""
    slope: Tensor
    """What the last step says of how the criterion grows with the log of the length, 0-d."""


class ChEES(Kernel):
    r"""Hamiltonian Monte Carlo whose warmup adapts the length of trajectories, too.

    A step is that of :class:`~pyro_ebm.kernels.HMC` over the time :math:`t = 2 h T`, in
    :math:`\lceil t / \epsilon \rceil` leapfrog steps, the same for all chains. The jitter
    :math:`h \in (0, 1)` is uniform, and spread evenly over consecutive steps (a van der Corput
    sequence with a random shift): it does not look at the chains. With what it was given or
    learned, the invariant law is :math:`e^{-U}`, exactly.

    Warmup climbs, by the log of :math:`T`, a variant of the ChEES criterion (change in the
    estimator of the expected square) in the coordinates of the metric
    (:mod:`~pyro_ebm.kernels.metric`), around the mean :math:`m`,

    .. math::
        \max_T \; \mathbb{E} \left[ \frac{1}{4 \, \sqrt{t}} \left( |w'|^2 - |w|^2 \right)^2
        \right], \qquad w = A^{-1} (x - m),

    with the gradient along the trajectory, weighted by acceptance and pooled over chains. It
    begins at the largest standard deviation there: of a coordinate, or, with a ``metric_rank``, of
    any direction. The step size is tuned
    on the harmonic mean of the acceptance, that of the chains that reject most; the mean is
    higher. The gradient of few chains is noisy: with 4 a length is mostly right within a factor
    of 2, and was 4 times too long on the narrowest ridge of our tests, which costs gradients but
    biases nothing. In a funnel (a latent scale in its centred form) the criterion has so heavy a
    tail that the few chains in the mouth decide on it: trajectories grow towards ``max_steps`` and
    mix no better for it, as nothing does but to write it non-centred.

    References:
        | An adaptive MCMC scheme for setting trajectory lengths in Hamiltonian Monte Carlo
        | (Hoffman, Radul and Sountsov, 2021), https://proceedings.mlr.press/v130/hoffman21a.html
        | Focusing on difficult directions for learning HMC trajectory lengths (Sountsov and
        | Hoffman, 2021), on criteria per time, https://arxiv.org/abs/2110.11576

    Args:
        model: A Pyro model or a :class:`~pyro_ebm.Boltzmann`, if any.
        potential_fn: In its place, a function from a dict of unconstrained values to nats.
        step_size: The step size :math:`\epsilon > 0`, in units of x, or its first value.
        length: The mean length :math:`T > 0` of a trajectory, in units of x, or its first value.
        max_steps: The most leapfrog steps of a trajectory.
        adapt_step_size: Whether warmup adapts :math:`\epsilon`.
        adapt_length: Whether warmup adapts :math:`T`.
        adapt_mass_matrix: Whether warmup adapts the metric.
        metric_rank: How many directions it may stretch beside the coordinates; with ``None``,
            which :class:`~pyro_ebm.MCMC` takes, all up to 100 dimensions, and none of more.
        target_accept_prob: The harmonic mean of the acceptance that adaptation aims at.

    Raises:
        ValueError: If ``step_size``, ``length`` or ``max_steps`` is not positive, or
            ``target_accept_prob`` is not between 0 and 1.

    Example:
        >>> import pyro_ebm as ebm
        >>> target = ebm.Boltzmann(ebm.energies.Banana(scale=1.0, curvature=0.5))
        >>> mcmc = ebm.MCMC(ChEES(target), 50, 50, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> sorted(mcmc.sample_stats)
        ['acceptance_rate', 'accepted', 'diverging', 'energy', 'lp', 'n_steps', 'step_size']
    """

    branch_free = False

    def __init__(
        self,
        model: Model | Boltzmann | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        step_size: float = 0.1,
        length: float = 1.0,
        max_steps: int = 1000,
        adapt_step_size: bool = True,
        adapt_length: bool = True,
        adapt_mass_matrix: bool = True,
        metric_rank: int | None = 0,
        target_accept_prob: float = 0.651,
    ) -> None:
        check_positive("length", length)
        check_count("max_steps", max_steps)
        super().__init__(
            model,
            potential_fn=potential_fn,
            step_size=step_size,
            adapt_step_size=adapt_step_size,
            adapt_mass_matrix=adapt_mass_matrix,
            metric_rank=metric_rank,
            target_accept_prob=target_accept_prob,
        )
        self.length = float(length)
        self.max_steps = max_steps
        self.adapt_length = adapt_length

    def init(self, potential: Potential, z: Tensor) -> ChEESState:  # noqa: D102
        state = super().init(potential, z)
        slope = torch.zeros_like(state.step_size, dtype=torch.float64)
        return ChEESState(*state, z.new_tensor(self.length), state.z.mean(0), slope)

    def adaptation(self, warmup_steps: int) -> Adaptation:  # noqa: D102
        return _LengthAdaptation(self, warmup_steps)

    def noise(  # noqa: D102
        self, state: ChEESState, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        momentum = normal_like(state.z, generator, *num_steps)
        uniform = uniform_like(state.potential, generator, *num_steps)
        shift = uniform_like(state.step_size, generator)
        spread = _van_der_corput(*num_steps).to(shift) if num_steps else 0.0
        return momentum, uniform, (shift + spread) % 1

    def step(  # noqa: D102
        self, potential: Potential, state: ChEESState, noise: tuple[Tensor, ...]
    ) -> tuple[ChEESState, Info]:
        momentum, uniform, jitter = noise
        wanted = 2 * jitter * state.length / state.step_size
        num_steps = wanted.ceil().clamp(1, self.max_steps).long()
        proposal, end = trajectory(potential, State(*state[:5]), momentum, num_steps)
        moved, info = accept(state, proposal, momentum, end, uniform, num_steps)
        slope = _slope(state, proposal, end, info.accept_prob, num_steps * state.step_size)
        steepest = torch.where(
            wanted < self.max_steps, math.inf, 0.0
        )  # where no length has effect
        lowest = torch.where(wanted > 1, -math.inf, 0.0)
        return moved._replace(slope=slope.clamp(lowest, steepest)), info


def _slope(
    state: ChEESState, proposal: State, momentum: Tensor, accept_prob: Tensor, time: Tensor
) -> Tensor:
    """The derivative of the criterion by the log of the length, by chain, then pooled: 0-d."""
    start, end = (state.metric.whiten(at.z - state.centre) for at in (state, proposal))
    gain = ((end - start) * (end + start)).sum(-1, dtype=torch.float64)
    speed = (end * momentum).sum(-1, dtype=torch.float64)
    time = time.double()
    slope = (time * gain * speed - POWER / 4 * gain.square()) / time**POWER
    known = slope.isfinite() & (accept_prob > 0)
    weight = torch.where(known, accept_prob.double(), 0.0)
    return (torch.where(known, slope, 0.0) * weight).sum() / weight.sum().clamp(min=1e-3)


def _of_all_ranks(state: ChEESState, info: Info, window: Moments) -> tuple[Tensor, Tensor]:
    """The slope of all ranks, weighted as in :func:`_slope`, and the mean of their window."""
    slope, centre = state.slope, window.mean[0]
    if num_ranks() > 1:
        weight = info.accept_prob.sum(dtype=torch.float64).clamp(min=1e-3)
        sums = total(slope * weight, weight, window.total[0], window.count)
        slope = sums[0] / sums[1]
        centre = window.origin[0] + sums[2] / sums[3].clamp(min=1)
    return slope, centre.to(state.z.dtype)


def _van_der_corput(num: int) -> Tensor:
    """The numbers 0, 1, 2, ... with their binary digits mirrored at the point."""
    index = torch.arange(num)
    digits = range(num.bit_length())
    return sum(((index >> k & 1) * 2.0 ** -(k + 1) for k in digits), torch.zeros(num))


class _Climb(NamedTuple):
    """Where the length is, all 0-d in float64: an ascent by the sign and certainty of slopes."""

    log_ratio: Tensor
    """The log of the length in units of the largest standard deviation."""
    log_average: Tensor
    square: Tensor
    """The running mean of squared slopes."""
    t: Tensor

    def update(self, slope: Tensor) -> _Climb:
        """Moves uphill, by ever smaller steps."""
        t = self.t + 1
        square = 0.95 * self.square + 0.05 * slope.square()
        typical = (square / (1 - 0.95**t)).sqrt().clamp(min=1e-30)
        move = 0.1 * (1 + t / 20) ** -0.5 * slope / typical
        log_ratio = self.log_ratio + move.clamp(-0.35, 0.35)
        log_average = self.log_average + t**-0.5 * (log_ratio - self.log_average)
        return _Climb(log_ratio, log_average, square, t)


class _Room(NamedTuple):
    """How long trajectories may be, as long as it is not known what is long."""

    most_steps: Tensor
    is_short: Tensor
    """Whether the climb would go further: then nothing is learned from a slope that says so."""


class _LengthAdaptation(Adaptation):
    """Tunes the length, too, once the chains have settled."""

    windows = WINDOWS

    def __init__(self, kernel: ChEES, warmup_steps: int) -> None:
        super().__init__(kernel, warmup_steps)
        self.length = kernel.adapt_length

    def begin(self, state: ChEESState) -> tuple[Tuning, _Climb, _Room]:
        log_length = state.length.double().log()
        zero = torch.zeros_like(log_length)
        climb = _Climb(log_length, log_length, zero, zero)
        return super().begin(state), climb, _Room(zero + SETTLING_STEPS, zero > 0)

    def learn(
        self, tuning: tuple, state: ChEESState, info: Info, when: When
    ) -> tuple[tuple, ChEESState]:
        tuning, climb, room = tuning
        tuning, state = super().learn(tuning, state, info, when)
        if not self.length:
            return (tuning, climb, room), state
        slope, centre = _of_all_ranks(state, info, tuning.window)
        slope = torch.where(room.is_short, slope.clamp(max=0), slope)
        climb = where(when.settling, climb, climb.update(slope))
        length = climb.log_ratio.exp() * tuning.widest
        closing = when.closing & ~when.settling & tuning.window.count.eq(0)
        most_steps = torch.where(closing, 4, 1) * room.most_steps
        most = most_steps * state.step_size
        room = _Room(most_steps, length > most)
        final = climb.log_average.exp() * tuning.widest
        length = torch.where(when.last, final, length.minimum(most)).to(state.length.dtype)
        return (tuning, climb, room), state._replace(length=length, centre=centre)

    def pooled(self, accept_prob: Tensor, when: When) -> Tensor:
        return harmonic_mean(accept_prob)
