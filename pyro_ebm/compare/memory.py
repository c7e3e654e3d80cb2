"""How much memory a piece of work holds at its peak, as the system counts it."""

from __future__ import annotations

__all__ = ["PeakMemory"]

import ctypes
import gc
from pathlib import Path

import torch
from torch import nn
from typing_extensions import Self


class PeakMemory:
    r"""Measures the most that work holds beyond what was held before it, while it is open.

    On a CUDA device it is what torch had allocated there. On the CPU it is the growth of the peak
    resident set of the process, of whatever thread or library: memory that was freed is given back
    to the system before, so that none of it is used again unseen, and the peak is set to what is
    resident. It holds the code that is loaded at its first use, and what the allocator rounds up.

    Where the system cannot set the peak back, which takes Linux with the C library of GNU, nothing
    is measured: a peak of earlier work would hide what this does.

    Args:
        module: Where its parameters are is where the work is: on the CPU if it has none.

    Example:
        >>> network = torch.nn.Linear(8, 8)
        >>> with PeakMemory(network) as memory:
        ...     _ = network(torch.ones(500_000, 8))  # 16 MB in, 16 MB out
        >>> memory.peak is None or 30 < memory.peak < 60
        True
    """

    def __init__(self, module: nn.Module) -> None:
        self.device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self.peak: float | None = None
        """The most that was held beyond what was held before, in MB of 1,000,000 bytes."""
        self.reason: str | None = None
        """Why nothing was measured, where that is so."""

    def __enter__(self) -> Self:
        gc.collect()
        try:
            self._before = self._reset()
        except (OSError, AttributeError) as error:
            self._before = None
            self.reason = f"the peak of the process cannot be set back ({error})"
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            self.peak = (self._read() - self._before) / 1e6

    def _reset(self) -> int:
        """Sets the peak to what is held now, and returns that in bytes."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with Path("/proc/self/clear_refs").open("w") as clear:
                ctypes.CDLL(None).malloc_trim(0)
                clear.write("5")
        return self._read()

    def _read(self) -> int:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device)
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        (peak,) = (line for line in lines if line.startswith("VmHWM:"))
        return 1024 * int(peak.split()[1])
