"""An event camera for those who have none: an image on a screen, three saccades before it, events out.

As N-MNIST was made (Orchard et al., Frontiers in Neuroscience 2015): the camera looks at a still image and moves along the
three sides of a triangle, `saccade` µs each. A pixel sends an event whenever the logarithm of its intensity has gone up (on)
or down (off) by `threshold` since its last one, and none for `refractory` µs after one. Background events come at `noise`
a pixel and second (the model of ESIM, Rebecq et al., CoRL 2018, for motion over a still image).
"""

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spiketrain.data import parallel
from spiketrain.data.readers.write import write_bin, write_dat
from spiketrain.data.types import EVENT, Recording
from spiketrain.errors import UserError, unknown

FORMATS = {"bin": write_bin, "dat": write_dat}
CHUNK = 64  # images simulated together: few enough to stay in the processor's cache
ROUNDING = 1e-4  # of a threshold: light that has come back to a level exactly has crossed it, whatever float32 says
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Camera:
    """Its sensor shows the image with `amplitude` pixels around it, into which the saccades move; `zoom` enlarges it first.

    `threshold` is in natural logarithms, `refractory` and `saccade` in µs, `noise` in events a pixel and second, `dark` the
    share of full intensity that black still has, `moves` the number of movements that a saccade is made of.
    """

    amplitude: int = 3
    zoom: float = 1.0
    threshold: float = 0.6
    refractory: int = 1_000
    noise: float = 0.5
    saccade: int = 100_000
    dark: float = 0.05
    moves: int = 24

    def __post_init__(self) -> None:
        for name, low in (("amplitude", 1), ("zoom", 0.01), ("threshold", 0.01), ("saccade", 100), ("moves", 1)):
            if getattr(self, name) < low:
                raise UserError(f"camera: {name} must be at least {low}, got {getattr(self, name)}")
        if min(self.refractory, self.noise) < 0 or not 0 < self.dark < 1:
            raise UserError("camera: refractory and noise must not be negative, dark must lie between 0 and 1")


def simulate(image: NDArray[Any], camera: Camera = Camera(), seed: int = 0) -> Recording:
    """The recording of one image, uint8 `[H,W]`, `[3,H,W]` or `[H,W,3]`; same seed, same recording."""
    return next(simulate_batch(np.asarray(image)[None], camera, [seed]))


def simulate_batch(images: NDArray[Any], camera: Camera, seeds: Sequence[int]) -> Iterator[Recording]:
    """The recordings of uint8 images `[N,H,W]`, `[N,3,H,W]` or `[N,H,W,3]`, one seed each, all of them at once."""
    light = np.log(_grey(images, camera.zoom) * ((1 - camera.dark) / 255) + camera.dark).astype(np.float32)
    height, width = (size + 2 * camera.amplitude for size in light.shape[1:])
    pixel, t, p = (np.concatenate(column) for column in zip(*_signal(light, camera), strict=True))
    image = pixel // (height * width)
    order = np.argsort(image, kind="stable")
    starts = np.searchsorted(image[order], np.arange(len(light) + 1))
    for i, seed in enumerate(seeds):
        part = order[starts[i] : starts[i + 1]]
        place = pixel[part] - i * height * width
        columns = _with_noise(place, t[part], p[part], height * width, camera, np.random.default_rng(seed))
        yield Recording(_events(*_after_rest(*columns, camera.refractory), width), (width, height))


def simulate_set(
    images: NDArray[Any],
    labels: NDArray[Any],
    classes: Sequence[str],
    out: str | Path,
    part: str = "train",
    format: str = "bin",
    camera: Camera = Camera(),
    seed: int = 0,
    workers: int = 0,
) -> int:
    """Writes the recording of image i of class c to `out/part/c/0000i.bin` and returns the number of files.

    `format` is "bin" (ATIS, as N-MNIST; sensors of up to 256 × 240) or "dat" (Prophesee). A file depends on image, camera,
    seed, part and i alone, not on the number of processes. `out/recordings.json` tells the sensor's size to who loads the
    folder. A folder `out/part` that is already there is an error.
    """
    if format not in FORMATS:
        raise unknown("format to write", format, FORMATS)
    target = Path(out) / part
    if target.exists():
        raise UserError(f"{target} is already there: give another folder, or remove it")
    half = target.with_name(f".{part}.{os.getpid()}.part")
    names = [classes[int(label)] for label in labels]
    jobs = [
        (images[i : i + CHUNK], i, names[i : i + CHUNK], half, part, format, camera, seed)
        for i in range(0, len(images), CHUNK)
    ]
    try:
        for name in set(names):
            (half / name).mkdir(parents=True)
        for _ in parallel.run(_write, jobs, workers):
            pass
        size = _grey(images[:1], camera.zoom).shape[:0:-1]
        about = {"sensor": [side + 2 * camera.amplitude for side in size], "camera": asdict(camera), "seed": seed}
        (target.parent / "recordings.json").write_text(json.dumps(about, indent=1))
        os.rename(half, target)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return len(images)


def _write(
    images: NDArray[Any], first: int, names: list[str], folder: Path, part: str, format: str, camera: Camera, seed: int
) -> None:
    seeds = [zlib.crc32(f"{seed}/{part}/{first + i}".encode()) for i in range(len(images))]
    for i, recording in enumerate(simulate_batch(images, camera, seeds)):
        FORMATS[format](folder / names[i] / f"{first + i:05d}.{format}", recording)


