r"""Trajectories that double until they turn back, over a batch of chains, without recursion.

Leaf :math:`n` of a subtree under construction ends as many complete subtrees as :math:`n` has
trailing ones in binary, and where these began is known from one checkpoint per level, so that
:math:`2^j` leaves need :math:`j` momenta. :func:`extend` moves the registers of every chain by one
leaf and knows nothing of what the other chains do: where a trajectory is over, :func:`renew` lets
the next begin at once.
"""

from __future__ import annotations

__all__ = [
    "Branch",
    "Checkpoints",
    "End",
    "NUTSState",
    "Proposal",
    "Trajectory",
    "begin",
    "extend",
    "renew",
    "uniforms",
]

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..engine import is_compiling
from ..potential import Potential
from .hamiltonian import MAX_ENERGY_ERROR, leapfrog
from .metric import Metric

T = TypeVar("T")


class NUTSState(NamedTuple):
    """What the next step needs."""

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
    max_depth: Tensor
    """How often a trajectory may double as yet, 0-d."""


class Proposal(NamedTuple):
    """A point drawn by weight."""

    point: Tensor
    """Its coordinates and the gradient of U, stacked, ``(2, D, C)``."""
    potential: Tensor
    log_weight: Tensor
    """The Hamiltonian of the start less that of the point, in float64."""


class Branch(NamedTuple):
    """Consecutive points: one drawn by weight, the log of the sum of weights, and of momenta."""

    proposal: Proposal
    log_weight: Tensor
    momentum_sum: Tensor


class Trajectory(NamedTuple):
    """The registers: all that the next leaf of each chain needs but for the checkpoints."""

    front: Tensor
    """The end of the tree that grows: its coordinates, gradient and momentum, ``(3, D, C)``."""
    back: Tensor
    """The other end. The momenta are in the units of ``State.metric``."""
    hamiltonian: Tensor
    """Of the start, in float64."""
    tree: Branch
    branch: Branch
    """The subtree under construction, which will double the tree or be thrown away."""
    num_leaves: Tensor
    """How many points the branch has."""
    depth: Tensor
    """How often the tree was doubled."""
    accept_sum: Tensor
    """The sum over the leapfrog steps of the acceptance of the point, in float64."""

    @property
    def num_steps(self) -> Tensor:
        """How many leapfrog steps were made."""
        return (1 << self.depth) - 1 + self.num_leaves


class End(NamedTuple):
    """Whether a trajectory is over, and of what."""

    over: Tensor
    diverging: Tensor
    saturated: Tensor
    """Whether it ended for its depth alone: it neither turned nor diverged."""


class Checkpoints(NamedTuple):
    """Where the open subtrees of each branch began, per level; written in place."""

    momentum: Tensor
    """At the first leaf, ``(J + 1, D, C)``; the last level is waste."""
    rest: Tensor
    """What momenta there were before it, negative, with half of its own."""
    chain: Tensor
    begins_at: Tensor
    """At which level a leaf begins subtrees, ``(2^(J - 1),)``; the last if it begins none."""
    ends_at: Tensor
    """Whether a leaf ends a subtree of each level, ``(J, 2^(J - 1))``."""

    @classmethod
    def empty(cls, momentum: Tensor, max_tree_depth: int) -> Checkpoints:
        """Makes room for all levels.

        Args:
            momentum: The momentum of each chain, with shape ``(D, C)``.
            max_tree_depth: How often a trajectory may double.
        """
        leaf = torch.arange(2 ** (max_tree_depth - 1), device=momentum.device)
        level = torch.arange(max_tree_depth, device=momentum.device).unsqueeze(-1)
        bits = leaf >> level & 1
        highest = bits[1:].sum(0)
        trailing = bits.cumprod(0).sum(0)
        return cls(
            momentum=momentum.new_zeros(max_tree_depth + 1, *momentum.shape),
            rest=momentum.new_zeros(max_tree_depth + 1, *momentum.shape),
            chain=torch.arange(momentum.shape[-1], device=momentum.device),
            begins_at=torch.where(bits[0] == 0, highest, max_tree_depth),
            ends_at=(level <= highest) & (level > highest - trailing),
        )

    @property
    def num_levels(self) -> int:
        """How often a trajectory may double."""
        return len(self.ends_at)

    def turns(self, num_leaves: Tensor, depth: Tensor, p: Tensor, momentum_sum: Tensor) -> Tensor:
        """Whether one of the complete subtrees that end at a leaf turns back.

        An even leaf begins subtrees and is written down; an odd one ends as many as it has
        trailing ones, the smallest of which began at the highest open level.

        Args:
            num_leaves: How many leaves came before this one.
            depth: How many levels the branch has.
            p: The momentum at the leaf, with shape ``(D, C)``.
            momentum_sum: The sum of momenta up to and with the leaf, with shape ``(D, C)``.
        """
        part = momentum_sum - 0.5 * p
        level = self.begins_at[num_leaves]
        self.momentum[level, :, self.chain] = p.T
        self.rest[level, :, self.chain] = -part.T
        num_levels = self.num_levels
        if not is_compiling() and depth.device.type == "cpu":
            num_levels = max(1, int(depth.max()))
        first, rest = self.momentum[:num_levels], self.rest[:num_levels]
        q = part + rest
        back = ((first * q).sum(1) <= 0) | ((p * q).sum(1) <= 0)
        return (back & self.ends_at[:num_levels, num_leaves]).any(0)


