"""Independent walkers that ranks share: each moves its own, and all know what all found."""

from __future__ import annotations

__all__ = ["averaged", "num_own", "of_all_ranks", "spent"]

import torch
from torch import Tensor

from ..ranks.group import gathered, num_ranks, share, total
from .plan import Plan


def num_own(num: int, groups: int) -> int:
    """Returns how many walkers are this rank's: groups stay whole.

    Args:
        num: The number of walkers of all ranks.
        groups: The number of groups of as many that they are in.

    Raises:
        ValueError: If there are more ranks than groups.
    """
    if num_ranks() > groups:
        raise ValueError(
            f"the walkers are {groups} independent groups, and that many ranks at most can share "
            f"them, got {num_ranks()}"
        )
    own = share(groups)
    return (own.stop - own.start) * (num // groups)


def of_all_ranks(x: Tensor, dim: int = 0) -> Tensor:
    """Joins what the walkers of all ranks found, along the dimension that has a place for each."""
    if num_ranks() == 1:
        return x
    return gathered(x.movedim(dim, 0).contiguous()).movedim(0, dim)


def averaged(x: Tensor, num: int) -> Tensor:
    """Averages means over walkers of this rank, ``num`` of them, to means over those of all."""
    if num_ranks() == 1:
        return x
    sums, count = total(x * num, torch.tensor(num).to(x))
    return sums / count


def spent(made: Plan, before: int) -> int:
    """Returns how many gradients were taken for an estimate, the planning included.

    Args:
        made: The plan.
        before: Those that it counted before walkers set out, the same on every rank.
    """
    (num_gradients,) = total(torch.tensor(made.path.num_gradients - before))
    return before + int(num_gradients)