def _grey(images: NDArray[Any], zoom: float) -> NDArray[np.float64]:
    """Intensity 0…255 `[N,H,W]`, enlarged."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and 3 not in images.shape[1::2]):
        raise UserError(f"simulate takes uint8 images [H,W] or [3,H,W], got {images.dtype} {images.shape[1:]}")
    if images.ndim == 4:
        images = np.moveaxis(images, 1, -1) if images.shape[1] == 3 else images
        images = (images @ LUMA).round().astype(np.uint8)
    if zoom == 1:
        return images.astype(np.float64)
    size = (round(images.shape[2] * zoom), round(images.shape[1] * zoom))
    return np.stack([np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BICUBIC), np.float64) for i in images])


def _path(camera: Camera) -> NDArray[np.float64]:
    """Where the camera looks, (x, y) in pixels, at each of 3·moves + 1 moments: down right, up right, back left."""
    a = float(camera.amplitude)
    corners = np.array([(-a, -a), (0, a), (a, -a), (-a, -a)])
    moments = np.linspace(0, 3, 3 * camera.moves + 1)
    return np.stack([np.interp(moments, np.arange(4), corners[:, i]) for i in (0, 1)], 1)


def _seen(light: NDArray[np.float32], shift: NDArray[np.float64], amplitude: int) -> NDArray[np.float32]:
    """What the sensor sees `[N,H + 2a,W + 2a]`, looking `shift` away; linear between pixels, the border goes on outside."""
    padded = np.pad(light, ((0, 0), (2 * amplitude, 2 * amplitude + 1), (2 * amplitude, 2 * amplitude + 1)), mode="edge")
    height, width = (size + 2 * amplitude for size in light.shape[1:])
    low = np.floor(shift).astype(int)
    share = (shift - low).astype(np.float32)
    x, y = low[0] + amplitude, low[1] + amplitude
    left, right = padded[:, :, x : x + width], padded[:, :, x + 1 : x + 1 + width]
    rows = left + share[0] * (right - left)
    top, bottom = rows[:, y : y + height], rows[:, y + 1 : y + 1 + height]
    return np.asarray(top + share[1] * (bottom - top))


Columns = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.uint8]]


def _signal(light: NDArray[np.float32], camera: Camera) -> Iterator[Columns]:
    """Events of movement after movement: pixel among all images' pixels, time, polarity. In between, light is linear."""
    path = _path(camera)
    duration = camera.saccade / camera.moves
    now = _seen(light, path[0], camera.amplitude).ravel()
    level = now.copy()  # logarithm of the intensity at the pixel's last event
    for move, shift in enumerate(path[1:]):
        before, now = now, _seen(light, shift, camera.amplitude).ravel()
        change = (now - level) / camera.threshold
        count = (np.abs(change) + ROUNDING).astype(np.int64)
        pixel = np.flatnonzero(count)
        count, up = count[pixel], change[pixel] > 0
        step = np.where(up, camera.threshold, -camera.threshold).astype(np.float32)
        first = np.repeat(np.cumsum(count) - count, count)
        which = np.repeat(np.arange(len(pixel)), count)
        crossed = level[pixel][which] + (np.arange(len(which)) - first + 1) * step[which]
        slope = (now - before)[pixel][which]
        # a level can lie outside of the movement by rounding only: its time stays inside
        share = np.clip((crossed - before[pixel][which]) / np.where(slope == 0, 1, slope), 0, 1)
        level[pixel] += count * step
        yield pixel[which], (move + share.astype(np.float64)) * duration, up[which].astype(np.uint8)


def _with_noise(
    pixel: NDArray[np.int64],
    t: NDArray[np.float64],
    p: NDArray[np.uint8],
    pixels: int,
    camera: Camera,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Signal and background events together, times in whole µs."""
    count = rng.poisson(camera.noise * pixels * 3e-6 * camera.saccade)
    times = np.concatenate((t, rng.uniform(0, 3 * camera.saccade, count))).astype(np.int64)
    places = np.concatenate((pixel, rng.integers(0, pixels, count)))
    return places, times, np.concatenate((p, rng.integers(0, 2, count).astype(np.uint8)))


def _after_rest(
    pixel: NDArray[np.int64], t: NDArray[np.int64], p: NDArray[np.uint8], refractory: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Without the events that come less than `refractory` after one of the same pixel that stays; in the order of time.

    Events are taken pixel by pixel. One that has kept its distance from its predecessor surely stays, so the next is
    judged by it; what falls is removed, and the rest is judged again until all keep their distance.
    """
    order = np.lexsort((t, pixel))
    pixel, t, p = pixel[order], t[order], p[order]
    while True:
        close = np.zeros(len(t), bool)
        close[1:] = (pixel[1:] == pixel[:-1]) & (t[1:] - t[:-1] < refractory)
        falls = close.copy()
        falls[1:] &= ~close[:-1]
        if not falls.any():
            break
        pixel, t, p = pixel[~falls], t[~falls], p[~falls]
    order = np.lexsort((pixel, t))
    return pixel[order], t[order], p[order]


def _events(pixel: NDArray[np.int64], t: NDArray[np.int64], p: NDArray[np.uint8], width: int) -> NDArray[np.void]:
    events = np.empty(len(t), EVENT)
    events["t"], events["x"], events["y"], events["p"] = t, pixel % width, pixel // width, p
    return events
