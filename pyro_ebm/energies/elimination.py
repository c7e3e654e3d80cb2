r"""Exact log Z of a pairwise model by variable elimination.

.. math:: Z = \sum_x \prod_i e^{u_i(x_i)} \prod_{(i, j)} e^{w_{ij}(x_i, x_j)}

One site after the other is summed out; what it was tied to is then tied together. On a chain, a
ring or a strip this is the transfer matrix, on a tree belief propagation, and the cost grows
exponentially only with the number of sites that are tied together at a time.
"""

from __future__ import annotations

__all__ = ["MAX_TABLE", "elimination_order", "log_z_of_pairs"]

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_TABLE = 2**18
"""The largest table over the values of sites that are tied together."""


def elimination_order(num_sites: int, edges: Sequence[tuple[int, int]], limit: int) -> list[int]:
    """Orders the sites so that few are tied together at a time.

    The better of two orders: as they are numbered, which is right for a strip numbered across its
    width, and by the fewest neighbours left.

    Args:
        num_sites: The number of sites.
        edges: The pairs of sites that interact.
        limit: How many sites may be tied together.

    Returns:
        The sites, in the order in which they are summed out.

    Raises:
        ValueError: If neither order keeps to the limit.
    """
    for by_degree in (False, True):
        order = _order(num_sites, edges, limit, by_degree)
        if order is not None:
            return order
    raise ValueError(
        f"log Z of these {num_sites} sites is too large a sum: more than {limit} of them are tied "
        "together at a time; estimate it with pyro_ebm.logz"
    )


def log_z_of_pairs(unary: Tensor, edges: Sequence[tuple[int, int]], pairwise: Tensor) -> Tensor:
    """Sums out all sites, differentiably, in float64.

    Args:
        unary: The log weights of the values of each site, with shape ``(*batch, S, K)``.
        edges: M pairs of sites.
        pairwise: The log weights of the values of each pair, with shape ``(M, K, K)``.

    Returns:
        Log Z in nats, with shape ``(*batch,)`` and the dtype of ``unary``.

    Raises:
        ValueError: If the sum is too large: see :data:`MAX_TABLE`.
    """
    num_sites, num_values = unary.shape[-2:]
    limit = _most_sites(num_values)
    order = elimination_order(num_sites, edges, limit)
    position = {site: step for step, site in enumerate(order)}
    ones = (1,) * (unary.dim() - 2)
    factors = [((site,), unary.double()[..., site, :]) for site in range(num_sites)]
    for (i, j), table in zip(edges, pairwise.double(), strict=True):
        table = table if i < j else table.T
        factors.append(((min(i, j), max(i, j)), table.reshape(ones + table.shape)))
    buckets: list[list[tuple[tuple[int, ...], Tensor]]] = [[] for _ in order]
    for sites, table in factors:
        buckets[min(position[i] for i in sites)].append((sites, table))
    log_z = unary.new_zeros((), dtype=torch.float64)
    for site, own in zip(order, buckets, strict=True):
        scope = tuple(sorted({other for sites, _ in own for other in sites}))
        own.sort(key=lambda factor: len(factor[0]))  # the small ones first: their sum stays small
        total = sum(_spread(sites, table, scope) for sites, table in own)
        summed = total.logsumexp(scope.index(site) - len(scope))
        rest = tuple(other for other in scope if other != site)
        if rest:
            buckets[min(position[other] for other in rest)].append((rest, summed))
        else:
            log_z = log_z + summed
    return log_z.to(unary.dtype)


def _most_sites(num_values: int) -> int:
    """Counts the sites whose joint table is no larger than allowed."""
    count = 1
    while num_values ** (count + 1) <= MAX_TABLE:
        count += 1
    return count


def _spread(sites: tuple[int, ...], table: Tensor, scope: tuple[int, ...]) -> Tensor:
    """Gives a table a dimension for each site of a scope, of size one where it has none."""
    batch = table.shape[: table.dim() - len(sites)]
    num_values = table.shape[-1]
    return table.reshape(*batch, *(num_values if site in sites else 1 for site in scope))


def _order(
    num_sites: int, edges: Sequence[tuple[int, int]], limit: int, by_degree: bool
) -> list[int] | None:
    neighbours: list[set[int]] = [set() for _ in range(num_sites)]
    for i, j in edges:
        neighbours[i].add(j)
        neighbours[j].add(i)
    left, order = set(range(num_sites)), []
    while left:
        site = min(left, key=lambda i: len(neighbours[i])) if by_degree else len(order)
        tied = neighbours[site]
        if len(tied) >= limit:
            return None
        for other in tied:
            neighbours[other] |= tied
            neighbours[other] -= {site, other}
        left.remove(site)
        order.append(site)
    return order
