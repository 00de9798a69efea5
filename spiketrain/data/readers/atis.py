"""ATIS 40-bit `.bin`: N-MNIST, N-Caltech101."""

import numpy as np

from spiketrain.data.readers.base import BLOCK, EventList, Size, Source, byte_of
from spiketrain.data.types import Recording

OVERFLOW_ROW = 240
OVERFLOW = 1 << 13


def read_atis(source: Source, size: Size | None = None) -> Recording:
    """Events of an ATIS `.bin` file: no header, five bytes an event, the most significant bit first.

        bit 39…32 x | 31…24 y | 23 polarity (1 = ON) | 22…0 time in µs

    A record with y = 240 (one below the sensor's last row) is no event: the clock ran over, and 2¹³ µs are added to all that
    follows. The file does not state the sensor's size (N-MNIST has 34 × 34, N-Caltech101's recordings differ): `size`
    bounds the coordinates where it is known.

    Raises `UserError` for an incomplete last record, y above 240, an event outside `size`, and time that leaps.
    Source: Orchard et al., "Converting Static Image Datasets to Spiking Neuromorphic Datasets Using Saccades" (2015), and
    the description of the format that comes with both data sets.
    """
    raw = source.records(0, np.dtype(("u1", 5)))
    # The last four bytes of each record as one number, read where they lie, five bytes apart.
    words = np.ndarray(len(raw), ">u4", source.data, 1, (5,))
    events, epoch = EventList(source, len(raw), size, bounds=(256, OVERFLOW_ROW)), 0
    for start in range(0, len(raw), BLOCK):
        word = words[start : start + BLOCK].astype(np.uint32)
        x, y, p = raw[start : start + BLOCK, 0], word >> 24, (word >> 23) & 1
        t, rows = (word & 0x7FFFFF).astype(np.int64), None
        over = y == OVERFLOW_ROW
        if epoch or over.any():
            ran_over = epoch + OVERFLOW * np.cumsum(over)
            epoch = int(ran_over[-1])
            rows = np.flatnonzero(~over)
            t, x, y, p = (t + ran_over)[rows], x[rows], y[rows], p[rows]
        events.add(t, x, y.astype(np.uint16), p.astype(np.uint8), byte_of(5 * start, 5, rows))
    return events.done()
