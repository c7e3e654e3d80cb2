r"""State on the disk that a kill, a full disk or a bad block cannot take away.

A folder holds the last two checkpoints, each a file that was written beside its place, brought to
the disk, and renamed: at any moment there is a whole one. A file is three lines, and then bytes:
what it is and its format; the SHA-256 of all the rest; as JSON who wrote it, and at which step;
and the state itself, as ``torch.save`` writes tensors, numbers, text and their lists and dicts. No
pickled code is ever loaded.
"""

from __future__ import annotations

__all__ = [
    "Checkpoints",
    "compare",
    "plain",
    "random_state",
    "rebuilt",
    "set_random_state",
]

import contextlib
import hashlib
import io
import json
import os
import pickle
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..ranks.divided import whole
from ..version import __version__
from .lock import Lock

FORMAT = 1
"""The layout of a checkpoint. The three lines before the state are the same in all formats."""

KEPT = 2
"""How many checkpoints a folder holds."""

TITLE = "pyro_ebm checkpoint"

NAMED_TUPLE = "named tuple"


class Checkpoints:
    """The checkpoints of one run, in a folder of their own.

    Args:
        folder: The folder, made if it is not there.
        every: The seconds from one checkpoint to the next that is due.

    Raises:
        ValueError: If ``every`` is negative.

    Example:
        >>> import tempfile
        >>> kept = Checkpoints(tempfile.mkdtemp(), every=0)
        >>> with kept.held():
        ...     kept.save(12, {"x": torch.ones(2)})
        >>> kept.load()
        {'x': tensor([1., 1.])}
    """

    def __init__(self, folder: str | os.PathLike, *, every: float = 30.0) -> None:
        if not every >= 0:
            raise ValueError(f"checkpoint_every must be at least 0 seconds, got {every}")
        self.folder = Path(folder)
        self.every = every
        self.step: int | None = None
        """The step of the last checkpoint that was written or read."""
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._last >= self.every

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Makes the folder, tries to write into it, and holds it against other processes.

        Raises:
            RuntimeError: If another one holds it.
            OSError: If it cannot be written.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(Lock(self.folder))
                _write(self.folder / "checkpoint.new", b"nothing yet")
                for left_behind in self.folder.glob("checkpoint*.new"):
                    left_behind.unlink()
            except OSError as error:
                what = f"checkpoint cannot be written: {error.strerror}"
                raise OSError(error.errno, what, str(self.folder)) from error
            yield

    def save(self, step: int, contents: dict[str, Any], beside: Sequence[Path] = ()) -> None:
        """Writes a checkpoint, and removes all but the last few once it is on the disk.

        Args:
            step: How far the run is; it may not fall.
            contents: What :func:`plain` takes.
            beside: Folders of files that it speaks of, whose names are brought to the disk first.

        Raises:
            OSError: If it cannot be written; what was there before stays, and is named.
        """
        buffer = io.BytesIO()
        torch.save(plain(contents), buffer)
        about = {"version": __version__, "torch": torch.__version__, "step": step}
        head = json.dumps(about).encode() + b"\n"
        title = f"{TITLE} {FORMAT}\n".encode()
        parts = (head, buffer.getbuffer())
        with self.advising():
            for folder in beside:
                _sync_folder(folder)
            _replace(self._path(step), title, _checksum(title, *parts), b"\n", *parts)
        self.step, self._last = step, time.monotonic()
        for _, path in self._found()[KEPT:]:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def advising(self) -> Iterator[None]:
        """Says with errors of the disk what was kept, and how to go on."""
        try:
            yield
        except OSError as error:
            what = (
                f"{error.strerror}: {self.kept}. Make room, and run the same again: it goes on "
                "from it"
            )
            raise OSError(error.errno, what, error.filename) from error

    @property
    def kept(self) -> str:
        """Says which the last one is."""
        if self.step is None:
            return "nothing was kept yet"
        return f"kept is {self._path(self.step)}, of step {self.step}"

    def load(self) -> dict[str, Any] | None:
        """Reads the newest checkpoint that is whole.

        One that is not is put aside under another name, and a warning says what is made again.

        Returns:
            What was saved, with named tuples as :func:`plain` writes them and tensors on the CPU;
            nothing if there is no checkpoint.

        Raises:
            ValueError: If another version of this package, or of torch, wrote it, or if there are
                checkpoints and none is whole.
        """
        damaged: list[tuple[int, Path, str]] = []
        for step, path in self._found():
            try:
                contents = _read(path)
            except _DamagedError as reason:
                damaged.append((step, path, str(reason)))
                continue
            for lost, bad, reason in damaged:
                bad.replace(bad.with_suffix(".damaged"))
                warnings.warn(
                    f"{bad} is damaged ({reason}): this run goes on from {path}, and makes steps "
                    f"{step + 1} to {lost} again",
                    stacklevel=4,
                )
            self.step = step
            return contents
        if damaged:
            named = ", ".join(f"{path.name} ({reason})" for _, path, reason in damaged)
            raise ValueError(
                f"{self.folder} has no checkpoint that is whole: {named}. To begin anew, give "
                "another folder"
            )
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step:012d}.pt"

    def _found(self) -> list[tuple[int, Path]]:
        """The checkpoints in the folder, the newest first."""
        paths = self.folder.glob("checkpoint-*.pt")
        return sorted(((int(p.stem.split("-")[1]), p) for p in paths), reverse=True)


