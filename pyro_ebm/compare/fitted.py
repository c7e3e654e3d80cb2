"""Models that a comparison has fitted, kept so that one that was stopped goes on with the rest."""

from __future__ import annotations

__all__ = ["Fitted"]

import hashlib
import json
import os
from pathlib import Path

from ..version import __version__
from ..zoo.base import Generative
from .scorecard import Row


class Fitted:
    """A folder of fitted models, each with what its training took.

    Args:
        folder: The folder, made if it is not there; without one nothing is kept.
        described: All that a fitted model depends on beside its name, its seed and the version of
            the package: another description finds nothing.

    Raises:
        OSError: If the folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike | None, described: str = "") -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._digest = hashlib.sha256(f"{__version__}, {described}".encode()).hexdigest()[:12]
        self._read: list[str] = []

    @property
    def protocol(self) -> dict[str, str]:
        """Says which models were read in place of being fitted, if any."""
        read = ", ".join(self._read)
        return {"fitted by an earlier call": read} if read else {}

    def load(self, row: Row, seed: int) -> Generative | None:
        """Reads the model of a row, if it was fitted before, and what that took into the row."""
        if self.folder is None or not self._path(row, seed).exists():
            return None
        path = self._path(row, seed)
        took = json.loads(path.read_text(encoding="utf-8"))
        model = Generative.load(path.with_suffix(".safetensors"))
        row.train_seconds, row.train_passes = took["seconds"], took["passes"]
        row.train_memory = took.get("memory")
        self._read.append(f"{row.model} (seed {seed})")
        return model

    def save(self, row: Row, seed: int, model: Generative) -> None:
        """Keeps a fitted model; of one that cannot be, the row says why."""
        if self.folder is None:
            return
        path = self._path(row, seed)
        took = {
            "seconds": row.train_seconds,
            "passes": row.train_passes,
            "memory": row.train_memory,
        }
        try:
            model.save(path.with_suffix(".safetensors"))
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps(took), encoding="utf-8")
            fresh.replace(path)
        except (ImportError, OSError, ValueError) as error:
            row.notes.append(f"fitted, but not kept for another call: {error}")

    def _path(self, row: Row, seed: int) -> Path:
        return self.folder / f"{row.model}-{seed}-{self._digest}.json"
