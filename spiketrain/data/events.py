"""Events → frames `[T,2,H,W]`: one flat index an event, one bincount a recording, no loop over events or bins.

Channel index = polarity (0 = off, 1 = on), as the events have it. What a frame holds is an exact count, kept in the
smallest type that holds it (`narrow`): uint8 up to 255, int16 up to 32,767, an error above. Nothing is ever clipped
silently. Weighted frames (time surfaces, bilinear resizing) are float32.
"""

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spiketrain.errors import UserError, unknown

BY = ("time", "count", "window")
KINDS = ("sum", "binary", "surface")
RESIZE = ("events", "bilinear")

Size = tuple[int, int]

SPARSE = 8
"""Cells an event from which counting in bytes beats a bincount."""


def to_frames(
    events: NDArray[np.void],
    steps: int,
    size: Size,
    by: str = "time",
    window: int | None = None,
    kind: str = "sum",
    out_size: int | Size | None = None,
    resize: str = "events",
) -> NDArray[Any]:
    """Frames `[T,2,H,W]` of one recording, T = `steps`.

    `size` is the sensor's (width, height), `out_size` the frames' (one number = square; None = the sensor's).

    `by` says which frame an event at time t (µs) falls into, t₀ being the first event's time and t₁ the last one's:
      - "time": equal spans of w = (t₁ − t₀) // T µs (at least 1). The remainder is dropped, and with it the last event:
        exactly what tonic's `ToFrame(n_time_bins=T)` does, through which the older benchmark framed its recordings.
      - "count": equal numbers of events, in the order of time; nothing is dropped.
      - "window": spans of `window` µs; events after T of them are dropped, frames after the last event are empty.

    `kind` says what a frame holds: "sum", counts; "binary", 1 where there was an event; "surface", the time surface
    exp(−(tₑ − t_last)/τ), tₑ the end of the frame, t_last the pixel's latest event so far, τ the length of the frame
    (Lagorce et al., HOTS, TPAMI 2017).

    `resize` says how the sensor becomes the frame: "events" moves each event to x·W'//W, y·H'//H, so that no count is lost
    (an axis on which the sensor is smaller than the frame is centred, not stretched: stretching would leave empty
    lines); "bilinear" interpolates between the corner pixels, without a filter, as torch's
    `interpolate(align_corners=True)` and as the older benchmark did.

    Raises `UserError` for an event outside the sensor, a count above 32,767, or an unknown name.
    """
    _check_names(by, kind, resize, steps, window)
    out = square(out_size) if out_size is not None else size
    events = _in_time(events) if by == "count" or kind == "surface" else events
    target = out if resize == "events" else size
    cells = steps * 2 * target[0] * target[1]
    flat, ends, length = _BINS[by](events["t"].astype(np.int64), steps, window or 0)
    flat *= cells // steps
    flat += _pixels(events, size, target)
    np.minimum(flat, cells, out=flat)  # one cell more, for all events after the last frame
    if kind == "surface":
        values: NDArray[Any] = _surface(flat, events["t"], ends, length, cells)
    else:
        values = _counts(flat, cells + 1)[:cells]
        if kind == "binary":
            values = np.minimum(values, 1)
    frames = values.reshape(steps, 2, target[1], target[0])
    if target != out:
        return bilinear(frames, out)
    return frames if frames.dtype == np.float32 else narrow(frames)


