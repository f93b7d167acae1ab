"""Ctrl-C and SIGTERM ask a training to stop: the step under way is finished and saved first."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Listens while it is open. `alone`: a second Ctrl-C ends at once.

    Where several processes train, the terminal and the launcher both pass a signal on, so the
    second one means nothing.
    """

    def __init__(self, *, alone: bool) -> None:
        self.asked = False
        self._alone = alone
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and self._alone:
            raise KeyboardInterrupt
        self.asked = True
