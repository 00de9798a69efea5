"""Stopping when told to: by Ctrl-C (SIGINT), or by SIGTERM, which clusters send before they take a machine away."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run was told to stop and has: `str()` says how to go on, `status` is the exit status, 128 + the signal's number."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(text)
        self.status = 128 + number


class Signals:
    """`with Signals() as signals:` then `signals.stop` is the number of the signal that came, or 0: whoever asks decides when.

    A second Ctrl-C is not kept waiting: it is a `KeyboardInterrupt` at once. Outside the main thread, where Python handles no
    signals, nothing is changed. `patient`: no Ctrl-C is ever the second one (torchrun passes on the one that it got itself).
    """

    def __init__(self, patient: bool = False) -> None:
        self.stop = 0
        self.patient = patient
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in STOPS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.stop == number == signal.SIGINT and not self.patient:
            raise KeyboardInterrupt
        self.stop = self.stop or number
