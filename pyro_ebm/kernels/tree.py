r"""Trajectories that double until they turn back, over a batch of chains, without recursion.

Leaf :math:`n` of a subtree under construction ends as many complete subtrees as :math:`n` has
trailing ones in binary, and where these began is known from one checkpoint per level, so that
:math:`2^j` leaves need :math:`j` momenta. :func:`extend` moves the registers of every chain by one
leaf and knows nothing of what the other chains do: where a trajectory is over, another may begin
at once.
"""

from __future__ import annotations

__all__ = ["Branch", "Point", "Trajectory", "begin", "extend"]

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..potential import Potential
from .hamiltonian import MAX_ENERGY_ERROR, leapfrog
from .transition import State

T = TypeVar("T")


class Point(NamedTuple):
    """A point of phase space per chain; the momentum is in the units of ``State.scale``."""

    z: Tensor
    potential: Tensor
    grad: Tensor
    momentum: Tensor


class Branch(NamedTuple):
    """Consecutive points: one drawn by weight, the log of the sum of weights, and of momenta."""

    proposal: Point
    log_weight: Tensor
    momentum_sum: Tensor


class Trajectory(NamedTuple):
    """The registers: all that the next leaf of each chain needs."""

    start: Point
    left: Point
    right: Point
    """The ends of the tree, backward and forward in time."""
    tree: Branch
    branch: Branch
    """The subtree under construction, which will double the tree or be thrown away."""
    checkpoint_momentum: Tensor
    checkpoint_sum: Tensor
    """The momentum at which an open subtree began, per level, ``(C, J, D)``, and the momentum sum
    of the branch up to and with it; both are written in place."""
    forward: Tensor
    """Whether the branch grows forward in time."""
    num_leaves: Tensor
    """How many points the branch has."""
    depth: Tensor
    """How often the tree was doubled."""
    num_steps: Tensor
    accept_sum: Tensor
    """The sum over the leapfrog steps of the acceptance of the point, in float64."""
    active: Tensor
    """Whether the trajectory goes on."""
    moved: Tensor
    """Whether the proposal is no longer the start."""
    diverging: Tensor
    saturated: Tensor
    """Whether it ended for its depth alone: it neither turned nor diverged."""


def begin(state: State, momentum: Tensor, uniform: Tensor, max_tree_depth: int) -> Trajectory:
    """Makes the registers of trajectories of one point.

    Args:
        state: Where the chains are.
        momentum: The momentum of each chain, with shape ``(C, D)``.
        uniform: Uniform draws that choose the first direction, with shape ``(C,)``.
        max_tree_depth: How often a trajectory may double.
    """
    start = Point(state.z, state.potential, state.grad, momentum)
    zero = torch.zeros_like(state.potential, dtype=torch.float64)
    count = zero.long()
    no = zero.bool()
    checkpoint = momentum.new_zeros(len(momentum), max_tree_depth, momentum.shape[-1])
    return Trajectory(
        start=start,
        left=start,
        right=start,
        tree=Branch(start, zero, momentum),
        branch=Branch(start, torch.full_like(zero, -torch.inf), torch.zeros_like(momentum)),
        checkpoint_momentum=checkpoint,
        checkpoint_sum=checkpoint.clone(),
        forward=uniform < 0.5,
        num_leaves=count,
        depth=count,
        num_steps=count,
        accept_sum=zero,
        active=~no,
        moved=no,
        diverging=no,
        saturated=no,
    )


