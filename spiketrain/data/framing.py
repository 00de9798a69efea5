"""What is to be cached: which files, with which labels, framed how. One function turns one file into its samples."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiketrain.data.events import Size, cut, sensor_of, span, square, to_frames
from spiketrain.data.readers import read
from spiketrain.errors import UserError


@dataclass(frozen=True)
class Source:
    """One file of a data set. `name` is its path inside the set, with slashes: the same on every machine.

    A file is one sample of class `label`, unless `spans` cuts it into several: (label, start, stop) in µs each.
    """

    path: Path
    name: str
    label: int
    spans: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Framing:
    """How a recording becomes frames; `to_frames` explains `by`, `window`, `kind` and `resize`.

    `size` is the frames' (width, height), None the sensor's own. `sensor` is the sensor's; None: what the file states, or
    else just large enough for the recording's own events. `cut` first cuts a recording into samples of so many µs.
    """

    steps: int
    size: int | Size | None = 48
    by: str = "time"
    window: int | None = None
    kind: str = "sum"
    resize: str = "events"
    sensor: Size | None = None
    cut: int | None = None


Samples = tuple[NDArray[Any], NDArray[np.int64], str]


def samples_of(source: Source, framing: Framing) -> Samples:
    """Frames `[n,T,2,H,W]`, labels `[n]` and the file's SHA-256. Every error is a `UserError` that names the file."""
    try:
        recording = read(source.path)
        sensor = framing.sensor or recording.size or sensor_of(recording.events)
        parts = parts_of(recording.events, source, framing.cut)
        frames = [_framed(events, sensor, framing) for _, events in parts]
        labels = np.array([label for label, _ in parts], np.int64)
        shape = (0, framing.steps, 2, *reversed(square(framing.size or sensor)))
        stacked = np.stack(frames) if frames else np.zeros(shape, np.uint8)
        return stacked, labels, hashlib.sha256(source.path.read_bytes()).hexdigest()
    except MemoryError:
        raise
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(text if str(source.path) in text else f"{source.path}: {text}") from error


def parts_of(
    events: NDArray[np.void], source: Source, length: int | None
) -> list[tuple[int, NDArray[np.void]]]:
    """(label, events) of each sample in a file; `length` cuts them further, into windows of so many µs."""
    whole = [(label, span(events, start, stop)) for label, start, stop in source.spans] or [(source.label, events)]
    if length is None:
        return whole
    return [(label, piece) for label, part in whole for piece in cut(part, length)]


def _framed(events: NDArray[np.void], sensor: Size, framing: Framing) -> NDArray[Any]:
    return to_frames(
        events, framing.steps, sensor, framing.by, framing.window, framing.kind, framing.size, framing.resize
    )
