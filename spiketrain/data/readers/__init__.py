"""Recordings of event cameras: `read(path)` finds the format by the file's ending and first bytes."""

import os
from collections.abc import Callable
from pathlib import Path

from spiketrain.data.readers.aedat2 import read_aedat2
from spiketrain.data.readers.aedat4 import read_aedat4
from spiketrain.data.readers.aedat31 import read_aedat31
from spiketrain.data.readers.arrays import read_h5, read_mat, read_npy, read_npz
from spiketrain.data.readers.atis import read_atis
from spiketrain.data.readers.base import Size, Source, load
from spiketrain.data.readers.evt3 import read_evt3
from spiketrain.data.readers.prophesee import header_of, read_dat, read_evt2
from spiketrain.data.types import Recording
from spiketrain.errors import UserError

Reader = Callable[[Source, Size | None], Recording]


def _aedat(source: Source, size: Size | None) -> Recording:
    version = source.data[:14]
    for mark, reader in ((b"#!AER-DAT4", read_aedat4), (b"#!AER-DAT3.1", read_aedat31), (b"#!AER-DAT2", read_aedat2)):
        if version.startswith(mark):
            return reader(source, size)
    raise source.error(0, "does not begin with #!AER-DAT2.0, 3.1 or 4.0; not an AEDAT file of a known version")


def _raw(source: Source, size: Size | None) -> Recording:
    header = header_of(source)[0].lower().replace(b"_", b"")
    if b"evt 3" in header or b"evt3" in header:
        return read_evt3(source, size)
    if b"evt 2" in header or b"evt2" in header:
        return read_evt2(source, size)
    raise source.error(0, "no line '% evt 2.0' or '% evt 3.0' at the beginning; not a Prophesee .raw file of a known version")


READERS: dict[str, Reader] = {
    ".bin": read_atis,
    ".aedat": _aedat,
    ".aedat4": _aedat,
    ".dat": read_dat,
    ".raw": _raw,
    ".npy": read_npy,
    ".npz": read_npz,
    ".mat": read_mat,
    ".h5": read_h5,
    ".hdf5": read_h5,
}
"""Reader by the file's ending."""


def read(path: str | os.PathLike[str], size: Size | None = None) -> Recording:
    """The events of one file. `size`, the sensor's (width, height), bounds the coordinates where the file does not state it.

    Raises `UserError`, with file and byte, for a file that is missing, empty, damaged, or of an unknown format.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in READERS:
        raise UserError(f"{path}: byte 0: the ending {suffix!r} is of no known format: {' '.join(READERS)}")
    return READERS[suffix](load(path), size)


__all__ = ["READERS", "read"]
