"""Ctrl-C and the scheduler's warning, which wait until a block of work is done and saved."""

from __future__ import annotations

__all__ = ["Signals"]

import signal
import threading
from types import FrameType, TracebackType


class Signals:
    """Takes note of SIGINT and SIGTERM within a ``with``, in the main thread alone.

    The second of them is not waited with. What handled a signal before handles it in the end; one
    that was ignored, or handled outside of Python, is left as it is.

    Example:
        >>> with Signals() as signals:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     print("the block is done, and saved")
        ...     try:
        ...         signals.deliver()
        ...     except SystemExit as end:
        ...         print("exit status", end.code)
        the block is done, and saved
        exit status 143
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """The signal that waits, if any."""
        self._before: dict[int, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                if before not in (None, signal.SIG_IGN):
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if error is None:
            self.deliver()  # what came after the last block

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self.deliver()
        self.received = number

    def deliver(self) -> None:
        """Hands over the signal that waits, if one does.

        Raises:
            KeyboardInterrupt: If it is SIGINT, and nobody else handled that before.
            SystemExit: If it is SIGTERM, and nobody handled that before.
        """
        number, self.received = self.received, None
        if number is None:
            return
        before = self._before[number]
        if not callable(before):
            raise SystemExit(128 + number)
        before(number, None)
