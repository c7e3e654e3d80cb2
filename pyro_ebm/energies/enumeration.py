r"""All points of a finite support, and sums over them.

.. math:: \log Z = \log \sum_x \exp(-E(x))
"""

from __future__ import annotations

__all__ = [
    "MAX_POINTS",
    "check_number_of_terms",
    "count_points",
    "enumerate_points",
    "log_sum_of_booleans",
    "log_sum_of_points",
    "random_points",
]

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.utils.checkpoint import checkpoint

from .alphabet import alphabet_of

MAX_POINTS = 2**22
"""The largest number of points that are summed over."""

_BLOCK = 2**21
"""How many numbers a block of a sum may hold."""


def count_points(support: constraints.Constraint, event_shape: Sequence[int]) -> int | None:
    """Counts the points of a support.

    Args:
        support: The support of one point.
        event_shape: The shape of one point.

    Returns:
        Their number; ``None`` if the support is no alphabet for each site.
    """
    alphabet = alphabet_of(support)
    if alphabet is None:
        return None
    shape = torch.Size(event_shape)
    if alphabet.one_hot:
        return shape[-1] ** shape[:-1].numel()
    return alphabet.size ** shape.numel()


def enumerate_points(
    support: constraints.Constraint, event_shape: Sequence[int], like: Tensor
) -> Tensor:
    """Lists all points of a support, the first site changing fastest.

    Args:
        support: The support of one point: booleans, spins, integers of an interval, one-hot
            vectors, or a tensor of these.
        event_shape: The shape of one point.
        like: A tensor whose dtype and device the points have.

    Returns:
        The points, with shape ``(n, *event)``.

    Raises:
        ValueError: If the support is not one of these, or has more than four million points.
    """
    alphabet, num_points = alphabet_of(support), count_points(support, event_shape)
    if num_points is None:
        raise ValueError(
            f"support {support} cannot be enumerated: booleans, spins, integer_interval with "
            "numbers as bounds, and one_hot can"
        )
    shape = torch.Size(event_shape)
    sites = shape[:-1] if alphabet.one_hot else shape
    size = shape[-1] if alphabet.one_hot else alphabet.size
    if num_points > MAX_POINTS:
        raise ValueError(
            f"a support of {size} to the {sites.numel()} points is too large to enumerate: at "
            f"most {MAX_POINTS} points are"
        )
    places = _digits(0, num_points, size, sites.numel(), like.device)
    return alphabet.decode(places.reshape(num_points, *sites), like, size)


def random_points(
    support: constraints.Constraint, event_shape: Sequence[int], batch: Sequence[int], like: Tensor
) -> Tensor:
    """Draws points of a finite support, all of them as likely.

    Args:
        support: The support of one point.
        event_shape: The shape of one point.
        batch: The shape of the draws.
        like: A tensor whose dtype and device the points have.

    Returns:
        The points, with shape ``(*batch, *event)``.
    """
    alphabet, shape = alphabet_of(support), torch.Size(event_shape)
    sites = shape[:-1] if alphabet.one_hot else shape
    size = shape[-1] if alphabet.one_hot else alphabet.size
    places = torch.randint(size, (*batch, *sites), device=like.device)
    return alphabet.decode(places, like, size)


@torch.no_grad()
def log_sum_of_points(
    log_weight: Callable[[Tensor], Tensor],
    support: constraints.Constraint,
    event_shape: Sequence[int],
    like: Tensor,
) -> Tensor:
    r"""Sums over all points of a support, block by block, in bounded memory and float64.

    .. math:: \log \sum_x \exp f(x)

    Args:
        log_weight: The function f, from points ``(n, *event)`` to nats ``(n,)``.
        support: The support of one point, as in :func:`enumerate_points`.
        event_shape: The shape of one point.
        like: A tensor whose dtype and device the points have.

    Returns:
        The sum in nats, without a gradient.
    """
    alphabet, num_points = alphabet_of(support), count_points(support, event_shape)
    shape = torch.Size(event_shape)
    sites = shape[:-1] if alphabet.one_hot else shape
    size = shape[-1] if alphabet.one_hot else alphabet.size
    rows = max(1, _BLOCK // max(shape.numel(), 1))
    total = torch.full((), -torch.inf, dtype=torch.float64, device=like.device)
    for start in range(0, num_points, rows):
        stop = min(start + rows, num_points)
        places = _digits(start, stop, size, sites.numel(), like.device)
        points = alphabet.decode(places.reshape(-1, *sites), like, size)
        total = torch.logaddexp(total, log_weight(points).double().logsumexp(0))
    return total


def check_number_of_terms(size: int, units: str) -> None:
    """Refuses a sum over more than four million vectors of booleans.

    Args:
        size: The length of a vector.
        units: What it is made of, for the message.

    Raises:
        ValueError: If there are too many.
    """
    if 2**size > MAX_POINTS:
        raise ValueError(
            f"log Z of {size} {units} is a sum over 2 to the {size} terms, more than "
            f"{MAX_POINTS}; estimate it with pyro_ebm.logz"
        )


def log_sum_of_booleans(
    log_weight: Callable[[Tensor], Tensor], size: int, like: Tensor, width: int
) -> Tensor:
    r"""Sums over all vectors of booleans, block by block, in bounded memory.

    .. math:: \log \sum_{x \in \{0, 1\}^S} \exp f(x)

    Differentiable in whatever f depends on: a block is evaluated once more on the way back.

    Args:
        log_weight: The function f, from ``(n, S)`` to nats ``(n, *batch)``.
        size: The length of a vector, S.
        like: A tensor whose dtype and device the vectors have.
        width: How many numbers f makes of one vector: it sets the size of a block.

    Returns:
        The sum in nats, with shape ``(*batch,)``.
    """
    rows = max(1, _BLOCK // max(width, size, 1))

    def block(start: int) -> Tensor:
        stop = min(start + rows, 2**size)
        return log_weight(_digits(start, stop, 2, size, like.device).to(like)).logsumexp(0)

    starts = range(0, 2**size, rows)
    if len(starts) == 1:
        return block(0)
    return torch.stack([checkpoint(block, s, use_reentrant=False) for s in starts]).logsumexp(0)


def _digits(start: int, stop: int, base: int, count: int, device: torch.device) -> Tensor:
    """Writes numbers in some base, lowest digit first, with shape ``(stop - start, count)``."""
    powers = base ** torch.arange(count, device=device)
    return torch.arange(start, stop, device=device).unsqueeze(-1) // powers % base
