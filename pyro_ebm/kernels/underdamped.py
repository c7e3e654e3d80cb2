r"""Underdamped Langevin kernels: a momentum that friction and noise renew little by little.

.. math:: dx = A p \, dt, \qquad
    dp = -A^\top \nabla U(x) \, dt - \gamma p \, dt + \sqrt{2 \gamma} \, dW

Over a time :math:`\epsilon`, friction and noise alone are solved by

.. math:: p \leftarrow c p + \sqrt{1 - c^2} \, \xi, \qquad c = e^{-\gamma \epsilon}, \qquad
    \xi \sim \mathcal{N}(0, I)

with the metric :math:`A` of :mod:`~pyro_ebm.kernels.metric`. The momentum is in the state. It is
drawn in the first step, where :math:`c` counts as 0.
"""

from __future__ import annotations

__all__ = ["GHMC", "MomentumState", "UnderdampedLangevin", "refresh"]

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..distributions import Boltzmann
from ..potential import Model, Potential
from .base import Kernel
from .hamiltonian import MAX_ENERGY_ERROR, leapfrog
from .metric import Metric
from .transition import Info, metropolis, normal_like, uniform_like


class MomentumState(NamedTuple):
    """What the next step of a kernel with a lasting momentum needs."""

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
    momentum: Tensor
    """The momentum in the units of ``metric``, with shape ``(C, D)``."""
    begun: Tensor
    """0 before the first step, which draws the momentum afresh, and 1 after it, 0-d."""


class WithMomentum(Kernel):
    """A kernel whose state has a momentum."""

    def init(self, potential: Potential, z: Tensor) -> MomentumState:
        """Makes the first state of some chains, their momentum yet to be drawn.

        Args:
            potential: The target.
            z: Unconstrained chains, with shape ``(C, D)``.

        Returns:
            The state, with the kernel's own step size and a unit metric.
        """
        state = super().init(potential, z)
        return MomentumState(*state, torch.zeros_like(z), z.new_zeros(()))


