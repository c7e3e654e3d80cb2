r"""Chains that warmup has lost, and where they go on from.

A target can have a region, far above where its mass is, that is so flat or so narrow that a chain
which starts there stays for the whole run: a mixture, say, of which one component takes all
observations, so that the other is free. Such a chain says nothing of the target, and what is tuned
on all chains is spoiled by it. Of :math:`C` chains in :math:`D` dimensions, one is lost if

.. math:: U_c > U_{(C / 4)} + 10 \, (D + 1),

:math:`U_{(C / 4)}` being the lowest quartile. A place so far up can weigh as much as where that
quarter is only if it is :math:`e^{10}`, 22,000, times as wide in every dimension; and if the
target is log-concave, a draw is so far above the mean of U with a probability below
:math:`e^{-7.6 D}`.

References:
    | Optimal concentration of information content for log-concave densities (Fradelizi, Madiman
    | and Wang, 2016), https://arxiv.org/abs/1508.04093
"""

from __future__ import annotations

__all__ = ["lost_chains", "rejoin"]

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from ..layout import copy_in_order, memory_order
from ..ranks.group import num_ranks, own_rows, total

if TYPE_CHECKING:
    from .transition import State

S = TypeVar("S", bound="State")

NATS = 10.0
"""How far up a chain may be, for each dimension and once more."""


def lost_chains(potential: Tensor, dim: int) -> Tensor:
    """Says which chains are hopelessly far above the lowest quarter, at least two, of them.

    Args:
        potential: U of each chain in nats, with shape ``(C,)``.
        dim: The dimension :math:`D` of the target.

    Returns:
        Whether each is lost, ``(C,)``.

    Example:
        >>> lost_chains(torch.tensor([3.0, 31.0, 34.0, 2.0]), dim=2)
        tensor([False, False,  True, False])
    """
    num_chains = len(potential)
    quarter = min(max(1, num_chains // 4), num_chains - 1)
    return potential > potential.sort().values[quarter] + NATS * (dim + 1)


def rejoin(state: S, lost: Tensor) -> S:
    """Puts each lost chain on the place of another, taken evenly from all that are not lost.

    Args:
        state: Where the chains are.
        lost: Which are lost, ``(C,)``, not all; of several ranks the chains of all, since one may
            go on from the place of another rank's.

    Returns:
        Where they go on: two chains at one place part with their next momentum.
    """
    others = lost.long().argsort(stable=True)
    turn = (lost.cumsum(0) - 1) * (~lost).sum() // lost.sum().clamp(min=1)
    source = torch.where(lost, others[turn], torch.arange(len(lost), device=lost.device))
    if num_ranks() > 1:
        return _rejoin_over_ranks(state, lost, source)
    z, grad = (copy_in_order(x[source], memory_order(x)) for x in (state.z, state.grad))
    return state._replace(z=z, potential=state.potential[source], grad=grad)


def _rejoin_over_ranks(state: S, lost: Tensor, source: Tensor) -> S:
    """Sends where lost chains go on from to all ranks: what is not here adds nothing."""
    own, index = own_rows(len(state.z)), lost.nonzero().flatten()
    if not len(index):
        return state
    source = source[index] - own.start
    elsewhere = (source < 0) | (source >= len(state.z))
    parts = (state.z, state.potential, state.grad)
    rows = [part[source.masked_fill(elsewhere, 0)] for part in parts]
    for row in rows:
        row[elsewhere] = 0.0
    mine = (index >= own.start) & (index < own.stop)
    z, potential, grad = (copy_in_order(part, memory_order(part)) for part in parts)
    for part, sent in zip((z, potential, grad), total(*rows), strict=True):
        part[index[mine] - own.start] = sent[mine]
    return state._replace(z=z, potential=potential, grad=grad)
