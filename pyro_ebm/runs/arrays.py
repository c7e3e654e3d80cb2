"""Arrays of known length that fill up row by row, in memory or in files that ranks share."""

from __future__ import annotations

__all__ = ["Arrays", "write"]

import io
import math
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from numpy.lib.format import open_memmap, write_array_header_1_0
from torch import Tensor

from ..layout import empty_like


class Arrays:
    """Arrays ``(draw, chain, *shape)``, in memory if there is no path.

    Files are written, not assigned to through a memory map: that would hold on to memory, and a
    full disk would end the process by a signal in place of an OSError.

    Args:
        path: The folder of the files, if any.
        num_draws: How many rows there will be.
        held: The arrays, or what is known of the files, by key.
        num_chains: The number of chains.
        own: Those that are written here, where others write the others; of arrays in memory there
            are no others.
    """

    def __init__(
        self,
        path: Path | None,
        num_draws: int,
        held: dict[str, Any],
        num_chains: int,
        own: slice | None = None,
    ) -> None:
        self.path = path
        self.num_draws = num_draws
        self.held = held
        self.num_chains = num_chains
        self.own = slice(0, num_chains) if own is None else own
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)

    def up_to(self, count: int) -> dict[str, Any]:
        """The first rows, or where they are."""
        if self.path is not None:
            return {key: dict(about) for key, about in self.held.items()}
        # All rows are the tensor itself, of which a pickle then holds one copy.
        return {
            key: rows[:count] if count < len(rows) else rows for key, rows in self.held.items()
        }

    def take_up(self, arrays: dict[str, Any]) -> None:
        """Goes on with what there was, in files with room for more rows if there are to be more.

        Raises:
            ValueError: If a file of it is gone, or has room for more rows than there will be.
        """
        for key, found in arrays.items():
            if self.path is None:
                self.write(key, 0, found)
                continue
            file = self.path / found["file"]
            try:
                there = open_memmap(file, "r")
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{file} is gone or cut short: no run can go on from it"
                ) from error
            if len(there) > self.num_draws:
                raise ValueError(
                    f"{file} has room for {len(there)} draws: ask for as many, not for "
                    f"{self.num_draws}"
                )
            shape = (self.num_draws, *there.shape[1:])
            _fit(file, there.dtype, shape)
            self.held[key] = {**found, "shape": shape}

    def write(self, key: str, start: int, rows: Tensor) -> None:
        """Puts rows in their place, and makes room for all rows if there is none yet.

        Args:
            key: The name of the array, behind a prefix.
            start: Where the first belongs.
            rows: The rows of these chains, with shape ``(k, chain, *shape)``.
        """
        rows = (rows.float() if rows.dtype == torch.bfloat16 else rows).cpu()
        if self.path is None:
            if key not in self.held:
                one = rows.new_empty_strided(rows.shape[1:], rows.stride()[1:])
                _, self.held[key] = empty_like(one, self.num_draws)
            self.held[key][start : start + len(rows)] = rows
            return
        rows = rows.contiguous().numpy()
        if key not in self.held:
            file = f"{len(self.held):03d}-{quote(key.partition('/')[2], safe='')}.npy"
            shape = (self.num_draws, self.num_chains, *rows.shape[2:])
            self._make(self.path / file, rows.dtype, shape)
            self.held[key] = {"file": file, "dtype": rows.dtype.name, "shape": shape}
        if len(rows):
            rows = rows.astype(self.held[key]["dtype"], copy=False)
            size = rows[0].nbytes // rows.shape[1]
            all_rows = rows[None] if rows.shape[1] == self.num_chains else rows
            from_end = ((self.num_draws - start) * self.num_chains - self.own.start) * size
            pieces = [row.reshape(-1).view(np.uint8).data for row in all_rows]
            write(
                self.path / self.held[key]["file"],
                *pieces,
                from_end=from_end,
                apart=self.num_chains * size,
            )

    def _make(self, file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        """Makes a file of zeros; or of what is there, where another rank may have made it."""
        if self.own == slice(0, self.num_chains):
            open_memmap(file, "w+", dtype, shape)
            return
        header = _header(dtype, shape)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(file, flags, 0o666), "r+b", buffering=0) as opened:
            opened.write(header)
            opened.truncate(len(header) + math.prod(shape) * dtype.itemsize)

    def read(self, prefix: str, count: int) -> dict[str, Tensor]:
        """Looks at the first rows; what is done to a view of a file does not reach the file."""
        views = {}
        for key in self.held:
            if key.startswith(prefix):
                found = self.held[key]
                if self.path is not None:
                    found = torch.from_numpy(open_memmap(self.path / found["file"], "c"))
                views[key.removeprefix(prefix)] = found[:count].transpose(0, 1)
        return views


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The bytes before the rows; numpy leaves room in them for any number of rows."""
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def _fit(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Makes room in a file for more rows, where it has not got it; those that it has stay."""
    header = _header(dtype, shape)
    size = len(header) + math.prod(shape) * dtype.itemsize
    with open(file, "rb") as opened:
        if opened.read(len(header)) == header and file.stat().st_size == size:
            return
    with open(file, "r+b", buffering=0) as opened:
        opened.truncate(size)  # first, so that no file is shorter than it says
        opened.write(header)
        os.fsync(opened.fileno())


def write(
    path: Path, *pieces: bytes | memoryview, from_end: int | None = None, apart: int = 0
) -> None:
    """Puts bytes on the disk itself: in a new file, or in an old one.

    Args:
        path: The file.
        pieces: What to write.
        from_end: How far from the end of an old file the first piece begins.
        apart: How far from the beginning of one piece that of the next is.
    """
    with open(path, "wb" if from_end is None else "r+b", buffering=0) as file:
        begin = 0 if from_end is None else file.seek(-from_end, os.SEEK_END)
        for number, piece in enumerate(pieces):
            file.seek(begin + number * apart)
            left = memoryview(piece)
            while len(left):
                left = left[file.write(left) :]
        os.fsync(file.fileno())
