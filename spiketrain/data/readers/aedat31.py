"""AEDAT 3.1: cAER's recordings (the original DVS128 Gesture)."""

import re
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from spiketrain.data.readers.base import BLOCK, EventList, Size, Source, text_header
from spiketrain.data.types import Recording

MAGIC = b"#!AER-DAT3."
HEADER = struct.Struct("<HHIIIIII")
POLARITY = 1
SENSORS = {b"DVS128": (128, 128), b"DAVIS240": (240, 180), b"DAVIS346": (346, 260), b"DAVIS640": (640, 480)}

Packet = tuple[int, int, int]  # first byte of its events, number of events, overflow counter


def read_aedat31(source: Source, size: Size | None = None) -> Recording:
    """Polarity events of an AEDAT 3.1 file: text up to `#!END-HEADER`, then packets, little-endian.

        packet header, 28 bytes: u16 type (1 = polarity) | u16 source | u32 bytes an event | u32 offset of the time in it
                                 u32 overflow | u32 capacity (events that follow) | u32 number used | u32 number valid
        polarity event, 8 bytes: u32: bit 31…17 x | 16…2 y | 1 polarity (1 = ON) | 0 valid;  i32 time in µs

    Time is overflow · 2³¹ + the event's. Invalid events and packets of other types are skipped. The sensor's size comes from
    the header's `#Source` line. No loop runs over events, one does over packets.

    Raises `UserError` for a header or packet that is cut short, an impossible packet header, a negative time, an event outside the
    sensor, and time that leaps. Source: iniVation, "AEDAT file formats", version 3.1; Amir et al., DVS128 Gesture (2017).
    """
    header, at = text_header(source, b"#", b"#!END-HEADER")
    form = re.search(rb"#Format: *([^\r\n]*)", header)
    if form and form[1].strip() != b"RAW":
        raise source.error(form.start(), "only the format RAW is supported in AEDAT 3.1; convert the file")
    size = size or next((SENSORS[name] for name in SENSORS if b": " + name in header), None)
    events, group, waiting = EventList(source, (len(source.data) - at) // 8, size), [], 0
    for packet in _packets(source, at):
        group.append(packet)
        waiting += packet[1]
        if waiting >= BLOCK:
            _decode(source, group, events)
            group, waiting = [], 0
    _decode(source, group, events)
    return events.done()


def _packets(source: Source, at: int) -> Iterator[Packet]:
    data, end = source.data, len(source.data)
    while at < end:
        if at + HEADER.size > end:
            raise source.cut(at, "a packet header")
        kind, _, step, offset, overflow, capacity, number, valid = HEADER.unpack_from(data, at)
        if step == 0 or not valid <= number <= capacity or overflow >> 31:
            raise source.error(at, "not a packet header; the file is damaged")
        if at + HEADER.size + step * capacity > end:
            raise source.cut(at, f"a packet of {capacity} events")
        if kind == POLARITY:
            if (step, offset) != (8, 4):
                raise source.error(at, f"polarity events of {step} bytes, not 8; the file is damaged")
            yield at + HEADER.size, number, overflow
        at += HEADER.size + step * capacity


def _decode(source: Source, group: list[Packet], events: EventList) -> None:
    """Decodes the events of a few packets at once."""
    raw: NDArray[np.uint64] = np.concatenate(
        [np.frombuffer(source.data, "<u8", number, at) for at, number, _ in group] or [np.empty(0, "<u8")]
    )
    address, stamp = raw.view("<u4")[0::2].copy(), raw.view("<i4")[1::2]
    t = stamp.astype(np.int64)
    counts = np.array([number for _, number, _ in group], np.int64)
    if any(overflow for _, _, overflow in group):
        t += np.repeat(np.array([overflow << 31 for _, _, overflow in group], np.int64), counts)
    keep = None
    if not (address & 1).all() or (len(stamp) and stamp.min() < 0):
        keep = np.flatnonzero(address & 1)
        _not_negative(source, group, counts, np.flatnonzero((address & 1 == 1) & (stamp < 0)))
        t, address = t[keep], address[keep]

    def at(index: int) -> int:
        return _byte(group, counts, index if keep is None else int(keep[index]))

    x, y = (address >> 17).astype(np.uint16), ((address >> 2) & 0x7FFF).astype(np.uint16)
    events.add(t, x, y, ((address >> 1) & 1).astype(np.uint8), at)


def _byte(group: list[Packet], counts: NDArray[np.int64], index: int) -> int:
    ends = np.cumsum(counts)
    packet = int(np.searchsorted(ends, index, side="right"))
    return group[packet][0] + 8 * (index - int(ends[packet] - counts[packet]))


def _not_negative(source: Source, group: list[Packet], counts: NDArray[np.int64], wrong: NDArray[np.int64]) -> None:
    if len(wrong):
        raise source.error(_byte(group, counts, int(wrong[0])), "negative time; the file is damaged")
