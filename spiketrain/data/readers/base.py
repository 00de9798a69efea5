"""What all readers share: the bytes of one file, errors that name file and byte, and a growing array of events.

A reader hands its events over in blocks (`EventList.add`), so that what it computes in between stays in the processor's
cache and no temporary array is as long as the file.
"""

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiketrain.data.types import EVENT, Recording
from spiketrain.errors import UserError

BLOCK = 1 << 15
"""Events (or words) decoded at a time."""

BACKWARD = 100_000
"""µs that time may step back from one event to the next. Read-out reorders events by a few ms at most; a longer step
is a damaged file, or two recordings in one."""

FORWARD = 86_400_000_000
"""µs (one day) that may pass between two events. More is a damaged time stamp."""

INFLATE = 100
"""Times that packed data may grow, beyond `SMALL` bytes: event data pack 2 to 10 times, a memory bomb 1,000 times."""

SMALL = 64 << 20

Size = tuple[int, int]
Column = NDArray[Any]


@dataclass(frozen=True)
class Source:
    """One file's name and bytes."""

    path: Path
    data: bytes

    def error(self, at: int, what: str) -> UserError:
        """The error for what is wrong at byte `at`. `what` says what it is and what to do."""
        return UserError(f"{self.path}: byte {int(at)}: {what}")

    def cut(self, at: int, what: str) -> UserError:
        """The error for a file that ends inside of something that starts at byte `at`."""
        return self.error(at, f"{what} is cut short by the end of the file ({len(self.data)} bytes); copy the file again")

    def records(self, at: int, dtype: Any) -> NDArray[Any]:
        """Everything from byte `at` on as records of one dtype; an error if the last one is incomplete."""
        step = np.dtype(dtype).itemsize
        rest = len(self.data) - at
        if rest % step:
            raise self.cut(at + rest - rest % step, f"a record of {step} bytes")
        return np.frombuffer(self.data, dtype, rest // step, at)

    def packed(self, at: int, claimed: int, stored: int) -> None:
        """An error if `claimed` bytes cannot honestly come out of `stored` ones; called before memory is taken."""
        if not 0 <= claimed <= max(SMALL, INFLATE * stored):
            raise self.error(at, f"{stored} stored bytes claim to unpack to {claimed}; the file is damaged or hostile")


def load(path: str | os.PathLike[str]) -> Source:
    """The bytes of a file. Raises `UserError` if it is missing, empty, unreadable, or not a regular file."""
    path = Path(path)
    try:
        # not blocking: opening a pipe would wait for ever; and what is no regular file is not read: a device would never end
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise UserError(f"{path}: byte 0: not a regular file; name one recording, not a folder or a device")
            with open(handle, "rb", buffering=0, closefd=False) as file:
                data = file.read()
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: byte 0: cannot be read ({reason}); check the path") from None
    if not data:
        raise UserError(f"{path}: byte 0: the file is empty; copy or download it again")
    return Source(path, data)


def text_header(source: Source, mark: bytes, end: bytes) -> tuple[bytes, int]:
    """The leading lines that begin with `mark`, and the byte where what follows them starts.

    A line that begins with `end` closes the header; without one it ends at the first line that does not begin with `mark`.
    A line holds no control characters, so that data which happen to begin with `mark` are not taken for one.
    """
    line = b"(?:" + re.escape(mark) + rb"[^\n\x00-\x08]*\n)"
    closing = re.compile(line + b"*?" + re.escape(end) + rb"[^\n]*\n").match(source.data) if end else None
    found = closing or re.compile(line + b"*").match(source.data)
    at = found.end() if found else 0
    if not closing and source.data.startswith(mark, at) and b"\n" not in source.data[at:]:
        raise source.cut(at, "a header line")
    return source.data[:at], at


def byte_of(first: int, step: int, rows: Column | None = None) -> Callable[[int], int]:
    """Where the i-th event of a block stands in the file: records of `step` bytes from byte `first`, `rows` of them kept."""
    return lambda i: first + step * (i if rows is None else int(rows[i]))


class EventList:
    """Events gathered block by block, checked on the way in.

    `bits` is the width of the format's clock where it may run over (32: after 2³² µs time goes on, not back).
    `size` is the sensor's, where known; it, or else the format's `bounds`, limits x and y. What fails is reported with
    the byte that the block's `at(index)` gives.
    """

    def __init__(
        self, source: Source, capacity: int, size: Size | None = None, bits: int = 0, bounds: Size = (1 << 16, 1 << 16)
    ):
        self.source, self.size, self.bits, self.bounds = source, size, bits, size or bounds
        self.count, self.epoch = 0, 0
        self.last: int | None = None
        self.events = np.empty(capacity, EVENT)

    def add(self, t: Column, x: Column, y: Column, p: Column, at: Callable[[int], int]) -> None:
        """Appends events; the columns are integers, t as int64."""
        n = len(t)
        if n == 0:
            return
        self._bound(x, y, p, at)
        t = self._in_time(t, at)
        if self.count + n > len(self.events):
            self.events.resize(2 * self.count + n, refcheck=False)
        part = self.events[self.count : self.count + n]
        part["t"], part["x"], part["y"], part["p"] = t, x, y, p
        self.count += n

    def done(self) -> Recording:
        """The recording; memory that was taken and not needed is given back."""
        if self.count < len(self.events):
            self.events.resize(self.count, refcheck=False)
        return Recording(self.events, self.size)

    def _bound(self, x: Column, y: Column, p: Column, at: Callable[[int], int]) -> None:
        for name, values, top in (("x", x, self.bounds[0]), ("y", y, self.bounds[1]), ("polarity", p, 2)):
            if values.max() >= top or (values.dtype.kind == "i" and values.min() < 0):
                index = int(np.flatnonzero((values >= top) | (values < 0))[0])
                what = f"{name} is {values[index]}, outside 0…{top - 1}"
                raise self.source.error(at(index), f"{what}; the file is damaged, or of another sensor")

    def _in_time(self, t: Column, at: Callable[[int], int]) -> Column:
        """The block's times, with the clock's overruns undone; an error where time leaps."""
        t = t + self.epoch if self.epoch else t
        last = int(t[0]) if self.last is None else self.last
        if t[0] < last or int(t[-1]) - last > FORWARD or (t[1:] < t[:-1]).any():
            t = self._uneven(t, last, at)
        self.last = int(t[-1])
        return t

    def _uneven(self, t: Column, last: int, at: Callable[[int], int]) -> Column:
        """`_in_time` for a block that has a step back or a long step forward."""
        before = np.concatenate(([last], t[:-1]))
        step = np.clip(t.astype(np.float64) - before, -9e18, 9e18).astype(np.int64)  # int64 might run over: t is untrusted
        if self.bits:
            over = (step < -(1 << (self.bits - 1))).astype(np.int64) << self.bits
            step += over
            over = np.cumsum(over)
            t, self.epoch = t + over, self.epoch + int(over[-1])
        wrong = np.flatnonzero((step < -BACKWARD) | (step > FORWARD))
        if len(wrong):
            index = int(wrong[0])
            way = f"back by {-int(step[index])}" if step[index] < 0 else f"on by {int(step[index])}"
            raise self.source.error(at(index), f"time leaps {way} µs; the file is damaged, or two recordings in one")
        return t
