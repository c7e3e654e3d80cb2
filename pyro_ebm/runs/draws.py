r"""The draws of many chains: in memory or in a folder, thinned, with moments that need no draw.

A chain of :math:`n` steps with mean :math:`\bar x` and sum of squares :math:`M = \sum (x - \bar
x)^2` takes in a block of :math:`n'` more, in float64, whatever is kept of them:

.. math:: \bar x \leftarrow \bar x + \frac{n'}{n + n'} (\bar x' - \bar x), \qquad
          M \leftarrow M + M' + \frac{n n'}{n + n'} (\bar x' - \bar x)^2
"""

from __future__ import annotations

__all__ = ["Draws", "Moments", "Sums", "refuse_draws"]

import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..layout import chains_innermost, memory_order, restored, stored
from ..potential import Potential
from ..ranks.group import gathered, num_ranks, rank, wait
from ..version import __version__
from .arrays import Arrays, write

FORMAT = 1
"""The layout of a folder of draws."""

OF_RANKS = 2
"""That of one to which several ranks have written."""

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
        own: Which of the chains these are, where ranks have shared them: what is kept is theirs,
            in a store that all ranks write.

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
        own: slice | None = None,
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
        self._own = slice(0, num_chains) if own is None else own
        self._potential: Potential | None = potential
        self._saved = [name for name in self.dims if save is None or name in save]
        self._arrays = Arrays(path, num_draws, {}, num_chains, self._own)
        self._shared = own is not None
        others = self._shared and rank() > 0
        self._about = f"rank-{rank()}.json" if others else "draws.json"
        self._slot = 0
        if going_on:
            self._arrays.take_up(going_on["arrays"])
            self._parts = [going_on["sums"]]
            self._slot = 1 - _slot_of(path, self._about)
            self._acknowledge(self._parts[0])
            return
        z = potential.start.new_zeros(self._own.stop - self._own.start, potential.dim)
        values = potential.constrain(chains_innermost(z))
        for name in self._saved:
            self._arrays.write(f"values/{name}", 0, values[name][None][:0])
        zeros = {name: torch.zeros_like(x, dtype=torch.float64) for name, x in values.items()}
        self._parts = [Sums(0, zeros, zeros, {}, {})]
        self._acknowledge(self._parts[0])

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
        if about["format"] not in (FORMAT, OF_RANKS):
            raise ValueError(f"only pyro_ebm {about['version']}, which wrote {path}, can read it")
        draws = cls._made_of(
            Arrays(path, about["num_draws"], about["arrays"], about["num_chains"]),
            [
                Sums(**torch.load(path / file, "cpu", weights_only=True))
                for file in _files_of_sums(path, about)
            ],
            num_chains=about["num_chains"],
            thin=about["thin"],
            dims={name: tuple(dims) for name, dims in about["dims"].items()},
        )
        if about.get("ranks", 1) > len(draws._parts):
            draws._parts = [part._replace(num_steps=0) for part in draws._parts]
        return draws

    @classmethod
    def _made_of(cls, arrays: Arrays, parts: list[Sums], **fields: object) -> Draws:
        """Makes draws for reading."""
        draws = cls.__new__(cls)
        draws.__dict__.update(fields)
        draws.num_draws, draws._arrays, draws._parts = arrays.num_draws, arrays, parts
        draws._potential = None
        return draws

    def __getstate__(self) -> dict[str, Any]:
        """Returns what it takes to read them, as :meth:`open` does."""
        return {**vars(self), "_potential": None}

    def of_all_ranks(self) -> Draws:
        """Returns those of all ranks, for reading: from the store, or with each a copy of all.

        Every rank has to call it, after it has made its own.
        """
        if not self._shared:
            return self
        if self._arrays.path is not None:
            wait()  # until all have written
            return Draws.open(self._arrays.path)
        arrays = {
            key: gathered(rows.transpose(0, 1).contiguous()).transpose(0, 1)
            for key, rows in self._arrays.up_to(self.count).items()
        }
        return Draws._made_of(
            Arrays(None, self.num_draws, arrays, self.num_chains),
            [self._parts[0].of_all_ranks()],
            num_chains=self.num_chains,
            thin=self.thin,
            dims=self.dims,
        )

    @property
    def num_steps(self) -> int:
        """The number of steps taken in, by the rank that is the furthest behind."""
        return min(part.num_steps for part in self._parts)

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
        sums = self._parts[0]
        size = max(1, PIECE // max(1, z.shape[1:].numel()))
        for i in range(0, len(z), size):
            piece = {name: values[i : i + size] for name, values in stats.items()}
            sums = self._take(sums, self._potential.constrain(z[i : i + size]), piece)
        self._acknowledge(sums)
        self._parts = [sums]

    def _take(self, sums: Sums, values: dict[str, Tensor], stats: dict[str, Tensor]) -> Sums:
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

    def _acknowledge(self, sums: Sums) -> None:
        """Makes the folder say that it has these steps; until then it says what it said before."""
        if self._arrays.path is None:
            return
        about = {
            "format": OF_RANKS if self._shared else FORMAT,
            "version": __version__,
            "num_draws": self.num_draws,
            "num_chains": self.num_chains,
            "thin": self.thin,
            "count": sums.num_steps // self.thin,
            "dims": self.dims,
            "arrays": self._arrays.held,
            "sums": f"{Path(self._about).stem.replace('draws', 'sums')}-{self._slot}.pt",
        }
        if self._shared:
            about |= {"ranks": num_ranks(), "chains": [self._own.start, self._own.stop]}
        buffer = io.BytesIO()
        torch.save(sums._asdict(), buffer)
        write(self._arrays.path / about["sums"], buffer.getbuffer())
        fresh = self._arrays.path / f"{self._about}.new"
        write(fresh, json.dumps(about, indent=1).encode())
        fresh.replace(fresh.with_suffix(""))
        self._slot = 1 - self._slot

    def state_dict(self) -> dict[str, Any]:
        """Returns what it takes to go on from here: of a store, where things are in it."""
        return {
            "sums": self._parts[0],
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
        return {
            name: torch.cat([part.totals[name].cpu() for part in self._parts])
            for name in self._parts[0].totals
        }

    def moments(self) -> dict[str, Moments]:
        """Returns the moments of every site, saved or not, over every step."""
        found = {}
        for name in self.dims:
            parts = [part.moments(name) for part in self._parts]
            found[name] = Moments(*map(torch.cat, zip(*parts, strict=True)))
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


def _slot_of(store: Path | None, about: str) -> int:
    """Which of two files of sums a folder speaks of."""
    try:
        return int(Path(json.loads((store / about).read_text())["sums"]).stem[-1])
    except (TypeError, OSError, ValueError, KeyError):
        return 1


def _files_of_sums(store: Path, about: dict[str, Any]) -> list[str]:
    """The files of sums of consecutive chains; a rank that has not yet written has none."""
    files, end = [about["sums"]], about.get("chains", [0, about["num_chains"]])[1]
    for number in range(1, about.get("ranks", 1)):
        path = store / f"rank-{number}.json"
        other = json.loads(path.read_text()) if path.exists() else {}
        if other.get("ranks") != about["ranks"] or other["chains"][0] != end:
            break
        files.append(other["sums"])
        end = other["chains"][1]
    return files


class Sums(NamedTuple):
    """What every step counts in, per chain, kept or not."""

    num_steps: int
    mean: dict[str, Tensor]
    squares: dict[str, Tensor]
    totals: dict[str, Tensor]
    pending: dict[str, Tensor]
    """Whether a flag was set since the last draw."""

    def of_all_ranks(self) -> Sums:
        """The sums of the chains of all ranks, on the CPU."""
        fields = [{k: gathered(x.cpu()) for k, x in field.items()} for field in self[1:]]
        return Sums(self.num_steps, *fields)

    def moments(self, name: str) -> Moments:
        """The mean and variance of a site."""
        n, mean = self.num_steps, self.mean[name]
        unknown = torch.full_like(mean, math.nan)
        variance = self.squares[name] / (n - 1) if n > 1 else unknown
        return Moments((mean if n else unknown).cpu(), variance.cpu())

    def plus(self, values: dict[str, Tensor], stats: dict[str, Tensor]) -> Sums:
        """The sums with consecutive steps more."""
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
        return Sums(self.num_steps + len(block), mean, squares, totals, self.pending)


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
