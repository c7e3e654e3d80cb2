r"""Tuning during warmup, pooled over all chains, and over before draws are kept."""

from __future__ import annotations

__all__ = ["Adaptation", "DualAveraging"]

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .base import Kernel
    from .transition import Info, State

WINDOWS = (0.1, 0.25, 0.5, 0.8)
"""The parts of warmup after which the metric is set anew from the draws since the last."""


class DualAveraging:
    r"""Finds the step size at which the mean acceptance meets a target.

    .. math::
        \log \epsilon_t = \mu - \frac{\sqrt{t}}{\gamma (t + t_0)} \sum_{i \le t} (\delta - a_i),
        \qquad \log \bar\epsilon_t = t^{-\kappa} \log \epsilon_t + (1 - t^{-\kappa}) \log
        \bar\epsilon_{t-1}

    References:
        | The No-U-Turn sampler (Hoffman and Gelman, 2014), https://jmlr.org/papers/v15/hoffman14a.html

    Args:
        step_size: The first step size.
        target: The target acceptance :math:`\delta`.

    Example:
        >>> tuner = DualAveraging(1.0, target=0.6)
        >>> for _ in range(2000):
        ...     tuner.update(1 / (1 + tuner.step_size))  # falls with the step size
        >>> round(tuner.final_step_size, 2)
        0.67
    """

    gamma, t0, kappa = 0.05, 10.0, 0.75

    def __init__(self, step_size: float, target: float) -> None:
        self.target = target
        self.restart(step_size)

    def restart(self, step_size: float) -> None:
        """Forgets the past and begins at ``step_size``."""
        self.mu = math.log(10 * step_size)
        self.log_step = math.log(step_size)
        self.log_average = 0.0
        self.gap = 0.0
        self.t = 0

    def update(self, accept_prob: float) -> None:
        """Learns from the mean acceptance of one step of all chains."""
        self.t += 1
        weight = 1 / (self.t + self.t0)
        self.gap = (1 - weight) * self.gap + weight * (self.target - accept_prob)
        self.log_step = self.mu - math.sqrt(self.t) / self.gamma * self.gap
        decay = self.t**-self.kappa
        self.log_average = decay * self.log_step + (1 - decay) * self.log_average

    @property
    def step_size(self) -> float:
        """The step size to try next."""
        return math.exp(self.log_step)

    @property
    def final_step_size(self) -> float:
        """The averaged step size, to keep."""
        return math.exp(self.log_average if self.t else self.log_step)


class Adaptation:
    r"""Tunes the step size by dual averaging and the diagonal metric by Fisher windows.

    At the end of each window the unit of length of a coordinate becomes

    .. math:: s_i = \left(\mathrm{Var}\, z_i / \mathrm{Var}\, \partial_i U\right)^{1/4}

    over the draws of all chains in the window, which is the standard deviation for a Gaussian with
    independent coordinates, and dual averaging starts anew. Acceptance is pooled by its mean, in
    the first quarter by its harmonic mean, so that no chain far out is left behind, stuck.

    References:
        | If only my posterior were normal: Fisher HMC (Seyboldt, Carlson and Carpenter, 2026),
        | https://arxiv.org/abs/2603.18845

    Args:
        kernel: Says what to adapt, and to what acceptance.
        warmup_steps: The number of steps in which to do it.
    """

    def __init__(self, kernel: Kernel, warmup_steps: int) -> None:
        self.step_size = kernel.adapt_step_size
        self.metric = kernel.adapt_mass_matrix
        self.warmup_steps = warmup_steps
        self.ends = {max(1, int(part * warmup_steps)) for part in WINDOWS}
        self.settling = int(WINDOWS[1] * warmup_steps)
        self.tuner = DualAveraging(kernel.step_size, kernel.target_accept_prob)
        self.window = _Moments()
        self.t = 0

    def update(self, state: State, info: Info) -> State:
        """Learns from a step and returns the state with its new step size and metric."""
        self.t += 1
        if self.metric:
            self.window.add(state.z, state.grad)
        if self.step_size:
            self.tuner.update(self._pooled(info.accept_prob))
        if self.metric and self.t in self.ends and self.window.count > 1:
            state = state._replace(scale=self.window.fisher_scale(state.scale))
            self.window = _Moments()
            self.tuner.restart(self.tuner.final_step_size)
        if not self.step_size:
            return state
        last = self.t == self.warmup_steps
        step_size = self.tuner.final_step_size if last else self.tuner.step_size
        return state._replace(step_size=torch.full_like(state.step_size, step_size))

    def _pooled(self, accept_prob: Tensor) -> float:
        """The mean acceptance; at first the harmonic one, which one stuck chain pulls down."""
        if self.t <= self.settling:
            return 1 / accept_prob.clamp(min=1e-3).reciprocal().mean().item()
        return accept_prob.mean().item()


class _Moments:
    """The running mean and variance of draws and gradients, pooled over chains, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, z: Tensor, grad: Tensor) -> None:
        rows = torch.stack([z, grad], dim=1).double()
        rows = rows[rows.isfinite().flatten(1).all(-1)]
        if not len(rows):
            return
        mean, total = rows.mean(0), self.count + len(rows)
        shift = mean - self.mean
        self.squares = self.squares + (rows - mean).square().sum(0)
        self.squares = self.squares + shift.square() * (self.count * len(rows) / total)
        self.mean = self.mean + shift * (len(rows) / total)
        self.count = total

    def fisher_scale(self, fallback: Tensor) -> Tensor:
        of_z, of_grad = self.squares
        scale = (of_z / of_grad) ** 0.25
        usable = scale.isfinite() & (scale > 0)
        return torch.where(usable, scale.to(fallback.dtype), fallback)