def extend(
    potential: Potential, state: State, now: Trajectory, uniforms: Tensor, max_depth: int
) -> Trajectory:
    """Adds one leaf to the trajectory of every active chain; the others stay as they are.

    Args:
        potential: The target.
        state: The step size and the units.
        now: The registers.
        uniforms: Uniform draws, with shape ``(C, 3)``.
        max_depth: A bound on ``now.depth`` of active chains, which saves work.

    Returns:
        The new registers. The checkpoints of the old ones are overwritten.
    """
    point = _leap(potential, state, now)
    log_weight = _log_weight(now.start, point)
    branch = _add_leaf(now.branch, point, log_weight, uniforms[:, 0])
    inside = now.active & (log_weight > -MAX_ENERGY_ERROR)
    valid = inside & ~_subtree_turns(now, branch, point, max_depth)
    full = valid & (now.num_leaves + 1 == 2**now.depth)
    taken = full & _happens(uniforms[:, 1], branch.log_weight - now.tree.log_weight)
    left = _where(inside & ~now.forward, point, now.left)
    right = _where(inside & now.forward, point, now.right)
    tree = Branch(
        _where(taken, branch.proposal, now.tree.proposal),
        _where(full, now.tree.log_weight.logaddexp(branch.log_weight), now.tree.log_weight),
        _where(full, now.tree.momentum_sum + branch.momentum_sum, now.tree.momentum_sum),
    )
    turned = full & _turns(left.momentum, right.momentum, tree.momentum_sum)
    depth = now.depth + full
    saturated = full & ~turned & (depth >= now.checkpoint_sum.shape[1])
    return now._replace(
        left=left,
        right=right,
        tree=tree,
        branch=Branch(
            branch.proposal,
            branch.log_weight.masked_fill(full, -torch.inf),
            branch.momentum_sum.masked_fill(full.unsqueeze(-1), 0),
        ),
        forward=torch.where(full, uniforms[:, 2] < 0.5, now.forward),
        num_leaves=(now.num_leaves + 1).masked_fill(full, 0),
        depth=depth,
        num_steps=now.num_steps + now.active,
        accept_sum=now.accept_sum + now.active * log_weight.clamp(max=0).exp(),
        active=valid & ~turned & ~saturated,
        moved=now.moved | taken,
        diverging=now.diverging | (now.active & ~inside),
        saturated=now.saturated | saturated,
    )


def _leap(potential: Potential, state: State, now: Trajectory) -> Point:
    """Steps from one end of the tree; chains that are done take a step of length 0."""
    end = _where(now.forward, now.right, now.left)
    sign = torch.where(now.forward, 1, -1) * now.active
    step_size = state.step_size * sign.unsqueeze(-1)
    here = state._replace(z=end.z, potential=end.potential, grad=end.grad, step_size=step_size)
    there, momentum = leapfrog(potential, here, end.momentum)
    return Point(there.z, there.potential, there.grad, momentum)


def _log_weight(start: Point, point: Point) -> Tensor:
    """The start's Hamiltonian less the point's, in float64; minus infinity where it is a NaN."""
    p, q = start.momentum, point.momentum
    kinetic = 0.5 * ((q - p) * (q + p)).sum(-1, dtype=torch.float64)
    change = start.potential.double() - point.potential.double() - kinetic
    return change.nan_to_num(nan=-torch.inf, neginf=-torch.inf)


def _add_leaf(branch: Branch, point: Point, log_weight: Tensor, uniform: Tensor) -> Branch:
    """Draws the leaf with its share of the weight, so that each has its own in the end."""
    total = branch.log_weight.logaddexp(log_weight)
    taken = _happens(uniform, log_weight - total)
    return Branch(
        _where(taken, point, branch.proposal), total, branch.momentum_sum + point.momentum
    )


def _subtree_turns(now: Trajectory, branch: Branch, point: Point, max_depth: int) -> Tensor:
    """Whether one of the complete subtrees that end at the leaf turns back.

    An even leaf begins subtrees and is written down; an odd one ends as many as it has trailing
    ones, the smallest of which began at the highest open level.
    """
    n, p, num_levels = now.num_leaves, point.momentum, max(1, max_depth)
    first, sums = now.checkpoint_momentum[:, :num_levels], now.checkpoint_sum[:, :num_levels]
    level = torch.arange(num_levels, device=n.device)
    bits = n.unsqueeze(-1) >> level & 1
    highest = bits[:, 1:].sum(-1, keepdim=True)
    trailing = bits.cumprod(-1).sum(-1, keepdim=True)
    written = ((level == highest) & (bits[:, :1] == 0)).unsqueeze(-1)
    first.copy_(torch.where(written, p.unsqueeze(1), first))
    sums.copy_(torch.where(written, branch.momentum_sum.unsqueeze(1), sums))
    total = branch.momentum_sum.unsqueeze(1) - sums + first
    ends_here = (level <= highest) & (level > highest - trailing)
    return (ends_here & _turns(first, p.unsqueeze(1), total)).any(-1)


def _turns(left: Tensor, right: Tensor, momentum_sum: Tensor) -> Tensor:
    q = momentum_sum - 0.5 * (left + right)
    return ((left * q).sum(-1) <= 0) | ((right * q).sum(-1) <= 0)


def _happens(uniform: Tensor, log_prob: Tensor) -> Tensor:
    return uniform < log_prob.clamp(max=0).exp()  # never for a NaN


def _where(mask: Tensor, new: T, old: T) -> T:
    """Chooses by chain between tensors, or tuples of them."""
    if isinstance(new, Tensor):
        return torch.where(mask.reshape(-1, *[1] * (new.dim() - 1)), new, old)
    return type(new)(*(_where(mask, a, b) for a, b in zip(new, old, strict=True)))