def begin(state: NUTSState, momentum: Tensor, kinetic: Tensor) -> Trajectory:
    """Makes the registers of trajectories of one point.

    Args:
        state: Where the chains are.
        momentum: The momentum of each chain, with shape ``(D, C)``.
        kinetic: Its kinetic energy in float64, with shape ``(C,)``.
    """
    zero = torch.zeros_like(state.potential, dtype=torch.float64)
    point = torch.stack([state.z.T, state.grad.T])
    proposal = Proposal(point, state.potential, zero)
    start = torch.cat([point, momentum.unsqueeze(0)])
    return Trajectory(
        front=start,
        back=start,
        hamiltonian=state.potential + kinetic,
        tree=Branch(proposal, zero, momentum),
        branch=Branch(proposal, torch.full_like(zero, -torch.inf), torch.zeros_like(momentum)),
        num_leaves=zero.long(),
        depth=zero.long(),
        accept_sum=zero,
    )


def extend(
    potential: Potential,
    state: NUTSState,
    now: Trajectory,
    checkpoints: Checkpoints,
    seed: Tensor,
) -> tuple[Trajectory, End]:
    """Adds one leaf to the trajectory of every chain.

    Args:
        potential: The target.
        state: The step size, the units, and how deep trees may be.
        now: The registers.
        checkpoints: What is known of their branches, and will be.
        seed: An integer per chain, with shape ``(C,)``. Its bit :math:`j` says whether doubling
            :math:`j` goes forward in time; from its stream come the choices between points.

    Returns:
        The new registers, and where the trajectory is over.
    """
    choice, choice_of_branch = uniforms(seed, now.num_steps + 1)
    forward = seed >> now.depth & 1
    front, value = _leap(potential, state, now.front, 2 * forward - 1)
    p = front[2]
    change = now.hamiltonian - (value + 0.5 * p.double().square().sum(0))
    log_weight = torch.where(change.isfinite(), change, -torch.inf)
    inside = log_weight > -MAX_ENERGY_ERROR
    branch = _add_leaf(now.branch, Proposal(front[:2], value, log_weight), p, choice)
    turned = checkpoints.turns(now.num_leaves, now.depth, p, branch.momentum_sum)
    valid = inside & ~turned
    num_leaves = now.num_leaves + 1
    full = valid & (num_leaves == 1 << now.depth)
    taken = full & (choice_of_branch < (branch.log_weight - now.tree.log_weight).exp())
    tree = Branch(
        _where(taken, branch.proposal, now.tree.proposal),
        torch.where(full, now.tree.log_weight.logaddexp(branch.log_weight), now.tree.log_weight),
        _where(full, now.tree.momentum_sum + branch.momentum_sum, now.tree.momentum_sum),
    )
    turned = full & _turns(now.back[2], p, tree.momentum_sum)
    depth = now.depth + full
    saturated = full & ~turned & (depth == state.max_depth.clamp(max=checkpoints.num_levels))
    flips = full & ((seed >> depth & 1) != forward)
    following = Trajectory(
        front=_where(flips, now.back, front),
        back=_where(flips, front, now.back),
        hamiltonian=now.hamiltonian,
        tree=tree,
        branch=_emptied(branch, full),
        num_leaves=num_leaves.masked_fill(full, 0),
        depth=depth,
        accept_sum=now.accept_sum + log_weight.clamp(max=0).exp(),
    )
    return following, End(~valid | turned | saturated, ~inside, saturated)


