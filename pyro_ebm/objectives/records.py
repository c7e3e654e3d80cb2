"""Numbers of every update, in memory that does not grow with the run."""

from __future__ import annotations

__all__ = ["Record"]

import random
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

RECENT = 2**13
"""How many of the last numbers are there as they were, at least."""

OLD = 2**16
"""How many of the numbers before those are kept, at most."""


class Record(Sequence[float]):
    """A number for each update: the last ones as they were, those of long ago thinned.

    It is a sequence as long as the run, which takes a bounded memory, half a MiB. The last 8,192
    numbers are exact, and so is all of a run of less than 65,536 updates. Of a longer one the
    number of an update before those is that of another one near it: of blocks of 2, then 4, 8, ...
    updates one was kept, any of them. So means, medians and figures of a whole run stay
    right, to the noise of fewer numbers, and single peaks of long ago may be missing. What wants a
    list, JSON or ``torch.save``, is given ``list(record)``.

    Args:
        numbers: Those to begin with.

    Example:
        >>> record = Record([2.0, 1.0])
        >>> record.append(0.5)
        >>> record[-1], len(record), record == [2.0, 1.0, 0.5]
        (0.5, 3, True)
    """

    __hash__ = None

    def __init__(self, numbers: Iterable[float] = ()) -> None:
        self.block = 1
        """Of how many updates one number was kept, further back than the last ones."""
        self._old, self._recent = array("d"), array("d")
        for number in numbers:
            self.append(number)

    def append(self, number: float) -> None:
        """Takes in the number of one more update."""
        self._recent.append(number)
        half = max(RECENT, self.block)
        if len(self._recent) == 2 * half:
            self._old += _thinned(self._recent[:half], self.block, len(self))
            self._recent = self._recent[half:]
            if len(self._old) == OLD:
                self._old, self.block = _thinned(self._old, 2, len(self)), 2 * self.block

    def until(self, length: int) -> Record:
        """Returns the record as it was after so many updates, as far as it still knows."""
        half = max(RECENT, self.block)
        whole = min(length, self._num_old) // half * half
        found = Record()
        found.block, found._old = self.block, self._old[: whole // self.block]
        found._recent = array("d", self[whole:length])
        return found

    def state_dict(self) -> dict[str, Any]:
        """Returns what it holds."""
        old, recent = (torch.from_numpy(np.array(x)) for x in (self._old, self._recent))
        return {"old": old, "recent": recent, "block": self.block}

    def load_state_dict(self, found: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` of another one returned."""
        self.block = found["block"]
        self._old, self._recent = _array(found["old"]), _array(found["recent"])

    @property
    def nbytes(self) -> int:
        """The memory that it takes, in bytes."""
        return sys.getsizeof(self._old) + sys.getsizeof(self._recent)

    @property
    def _num_old(self) -> int:
        return self.block * len(self._old)

    def __len__(self) -> int:
        return self._num_old + len(self._recent)

    def __getitem__(self, key: Any) -> Any:  # noqa: ANN401  a number, or a list of a slice
        if isinstance(key, slice):
            begin, end, by = key.indices(len(self))
            if by > 0 and begin < self._num_old:
                return list(islice(self, begin, end, by))
            return [self[i] for i in range(begin, end, by)]
        i = key + len(self) if key < 0 else key
        if not 0 <= i < len(self):
            raise IndexError(f"a record of {len(self)} numbers has none at {key}")
        return self._old[i // self.block] if i < self._num_old else self._recent[i - self._num_old]

    def __iter__(self) -> Iterator[float]:
        blocks = (repeat(number, self.block) for number in self._old)
        return chain(chain.from_iterable(blocks), self._recent)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"<Record of {len(self)} numbers, the last of them {self[-5:]}>"


def _thinned(numbers: array, block: int, seed: int) -> array:
    """Keeps one number of each block, a power of 2: any, so that none of a cycle is left out."""
    which = random.Random(seed)
    firsts = range(0, len(numbers), block)
    return array("d", (numbers[i + which.getrandbits(32) % block] for i in firsts))


def _array(numbers: Tensor) -> array:
    return array("d", numbers.numpy().tobytes())
