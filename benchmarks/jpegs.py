"""Generated trees of JPEGs for benchmarks: real small images scaled up where they are at hand, else colours and shapes."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def encoded(image: Image.Image, quality: int = 90) -> bytes:
    """A JPEG with fine noise over it, so that it has about as many bytes a pixel as a photograph."""
    pixels = np.asarray(image).astype(np.int16)
    noise = np.random.default_rng(pixels[0, 0].sum()).integers(-9, 10, pixels.shape)
    stream = io.BytesIO()
    Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def real(shared: Path | None, count: int, size: tuple[int, int]) -> list[bytes]:
    """JPEGs of the Tiny-ImageNet images under a folder of real data, scaled up; none where they are absent."""
    archive = shared / "tiny_imagenet_8" / "tiny_imagenet_8.tar.xz" if shared else None
    if archive is None or not archive.is_file():
        return []
    found: list[bytes] = []
    with tarfile.open(archive) as members:
        for member in members:
            if member.isfile() and member.name.endswith(".JPEG"):
                stream = members.extractfile(member)
                assert stream is not None
                found.append(encoded(Image.open(stream).convert("RGB").resize(size, Image.Resampling.BICUBIC)))
            if len(found) == count:
                break
    return found


def made(seed: int, size: tuple[int, int], label: int = 0, classes: int = 1) -> bytes:
    """Stripes of a class's own angle and colour, with ellipses over them."""
    rng = np.random.default_rng((seed, label))
    width, height = size
    y, x = np.mgrid[:height, :width]
    angle = np.pi * label / classes
    stripes = 0.5 + 0.5 * np.sin((x * np.cos(angle) + y * np.sin(angle)) / rng.uniform(7, 9) + rng.uniform(0, 6))
    hue = Image.new("HSV", (1, 1), (int(255 * (label * 7 % classes) / classes), 160, 255)).convert("RGB").getpixel((0, 0))
    picture = Image.fromarray((stripes[..., None] * np.array(hue)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(4):
        left, top, w, h = rng.integers(0, width), rng.integers(0, height), rng.integers(10, 80), rng.integers(10, 80)
        draw.ellipse((left, top, left + w, top + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return encoded(picture)


def write_tree(folder: Path, parts: dict[str, int], classes: int, pool: Sequence[bytes], size: tuple[int, int] = (400, 300)) -> int:
    """part/nCLASS/I.JPEG, so many a class of each part; from `pool` in turn, or drawn where it is empty. Returns bytes written."""
    total, at = 0, 0
    for part, count in parts.items():
        for label in range(classes):
            place = folder / part / f"n{label:04d}"
            place.mkdir(parents=True)
            for i in range(count):
                data = pool[at % len(pool)] if pool else made(i + 10_000 * (part != "train"), size, label, classes)
                at += 1
                total += (place / f"{i:05d}.JPEG").write_bytes(data)
    return total
