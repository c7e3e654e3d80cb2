r"""Tuning during warmup, pooled over all chains, and over before draws are kept.

All that is learned is in tuples of tensors, which pure functions without a branch on a value
renew: the host never waits for a device, and a loop of warmup steps can be traced whole.
"""

from __future__ import annotations

__all__ = ["Adaptation", "DualAveraging", "Moments", "Tuning", "When", "harmonic_mean", "where"]

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from .lost import lost_chains, rejoin

if TYPE_CHECKING:
    from .base import Kernel
    from .metric import Metric
    from .transition import Info, State

T = TypeVar("T", bound=tuple)

WINDOWS = (0.03, 0.06, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.8)
"""The parts of warmup after which the metric is set anew from the draws since the last. The first
are short, since chains still on their way say little of where they go."""

SETTLING = 0.25
"""The part of warmup in which chains may still be far out."""

MIN_DRAWS = 10
"""A window with fewer draws goes on to the end of the next."""

MIN_ACCEPT_PROB = 1e-3
"""What a chain that accepts nothing counts as in a harmonic mean."""


class DualAveraging(NamedTuple):
    r"""Finds the step size at which the mean acceptance meets a target :math:`\delta`.

    .. math::
        \log \epsilon_t = \mu - \frac{\sqrt{t}}{\gamma (t + t_0)} \sum_{i \le t} (\delta - a_i),
        \qquad \log \bar\epsilon_t = t^{-\kappa} \log \epsilon_t + (1 - t^{-\kappa}) \log
        \bar\epsilon_{t-1}

    with :math:`t_0 = 10`, :math:`\kappa = 3/4` and :math:`\gamma = 2 \min(\delta, 1 - \delta)`,
    which is about by how much acceptance at its target falls for each unit of :math:`\log
    \epsilon`. (The usual :math:`\gamma = 0.05` is made for the noise of a single chain. With the
    mean of many it swings, and ends at too small a step.) What a distant start leaves behind fades
    slowly: begin again where it ended.

    References:
        | The No-U-Turn sampler (Hoffman and Gelman, 2014), https://jmlr.org/papers/v15/hoffman14a.html

    Example:
        >>> step_size = torch.tensor(1.0)
        >>> for _ in range(3):
        ...     tuner = DualAveraging.begin(step_size)
        ...     for _ in range(100):
        ...         accept_prob = 1 / (1 + tuner.step_size)  # falls with the step
        ...         tuner = tuner.update(accept_prob, target=0.6)
        ...     step_size = tuner.final_step_size
        >>> round(step_size.item(), 2)
        0.67
    """

    mu: Tensor
    """Where it began. All are 0-d, in float64."""
    gap: Tensor
    r"""The sum of :math:`\delta - a` over :math:`t + t_0`."""
    log_step: Tensor
    log_average: Tensor
    t: Tensor

    @classmethod
    def begin(cls, step_size: Tensor) -> DualAveraging:
        """Begins at a step size, 0-d, without a past."""
        log_step = step_size.double().log()
        zero = torch.zeros_like(log_step)
        return cls(log_step, zero, log_step, log_step, zero)

    def update(self, accept_prob: Tensor, target: float) -> DualAveraging:
        """Learns from the mean acceptance of one step of all chains.

        Args:
            accept_prob: The mean acceptance, 0-d.
            target: The target acceptance.
        """
        t = self.t + 1
        gap = self.gap + (target - accept_prob.double() - self.gap) / (t + 10)
        log_step = self.mu - t.sqrt() * gap / (2 * min(target, 1 - target))
        log_average = self.log_average + t**-0.75 * (log_step - self.log_average)
        return DualAveraging(self.mu, gap, log_step, log_average, t)

    @property
    def step_size(self) -> Tensor:
        """The step size to try next."""
        return self.log_step.exp()

    @property
    def final_step_size(self) -> Tensor:
        """The averaged step size, to keep."""
        return self.log_average.exp()


