r"""The draws of many chains: in memory or in a folder, thinned, with moments that need no draw.

A chain of :math:`n` steps with mean :math:`\bar x` and sum of squares :math:`M = \sum (x - \bar
x)^2` takes in a block of :math:`n'` more, in float64, whatever is kept of them:

.. math:: \bar x \leftarrow \bar x + \frac{n'}{n + n'} (\bar x' - \bar x), \qquad
          M \leftarrow M + M' + \frac{n n'}{n + n'} (\bar x' - \bar x)^2
"""

from __future__ import annotations

__all__ = ["Draws", "Moments", "refuse_draws"]

import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from .layout import chains_innermost, empty_like, memory_order, restored, stored
from .potential import Potential
from .version import __version__

FORMAT = 1
"""The layout of a folder of draws."""

PIECE = 2**21
"""The number of coordinates worked on at once, which bounds the memory beside the block itself."""

CACHED = 2**16
"""As many doubles as stay in a cache while they are summed up."""


class Moments(NamedTuple):
    """Mean and unbiased variance of a site in each chain, float64, ``(chain, *shape)``."""

    mean: Tensor
    variance: Tensor


class Draws:
    r"""Keeps every ``thin``-th step of many chains, and sums up all of them.

    Draws are the values of the sites in their own supports, and the statistics of their steps.
    ``num_draws`` counts what is kept, so ``num_draws * thin`` steps are to be made, as with
    emcee's ``thin_by`` (NumPyro's ``thinning`` divides ``num_samples``). Thinning loses draws and
    nothing else: moments and totals count every step, and a flag such as ``diverging`` is set at a
    draw if it was at any step since the draw before; a number is that of the draw's own step.

    Args:
        potential: What maps flat chains to the values of the sites.
        num_draws: The number of draws to keep, per chain.
        num_chains: The number of chains.
        thin: Of how many steps the last is kept.
        save: The names of the sites to keep, all if not given; with ``()`` nothing is kept per
            draw, statistics included: moments and totals remain.
        store: A folder for the draws, in place of memory: a ``.npy`` file ``(draw, chain,
            *shape)`` for each site and statistic, and ``draws.json``, which says what is there.
            Each :meth:`append` is on the disk when it returns, at the cost of some milliseconds
            and of the moments written anew: let blocks be long.
        going_on: What :meth:`state_dict` of draws like these returned; nothing of the store but
            what that had counts, and with ``{}`` nothing at all.

    Raises:
        ValueError: If ``thin`` is not positive, ``save`` names no site, ``store`` holds draws with
            nothing to go on from, or has lost some of those to go on from.

    Example:
        >>> import pyro_ebm as ebm
        >>> from pyro_ebm.potential import Potential
        >>> potential = Potential.of(ebm.Boltzmann(ebm.energies.Gaussian(torch.zeros(2), 1.0)))
        >>> draws = Draws(potential, num_draws=10, num_chains=4, thin=3)
        >>> for _ in range(2):
        ...     draws.append(torch.randn(15, 4, 2), {"diverging": torch.rand(15, 4) < 0.1})
        >>> draws.values()["x"].shape, draws.moments()["x"].mean.shape, draws.num_steps
        (torch.Size([4, 10, 2]), torch.Size([4, 2]), 30)
    """

    def __init__(
        self,
        potential: Potential,
        num_draws: int,
        num_chains: int,
        *,
        thin: int = 1,
        save: Sequence[str] | None = None,
        store: str | os.PathLike | None = None,
        going_on: dict[str, Any] | None = None,
    ) -> None:
        self.dims = {site.name: site.dims for site in potential.sites}
        if unknown := sorted(set(save or ()) - set(self.dims)):
            raise ValueError(f"save names no site: {unknown}; the sites are {sorted(self.dims)}")
        if thin < 1:
            raise ValueError(f"thin must be positive, got {thin}")
        path = None if store is None else Path(store)
        if path and going_on is None:
            refuse_draws(path)
        self.num_draws, self.num_chains, self.thin = num_draws, num_chains, thin
        self._potential: Potential | None = potential
        self._saved = [name for name in self.dims if save is None or name in save]
        self._arrays = _Arrays(path, num_draws, {})
        self._slot = 0
        if going_on:
            self._arrays.take_up(going_on["arrays"])
            self._sums = going_on["sums"]
            self._slot = _spare_slot(path)
            self._acknowledge(self._sums)
            return
        z = potential.start.new_zeros(num_chains, potential.dim)
        values = potential.constrain(chains_innermost(z))
        for name in self._saved:
            self._arrays.write(f"values/{name}", 0, values[name][None][:0])
        zeros = {name: torch.zeros_like(x, dtype=torch.float64) for name, x in values.items()}
        self._sums = _Sums(0, zeros, zeros, {}, {})
        self._acknowledge(self._sums)

    @classmethod
    def open(cls, folder: str | os.PathLike) -> Draws:
        """Reads a folder of draws, each array only when and where it is looked at.

        Args:
            folder: The ``store`` of a run that is over, still running, or dead.

        Raises:
            FileNotFoundError: If it holds no draws.
            ValueError: If it was laid out by another version of this package.
        """
        path = Path(folder)
        about = json.loads((path / "draws.json").read_text())
        if about["format"] != FORMAT:
            raise ValueError(f"only pyro_ebm {about['version']}, which wrote {path}, can read it")
        draws = cls.__new__(cls)
        for name in ("num_draws", "num_chains", "thin"):
            setattr(draws, name, about[name])
        draws.dims = {name: tuple(dims) for name, dims in about["dims"].items()}
        draws._arrays = _Arrays(path, draws.num_draws, about["arrays"])
        draws._potential = None
        draws._sums = _Sums(**torch.load(path / about["sums"], "cpu", weights_only=True))
        return draws

    @property
    def num_steps(self) -> int:
        """The number of steps taken in."""
        return self._sums.num_steps

    @property
    def count(self) -> int:
        """The number of draws kept so far, per chain."""
        return self.num_steps // self.thin

    @torch.no_grad()
    def append(self, z: Tensor, stats: dict[str, Tensor]) -> None:
        """Takes in consecutive steps: all of them, or none if it raises.

        Args:
            z: Unconstrained flat chains, with shape ``(step, chain, D)``.
            stats: What happened, with shape ``(step, chain)``, of the same names in every block.

        Raises:
            ValueError: If there is no room, or these draws were opened for reading.
            OSError: If the store cannot be written; what it held can still be read.
        """
        room = self.num_draws * self.thin - self.num_steps
        if self._potential is None or len(z) > room:
            why = "were opened for reading" if self._potential is None else f"have room for {room}"
            raise ValueError(f"cannot append {len(z)} steps to draws that {why}")
        sums = self._sums
        size = max(1, PIECE // max(1, self.num_chains * self._potential.dim))
        for i in range(0, len(z), size):
            piece = {name: values[i : i + size] for name, values in stats.items()}
            sums = self._take(sums, self._potential.constrain(z[i : i + size]), piece)
        self._acknowledge(sums)
        self._sums = sums

    def _take(self, sums: _Sums, values: dict[str, Tensor], stats: dict[str, Tensor]) -> _Sums:
        """Writes the draws of a piece where they belong; until they count, that does no harm."""
        start, skipped = divmod(sums.num_steps, self.thin)
        kept = slice(self.thin - 1 - skipped, None, self.thin)
        pending = dict(sums.pending)
        for name in self._saved:
            self._arrays.write(f"values/{name}", start, values[name][kept])
        for name, x in stats.items():
            rows = x[kept]
            if x.dtype == torch.bool and self.thin > 1:
                rows, pending[name] = _flags(x, kept, pending.get(name, 0))
            if self._saved:
                self._arrays.write(f"stats/{name}", start, rows)
        return sums.plus(values, stats)._replace(pending=pending)

    def _acknowledge(self, sums: _Sums) -> None:
        """Makes the folder say that it has these steps; until then it says what it said before."""
        if self._arrays.path is None:
            return
        about = {
            "format": FORMAT,
            "version": __version__,
            "num_draws": self.num_draws,
            "num_chains": self.num_chains,
            "thin": self.thin,
            "count": sums.num_steps // self.thin,
            "dims": self.dims,
            "arrays": self._arrays.held,
            "sums": f"sums-{self._slot}.pt",
        }
        buffer = io.BytesIO()
        torch.save(sums._asdict(), buffer)
        _write(self._arrays.path / about["sums"], buffer.getbuffer())
        fresh = self._arrays.path / "draws.json.new"
        _write(fresh, json.dumps(about, indent=1).encode())
        fresh.replace(fresh.with_suffix(""))
        self._slot = 1 - self._slot

    def state_dict(self) -> dict[str, Any]:
        """Returns what it takes to go on from here: of a store, where things are in it."""
        return {
            "sums": self._sums,
            "arrays": self._arrays.up_to(self.count),
        }

    def values(self) -> dict[str, Tensor]:
        """Returns the draws of the sites kept, views of shape ``(chain, draw, *shape)``."""
        return self._arrays.read("values/", self.count)

    def stats(self) -> dict[str, Tensor]:
        """Returns what happened at the draws, by ArviZ's names, of shape ``(chain, draw)``."""
        return self._arrays.read("stats/", self.count)

    def totals(self) -> dict[str, Tensor]:
        """Returns the sum of each statistic over every step, of shape ``(chain,)``."""
        return {name: total.cpu() for name, total in self._sums.totals.items()}

    def moments(self) -> dict[str, Moments]:
        """Returns the moments of every site, saved or not, over every step."""
        n, found = self.num_steps, {}
        for name, mean in self._sums.mean.items():
            unknown = torch.full_like(mean, math.nan)
            variance = self._sums.squares[name] / (n - 1) if n > 1 else unknown
            found[name] = Moments((mean if n else unknown).cpu(), variance.cpu())
        return found

    def r_hat(self) -> dict[str, Tensor]:
        r"""The classical R-hat of every site, from its moments alone: neither split nor ranked.

        .. math:: \hat R = \sqrt{\frac{n-1}{n} + \frac{B}{n W}}

        over chains of :math:`n` steps, :math:`B/n` the variance of their means and :math:`W` the
        mean of their variances; NaN for one chain or one step. Heavy tails and a drift that all
        chains share show only in :func:`~pyro_ebm.diagnostics.split_r_hat`, which needs draws.
        """
        found = {}
        for name, (mean, variance) in self.moments().items():
            between = (mean - mean.mean(0)).square().sum(0) / (self.num_chains - 1)
            found[name] = (1 - 1 / max(1, self.num_steps) + between / variance.mean(0)).sqrt()
        return found


def refuse_draws(store: Path) -> None:
    """Makes sure that a folder holds no draws.

    Args:
        store: The folder, if it is there.

    Raises:
        ValueError: If it does.
    """
    if (store / "draws.json").exists():
        raise ValueError(f"{store} holds draws: Draws.open reads them; give another store")


def _spare_slot(store: Path | None) -> int:
    """The file of sums that a folder does not speak of."""
    try:
        return 1 - int(json.loads((store / "draws.json").read_text())["sums"][len("sums-")])
    except (TypeError, OSError, ValueError, KeyError):
        return 0


class _Sums(NamedTuple):
    """What every step counts in, per chain, kept or not."""

    num_steps: int
    mean: dict[str, Tensor]
    squares: dict[str, Tensor]
    totals: dict[str, Tensor]
    pending: dict[str, Tensor]
    """Whether a flag was set since the last draw."""

    def plus(self, values: dict[str, Tensor], stats: dict[str, Tensor]) -> _Sums:
        mean, squares, totals = {}, {}, {}
        for name, block in values.items():
            weight = len(block) / (self.num_steps + len(block))
            block_mean, block_squares = _sums_over_steps(block)
            shift = block_mean - self.mean[name]
            mean[name] = self.mean[name].add(shift, alpha=weight)
            squares[name] = block_squares.add_(self.squares[name])
            squares[name].addcmul_(shift, shift, value=weight * self.num_steps)
        for name, block in stats.items():
            dtype = torch.float64 if block.is_floating_point() else torch.int64
            totals[name] = block.sum(0, dtype=dtype) + self.totals.get(name, 0)
        return _Sums(self.num_steps + len(block), mean, squares, totals, self.pending)


def _sums_over_steps(block: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over steps and the sum of squares about it, worked out in the order of memory."""
    order = memory_order(block[0])
    x = stored(block, (0, *(1 + i for i in order)))
    origin = x[0].to(torch.float64, copy=True)
    total, squares = torch.zeros_like(origin), torch.zeros_like(origin)
    for rows in x.split(max(1, CACHED // max(1, origin.numel()))):
        off = rows - origin
        total += off.sum(0) if len(off) > 1 else off[0]
        squares += off.square_().sum(0) if len(off) > 1 else off[0].square_()
    total /= len(x)
    squares.addcmul_(total, total, value=-len(x))
    return restored(origin.add_(total), order), restored(squares, order)


def _flags(flags: Tensor, kept: slice, pending: Tensor | int) -> tuple[Tensor, Tensor]:
    """Says which flags were set between a draw and the next, and which since the last draw."""
    so_far = flags.cumsum(0) + pending
    at_draws = torch.cat([torch.zeros_like(so_far[:1]), so_far[kept]])
    return at_draws.diff(dim=0) > 0, so_far[-1] > at_draws[-1]


class _Arrays:
    """Arrays ``(draw, chain, *shape)``, in memory if there is no path.

    Files are written, not assigned to through a memory map: that would hold on to memory, and a
    full disk would end the process by a signal in place of an OSError.
    """

    def __init__(self, path: Path | None, num_draws: int, held: dict) -> None:
        self.path = path
        self.num_draws = num_draws
        self.held = held
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)

    def up_to(self, count: int) -> dict[str, Any]:
        """The first rows, or where they are."""
        if self.path is not None:
            return {key: dict(about) for key, about in self.held.items()}
        return {key: rows[:count] for key, rows in self.held.items()}

    def take_up(self, arrays: dict[str, Any]) -> None:
        """Goes on with what there was."""
        for key, found in arrays.items():
            if self.path is None:
                self.write(key, 0, found)
                continue
            file = self.path / found["file"]
            try:
                open_memmap(file, "r")
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{file} is gone or cut short: no run can go on from it"
                ) from error
            self.held[key] = {**found, "shape": tuple(found["shape"])}

    def write(self, key: str, start: int, rows: Tensor) -> None:
        """Puts rows in their place, and makes room for all rows if there is none yet."""
        rows = (rows.float() if rows.dtype == torch.bfloat16 else rows).cpu()
        if self.path is None:
            if key not in self.held:
                one = rows.new_empty_strided(rows.shape[1:], rows.stride()[1:])
                _, self.held[key] = empty_like(one, self.num_draws)
            self.held[key][start : start + len(rows)] = rows
            return
        rows = rows.contiguous().numpy()
        shape = (self.num_draws, *rows.shape[1:])
        if key not in self.held:
            file = f"{len(self.held):03d}-{quote(key.partition('/')[2], safe='')}.npy"
            open_memmap(self.path / file, "w+", rows.dtype, shape)
            self.held[key] = {"file": file, "dtype": rows.dtype.name, "shape": shape}
        if len(rows):
            rows = rows.astype(self.held[key]["dtype"], copy=False)
            from_end = (self.num_draws - start) * rows[0].nbytes
            data = rows.reshape(-1).view(np.uint8).data
            _write(self.path / self.held[key]["file"], data, from_end)

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


def _write(path: Path, data: bytes | memoryview, from_end: int | None = None) -> None:
    """Puts bytes on the disk itself: in a new file, or in an old one, so far from its end."""
    with open(path, "wb" if from_end is None else "r+b", buffering=0) as file:
        if from_end is not None:
            file.seek(-from_end, os.SEEK_END)
        while len(data):
            data = data[file.write(data) :]
        os.fsync(file.fileno())
