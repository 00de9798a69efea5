"""Looking at event data: a table of what a set is, a picture and an animation of one recording."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from spiketrain.data.event_sets import SETS, files, known
from spiketrain.data.events import Size, sensor_of, to_frames
from spiketrain.data.framing import Source, parts_of
from spiketrain.data.readers import read
from spiketrain.errors import UserError, unknown

BACK, ON, OFF, INK, FAINT = (17, 19, 24), (255, 138, 30), (60, 150, 255), (225, 228, 235), (110, 116, 128)
TILE, GAP, PER_ROW, CHART, BAR = 132, 8, 8, 110, 5  # pixels, except PER_ROW


def info(name: str, root: str | Path = ".", split: str | None = None, cache: str | Path | None = None) -> Table:
    """What a data set is, where it is from, and what of it is under `root`. Print it with rich."""
    if name not in SETS and not known(name, root):
        raise unknown("event data set", name, [*SETS, "a folder of recordings"])
    table = Table(show_header=False, title=name)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    try:
        entry, train, test, classes, rule = files(name, root, split, cache)
    except UserError as error:
        if name not in SETS:
            raise
        entry, classes, found = SETS[name], SETS[name].classes, [("on disk", str(error))]
    else:
        found = [("split shown", rule), ("training files", _summary(train, classes)), ("test files", _summary(test, classes))]
    sensor = f"{entry.sensor[0]} x {entry.sensor[1]}" if entry.sensor else "each recording's own"
    rows = [
        ("what", entry.title),
        ("source", entry.page),
        ("licence", entry.licence),
        ("cite", entry.citation),
        ("sensor", sensor),
        ("classes", f"{len(classes)}: {', '.join(classes)}"),
        ("cut into", f"{entry.cut / 1000:g} ms" if entry.cut else "whole recordings"),
        ("layouts", "\n".join(entry.layouts)),
        ("splits", ", ".join(entry.splits)),
        ("MD5", "\n".join(f"{a.md5}  {a.file}  {a.url}".rstrip() for a in entry.archives)),
    ]
    for key, value in [*rows, *found]:
        if value:
            table.add_row(key, value)
    return table


def _summary(sources: Sequence[Source], classes: Sequence[str]) -> str:
    counts = Counter(label for s in sources for label in ([span[0] for span in s.spans] or [s.label]))
    size = sum(s.path.stat().st_size for s in sources) / 1e6
    a_class = f"{min(counts.values())} to {max(counts.values())} labels a class"
    return f"{len(sources)} files, {size:.1f} MB, {a_class}"


def show(
    name: str,
    index: int,
    out: str | Path,
    root: str | Path = ".",
    part: str = "test",
    steps: int = 8,
    split: str | None = None,
    cache: str | Path | None = None,
) -> tuple[Path, Path]:
    """Writes `<out>.png` (frames in a row, on and off coloured, events over time below) and `<out>.gif`; returns both paths."""
    events, sensor, title = _sample(name, index, root, part, split, cache)
    target = Path(out).with_suffix("") if Path(out).suffix.lower() in (".png", ".gif") else Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    png, gif = target.with_name(target.name + ".png"), target.with_name(target.name + ".gif")
    picture(events, sensor, steps, title).save(png)
    stills = [_scaled(frame, 4 * TILE) for frame in coloured(to_frames(events, 40, sensor, by="time"))]
    stills[0].save(gif, save_all=True, append_images=stills[1:], duration=50, loop=0)
    return png, gif


def _sample(
    name: str, index: int, root: str | Path, part: str, split: str | None, cache: str | Path | None
) -> tuple[NDArray[np.void], Size, str]:
    """Events, sensor and title of sample `index` of a part, in the order in which `load` has them."""
    if part not in ("train", "test"):
        raise unknown("part", part, ("train", "test"))
    entry, train, test, classes, _ = files(name, root, split, cache)
    left = index
    for source in train if part == "train" else test:
        if entry.cut is None and left >= max(1, len(source.spans)):  # no need to read what is passed over
            left -= max(1, len(source.spans))
            continue
        recording = read(source.path)
        samples = parts_of(recording.events, source, entry.cut)
        if 0 <= left < len(samples):
            label, events = samples[left]
            title = f"{entry.name} {part} {index}: {classes[label]}   {source.name}"
            return events, entry.sensor or recording.size or sensor_of(recording.events), title
        left -= len(samples)
    raise UserError(f"data set {name}: no sample {index} in the {part} part, which has {index - left}")


def coloured(frames: NDArray[Any]) -> list[Image.Image]:
    """Frames `[T,2,H,W]` as pictures: on orange, off blue, both whitish, brightest at the 99th percentile of all counts."""
    top = max(1.0, float(np.percentile(frames[frames > 0], 99))) if (frames > 0).any() else 1.0
    strength = np.sqrt(np.minimum(frames / top, 1))[..., None]  # [T,2,H,W,1]
    back = np.array(BACK, float)
    light = back + strength[:, 1] * (np.array(ON) - back) + strength[:, 0] * (np.array(OFF) - back)
    return [Image.fromarray(frame) for frame in np.clip(light, 0, 255).astype(np.uint8)]


def _scaled(image: Image.Image, width: int) -> Image.Image:
    factor = max(1, width // image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def picture(events: NDArray[np.void], sensor: Size, steps: int, title: str) -> Image.Image:
    """The frames of one recording in rows of eight, and how many events there were over time."""
    tiles = [_fitted(frame) for frame in coloured(to_frames(events, steps, sensor))]
    across, height = min(PER_ROW, steps), tiles[0].height
    down = -(-steps // PER_ROW)
    width = max(640, across * (TILE + GAP) + GAP)
    sheet = Image.new("RGB", (width, 34 + down * (height + 20) + CHART + 40), BACK)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    length = int(events["t"].max() - events["t"].min()) if len(events) else 0
    draw.text((GAP, 8), f"{title}   {len(events):,} events, {length / 1000:.0f} ms", INK, font)
    for i, tile in enumerate(tiles):
        x, y = GAP + (i % PER_ROW) * (TILE + GAP), 34 + (i // PER_ROW) * (height + 20)
        sheet.paste(tile, (x, y + 15))
        draw.text((x, y), f"t = {i}", FAINT, ImageFont.load_default(11))
    _chart(draw, events, steps, length, (GAP, 50 + down * (height + 20), width - GAP, 50 + down * (height + 20) + CHART))
    return sheet


def _fitted(image: Image.Image) -> Image.Image:
    """TILE wide, whatever the sensor: by whole factors where it is smaller, averaged where it is larger."""
    size = (TILE, max(1, round(image.height * TILE / image.width)))
    return image.resize(size, Image.Resampling.NEAREST if image.width <= TILE else Image.Resampling.BOX)


def _chart(
    draw: ImageDraw.ImageDraw, events: NDArray[np.void], steps: int, length: int, box: tuple[int, int, int, int]
) -> None:
    """Events over time: on upwards, off downwards from the middle line; a faint line where a frame begins."""
    left, top, right, bottom = box
    middle, bars = (top + bottom) // 2, (right - left) // BAR
    counts = to_frames(events, bars, (1 << 16, 1 << 16), out_size=1).sum((2, 3), dtype=int)  # [bars,2]
    scale = (middle - top) / max(1, int(counts.max()))
    for i in range(steps + 1):
        x = left + i * bars * BAR // steps
        draw.line((x, top, x, bottom), FAINT)
    for i, (off, on) in enumerate(counts):
        x = left + i * BAR
        draw.rectangle((x, middle - int(on * scale), x + BAR - 2, middle), ON)
        draw.rectangle((x, middle, x + BAR - 2, middle + int(off * scale)), OFF)
    font = ImageFont.load_default(11)
    draw.text((left + 4, bottom + 3), "0 ms", INK, font)
    draw.text((right - 60, bottom + 3), f"{length / 1000:.0f} ms", INK, font)
    draw.text((left + 4, top - 14), f"on (highest bar: {int(counts.max())} events)", ON, font)
    draw.text((left + 200, top - 14), "off", OFF, font)
