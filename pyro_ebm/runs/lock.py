"""One process at a time in a folder, and no trace of one that was killed.

The kernel of the machine holds the lock, for as long as the process lives: ``kill -9`` frees it.
"""

from __future__ import annotations

__all__ = ["Lock"]

import errno
import functools
import os
import platform
import time
import warnings
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows, where nothing is locked
    fcntl = None

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class Lock:
    """Holds a folder within a ``with``, against other processes and others in this one.

    The file ``lock`` in the folder says who holds it; it stays. A process that this one forks does
    not hold the folder.

    Args:
        folder: The folder, which has to be there.

    Raises:
        RuntimeError: If it is held by another, naming the folder, the process, and the way out.
        OSError: If the folder cannot be written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with Lock(folder), Lock(folder):
        ...     pass
        Traceback (most recent call last):
        ...
        RuntimeError: ... is in use: process ... on ..., since ... Wait until it has ended...
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self._file: int | None = None

    def __enter__(self) -> Lock:
        if fcntl is None:
            return self
        file = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._take(file)
            _write(file, f"process {os.getpid()} on {platform.node()}, since {time.ctime()}")
        except BaseException:
            os.close(file)
            raise
        _watch_forks()
        _held.add(file)
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        file, self._file = self._file, None
        if file in _held:  # and not in a fork, which has let go of it
            _held.remove(file)
            os.close(file)

    def _take(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(file, 1000).decode(errors="replace") or "another process"
            raise RuntimeError(
                f"{self.folder} is in use: {holder}. Wait until it has ended, end it (after "
                "SIGTERM it saves first), or give another folder"
            ) from error
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            warnings.warn(
                f"{self.folder} cannot be locked ({error.strerror}): see to it that no other "
                "process runs in it",
                stacklevel=2,
            )


_held: set[int] = set()
"""The files of the locks of this process."""


def _write(file: int, text: str) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, text.encode(), 0)


@functools.cache
def _watch_forks() -> None:
    """What a fork has of a lock would hold it when this process is long dead."""
    os.register_at_fork(after_in_child=_let_go)


def _let_go() -> None:
    while _held:
        os.close(_held.pop())
