"""AEDAT 4.0: iniVation's recordings, packets of flatbuffers (CIFAR10-DVS as tonic distributes it)."""

import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiketrain.data.readers.base import BLOCK, INFLATE, SMALL, EventList, Size, Source
from spiketrain.data.types import Recording

MAGIC = b"#!AER-DAT4.0\r\n"
NONE, LZ4, LZ4_HIGH, ZSTD, ZSTD_HIGH = range(5)
EVENT_STRUCT = np.dtype({"names": ["t", "x", "y", "p"], "formats": ["<i8", "<i2", "<i2", "u1"], "offsets": [0, 8, 10, 12], "itemsize": 16})
LENGTH = struct.Struct("<4xi")  # of a packet, behind the number of its stream

Buffer = bytes | memoryview
Packet = tuple[int, NDArray[np.void]]  # its byte in the file, its events


def read_aedat4(source: Source, size: Size | None = None) -> Recording:
    """Events of an AEDAT 4.0 file: the line `#!AER-DAT4.0`, a size-prefixed flatbuffer (compression, position of the table
    of packets, XML that describes the streams), then packets

        i32 stream | i32 bytes | a size-prefixed flatbuffer, compressed as stated: none, LZ4 frame, Zstandard

    Packets marked EVTS hold one vector of 16-byte events (i64 t in µs, i16 x, i16 y, u8 polarity); all others (frames, IMU,
    triggers) are skipped. The sensor's size is that of the stream of events.

    Raises `UserError` for what is cut short or damaged, and for an event outside the sensor. Source: iniVation, "AEDAT file
    formats", version 4.0, and the published schemas of its packets.
    """
    data = source.data
    if not data.startswith(MAGIC):
        raise source.error(0, "does not begin with #!AER-DAT4.0; not an AEDAT 4 file")
    at = len(MAGIC)
    if at + 4 > len(data):
        raise source.cut(at, "the header")
    length = struct.unpack_from("<I", data, at)[0]
    if at + 4 + length > len(data):
        raise source.cut(at, f"a header of {length} bytes")
    header = _Table(source, data[at : at + 4 + length], at)
    compression, end = header.number(0, "<i"), header.number(1, "<q")
    stated = _size(header.text(2))
    at += 4 + length
    end = end if at <= end <= len(data) else len(data)
    events = EventList(source, (end - at) // 8, size or stated, bounds=(1 << 15, 1 << 15))
    unpack = _unpacker(source, compression)
    group: list[Packet] = []
    waiting = 0
    while at < end:
        if at + 8 > end:
            raise source.cut(at, "a packet's header")
        length = LENGTH.unpack_from(data, at)[0]
        if length < 0 or at + 8 + length > end:
            raise source.cut(at, f"a packet of {length} bytes")
        found = _events(source, at, unpack(at, memoryview(data)[at + 8 : at + 8 + length]))
        for start in range(0, len(found), BLOCK):
            group.append((at, found[start : start + BLOCK]))
            waiting += len(group[-1][1])
            if waiting >= BLOCK:
                _add(group, events)
                group, waiting = [], 0
        at += 8 + length
    _add(group, events)
    return events.done()


def _size(xml: bytes) -> Size | None:
    """Width and height of the stream of events in the XML of the header."""
    for node in re.split(rb"<node ", xml):
        found = [re.search(rb'key="size' + axis + rb'"[^>]*>(\d{1,5})<', node) for axis in (b"X", b"Y")]
        if found[0] and found[1]:
            return int(found[0][1]), int(found[1][1])
    return None


def _unpacker(source: Source, compression: int) -> Callable[[int, Buffer], Buffer]:
    """What makes a packet's flatbuffer of its byte in the file and its stored bytes; its size is bounded before memory is taken."""
    if compression == NONE:
        return lambda at, packed: packed
    inflate: Callable[[Buffer, int], bytes]
    if compression in (LZ4, LZ4_HIGH):
        import lz4.frame

        decompressor = lz4.frame.LZ4FrameDecompressor()

        def inflate(packed: Buffer, most: int) -> bytes:
            decompressor.reset()
            plain: bytes = decompressor.decompress(packed, max_length=4096 + 16 * len(packed))  # it takes all of it from the start
            while not decompressor.eof and 0 < len(plain) < most:
                more = decompressor.decompress(b"", max_length=most - len(plain))
                if not more:
                    break
                plain += more
            return plain

    elif compression in (ZSTD, ZSTD_HIGH):
        import zstandard

        inflate = zstandard.ZstdDecompressor().decompress
    else:
        raise source.error(len(MAGIC), f"compression {compression} is unknown (0 to 4 are known); the file is damaged")

    def unpack(at: int, packed: Buffer) -> bytes:
        most = max(SMALL, INFLATE * len(packed))
        try:
            plain = inflate(packed, most)
        except Exception as error:  # each library has its own
            raise source.error(at, f"a packet does not unpack ({error}); the file is damaged") from error
        if len(plain) >= most:
            raise source.error(at, f"{len(packed)} stored bytes unpack to {most} or more; the file is damaged or hostile")
        return plain

    return unpack


def _events(source: Source, at: int, plain: Buffer) -> NDArray[np.void]:
    """The events of a packet; none if it holds something else."""
    if plain[8:12] != b"EVTS":
        return np.empty(0, EVENT_STRUCT)
    return _Table(source, plain, at).vector(0, EVENT_STRUCT)


def _add(group: list[Packet], events: EventList) -> None:
    """Adds the events of a few packets at once."""
    if not group:
        return
    # as plain numbers: a structured array would be copied field by field
    found = np.concatenate([part.view("<u8") for _, part in group]).view(EVENT_STRUCT)
    ends = np.cumsum([len(part) for _, part in group])
    events.add(found["t"].astype(np.int64), found["x"], found["y"], found["p"], lambda i: group[int(np.searchsorted(ends, i, "right"))][0])


class _Table:
    """The root table of a size-prefixed flatbuffer. Every offset is checked; `at` is the byte that errors name."""

    def __init__(self, source: Source, data: Buffer, at: int) -> None:
        self.source, self.data, self.at = source, data, at
        self.root = 4 + self._read("<I", 4)
        self.vtable = self.root - self._read("<i", self.root)
        self.fields = (self._read("<H", self.vtable) - 4) // 2

    def number(self, field: int, kind: str) -> int:
        """A number, 0 where it is left out."""
        place = self._place(field)
        return self._read(kind, place) if place else 0

    def text(self, field: int) -> bytes:
        """A string, empty where it is left out."""
        return self.vector(field, np.dtype("u1")).tobytes()

    def vector(self, field: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """A vector of records, empty where it is left out."""
        place = self._place(field)
        if not place:
            return np.empty(0, dtype)
        start = place + self._read("<I", place)
        count = self._read("<I", start)
        if start + 4 + count * dtype.itemsize > len(self.data):
            raise self.source.error(self.at, f"a vector of {count} records of {dtype.itemsize} bytes is longer than its packet; damaged")
        return np.frombuffer(self.data, dtype, count, start + 4)

    def _place(self, field: int) -> int:
        offset = self._read("<H", self.vtable + 4 + 2 * field) if field < self.fields else 0
        return self.root + offset if offset else 0

    def _read(self, kind: str, place: int) -> int:
        if not 0 <= place <= len(self.data) - struct.calcsize(kind):
            raise self.source.error(self.at, "an offset points outside its packet; the file is damaged")
        return int(struct.unpack_from(kind, self.data, place)[0])
