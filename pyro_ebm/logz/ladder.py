r"""Replica exchange on a path: walkers at equilibrium at every rung, as long as one likes.

Each chain is a replica at each of :math:`K` rungs. In a step the base is drawn from anew, all
others move by the kernel of the path, and neighbours swap with probability

.. math:: \min\left(1, e^{(\beta_{k+1} - \beta_k)(V(z_{k+1}) - V(z_k))}\right)

for even and odd k in turn, as in :class:`~pyro_ebm.kernels.ParallelTempering`, which tunes itself
and serves normal bases alone; here rungs and step sizes are those of a plan, and states may be of
any kind.
"""

from __future__ import annotations

__all__ = ["Ladder", "climb", "draw_near"]

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..ranks.group import first
from .base import Rungs
from .path import Walkers, taken
from .plan import Plan
from .sharing import averaged, of_all_ranks

BURN_IN = 0.2
"""The steps that do not count, as a part of those that do."""
NUM_CHAINS = 64
"""The chains that draws of the target come from."""
THIN = 4
"""The steps between two of them."""


class Ladder(NamedTuple):
    """What replicas did on a ladder."""

    betas: Tensor
    """The rungs, from 0 to 1, ``(K,)``."""
    excess: Tensor
    """V at each step, chain and rung, in nats and float64, ``(T, C, K)``."""
    z: Tensor
    """The replicas of this rank at beta = 1, ``(T, C, *state)``."""
    accept_prob: Tensor
    """The mean acceptance of the kernel at each rung; NaN for the base, ``(K,)``."""
    swap_prob: Tensor
    """The mean acceptance of swaps of each pair, ``(K - 1,)``."""

    def of_all_ranks(self) -> Ladder:
        """Returns what the chains of all ranks did, the same on each."""
        num_chains = self.excess.shape[1]
        return self._replace(
            excess=of_all_ranks(self.excess, 1),
            accept_prob=averaged(self.accept_prob, num_chains),
            swap_prob=averaged(self.swap_prob, num_chains),
        )

    def rungs(self, steps: Tensor) -> Rungs:
        """What is shown of it: the share of swaps stands for the effective part.

        Args:
            steps: What each gap adds to log Z, ``(K - 1,)``.
        """
        log_z = torch.cat([steps.new_zeros(1), steps]).cumsum(0)
        share = torch.cat([self.swap_prob.new_ones(1), self.swap_prob])
        return Rungs(self.betas, log_z, share, self.accept_prob)


def climb(
    made: Plan, num_chains: int, num_steps: int, num_rungs: int, generator: torch.Generator
) -> Ladder:
    """Runs replica exchange on equally distant rungs.

    Args:
        made: The plan.
        num_chains: The number of independent chains of this rank.
        num_steps: The number of steps to keep, after a fifth as many that are not.
        num_rungs: The number of rungs above the base.
        generator: Where the noise comes from.
    """
    path, betas = made.path, first(made.rungs(num_rungs))
    each = betas[1:].repeat_interleave(num_chains)
    step_sizes = made.step_size(each)
    start = made.near(betas[1:], num_chains, generator).flatten(0, 1)
    walkers = path.locate(start)
    kept, points = [], []
    accepted, swaps = torch.zeros_like(betas[1:]), torch.zeros_like(betas[1:])
    burn_in = math.ceil(BURN_IN * num_steps)
    for t in range(burn_in + num_steps):
        walkers, accept_prob = path.move(walkers, each, step_sizes, 1, generator)
        fresh = path.draw_base(num_chains, generator)
        walkers = type(walkers)(*map(torch.cat, zip(fresh, walkers, strict=True)))
        source, swap_prob = _swap(walkers, betas, t, generator)
        walkers = taken(walkers, source.flatten())
        if t >= burn_in:
            kept.append(walkers.excess.reshape(-1, num_chains).T)
            points.append(walkers.z[-num_chains:])
            accepted += accept_prob.double().reshape(num_rungs, -1).mean(1) / num_steps
            swaps += swap_prob.mean(1) / num_steps
        walkers = taken(walkers, torch.arange(num_chains, len(walkers.z), device=each.device))
    unmoved = accepted.new_full((1,), math.nan)
    return Ladder(
        betas, torch.stack(kept), torch.stack(points), torch.cat([unmoved, accepted]), swaps
    )


def _swap(
    walkers: Walkers, betas: Tensor, t: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Decides which row each place takes its replica from: ``(K, C)``, and with what chance."""
    excess = walkers.excess.reshape(len(betas), -1)
    log_ratio = betas.diff().unsqueeze(-1) * excess.diff(dim=0)
    swap_prob = log_ratio.clamp(max=0).exp().nan_to_num(nan=0.0)
    uniform = torch.rand(swap_prob.shape, generator=generator, device=betas.device)
    pair = torch.arange(len(swap_prob), device=betas.device).unsqueeze(-1)
    swapped = ((uniform < swap_prob) & ((pair + t) % 2 == 0)).long()
    none = torch.zeros_like(swapped[:1])
    level = torch.arange(len(betas), device=betas.device).unsqueeze(-1)
    source = level + torch.cat([swapped, none]) - torch.cat([none, swapped])
    num_chains = excess.shape[1]
    return source * num_chains + torch.arange(num_chains, device=betas.device), swap_prob


def draw_near(made: Plan, num_walkers: int, generator: torch.Generator) -> Walkers:
    """Draws walkers of the target by replica exchange, chain after chain.

    Args:
        made: The plan.
        num_walkers: How many; those of one chain come one after the other.
        generator: Where the noise comes from.
    """
    num_chains = min(NUM_CHAINS, num_walkers)
    each = math.ceil(num_walkers / num_chains)
    ladder = climb(made, num_chains, THIN * each, num_levels(made), generator)
    z = ladder.z[THIN - 1 :: THIN].transpose(0, 1).flatten(0, 1)
    return made.path.locate(z[:num_walkers])


def num_levels(made: Plan) -> int:
    """How many rungs let about half of the swaps of neighbours happen, or more."""
    return max(3, math.ceil(first(made.lengths[-1]).item()) + 1)
