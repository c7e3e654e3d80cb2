r"""Hamiltonian kernels: a momentum carries the chain along level sets of the total energy.

.. math:: H(x, p) = U(x) + \tfrac12 |p|^2
"""

from __future__ import annotations

__all__ = ["HMC", "accept", "leapfrog", "trajectory"]

from collections.abc import Callable

import torch
from torch import Tensor

from ..distributions import Boltzmann
from ..engine import loop
from ..potential import Model, Potential
from .base import Kernel
from .transition import Info, State, metropolis, normal_like, uniform_like

MAX_ENERGY_ERROR = 1000.0
"""An energy error in nats above which a trajectory counts as divergent, as in Stan and Pyro."""


class HMC(Kernel):
    r"""Hamiltonian Monte Carlo with a jittered number of leapfrog steps.

    A fresh momentum :math:`p \sim \mathcal{N}(0, I)`, then :math:`L` leapfrog steps

    .. math::
        p \leftarrow p - \tfrac{\epsilon}{2} A^\top \nabla U(x), \quad
        x \leftarrow x + \epsilon A p, \quad
        p \leftarrow p - \tfrac{\epsilon}{2} A^\top \nabla U(x)

    and a Metropolis decision on :math:`H`. :math:`L` is drawn anew for all chains at each step,
    uniformly within a half above and below ``num_steps``, since a fixed length can resonate with
    the target and never mix. The invariant law is :math:`e^{-U}`, exactly. Warmup adapts
    :math:`\epsilon` and the metric :math:`A` (:mod:`~pyro_ebm.kernels.metric`), pooled over
    chains. It costs :math:`L` gradients a step.

    References:
        | MCMC using Hamiltonian dynamics (Neal, 2011), https://arxiv.org/abs/1206.1901

    Args:
        model: A Pyro model or a :class:`~pyro_ebm.Boltzmann`, if any.
        potential_fn: In its place, a function from a dict of unconstrained values to nats.
        step_size: The step size :math:`\epsilon > 0`, in units of x, or its first value.
        num_steps: The mean number of leapfrog steps.
        jitter: The part of ``num_steps`` by which it varies, from 0 (fixed) to 1.
        adapt_step_size: Whether warmup adapts :math:`\epsilon`.
        adapt_mass_matrix: Whether warmup adapts :math:`A`.
        metric_rank: How many directions :math:`V` it may stretch beside the coordinates; with
            ``None`` all up to 100 dimensions, and none of more.
        target_accept_prob: The mean acceptance that adaptation aims at.

    Raises:
        ValueError: If ``step_size`` or ``num_steps`` is not positive, ``jitter`` is not in [0, 1],
            or ``target_accept_prob`` is not between 0 and 1.

    Example:
        >>> import pyro_ebm as ebm
        >>> target = ebm.Boltzmann(ebm.energies.Banana(scale=1.0, curvature=0.5))
        >>> mcmc = ebm.MCMC(HMC(target), 50, 50, num_chains=8, disable_progbar=True)
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
        num_steps: int = 10,
        jitter: float = 0.5,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        metric_rank: int | None = 0,
        target_accept_prob: float = 0.8,
    ) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        if not 0 <= jitter <= 1:
            raise ValueError(f"jitter must be between 0 and 1, got {jitter}")
        super().__init__(
            model,
            potential_fn=potential_fn,
            step_size=step_size,
            adapt_step_size=adapt_step_size,
            adapt_mass_matrix=adapt_mass_matrix,
            metric_rank=metric_rank,
            target_accept_prob=target_accept_prob,
        )
        self.num_steps = num_steps
        self.jitter = jitter

    def noise(  # noqa: D102
        self, state: State, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        momentum = normal_like(state.z, generator, *num_steps)
        uniform = uniform_like(state.potential, generator, *num_steps)
        length = uniform_like(state.step_size, generator, *num_steps)
        return momentum, uniform, length

    def step(  # noqa: D102
        self, potential: Potential, state: State, noise: tuple[Tensor, ...]
    ) -> tuple[State, Info]:
        momentum, uniform, length = noise
        jittered = self.num_steps * (1 + self.jitter * (2 * length - 1))
        num_steps = jittered.round().clamp(min=1).long()
        proposal, end = trajectory(potential, state, momentum, num_steps)
        return accept(state, proposal, momentum, end, uniform, num_steps)


def accept(
    state: State,
    proposal: State,
    momentum: Tensor,
    end: Tensor,
    uniform: Tensor,
    num_steps: Tensor,
) -> tuple[State, Info]:
    """Decides by Metropolis on the end of a trajectory, the difference in H summed in float64.

    Args:
        state: Where the chains are.
        proposal: Where they may go.
        momentum: The momentum at the start, with shape ``(C, D)``.
        end: The momentum at the end, with shape ``(C, D)``.
        uniform: Uniform draws, with shape ``(C,)``.
        num_steps: The number of leapfrog steps, 0-d.

    Returns:
        Where the chains are now, and what happened.
    """
    kinetic = 0.5 * ((end - momentum) * (end + momentum)).sum(-1, dtype=torch.float64)
    log_ratio = state.potential.double() - proposal.potential.double() - kinetic
    moved, accept_prob, accepted = metropolis(state, proposal, log_ratio, uniform)
    kept = torch.where(accepted.unsqueeze(-1), end, momentum)
    info = Info(
        diverging=~(log_ratio > -MAX_ENERGY_ERROR),
        accept_prob=accept_prob,
        accepted=accepted,
        energy=moved.potential + 0.5 * kept.square().sum(-1),
        num_steps=num_steps.expand_as(state.potential),
    )
    return moved, info


def trajectory(
    potential: Potential, state: State, momentum: Tensor, num_steps: Tensor
) -> tuple[State, Tensor]:
    """Makes a number of leapfrog steps, the same for all chains.

    Args:
        potential: The target.
        state: Where the chains are, with their step size and units.
        momentum: The momentum of each chain, with shape ``(C, D)``.
        num_steps: The number of steps, 0-d.

    Returns:
        The new state and momentum.
    """
    fixed = state[3:]  # what is carried from step to step is copied in each

    def step(now: tuple[Tensor, tuple, Tensor]) -> tuple[Tensor, tuple, Tensor]:
        left, here, p = now
        there, p = leapfrog(potential, State(*here, *fixed), p)
        return left - 1, there[:3], p

    carry = (num_steps, state[:3], momentum)
    _, there, momentum = loop(lambda now: now[0] > 0, step, carry)
    return State(*there, *fixed), momentum


def leapfrog(potential: Potential, state: State, momentum: Tensor) -> tuple[State, Tensor]:
    """Makes one leapfrog step: reversible, volume-preserving, of second order.

    Args:
        potential: The target.
        state: Where the chains are, with their step size and units.
        momentum: The momentum of each chain, with shape ``(C, D)``, in the units of
            ``state.metric``.

    Returns:
        The new state and momentum.
    """
    epsilon, metric = state.step_size, state.metric
    half = momentum - metric.force(state.grad, 0.5 * epsilon)
    z = state.z + metric.move(half, epsilon)
    value, grad = potential.value_and_grad(z)
    return State(z, value, grad, epsilon, metric), half - metric.force(grad, 0.5 * epsilon)
