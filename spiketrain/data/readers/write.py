"""Recordings → files in real formats, for simulated data and for tests. `read` gets back what was written."""

import os
from pathlib import Path

import numpy as np

from spiketrain.data.readers.atis import OVERFLOW, OVERFLOW_ROW
from spiketrain.data.types import Recording
from spiketrain.errors import UserError


def write_bin(path: str | os.PathLike[str], recording: Recording) -> None:
    """ATIS 40-bit, as `read_atis` has it: x below 256, y below 240, times from 0 on, rising.

    The clock of the format has 23 bits; longer recordings get the format's records of overflow.
    """
    e = recording.events
    _check(path, recording, (256, OVERFLOW_ROW), 1 << 40)
    t = e["t"]
    turns = np.maximum(0, -(-(t - 0x7FFFFF) // OVERFLOW))  # how often 2¹³ µs were added before each event
    extra = np.diff(turns, prepend=0)
    if len(extra) and int(extra.min()) < 0:
        raise UserError(f"{path}: times must rise to be written in this format")
    place = np.arange(len(e)) + np.cumsum(extra)
    words = np.zeros((len(e) + int(extra.sum()), 5), np.uint8)
    words[:, 1] = OVERFLOW_ROW
    rest = t - OVERFLOW * turns
    columns = (e["x"], e["y"], (e["p"].astype(np.int64) << 7) | (rest >> 16), (rest >> 8) & 255, rest & 255)
    for i, column in enumerate(columns):
        words[place, i] = column
    Path(path).write_bytes(words.tobytes())


def write_dat(path: str | os.PathLike[str], recording: Recording) -> None:
    """Prophesee `.dat`, version 2, as `read_dat` has it: x and y below 2¹⁴, times below 2³² µs."""
    e = recording.events
    _check(path, recording, (1 << 14, 1 << 14), 1 << 32)
    lines = ["% Data file containing CD events.", "% Version 2"]
    if recording.size:
        lines += [f"% Height {recording.size[1]}", f"% Width {recording.size[0]}"]
    words = np.empty((len(e), 2), "<u4")
    words[:, 0] = e["t"]
    words[:, 1] = (e["p"].astype(np.uint32) << 28) | (e["y"].astype(np.uint32) << 14) | e["x"]
    Path(path).write_bytes("".join(f"{line}\n" for line in lines).encode() + bytes((12, 8)) + words.tobytes())


def write_aedat2(path: str | os.PathLike[str], recording: Recording) -> None:
    """AEDAT 2.0 of a DVS128, as `read_aedat2` has it: x and y below 128, times below 2³² µs."""
    e = recording.events
    _check(path, recording, (128, 128), 1 << 32)
    words = np.empty((len(e), 2), ">u4")
    words[:, 0] = (e["y"].astype(np.uint32) << 8) | (e["x"].astype(np.uint32) << 1) | (1 - e["p"])
    words[:, 1] = e["t"]
    Path(path).write_bytes(b"#!AER-DAT2.0\r\n# AEChip: DVS128\r\n" + words.tobytes())


def write_aedat4(path: str | os.PathLike[str], recording: Recording) -> None:
    """AEDAT 4.0, uncompressed, one packet of events, as `read_aedat4` has it; the size, where known, is stated."""
    from spiketrain.data.readers.aedat4 import EVENT_STRUCT, MAGIC

    _check(path, recording, (1 << 15, 1 << 15), 1 << 62)
    events = np.zeros(len(recording.events), EVENT_STRUCT)
    for name in ("t", "x", "y", "p"):
        events[name] = recording.events[name]
    width, height = recording.size or (0, 0)
    sizes = f'<attr key="sizeX" type="int">{width}</attr><attr key="sizeY" type="int">{height}</attr>' if width else ""
    path_of = "/mainloop/Recorder/outInfo/"  # the maker's recorder writes these nodes, and other readers look for them
    stream = f'<attr key="typeIdentifier" type="string">EVTS</attr><node name="info" path="{path_of}0/info/">{sizes}</node>'
    node = f'<node name="0" path="{path_of}0/"><attr key="compression" type="string">NONE</attr>{stream}</node>'
    xml = f'<dv version="2.0"><node name="outInfo" path="{path_of}">{node}</node></dv>'.encode()
    header = _flatbuffer(b"IOHE", 2, xml, 1)
    packet = _flatbuffer(b"EVTS", 0, events.tobytes(), EVENT_STRUCT.itemsize)
    frame = np.array([0, len(packet)], "<i4").tobytes()
    Path(path).write_bytes(MAGIC + header + frame + packet)


def _flatbuffer(mark: bytes, field: int, content: bytes, step: int) -> bytes:
    """A size-prefixed flatbuffer whose root table has one vector, `content`, of records of `step` bytes, in that field."""
    vtable = np.zeros(2 + field + 1, "<u2")
    vtable[0], vtable[1], vtable[-1] = 2 * len(vtable), 8, 4
    root = 8 + 2 * len(vtable) + (2 * len(vtable) % 4)  # from the byte after the size prefix
    body = mark + vtable.tobytes()
    body = body.ljust(root - 4, b"\0")
    table = np.array([root - 8, 4, len(content) // step], "<i4").tobytes()
    body += table + content
    return np.array([len(body) + 4, root], "<u4").tobytes() + body


def _check(path: str | os.PathLike[str], recording: Recording, bounds: tuple[int, int], latest: int) -> None:
    e = recording.events
    if not len(e):
        return
    worst = int(e["x"].max()), int(e["y"].max())
    if worst[0] >= bounds[0] or worst[1] >= bounds[1] or int(e["t"].min()) < 0 or int(e["t"].max()) >= latest:
        raise UserError(f"{path}: this format holds x below {bounds[0]}, y below {bounds[1]}, times from 0 to {latest - 1} µs")
