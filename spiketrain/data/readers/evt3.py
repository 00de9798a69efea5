"""Prophesee's EVT 3.0 `.raw`: a stream of 16-bit words that change a state."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiketrain.data.readers.base import BLOCK, EventList, Size, Source, byte_of
from spiketrain.data.readers.prophesee import header_of, unknown_words
from spiketrain.data.types import Recording

ADDR_Y, ADDR_X, BASE_X, VECT_12, VECT_8, TIME_LOW, TIME_HIGH = 0x0, 0x2, 0x3, 0x4, 0x5, 0x6, 0x8
KNOWN = frozenset((ADDR_Y, ADDR_X, BASE_X, VECT_12, VECT_8, TIME_LOW, TIME_HIGH, 0x7, 0xA, 0xE, 0xF))  # and triggers, others, continued
Y_BITS = 11

Numbers = NDArray[np.int64]


@dataclass
class _State:
    """What the words so far have set; −1 where none has."""

    y: int = -1
    high: int = -1
    low: int = 0
    base: int = -1  # bit 11 polarity, 10…0 x
    moved: int = 0  # by how much vectors have moved the base on


def read_evt3(source: Source, size: Size | None = None) -> Recording:
    """Events of a Prophesee EVT 3.0 `.raw` file: `%` lines, then words of 16 bits, little-endian. Bits 15…12 are the type:

        0 y: bits 10…0                         2 event: bit 11 polarity, 10…0 x
        3 base: bit 11 polarity, 10…0 x        4, 5 events at base + i where bit i of 12, or 8, is set; base moves on by as many
        6 time: bits 11…0, low                 8 time: bits 11…0, high; sets the low ones to zero

    Time in µs is high · 4096 + low; the 24-bit clock runs over every 17 s. Events before the first high time or y are skipped.

    Raises `UserError` for a header or word that is cut short, unknown word types, an event outside the sensor, and time
    that leaps. Source: Prophesee, "EVT 3.0 format" (Metavision documentation).
    """
    _, start, stated = header_of(source)
    words = source.records(start, "<u2")
    events = EventList(source, len(words), size or stated, bits=24, bounds=(2048 + 12, 2048))
    state = _State()
    for first in range(0, len(words), BLOCK):
        _block(source, words[first : first + BLOCK], start + 2 * first, state, events)
    return events.done()


def _block(source: Source, words: NDArray[np.uint16], at: int, state: _State, events: EventList) -> None:
    """Adds the events of some words, and leaves the state behind them."""
    kind = (words >> 12).astype(np.uint8)
    low: NDArray[np.uint16] = words & np.uint16(0xFFF)
    rows = np.flatnonzero(kind == ADDR_X)  # numbers, not a mask: a mask as irregular as this one is slow to pick by
    y_at, time_at = np.flatnonzero(kind == ADDR_Y), np.flatnonzero((kind == TIME_LOW) | (kind == TIME_HIGH))
    chosen = low.take(rows)
    x: NDArray[Any] = chosen & np.uint16(0x7FF)
    p: NDArray[np.uint16] = chosen >> np.uint16(11)
    if len(rows) + len(y_at) + len(time_at) < len(words):
        unknown_words(source, kind, KNOWN, at, 2)
        rows, x, p = _with_vectors(low, kind, rows, x, p, state)
    running, begin = _running(len(words), y_at, time_at, low, kind, state)
    if begin:
        late = rows >= begin
        rows, x, p = rows[late], x[late], p[late]
    found = running.take(rows)
    events.add(found >> Y_BITS, x, (found & 0x7FF).astype(np.uint16), p, byte_of(at, 2, rows))


def _running(
    n: int, y_at: Numbers, time_at: Numbers, low: NDArray[np.uint16], kind: NDArray[np.uint8], state: _State
) -> tuple[Numbers, int]:
    """At each of n words time · 2¹¹ + y, as the running sum of what each word changes; and the first word that has both."""
    ys, times = low[y_at].astype(np.int64) & 0x7FF, low[time_at].astype(np.int64)
    is_high = kind[time_at] == TIME_HIGH
    highs = np.concatenate(([max(state.high, 0)], times[is_high]))[np.cumsum(is_high)]
    times = (highs << 12) + np.where(is_high, 0, times)
    delta = np.zeros(n, np.int64)
    then = (max(state.high, 0) << 12) + state.low
    delta[y_at] = np.diff(ys, prepend=max(state.y, 0))
    delta[time_at] = np.diff(times, prepend=then) << Y_BITS
    delta[0] += (then << Y_BITS) + max(state.y, 0)
    first_y = 0 if state.y >= 0 else int(y_at[0]) if len(y_at) else n
    first_high = 0 if state.high >= 0 else int(time_at[is_high][0]) if is_high.any() else n
    if len(ys):
        state.y = int(ys[-1])
    if len(times) and (state.high >= 0 or is_high.any()):
        state.high, state.low = int(times[-1]) >> 12, int(times[-1]) & 0xFFF
    return np.cumsum(delta), max(first_y, first_high)


def _with_vectors(
    low: NDArray[np.uint16], kind: NDArray[np.uint8], single: Numbers, x: NDArray[np.uint16], p: NDArray[np.uint16], state: _State
) -> tuple[Numbers, NDArray[Any], NDArray[np.uint16]]:
    """Word, x and polarity of the single events and those of vectors, in the order of the file; vectors before any base are left out."""
    vectors, bases = np.flatnonzero((kind == VECT_12) | (kind == VECT_8)), np.flatnonzero(kind == BASE_X)
    wide = kind[vectors] == VECT_12
    total = np.concatenate(([0], np.cumsum(np.where(wide, 12, 8))))  # by how much the base has moved since the block began
    owner = np.searchsorted(bases, vectors)  # the base of each vector; 0 is the one from before the block
    values = np.concatenate(([max(state.base, 0)], low[bases].astype(np.int64)))
    began = np.concatenate(([-state.moved], total[np.searchsorted(vectors, bases)]))
    bits = low[vectors] & np.where(wide, 0xFFF, 0xFF).astype(np.uint16)
    if state.base < 0:
        bits[owner == 0] = 0
    if len(bases) or state.base >= 0:
        state.base, state.moved = int(values[-1]), int(total[-1] - began[-1])
    which, bit = np.nonzero((bits[:, None] >> np.arange(12, dtype=np.uint16)) & 1)
    if not len(which):
        return single, x, p
    base = values[owner[which]]
    moved = total[which] - began[owner[which]]
    rows = np.concatenate((single, vectors[which]))
    order = np.argsort(rows, kind="stable")
    place = np.concatenate((x, (base & 0x7FF) + moved + bit))
    return rows[order], place[order], np.concatenate((p, (base >> 11).astype(np.uint16)))[order]
