"""What every parallel tempering has in common: neighbours swap, and levels are placed anew."""

from __future__ import annotations

__all__ = ["EachLevel", "equal_rejection", "even_odd_swaps", "moments_of_all_ranks"]

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..ranks.group import mean, num_ranks, total

if TYPE_CHECKING:
    from .adaptation import Adaptation

ROUNDS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
"""The parts of warmup after which the levels are placed anew."""

MIN_REJECTION = 1e-3
"""The rejection of a pair of levels that counts for 0, as a part of their distance in beta."""


class EachLevel:
    """What tunes the inner kernel at each level.

    Args:
        levels: What tunes it, for each level but the first.
        warmup_steps: The number of steps in which to do it.
    """

    rejoined = None  # swaps bring a lost chain back

    def __init__(self, levels: list[Adaptation], warmup_steps: int) -> None:
        self.levels = levels
        self.warmup_steps = warmup_steps
        self.ends = {max(1, int(part * warmup_steps)) for part in ROUNDS}
        self.t = 0

    def state_dict(self) -> dict[str, Any]:
        """Returns all that it has learned, with which another one goes on."""
        return {"levels": [level.state_dict() for level in self.levels], "t": self.t}

    def load_state_dict(self, found: dict[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` of one for as many steps returned."""
        for level, own in zip(self.levels, found["levels"], strict=True):
            level.load_state_dict(own)
        self.t = found["t"]


def even_odd_swaps(
    betas: Tensor, excess: Tensor, num_swaps: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Swaps neighbours: even pairs of levels in even steps, odd ones in odd steps.

    .. math:: \alpha_k = \min\left(1, \exp\left((\beta_{k + 1} - \beta_k) (V_{k + 1} - V_k)
        \right)\right)

    Args:
        betas: The inverse temperatures, rising, with shape ``(K,)``.
        excess: The potential at the target less that at the base, V, of the replica at each level,
            with shape ``(C, K)``; infinite where it is not finite.
        num_swaps: The number of the step, 0-d.
        uniform: Uniform draws, with shape ``(C, K - 1)``.

    Returns:
        The acceptance of each pair, whether its turn or not, with shape ``(C, K - 1)``, and the
        level from which the replica now at each level comes, with shape ``(C, K)``.
    """
    levels = uniform.shape[1]
    log_ratio = betas.diff() * excess.diff()
    swap_prob = log_ratio.clamp(max=0).exp().nan_to_num(nan=0.0)
    pair = torch.arange(levels, device=betas.device)
    swapped = (uniform < swap_prob) & ((pair + num_swaps) % 2 == 0)
    level = torch.arange(levels + 1, device=betas.device)
    return swap_prob, level + pad(swapped.long(), (0, 1)) - pad(swapped.long(), (1, 0))


def equal_rejection(betas: Tensor, swap_prob_sum: Tensor, num_swaps: Tensor) -> Tensor:
    """Places the levels so that an equal share of all rejections lies between neighbours.

    Args:
        betas: The inverse temperatures, with shape ``(K,)``.
        swap_prob_sum: The sum of the acceptance of the pairs between them over steps, with shape
            ``(C, K - 1)``; chains of all ranks count.
        num_swaps: The number of these steps, 0-d.

    Returns:
        New inverse temperatures, with shape ``(K,)``.
    """
    before, swap_prob = betas.double(), mean(swap_prob_sum)[0] / num_swaps.clamp(min=1)
    share = 1 - swap_prob + MIN_REJECTION * before.diff()
    below = pad(share.cumsum(0), (1, 0)).cpu().numpy()
    wanted = np.linspace(0.0, below[-1], len(below))
    placed = torch.from_numpy(np.interp(wanted, below, before.cpu().numpy()))
    return placed.to(betas)


def moments_of_all_ranks(moments: list[Tensor], num_chains: int) -> tuple[Tensor, Tensor]:
    """Means and variances over the chains of all ranks, by those over one's own.

    Args:
        moments: Mean and variance at each step, with shape ``(2, D)``.
        num_chains: The number of one's own chains.

    Returns:
        Means and variances at each step, with shape ``(T, D)``.
    """
    means, variances = torch.stack(moments).unbind(1)
    if num_ranks() > 1:
        squares = variances + means.square()
        count = means.new_tensor(num_chains)
        means, squares, count = total(count * means, count * squares, count)
        means = means / count
        variances = squares / count - means.square()
    return means, variances
