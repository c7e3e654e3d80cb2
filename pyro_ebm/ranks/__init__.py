r"""Many processes at one piece of work.

``torchrun`` starts a script :math:`R` times, as ranks :math:`0, \dots, R - 1`. After
:func:`start` the work is shared: each rank of an :class:`~pyro_ebm.MCMC` moves its own chains,
each rank of a training its own data and its own persistent chains. Without ``torchrun``, and
without :func:`start`, there is one rank, and every function here does what it does for one::

    ebm.ranks.start()
    shard = x[ebm.ranks.share(len(x))]

What the ranks have in common, they do together: every rank has to come to it, and in the same
order. A call that only one rank makes (in an ``if ebm.ranks.rank() == 0:``) belongs in
:func:`alone`.
"""

from .group import (
    alone,
    first,
    gathered,
    mean,
    num_ranks,
    own_stream,
    rank,
    share,
    start,
    total,
    wait,
)
from .training import Averaged, average_gradients

__all__ = [
    "Averaged",
    "alone",
    "average_gradients",
    "first",
    "gathered",
    "mean",
    "num_ranks",
    "own_stream",
    "rank",
    "share",
    "start",
    "total",
    "wait",
]