class UnderdampedLangevin(WithMomentum):
    r"""Unadjusted underdamped Langevin dynamics, split as BAOAB.

    .. math::
        p &\leftarrow p - \tfrac{\epsilon}{2} A^\top \nabla U(x), \quad
        x \leftarrow x + \tfrac{\epsilon}{2} A p, \quad
        p \leftarrow c p + \sqrt{1 - c^2} \, \xi, \\
        x &\leftarrow x + \tfrac{\epsilon}{2} A p, \quad
        p \leftarrow p - \tfrac{\epsilon}{2} A^\top \nabla U(x), \qquad c = e^{-\gamma \epsilon}

    **Biased**: the invariant law of :math:`x` is not :math:`e^{-U}` but tends to it with
    :math:`\epsilon^2`. On :math:`\mathcal{N}(0, v)` the law of :math:`x` is exact, the variance of
    :math:`p` is :math:`1 - \epsilon^2 / 4v`, and chains are stable only for
    :math:`\epsilon < 2 \sqrt{v}`. Nothing is adapted. A step to a non-finite potential is not
    made: the chain turns back, and it is counted in ``Info.diverging``. :class:`GHMC` is its exact
    sibling.

    References:
        | Rational construction of stochastic numerical methods for molecular sampling (Leimkuhler
        | and Matthews, 2013), https://doi.org/10.1093/amrx/abs010

    Args:
        model: A Pyro model or a :class:`~pyro_ebm.Boltzmann`, if any.
        potential_fn: In its place, a function from a dict of unconstrained values to nats.
        step_size: The step size :math:`\epsilon > 0`, in units of x.
        friction: The rate :math:`\gamma > 0` at which the momentum is forgotten, in the inverse
            units of ``step_size``.

    Raises:
        ValueError: If ``step_size`` or ``friction`` is not positive.

    Example:
        >>> import pyro_ebm as ebm
        >>> target = ebm.Boltzmann(ebm.energies.Gaussian(torch.zeros(2), 1.0))
        >>> kernel = UnderdampedLangevin(target, step_size=0.5)
        >>> mcmc = ebm.MCMC(kernel, 50, 10, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> sorted(mcmc.sample_stats)
        ['diverging', 'energy', 'lp', 'step_size']
    """

    def __init__(
        self,
        model: Model | Boltzmann | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        step_size: float,
        friction: float = 1.0,
    ) -> None:
        super().__init__(
            model,
            potential_fn=potential_fn,
            step_size=step_size,
            adapt_step_size=False,
            adapt_mass_matrix=False,
            target_accept_prob=0.5,
        )
        self.friction = _positive(friction)

    def noise(  # noqa: D102
        self, state: MomentumState, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        return (normal_like(state.z, generator, *num_steps),)

    def step(  # noqa: D102
        self, potential: Potential, state: MomentumState, noise: tuple[Tensor, ...]
    ) -> tuple[MomentumState, Info]:
        (xi,) = noise
        half, metric = 0.5 * state.step_size, state.metric
        p = state.momentum - metric.force(state.grad, half)
        y = state.z + metric.move(p, half)
        p = refresh(state, p, xi, self.friction)
        y = y + metric.move(p, half)
        value, grad = potential.value_and_grad(y)
        p = p - metric.force(grad, half)
        moved, finite = step_or_turn(state, y, value, grad, p)
        energy = moved.potential + 0.5 * moved.momentum.square().sum(-1)
        return moved, Info(diverging=~finite, energy=energy)


class GHMC(WithMomentum):
    r"""Generalised Hamiltonian Monte Carlo: underdamped Langevin with a Metropolis decision.

    .. math::
        p \leftarrow c p + \sqrt{1 - c^2} \, \xi, \qquad
        (y, p') = \mathrm{leapfrog}(x, p), \qquad
        \log r = H(x, p) - H(y, p'), \qquad c = e^{-\gamma \epsilon}

    with :math:`H(x, p) = U(x) + \tfrac12 |p|^2`. On rejection :math:`x` stays and the momentum is
    flipped, :math:`p \leftarrow -p`: the leapfrog is its own inverse up to that sign. The
    invariant law is :math:`e^{-H}`, exactly. With :math:`\gamma \to \infty` it is
    :class:`~pyro_ebm.kernels.MALA` with :math:`\eta = \epsilon^2 / 2`. Since every rejection
    turns a chain back, few are wanted. Warmup adapts :math:`\epsilon` and the metric :math:`A`,
    pooled over chains. It costs one gradient a step.

    References:
        | A generalized guided Monte Carlo algorithm (Horowitz, 1991),
        | https://doi.org/10.1016/0370-2693(91)90812-5

    Args:
        model: A Pyro model or a :class:`~pyro_ebm.Boltzmann`, if any.
        potential_fn: In its place, a function from a dict of unconstrained values to nats.
        step_size: The step size :math:`\epsilon > 0`, in units of x, or its first value.
        friction: The rate :math:`\gamma > 0` at which the momentum is forgotten, in the inverse
            units of ``step_size``.
        adapt_step_size: Whether warmup adapts :math:`\epsilon`.
        adapt_mass_matrix: Whether warmup adapts :math:`A`.
        metric_rank: How many directions :math:`V` it may stretch beside the coordinates; with
            ``None`` all up to 100 dimensions, and none of more.
        target_accept_prob: The mean acceptance that adaptation aims at.

    Raises:
        ValueError: If ``step_size`` or ``friction`` is not positive, or ``target_accept_prob`` is
            not between 0 and 1.

    Example:
        >>> import pyro_ebm as ebm
        >>> target = ebm.Boltzmann(ebm.energies.Banana(scale=1.0, curvature=0.5))
        >>> mcmc = ebm.MCMC(GHMC(target), 50, 50, num_chains=8, disable_progbar=True)
        >>> mcmc.run()
        >>> sorted(mcmc.sample_stats)
        ['acceptance_rate', 'accepted', 'diverging', 'energy', 'lp', 'step_size']
    """

    def __init__(
        self,
        model: Model | Boltzmann | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        step_size: float = 0.1,
        friction: float = 1.0,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        metric_rank: int | None = 0,
        target_accept_prob: float = 0.8,
    ) -> None:
        super().__init__(
            model,
            potential_fn=potential_fn,
            step_size=step_size,
            adapt_step_size=adapt_step_size,
            adapt_mass_matrix=adapt_mass_matrix,
            metric_rank=metric_rank,
            target_accept_prob=target_accept_prob,
        )
        self.friction = _positive(friction)

    def noise(  # noqa: D102
        self, state: MomentumState, generator: torch.Generator, *num_steps: int
    ) -> tuple[Tensor, ...]:
        normal = normal_like(state.z, generator, *num_steps)
        return normal, uniform_like(state.potential, generator, *num_steps)

    def step(  # noqa: D102
        self, potential: Potential, state: MomentumState, noise: tuple[Tensor, ...]
    ) -> tuple[MomentumState, Info]:
        xi, uniform = noise
        p = refresh(state, state.momentum, xi, self.friction)
        proposal, end = leapfrog(potential, state, p)
        kinetic = 0.5 * ((end - p) * (end + p)).sum(-1, dtype=torch.float64)
        log_ratio = state.potential.double() - proposal.potential.double() - kinetic
        moved, accept_prob, accepted = metropolis(state, proposal, log_ratio, uniform)
        kept = torch.where(accepted.unsqueeze(-1), end, -p)
        info = Info(
            diverging=~(log_ratio > -MAX_ENERGY_ERROR),
            accept_prob=accept_prob,
            accepted=accepted,
            energy=moved.potential + 0.5 * kept.square().sum(-1),
        )
        return moved._replace(momentum=kept, begun=torch.ones_like(state.begun)), info


def refresh(state: MomentumState, momentum: Tensor, xi: Tensor, friction: float) -> Tensor:
    r"""Renews a momentum over one step, :math:`c p + \sqrt{1 - c^2} \, \xi`; wholly in the first.

    Args:
        state: Where the chains are, with their step size.
        momentum: The momentum :math:`p`, with shape ``(C, D)``.
        xi: Standard normal noise, with shape ``(C, D)``.
        friction: The rate :math:`\gamma`.

    Returns:
        The new momentum, with shape ``(C, D)``.
    """
    c = state.begun * (-friction * state.step_size).exp()
    return c * momentum + (1 - c * c).sqrt() * xi


def step_or_turn(
    state: MomentumState, y: Tensor, value: Tensor, grad: Tensor, momentum: Tensor
) -> tuple[MomentumState, Tensor]:
    """Takes a step where it is finite; elsewhere the chain stays and turns back.

    Args:
        state: Where the chains are.
        y: Where they would be, with shape ``(C, D)``.
        value: U there, with shape ``(C,)``.
        grad: Its gradient there, with shape ``(C, D)``.
        momentum: The momentum there, with shape ``(C, D)``.

    Returns:
        The new state, and whether each chain moved ``(C,)``.
    """
    finite = value.isfinite() & grad.isfinite().all(-1)
    rows = finite.unsqueeze(-1)
    moved = state._replace(
        z=torch.where(rows, y, state.z),
        potential=torch.where(finite, value, state.potential),
        grad=torch.where(rows, grad, state.grad),
        momentum=torch.where(rows, momentum, -state.momentum),
        begun=torch.ones_like(state.begun),
    )
    return moved, finite


def _positive(friction: float) -> float:
    if not friction > 0:
        raise ValueError(f"friction must be positive, got {friction}")
    return friction