def square(size: int | Size) -> Size:
    """(width, height) of a size that may be given as one number."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def narrow(counts: NDArray[Any]) -> NDArray[Any]:
    """The same counts in the smallest of uint8 and int16 that holds them; `UserError` above 32,767."""
    worst = int(counts.max(initial=0))
    if worst <= 255:
        return counts.astype(np.uint8, copy=False)
    if worst <= 32_767:
        return counts.astype(np.int16)
    raise UserError(f"{worst} events at one pixel of one frame (at most 32767 fit): take more steps, or kind='binary'")


def bilinear(frames: NDArray[Any], out: Size) -> NDArray[np.float32]:
    """`[...,H,W]` → `[...,H',W']` in float32, corners on corners, no filter before it.

    Output pixel i takes from position i·(n − 1)/(n' − 1) of the input, weighted linearly between its two neighbours.
    """
    rows = _weights(frames.shape[-2], out[1])
    columns = _weights(frames.shape[-1], out[0])
    return np.asarray(rows @ frames.astype(np.float32) @ columns.T, np.float32)


def sensor_of(events: NDArray[np.void]) -> Size:
    """(width, height) that just holds the events; (1, 1) where there are none."""
    if len(events) == 0:
        return (1, 1)
    return int(events["x"].max()) + 1, int(events["y"].max()) + 1


def cut(events: NDArray[np.void], window: int) -> list[NDArray[np.void]]:
    """Consecutive parts of `window` µs each from the first event on; an incomplete last part is dropped."""
    events = _in_time(events)
    if len(events) == 0:
        return []
    t = np.ascontiguousarray(events["t"])
    count = int((t[-1] - t[0]) // window)
    edges = np.searchsorted(t, t[0] + window * np.arange(count + 1))
    return [events[a:b] for a, b in itertools.pairwise(edges)]


def span(events: NDArray[np.void], start: int, stop: int) -> NDArray[np.void]:
    """The events with start ≤ t < stop (µs), in the order of time."""
    events = _in_time(events)
    a, b = np.searchsorted(events["t"], (start, stop))
    return events[a:b]


def _check_names(by: str, kind: str, resize: str, steps: int, window: int | None) -> None:
    for what, name, known in (("framing (by)", by, BY), ("kind of frame", kind, KINDS), ("resize", resize, RESIZE)):
        if name not in known:
            raise unknown(what, name, known)
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    if by == "window" and (window is None or window < 1):
        raise UserError("by='window' needs window=, the length of a frame in µs")


def _in_time(events: NDArray[np.void]) -> NDArray[np.void]:
    """Events in the order of time (stable); the same array where they already are."""
    t = events["t"]
    return events if bool((t[1:] >= t[:-1]).all()) else events[np.argsort(t, kind="stable")]


def _counts(flat: NDArray[np.int64], cells: int) -> NDArray[Any]:
    """How often each cell is named."""
    if cells >= SPARSE * len(flat):
        # Large sensor, few events: bincount's 8 bytes a cell would cost more than the events do.
        counts = np.zeros(cells, np.uint8)
        torch.from_numpy(counts).scatter_add_(0, torch.from_numpy(flat), torch.ones(1, dtype=torch.uint8).expand(len(flat)))
        if int(counts.sum(dtype=np.uint32)) == len(flat):  # else a count ran over 255 and lost 256
            return counts
    return np.bincount(flat, minlength=cells)


def _axis(where: NDArray[Any], sensor: int, out: int, name: str) -> NDArray[np.int64]:
    place = where.astype(np.int64)
    if len(place) and int(place.max()) >= sensor:
        raise UserError(f"event at {name}={int(place.max())}, outside a sensor of {sensor} pixels along {name}")
    if out < sensor:
        place *= out
        place //= sensor
    elif out > sensor:
        place += (out - sensor) // 2
    return place


def _pixels(events: NDArray[np.void], size: Size, out: Size) -> NDArray[np.int64]:
    """Flat index of every event in a `[2,H,W]` plane."""
    flat = _axis(events["y"], size[1], out[1], "y")
    flat *= out[0]
    flat += _axis(events["x"], size[0], out[0], "x")
    polarity = events["p"].astype(np.int64)
    if len(polarity) and int(polarity.max()) > 1:
        raise UserError(f"event of polarity {int(polarity.max())}: 0 (off) and 1 (on) are the ones there are")
    polarity *= out[0] * out[1]
    flat += polarity
    return flat


Binned = tuple[NDArray[np.int64], NDArray[np.int64], int]


def _by_span(t: NDArray[np.int64], start: int, length: int, steps: int) -> Binned:
    """Frame of every event (written over t), the frames' ends `[T]` and their length, for spans of equal length."""
    t -= start
    t //= length
    return t, start + length * np.arange(1, steps + 1), length


def _by_time(t: NDArray[np.int64], steps: int, window: int) -> Binned:
    start, stop = (int(t.min()), int(t.max())) if len(t) else (0, 0)
    return _by_span(t, start, max(1, (stop - start) // steps), steps)


def _by_window(t: NDArray[np.int64], steps: int, window: int) -> Binned:
    return _by_span(t, int(t.min()) if len(t) else 0, window, steps)


def _by_count(t: NDArray[np.int64], steps: int, window: int) -> Binned:
    n = len(t)
    if n == 0:
        return np.zeros(0, np.int64), np.zeros(steps, np.int64), 1
    edges = -(-np.arange(steps + 1) * n // steps)  # event j is in frame j·T // n
    ends = t[np.maximum(edges[1:] - 1, 0)]
    return np.repeat(np.arange(steps), np.diff(edges)), ends, max(1, int(ends[-1] - t[0]) // steps)


_BINS = {"time": _by_time, "count": _by_count, "window": _by_window}


def _surface(
    flat: NDArray[np.int64], t: NDArray[np.int64], ends: NDArray[np.int64], length: int, cells: int
) -> NDArray[np.float32]:
    """exp(−(tₑ − t_last)/τ) per frame and pixel; 0 where no event has been yet. Events are in the order of time."""
    steps = len(ends)
    never = np.iinfo(np.int64).min
    last = np.full(cells + 1, never, np.int64)
    last[flat] = t  # of several events at one place the last assignment stays: the latest
    last = np.maximum.accumulate(last[:cells].reshape(steps, -1), axis=0)
    age = (ends[:, None] - np.where(last == never, 0, last)) / length
    return np.where(last == never, 0.0, np.exp(-age)).astype(np.float32).reshape(-1)


def _weights(n: int, out: int) -> NDArray[np.float32]:
    """Interpolation matrix `[out,n]` along one axis."""
    place = np.arange(out) * ((n - 1) / max(1, out - 1))
    low = np.minimum(place.astype(np.int64), max(0, n - 2))
    share = place - low
    weights = np.zeros((out, n), np.float32)
    weights[np.arange(out), low] = 1 - share
    weights[np.arange(out), np.minimum(low + 1, n - 1)] += share.astype(np.float32)
    return weights
