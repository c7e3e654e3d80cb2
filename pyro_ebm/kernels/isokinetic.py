r"""The dynamics of microcanonical kernels: a direction of unit speed, turned by the gradient.

In :math:`D \ge 2` dimensions the flow

.. math:: \dot{x} = A u, \qquad
    \dot{u} = -\frac{1}{D - 1} \left(I - u u^\top\right) A^\top \nabla U(x), \qquad |u| = 1

leaves :math:`e^{-U(x)}` and the uniform law of directions invariant.
"""

from __future__ import annotations

__all__ = ["MicrocanonicalState", "PathState", "isokinetic_leapfrog", "path", "unit"]

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..engine import loop
from ..potential import Potential
from .metric import Metric


class PathState(NamedTuple):
    """What the next path needs."""

    z: Tensor
    """Unconstrained chains, with shape ``(C, D)``."""
    potential: Tensor
    """U at ``z`` in nats, with shape ``(C,)``."""
    grad: Tensor
    """The gradient of U at ``z``, with shape ``(C, D)``."""
    step_size: Tensor
    """The largest step of all chains, 0-d."""
    metric: Metric
    """The units of length of coordinates and directions."""
    length: Tensor
    """The mean length of a path, 0-d, in the units of ``metric``."""


class MicrocanonicalState(NamedTuple):
    """What the next step of a lasting direction needs."""

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
    """The direction, with shape ``(C, D)``."""
    begun: Tensor
    """0 before the first step, which draws the direction afresh, and 1 after it, 0-d."""
    length: Tensor
    """The length of path over which the direction is forgotten, 0-d."""
    kinetic: Tensor
    """The kinetic energy gained since the chains began, in nats, with shape ``(C,)``."""


def path(
    potential: Potential, state: PathState, u: Tensor, num_steps: Tensor
) -> tuple[PathState, Tensor]:
    """Makes a number of isokinetic leapfrog steps, the same for all chains.

    Args:
        potential: The target.
        state: Where the chains are, with their step size and units.
        u: The direction of each chain, unit vectors with shape ``(C, D)``.
        num_steps: The number of steps, 0-d.

    Returns:
        The new state, and the kinetic energy gained in nats, with shape ``(C,)``.
    """
    fixed = state[3:]  # what is carried from step to step is copied in each

    def step(now: tuple[Tensor, tuple, Tensor, Tensor]) -> tuple[Tensor, tuple, Tensor, Tensor]:
        left, here, u, kinetic = now
        there, u, gain = isokinetic_leapfrog(potential, PathState(*here, *fixed), u)
        return left - 1, there[:3], u, kinetic + gain

    kinetic = torch.zeros_like(state.potential, dtype=torch.float64)
    carry = (num_steps, state[:3], u, kinetic)
    _, there, _, kinetic = loop(lambda now: now[0] > 0, step, carry)
    return PathState(*there, *fixed), kinetic


def isokinetic_leapfrog(
    potential: Potential, state: PathState | MicrocanonicalState, u: Tensor
) -> tuple[PathState | MicrocanonicalState, Tensor, Tensor]:
    r"""Makes one isokinetic leapfrog step: reversible, of second order, and of unit speed.

    A turn of the direction by :math:`\epsilon / 2`, :math:`x \leftarrow x + \epsilon A u`, and a
    turn again. With :math:`e` the unit vector along :math:`-A^\top \nabla U(x)`, a turn is

    .. math::
        u \leftarrow \frac{u + (\sinh \delta + c \, (\cosh \delta - 1)) \, e}
        {\cosh \delta + c \sinh \delta}, \qquad
        \delta = \frac{\epsilon}{2} \frac{|A^\top \nabla U(x)|}{D - 1}, \qquad c = u \cdot e

    and gains the kinetic energy
    :math:`\Delta K = (D - 1) \log(\cosh \delta + c \sinh \delta)`.

    Args:
        potential: The target.
        state: Where the chains are, with their step size and units.
        u: The direction of each chain, unit vectors with shape ``(C, D)``.

    Returns:
        The new state, the new direction, and the gain :math:`\Delta K` of both turns in nats, with
        shape ``(C,)``.
    """
    u, before = _turn(state, u)
    z = state.z + state.metric.move(u, state.step_size)
    value, grad = potential.value_and_grad(z)
    state = state._replace(z=z, potential=value, grad=grad)
    u, after = _turn(state, u)
    return state, u, before + after


def _turn(state: PathState | MicrocanonicalState, u: Tensor) -> tuple[Tensor, Tensor]:
    """Turns by half a step; all is divided by exp(delta), so that nothing overflows."""
    force = state.metric.force(state.grad, -1.0)
    norm = force.norm(dim=-1, keepdim=True)
    e = force / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    order = u.shape[-1] - 1
    delta = 0.5 * state.step_size * norm / order
    c = (u * e).sum(-1, keepdim=True).clamp(-1, 1)
    zeta = (-delta).exp()
    turned = 2 * zeta * u + (1 - zeta) * (1 + zeta + c * (1 - zeta)) * e
    still = turned.eq(0).all(-1, keepdim=True)  # straight against a force beyond all bounds
    delta, c = delta.double().squeeze(-1), c.double().squeeze(-1)
    gain = delta - math.log(2) + torch.logaddexp(c.log1p(), (-c).log1p() - 2 * delta)
    return unit(torch.where(still, u, turned)), order * gain


def unit(x: Tensor) -> Tensor:
    """Scales vectors to the length 1."""
    return x / x.norm(dim=-1, keepdim=True)
