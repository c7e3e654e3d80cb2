r"""Grids of sites, their neighbours, and the two halves of a checkerboard.

On a checkerboard the neighbours of a black site are white. A half is stored without gaps, as a
grid whose last side is half as long: entry k of a row is column 2k + p of the grid, with p the
parity of the row for one half and the other parity for the other.
"""

from __future__ import annotations

__all__ = ["Checkerboard", "grid_edges", "sum_of_neighbours"]

from collections.abc import Sequence

import torch
from torch import Tensor, nn


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


def sum_of_neighbours(x: Tensor, dims: Sequence[int], periodic: bool) -> Tensor:
    """Adds up what stands at the neighbours of each site.

    Args:
        x: Values on a grid.
        dims: The dimensions of the grid.
        periodic: Whether opposite edges are joined.
    """
    return sum(_behind(x, d, periodic) + _ahead(x, d, periodic) for d in dims)


def _behind(x: Tensor, dim: int, periodic: bool) -> Tensor:
    """Moves a grid so that each site holds what stood one before it."""
    rolled = x.roll(1, dim)
    return rolled if periodic else _without(rolled, dim, 0)


def _ahead(x: Tensor, dim: int, periodic: bool) -> Tensor:
    """Moves a grid so that each site holds what stood one after it."""
    rolled = x.roll(-1, dim)
    return rolled if periodic else _without(rolled, dim, x.shape[dim] - 1)


def _without(x: Tensor, dim: int, index: int) -> Tensor:
    """Sets to zero what has come in over an open edge."""
    return x.index_fill(dim, torch.tensor([index], device=x.device), 0)


class Checkerboard(nn.Module):
    """A colouring of a grid, and its halves where two colours do.

    Two colours do on an open grid and where all sides are even; an odd cycle needs a third.

    Args:
        shape: The sides of the grid.
        periodic: Whether opposite edges are joined.
    """

    def __init__(self, shape: Sequence[int], periodic: bool) -> None:
        super().__init__()
        self.periodic = periodic
        odd = periodic and any(side % 2 for side in shape)
        self.has_halves = not odd and shape[-1] % 2 == 0
        along = []
        for side in shape:
            colours = torch.arange(side) % 2
            if periodic and side % 2:
                colours[-1] = 2
            along.append(colours)
        mesh = torch.meshgrid(*along, indexing="ij")
        total = torch.stack(mesh).sum(0)
        self.register_buffer("colours", total % (3 if odd else 2), persistent=False)
        parity = total[..., :1] % 2 == 1  # of the rows: that of their first site
        self.register_buffer("parity", parity, persistent=False)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the two colours apart.

        Args:
            x: Values on the grid, with shape ``(*batch, *sites)``.

        Returns:
            Those of either colour, with shape ``(*batch, *rows, columns / 2)``.
        """
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        parity = self.parity
        return torch.where(parity, second, first), torch.where(parity, first, second)

    def merge(self, black: Tensor, white: Tensor) -> Tensor:
        """Puts two halves together again."""
        parity = self.parity
        first, second = torch.where(parity, white, black), torch.where(parity, black, white)
        return torch.stack([first, second], -1).flatten(-2)

    def sum_of_neighbours(self, other: Tensor, colour: int) -> Tensor:
        """Adds up, at the sites of a colour, what stands at their neighbours.

        Args:
            other: Values at the sites of the other colour, as :meth:`split` returns them.
            colour: The colour of the sites, 0 or 1.
        """
        rows = len(self.colours.shape) - 1
        total = other
        for dim in range(-rows - 1, -1):
            total = total + _behind(other, dim, self.periodic) + _ahead(other, dim, self.periodic)
        behind, ahead = _behind(other, -1, self.periodic), _ahead(other, -1, self.periodic)
        odd_row, even_row = (ahead, behind) if colour == 0 else (behind, ahead)
        return total + torch.where(self.parity, odd_row, even_row)
