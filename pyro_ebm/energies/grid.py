"""Grids of sites: their bonds, their neighbours and their colours."""

from __future__ import annotations

__all__ = ["grid_colours", "grid_edges", "sum_of_neighbours"]

from collections.abc import Sequence

import torch
from torch import Tensor


def grid_edges(shape: Sequence[int], periodic: bool) -> Tensor:
    """Lists the bonds of a grid, each once.

    Args:
        shape: The sides of the grid.
        periodic: Whether opposite edges are joined.

    Returns:
        Pairs of sites, numbered with the last side fastest, with shape ``(M, 2)``.
    """
    sites = torch.arange(torch.Size(shape).numel()).reshape(tuple(shape))
    bonds = []
    for dim, side in enumerate(shape):
        count = side if periodic else side - 1
        ahead = sites.roll(-1, dim).narrow(dim, 0, count)
        bonds.append(torch.stack([sites.narrow(dim, 0, count), ahead], dim=-1).reshape(-1, 2))
    return torch.cat(bonds)


def grid_colours(shape: Sequence[int], periodic: bool) -> Tensor:
    """Colours a grid so that no neighbours have the same colour.

    The two colours of a checkerboard do on an open grid and where all sides are even; an odd
    cycle needs a third.

    Args:
        shape: The sides of the grid.
        periodic: Whether opposite edges are joined.

    Returns:
        The colours 0, 1 and, where there is an odd cycle, 2, with the shape of the grid.
    """
    along = []
    for side in shape:
        colours = torch.arange(side) % 2
        if periodic and side % 2:
            colours[-1] = 2
        along.append(colours)
    odd = periodic and any(side % 2 for side in shape)
    return torch.stack(torch.meshgrid(*along, indexing="ij")).sum(0) % (3 if odd else 2)


def sum_of_neighbours(x: Tensor, dims: Sequence[int], periodic: bool) -> Tensor:
    """Adds up what stands at the neighbours of each site.

    Args:
        x: Values on a grid.
        dims: The dimensions of the grid.
        periodic: Whether opposite edges are joined.

    Returns:
        The sums, with the shape of ``x``.
    """
    total = torch.zeros_like(x) if not periodic else None
    for dim in dims:
        if periodic:
            behind = x.roll(1, dim)
            total = behind if total is None else total.add_(behind)
            total.add_(x.roll(-1, dim))
        else:
            count = x.shape[dim] - 1
            total.narrow(dim, 1, count).add_(x.narrow(dim, 0, count))
            total.narrow(dim, 0, count).add_(x.narrow(dim, 1, count))
    return total
