"""Prophesee's `.dat` (N-Cars), and EVT 2.0 `.raw`. EVT 3.0 has a file of its own."""

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from spiketrain.data.readers.base import BLOCK, EventList, Size, Source, byte_of, text_header
from spiketrain.data.types import Recording

CD = (0x00, 0x0C)  # contrast detection: what an old file and a new one call it
OFF, ON, TIME_HIGH = 0, 1, 8
KNOWN = frozenset((OFF, ON, TIME_HIGH, 0xA, 0xE, 0xF))  # and trigger, others, continued


def header_of(source: Source) -> tuple[bytes, int, Size | None]:
    """The `%` lines of a Prophesee file, the byte after them, and the sensor's (width, height) where they state it."""
    header, at = text_header(source, b"%", b"% end")
    text = header.lower()
    width = re.search(rb"width[ =]+(\d{1,5})\b", text)
    height = re.search(rb"height[ =]+(\d{1,5})\b", text)
    both = re.search(rb"geometry[ =]+(\d{1,5})x(\d{1,5})\b", text)
    if both:
        return header, at, _sensor(source, both[1], both[2])
    return header, at, _sensor(source, width[1], height[1]) if width and height else None


def _sensor(source: Source, width: bytes, height: bytes) -> Size:
    size = int(width), int(height)
    if not (0 < size[0] <= 1 << 15 and 0 < size[1] <= 1 << 15):
        raise source.error(0, f"the header states a sensor of {size[0]} × {size[1]}; the file is damaged")
    return size


def read_dat(source: Source, size: Size | None = None) -> Recording:
    """Events of a Prophesee `.dat` file: `%` lines, one byte event type (0 or 12), one byte event length (8), then
    eight bytes an event, little-endian.

        u32 time in µs (after 2³² it goes on from 0)
        u32 version 2: bit 31…28 polarity (1 = ON) | 27…14 y | 13…0 x
            version 1 (or none stated): bit 17 polarity | 16…9 y | 8…0 x

    The sensor's size comes from the lines `% Width` and `% Height` where they are there.

    Raises `UserError` for a header or record that is cut short, other event types or lengths, an event outside the sensor, a
    polarity that is not 0 or 1, and time that leaps. Source: Prophesee, "DAT file format" (Metavision documentation).
    """
    header, at, stated = header_of(source)
    version = re.search(rb"% *Version +(\d+)", header, re.IGNORECASE)
    number = int(version[1][:9]) if version else 1
    if number not in (1, 2):
        raise source.error(version.start() if version else 0, f"version {number} of .dat is unknown; versions 1 and 2 are read")
    if at + 2 > len(source.data):
        raise source.cut(at, "the binary header")
    kind, step = source.data[at], source.data[at + 1]
    if kind not in CD or step != 8:
        raise source.error(at, f"event type {kind} of {step} bytes, expected type 0 or 12 of 8; not contrast events")
    at += 2
    raw = source.records(at, "<u4").reshape(-1, 2) if (len(source.data) - at) % 8 == 0 else source.records(at, "<u8")
    events = EventList(source, len(raw), size or stated, bits=32)
    x_bits, y_bits, p_bits = (14, 14, 4) if number == 2 else (9, 8, 1)
    for start in range(0, len(raw), BLOCK):
        t, word = raw[start : start + BLOCK, 0].astype(np.int64), raw[start : start + BLOCK, 1].copy()
        x = (word & ((1 << x_bits) - 1)).astype(np.uint16)
        y = ((word >> x_bits) & ((1 << y_bits) - 1)).astype(np.uint16)
        p = ((word >> (x_bits + y_bits)) & ((1 << p_bits) - 1)).astype(np.uint8)
        events.add(t, x, y, p, byte_of(at + 8 * start, 8))
    return events.done()


def read_evt2(source: Source, size: Size | None = None) -> Recording:
    """Events of a Prophesee EVT 2.0 `.raw` file: `%` lines, then words of 32 bits, little-endian.

        bit 31…28 type: 0 OFF, 1 ON | 27…22 low bits of the time | 21…11 x | 10…0 y
                  type: 8 time high | 27…0 high bits of the time      (10, 14, 15 carry no contrast events: skipped)

    Time in µs is high · 64 + low; the 34-bit clock may run over. Events before the first time-high word have no known time and
    are skipped, as the maker's decoder does. The size comes from `% geometry` or `% format` where they are there.

    Raises `UserError` for a header or word that is cut short, unknown word types, events without any time, an event outside the
    sensor, and time that leaps. Source: Prophesee, "EVT 2.0 format" (Metavision documentation).
    """
    _, at, stated = header_of(source)
    words = source.records(at, "<u4")
    events = EventList(source, len(words), size or stated, bits=34)
    high: NDArray[np.int64] = np.array([-1])
    for start in range(0, len(words), BLOCK):
        word = words[start : start + BLOCK]
        kind = (word >> 28).astype(np.uint8)
        chosen: NDArray[np.bool_] = kind <= ON
        ticks = np.flatnonzero(kind == TIME_HIGH)
        found = word[chosen]
        before = ticks - np.arange(len(ticks))  # how many events stand before each tick
        if len(found) + len(ticks) < len(word):
            unknown_words(source, kind, KNOWN, at + 4 * start, 4)
            before = np.cumsum(chosen, dtype=np.int64)[ticks]
        skipped = 0
        if high[-1] < 0:
            skipped = int(before[0]) if len(ticks) else len(found)
        high = np.append(high[-1:], (word[ticks] & 0xFFFFFFF).astype(np.int64) << 6)
        t = np.repeat(high, np.diff(before, prepend=0, append=len(found)))[skipped:]
        found = found[skipped:]
        t |= (found >> 22) & 63
        x, y = ((found >> 11) & 2047).astype(np.uint16), (found & 2047).astype(np.uint16)
        events.add(t, x, y, (found >> 28).astype(np.uint8), _word_of(at + 4 * start, chosen, skipped))
    if high[-1] < 0 and len(words):
        raise source.error(at, "no time-high word in the whole file, so no event has a time; the file is damaged")
    return events.done()


def _word_of(first: int, chosen: NDArray[np.bool_], skipped: int) -> Callable[[int], int]:
    """Where the i-th event of a block of words stands in the file; looked for only where one is wrong."""
    return lambda i: first + 4 * int(np.flatnonzero(chosen)[i + skipped])


def unknown_words(source: Source, kinds: NDArray[np.uint8], known: frozenset[int], first: int, step: int) -> None:
    """Raises for the first word whose type is not a known one."""
    table = np.array([kind not in known for kind in range(16)])
    wrong = np.flatnonzero(table[kinds])
    if len(wrong):
        at = first + step * int(wrong[0])
        raise source.error(at, f"word of unknown type {kinds[wrong[0]]}; the file is damaged, or in another format")
