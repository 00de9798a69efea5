"""AEDAT 2.0: jAER's recordings of a DVS128 (the original CIFAR10-DVS)."""

import re

import numpy as np

from spiketrain.data.readers.base import BLOCK, EventList, Size, Source, byte_of, text_header
from spiketrain.data.types import Recording

MAGIC = b"#!AER-DAT2.0"
DVS128 = (128, 128)


def read_aedat2(source: Source, size: Size | None = None) -> Recording:
    """Events of an AEDAT 2.0 file with DVS128 addresses: lines that begin with `#`, then eight bytes an event, big-endian.

        u32 address: bit 15 special event (skipped) | 14…8 y | 7…1 x | 0 polarity (1 = OFF)
        u32 time in µs (after 2³² it goes on from 0)

    The address is handed over as it is: jAER draws y upwards. A header with nothing behind it is an empty recording (so is
    one followed only by a line of `$`). Other chips address differently: with events, they are an error.

    Raises `UserError` for a header or record that is cut short, address bits above 15, a chip that is not a DVS128, an event
    outside `size`, and time that leaps. Source: iniVation, "AEDAT file formats", version 2.0; Lichtsteiner et al. (2008).
    """
    header, at = text_header(source, b"#", b"#End Of ASCII Header")
    padding = re.compile(rb"\$+\r?\n").match(source.data, at)
    at = padding.end() if padding else at
    chip = re.search(rb"AEChip: *([\w.]+)", header)
    other = chip is not None and b"DVS128" not in chip[1]
    if chip and other and at < len(source.data):
        name = chip[1].decode("ascii", "replace")
        raise source.error(chip.start(), f"chip {name} is not supported in AEDAT 2.0, DVS128 is; convert the file to AEDAT4")
    raw = source.records(at, np.dtype(("u1", 8)))
    stamps = source.records(at, ">u4").reshape(-1, 2)[:, 1]
    events = EventList(source, len(raw), size or (None if other else DVS128), bits=32)
    for start in range(0, len(raw), BLOCK):
        part = raw[start : start + BLOCK]
        row, column, t = part[:, 2].copy(), part[:, 3].copy(), stamps[start : start + BLOCK].astype(np.int64)
        high, rows = part[:, 0] | part[:, 1], None
        if high.any():
            bad = int(np.flatnonzero(high)[0])
            raise source.error(at + 8 * (start + bad), "address above 65535; the file is damaged, or not of a DVS128")
        if (row > 127).any():
            rows = np.flatnonzero(row <= 127)
            row, column, t = row[rows], column[rows], t[rows]
        events.add(t, column >> 1, row, (column & 1) ^ 1, byte_of(at + 8 * start, 8, rows))
    return events.done()
