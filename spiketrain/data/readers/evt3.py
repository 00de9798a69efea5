"""Prophesee's EVT 3.0 `.raw`: a stream of 16-bit words that change a state."""

import numpy as np
from numpy.typing import NDArray

from spiketrain.data.readers.base import EventList, Size, Source
from spiketrain.data.readers.prophesee import header_of, unknown_words
from spiketrain.data.types import Recording

ADDR_Y, ADDR_X, BASE_X, VECT_12, VECT_8, TIME_LOW, TIME_HIGH = 0x0, 0x2, 0x3, 0x4, 0x5, 0x6, 0x8
KNOWN = frozenset((ADDR_Y, ADDR_X, BASE_X, VECT_12, VECT_8, TIME_LOW, TIME_HIGH, 0x7, 0xA, 0xE, 0xF))  # and triggers, others, continued

Indices = NDArray[np.int64]


def _last(chosen: NDArray[np.bool_]) -> Indices:
    """At every word the index of the last chosen one up to it, −1 where there was none."""
    found: Indices = np.maximum.accumulate(np.where(chosen, np.arange(len(chosen)), -1))
    return found


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
    kind, low = (words >> 12).astype(np.uint8), (words & 0xFFF).astype(np.int64)
    unknown_words(source, kind, KNOWN, start, 2)
    if len(words) == 0:
        return events.done()
    y_at, high_at, low_at = (_last(kind == k) for k in (ADDR_Y, TIME_HIGH, TIME_LOW))
    time = (low[high_at] << 12) + np.where(low_at > high_at, low[low_at], 0)
    rows, x, p = _events(kind, low)
    good = (y_at[rows] >= 0) & (high_at[rows] >= 0)
    rows, x, p = rows[good], x[good], p[good]
    events.add(time[rows], x, low[y_at[rows]] & 2047, p, lambda i: start + 2 * int(rows[i]))
    return events.done()


def _events(kind: NDArray[np.uint8], low: Indices) -> tuple[Indices, Indices, Indices]:
    """Word, x and polarity of every event, in the order of the file; vectors before any base are left out."""
    single = np.flatnonzero(kind == ADDR_X)
    steps = np.where(kind == VECT_12, 12, np.where(kind == VECT_8, 8, 0))
    before = np.cumsum(steps) - steps
    base_at = _last(kind == BASE_X)
    vectors = np.flatnonzero((steps > 0) & (base_at >= 0))
    valid = low[vectors] & np.where(kind[vectors] == VECT_8, 0xFF, 0xFFF)
    which, bit = np.nonzero((valid[:, None] >> np.arange(12)) & 1)
    owner = vectors[which]
    base = base_at[owner]
    x = np.concatenate((low[single] & 2047, (low[base] & 2047) + before[owner] - before[base] + bit))
    p = np.concatenate((low[single] >> 11, low[base] >> 11))
    rows = np.concatenate((single, owner))
    order = np.argsort(rows, kind="stable")
    return rows[order], x[order], p[order]