class Moments(NamedTuple):
    """Sums over draws and their gradients, of all chains, in float64."""

    origin: Tensor
    """What is subtracted first, so that squares keep their digits: ``(2, D)``, as are all sums."""
    total: Tensor
    squares: Tensor
    """Or the sums of all products, ``(2, D, D)``."""
    count: Tensor
    """The number of draws, 0-d."""

    @classmethod
    def begin(cls, state: State, *, products: bool = False) -> Moments:
        """Begins without a draw, near the chains.

        Args:
            state: Where they are.
            products: Whether to sum the products of coordinates too, not only their squares.
        """
        origin = _draws_and_grads(state).mean(0).nan_to_num(posinf=0.0, neginf=0.0)
        zero = torch.zeros_like(origin)
        squares = zero.diag_embed() if products else zero
        return cls(origin, zero, squares, zero.new_zeros(()))

    def add(self, state: State) -> Moments:
        """Learns where the chains are; one where anything is not finite does not count."""
        rows = _draws_and_grads(state) - self.origin
        finite = rows.isfinite().flatten(1).all(-1)
        rows = torch.where(finite[:, None, None], rows, 0.0)
        if self.squares.dim() > 2:
            squares = rows.permute(1, 2, 0) @ rows.transpose(0, 1)
        else:
            squares = rows.square().sum(0)
        return Moments(
            self.origin,
            self.total + rows.sum(0),
            self.squares + squares,
            self.count + finite.sum(),
        )

    @property
    def mean(self) -> Tensor:
        """The means of draws and gradients, ``(2, D)``; without any, the origin."""
        return self.origin + self.total / self.count.clamp(min=1)

    @property
    def variance(self) -> Tensor:
        """The variances of draws and gradients, ``(2, D)``."""
        spread = self.spread
        return spread.diagonal(dim1=-2, dim2=-1) if spread.dim() > 2 else spread

    @property
    def spread(self) -> Tensor:
        """The variances, or with products the covariances, ``(2, D, D)``."""
        count = self.count.clamp(min=1)
        mean = self.total / count
        if self.squares.dim() > 2:
            return self.squares / count - mean.unsqueeze(-1) * mean.unsqueeze(-2)
        return (self.squares / count - mean.square()).clamp(min=0)


def _draws_and_grads(state: State) -> Tensor:
    return torch.stack([state.z, state.grad], dim=1).double()


class Tuning(NamedTuple):
    """What was learned so far."""

    step: DualAveraging
    window: Moments
    widest: Tensor
    """The largest standard deviation of draws in the last window that ended, in the units of the
    metric that it set, 0-d in float64; 1 before."""


class When(NamedTuple):
    """Where a step is in warmup, 0-d; or where all steps are, ``(warmup_steps,)``."""

    settling: Tensor
    closing: Tensor
    """Whether a window ends."""
    last: Tensor