class _DamagedError(Exception):
    """A file is not as it was written."""


def compare(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Makes sure that a run may go on from a checkpoint.

    Args:
        there: What was run when it was written, by name.
        here: What is run now.

    Raises:
        ValueError: If they differ, naming both sides.

    Example:
        >>> compare({"kernel": "MALA"}, {"kernel": "HMC"})
        Traceback (most recent call last):
        ...
        ValueError: the checkpoint is that of another run: kernel is MALA there and HMC here. ...
    """
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if names:
        differing = "; ".join(f"{n} is {there.get(n)} there and {here.get(n)} here" for n in names)
        raise ValueError(
            f"the checkpoint is that of another run: {differing}. Run the same, or give another "
            "folder"
        )


def random_state() -> dict[str, Any]:
    """Returns the state of torch's global generators."""
    of_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": of_devices}


def set_random_state(found: dict[str, Any]) -> None:
    """Sets the state of torch's global generators to what :func:`random_state` returned."""
    torch.set_rng_state(found["cpu"])
    for device, state in enumerate(found["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, device)


def _read(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    title, _, rest = data.partition(b"\n")
    checksum, _, rest = rest.partition(b"\n")
    if checksum != _checksum(title + b"\n", rest):
        raise _DamagedError(f"{len(data)} bytes, of which the checksum is another")
    head, _, state = rest.partition(b"\n")
    about = json.loads(head)
    of_format = int(title.decode().removeprefix(TITLE))
    there = f"format {of_format}, pyro_ebm {about['version']}, torch {about['torch']}"
    here = f"format {FORMAT}, pyro_ebm {__version__}, torch {torch.__version__}"
    if there != here:
        raise ValueError(
            f"{path} was written with {there}; this is {here}. Go on with what wrote it, or give "
            "another folder"
        )
    try:
        return torch.load(io.BytesIO(state), "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds code, and none of it was run: {error}") from error


def _checksum(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode()


def _replace(path: Path, *parts: bytes | memoryview) -> None:
    """Puts a file in its place at once: whole, or as it was."""
    fresh = path.with_suffix(".new")
    try:
        _write(fresh, *parts)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _write(path: Path, *parts: bytes | memoryview) -> None:
    with open(path, "wb", buffering=0) as file:
        for part in parts:
            left = memoryview(part)
            while len(left):
                left = left[file.write(left) :]
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Brings to the disk what names a folder has."""
    if os.name == "nt":  # which has no such call
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def plain(x: Any) -> Any:  # noqa: ANN401  a tree of anything that can be kept
    """Turns named tuples into dicts that say which they were, so that no code has to be loaded.

    Args:
        x: Tensors, numbers, text and ``None`` in dicts, lists, tuples and named tuples.

    Raises:
        TypeError: If there is anything else in it.

    Example:
        >>> from pyro_ebm.runs.draws import Moments
        >>> rebuilt(plain([Moments(torch.ones(()), 2.0), None]))
        [Moments(mean=tensor(1.), variance=2.0), None]
    """
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        kind = type(x)
        fields = {name: plain(value) for name, value in x._asdict().items()}
        return {NAMED_TUPLE: f"{kind.__module__}:{kind.__qualname__}", "fields": fields}
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(plain(value) for value in x)
    if isinstance(x, Tensor):
        return whole(x.detach())
    if x is None or isinstance(x, bool | int | float | str):
        return x
    raise TypeError(f"a checkpoint keeps no {type(x).__name__}")


def rebuilt(x: Any, device: torch.device | None = None) -> Any:  # noqa: ANN401
    """Undoes :func:`plain`.

    Args:
        x: What it returned.
        device: Where tensors belong, if not where they are.

    Raises:
        ValueError: If it names what is no named tuple of a module that is loaded.
    """
    if isinstance(x, dict) and NAMED_TUPLE in x:
        module, _, path = x[NAMED_TUPLE].partition(":")
        kind: Any = sys.modules.get(module)
        for name in path.split("."):
            kind = getattr(kind, name, None)
        fields = {name: rebuilt(value, device) for name, value in x["fields"].items()}
        known = isinstance(kind, type) and issubclass(kind, tuple)
        if not known or getattr(kind, "_fields", None) != tuple(fields):
            raise ValueError(
                f"the checkpoint has a {x[NAMED_TUPLE]} of {', '.join(fields)}, which is not here"
            )
        return kind(**fields)
    if isinstance(x, dict):
        return {key: rebuilt(value, device) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(rebuilt(value, device) for value in x)
    return x.to(device) if isinstance(x, Tensor) and device is not None else x