def renew(now: Trajectory, over: Tensor, momentum: Tensor, kinetic: Tensor) -> Trajectory:
    """Begins new trajectories at the proposals of those that are over.

    Args:
        now: The registers.
        over: Where to do it, with shape ``(C,)``.
        momentum: The momenta to begin with, with shape ``(D, C)``.
        kinetic: Their kinetic energies in float64, with shape ``(C,)``.
    """
    proposal = now.tree.proposal
    start = torch.cat([proposal.point, momentum.unsqueeze(0)])
    return Trajectory(
        front=_where(over, start, now.front),
        back=_where(over, start, now.back),
        hamiltonian=torch.where(over, proposal.potential + kinetic, now.hamiltonian),
        tree=Branch(
            proposal._replace(log_weight=proposal.log_weight.masked_fill(over, 0)),
            now.tree.log_weight.masked_fill(over, 0),
            _where(over, momentum, now.tree.momentum_sum),
        ),
        branch=_emptied(now.branch, over),
        num_leaves=now.num_leaves.masked_fill(over, 0),
        depth=now.depth.masked_fill(over, 0),
        accept_sum=now.accept_sum.masked_fill(over, 0),
    )


def _leap(
    potential: Potential, state: NUTSState, end: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor]:
    """Steps from one end of the tree; returns the new end and its potential."""
    z, grad, momentum = end.mT
    step_size = state.step_size * direction.unsqueeze(-1)
    there, momentum = leapfrog(
        potential, state._replace(z=z, grad=grad, step_size=step_size), momentum
    )
    return torch.stack([there.z.T, there.grad.T, momentum.T]), there.potential


def _add_leaf(branch: Branch, leaf: Proposal, momentum: Tensor, uniform: Tensor) -> Branch:
    """Draws the leaf with its share of the weight, so that each has its own in the end."""
    total = branch.log_weight.logaddexp(leaf.log_weight)
    taken = uniform < (leaf.log_weight - total).exp()  # never for a NaN
    return Branch(_where(taken, leaf, branch.proposal), total, branch.momentum_sum + momentum)


def _emptied(branch: Branch, mask: Tensor) -> Branch:
    """Forgets the branch, but not its proposal: the first leaf always takes its place."""
    return Branch(
        branch.proposal,
        branch.log_weight.masked_fill(mask, -torch.inf),
        branch.momentum_sum.masked_fill(mask, 0),
    )


def _turns(one: Tensor, other: Tensor, momentum_sum: Tensor) -> Tensor:
    q = momentum_sum - 0.5 * (one + other)
    return ((one * q).sum(0) <= 0) | ((other * q).sum(0) <= 0)


def uniforms(seed: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Two uniforms at a place of each chain's own stream.

    It is SplitMix64, whose arithmetic wraps at 64 bits; the halves of its number are one uniform
    each, in the middle of one of :math:`2^{32}` intervals.
    """
    x = seed + place * -0x61C8864680B583EB
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    x = x ^ (x >> 31 & 0x1FFFFFFFF)
    high, low = x >> 32 & 0xFFFFFFFF, x & 0xFFFFFFFF
    return (high.double() + 0.5) * 2.0**-32, (low.double() + 0.5) * 2.0**-32


def _where(mask: Tensor, new: T, old: T) -> T:
    """Chooses by chain between tensors, or tuples of them."""
    if isinstance(new, Tensor):
        return torch.where(mask, new, old)
    return type(new)(*(_where(mask, a, b) for a, b in zip(new, old, strict=True)))