class Adaptation:
    r"""Tunes the step size by dual averaging and the metric by Fisher windows.

    At the end of each window the unit of length of a coordinate becomes

    .. math:: s_i = \left(\mathrm{Var}\, z_i / \mathrm{Var}\, \partial_i U\right)^{1/4}

    over the draws of all chains in the window, which is the standard deviation for a Gaussian with
    independent coordinates, and dual averaging starts anew. With a ``metric_rank`` directions are
    stretched besides (:mod:`~pyro_ebm.kernels.metric`): a warmup step then takes time and memory
    in proportion to :math:`D^2`, and the end of a window :math:`D^3`. Acceptance is pooled by its
    mean, in the first quarter by its harmonic mean, so that no chain far out is left behind,
    stuck. One that is lost nevertheless (:mod:`~pyro_ebm.kernels.lost`) at the end of a window,
    from that of the first quarter on, goes on from the place of another: a mode so far above all
    others is then in no draw, and R-hat does not see it.

    References:
        | If only my posterior were normal: Fisher HMC (Seyboldt, Carlson and Carpenter, 2026),
        | https://arxiv.org/abs/2603.18845

    Args:
        kernel: Says what to adapt, and to what acceptance.
        warmup_steps: The number of steps in which to do it.
    """

    windows: tuple[float, ...] = WINDOWS

    rejoins: bool = True
    """Whether lost chains go on from the places of others: not where U is but an estimate."""

    def __init__(self, kernel: Kernel, warmup_steps: int) -> None:
        self.step_size = kernel.adapt_step_size
        self.metric = kernel.adapt_mass_matrix
        self.target = kernel.target_accept_prob
        steps = torch.arange(1, warmup_steps + 1)
        ends = torch.tensor([max(1, int(part * warmup_steps)) for part in self.windows])
        self.settled = int(SETTLING * warmup_steps)
        settling = steps <= self.settled
        self.schedule = When(settling, torch.isin(steps, ends), steps == warmup_steps)
        self.ends = set(ends.tolist())
        self.rejoined: Tensor | None = None
        """Which chains were lost and went on from the places of others, ``(C,)``, if any."""
        self.ending = False
        """Whether a window may end at this step, as the host knows: only then, with a stretch, is
        a matrix decomposed."""
        self.tuning: tuple | None = None
        self.t = 0

    def update(self, state: State, info: Info) -> State:
        """Learns from the next step and returns the state with its new step size and metric."""
        if self.tuning is None:
            self.tuning = self.begin(state)
            self.schedule = When(*(flags.to(state.z.device) for flags in self.schedule))
        when = When(*(flags[self.t] for flags in self.schedule))
        self.t += 1
        self.ending = self.t in self.ends
        self.tuning, state = self.learn(self.tuning, state, info, when)
        if self.rejoins and self.ending and self.settled <= self.t < len(self.schedule.last):
            lost = lost_chains(state.potential, state.z.shape[-1])
            self.rejoined = lost if self.rejoined is None else self.rejoined | lost
            state = rejoin(state, lost)
        return state

    def state_dict(self) -> dict[str, Any]:
        """Returns all that it has learned, with which another one goes on."""
        return {"tuning": self.tuning, "rejoined": self.rejoined, "t": self.t}

    def load_state_dict(self, found: dict[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` of one for as many steps returned."""
        self.tuning, self.rejoined, self.t = found["tuning"], found["rejoined"], found["t"]
        if self.tuning is not None:
            device = tree_leaves(self.tuning)[0].device
            self.schedule = When(*(flags.to(device) for flags in self.schedule))

    def begin(self, state: State) -> tuple:
        """What is known before the first step: tensors, in nested tuples."""
        step = DualAveraging.begin(state.step_size)
        return Tuning(step, self._window(state), torch.ones_like(step.mu))

    def learn(self, tuning: tuple, state: State, info: Info, when: When) -> tuple[tuple, State]:
        """Learns from a step: a pure function of tensors.

        Args:
            tuning: What was known before.
            state: Where the chains are.
            info: What happened in the step.
            when: Where the step is in warmup, one row of ``schedule``.

        Returns:
            What is known now, and the state with its new step size and metric.
        """
        step, window, widest = tuning
        window = window.add(state)
        closing = when.closing & (window.count >= MIN_DRAWS)
        if self.ending or not state.metric.stretch:
            metric, spread = state.metric, window.spread
            if self.metric:
                metric = where(closing, self.fitted(metric, spread, window.count), metric)
                state = state._replace(metric=metric)
            widest = torch.where(closing, metric.widest(spread[0]), widest)
        window = where(closing, self._window(state), window)
        if self.step_size:
            step = step.update(self.pooled(info.accept_prob, when), self.target)
            epsilon = torch.where(when.last, step.final_step_size, step.step_size)
            state = state._replace(step_size=epsilon.to(state.step_size.dtype))
            step = where(closing, DualAveraging.begin(step.final_step_size), step)
        return Tuning(step, window, widest), state

    def fitted(self, metric: Metric, spread: Tensor, count: Tensor) -> Metric:
        """The metric of the draws of a window: see :meth:`Metric.fit`."""
        return metric.fit(spread, count)

    def _window(self, state: State) -> Moments:
        return Moments.begin(state, products=bool(state.metric.stretch))

    def pooled(self, accept_prob: Tensor, when: When) -> Tensor:
        """The mean acceptance; at first the harmonic one, which one stuck chain pulls down."""
        return torch.where(when.settling, harmonic_mean(accept_prob), accept_prob.mean())


def harmonic_mean(accept_prob: Tensor) -> Tensor:
    """The harmonic mean of the acceptance of all chains, 0-d, which follows the smallest."""
    return 1 / accept_prob.clamp(min=MIN_ACCEPT_PROB).reciprocal().mean()


def where(condition: Tensor, new: T, old: T) -> T:
    """Chooses between two nested named tuples of tensors."""
    return tree_map(lambda a, b: torch.where(condition, a, b), new, old)
