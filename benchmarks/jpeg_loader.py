"""Images/s of the loader that trains on ImageNet, and of torchvision's own, on a generated tree of JPEGs, in turns.

    python benchmarks/jpeg_loader.py [--images 20000] [--shared DIR] [--json results/benchmarks/jpeg_loader.json]

All see the same files and end in the same: normalised float batches of random parts (8–100 % of the area, bilinear, antialiased,
224×224), mirrored by half. torchvision twice: as its ImageNet example has it (ImageFolder with Pillow, transforms, DataLoader), and with
the fastest of its own parts (decode_image and transforms.v2 on tensors). Ours from the folder, and from tar shards. Every side has a
worker a core, and batches of 64. Each round is a slice of the tree that no round before had; the clock runs from the first batch to
the last. Before anything is timed the middle view of ours is compared with torchvision's: at most two levels of 255 apart.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import store
from jpegs import made, real, write_tree
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2

from spiketrain.data import imagenet
from spiketrain.data.image_augment import ImageAugment
from spiketrain.data.jpeg import decode
from spiketrain.data.loader import Loader
from spiketrain.data.parallel import cores
from spiketrain.data.stream import FolderFiles, Stream
from spiketrain.data.types import DataSet, Split
from spiketrain.data.view import View

BATCH = 64
VIEW = View(224, interpolation="bilinear", test_interpolation="bilinear")
STATISTICS = (imagenet.MEAN, imagenet.STD)
CPU = torch.device("cpu")
Batches = Iterable[Any]


def by_tensor(path: str) -> torch.Tensor:
    """torchvision's decoder, as its documentation has it."""
    return decode_image(read_file(path), mode=ImageReadMode.RGB)


def torchvision_pillow(folder: Path) -> ImageFolder:
    steps = [v1.RandomResizedCrop(224), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(*STATISTICS)]
    return ImageFolder(str(folder), v1.Compose(steps))


def torchvision_tensor(folder: Path) -> ImageFolder:
    crop = v2.RandomResizedCrop(224, antialias=True)
    steps = [crop, v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, True), v2.Normalize(*STATISTICS)]
    return ImageFolder(str(folder), v2.Compose(steps), loader=by_tensor)


def theirs(source: ImageFolder, chosen: np.ndarray) -> Batches:
    return DataLoader(Subset(source, chosen.tolist()), BATCH, shuffle=True, num_workers=cores(), drop_last=True)


def ours(data: DataSet, chosen: np.ndarray) -> Batches:
    """The loader that training has, over some of a data set's samples."""
    assert isinstance(data.train.stream, Stream)
    split = Split(data.train.inputs, data.train.labels, "", Stream(data.train.stream.files, VIEW))
    loader = Loader(DataSet("slice", split, split, data.classes), ImageAugment(*STATISTICS, len(data.classes)), BATCH, BATCH, 0, CPU)
    loader._samples = torch.from_numpy(chosen)
    return loader.train(0)


def rate(batches: Batches) -> float:
    """Images/s from the first batch, which waits for the processes to start, to the last."""
    begun, images = 0.0, 0
    for images_, _ in batches:
        if not begun:
            begun = time.perf_counter()
        else:
            images += len(images_)
    return images / (time.perf_counter() - begun)


def check(folder: Path) -> float:
    """Largest difference of the middle view from torchvision's, in levels; stops where it is more than two."""
    crop = v1.Compose([v1.Resize(256), v1.CenterCrop(224)])
    worst = 0.0
    for file in sorted(folder.rglob("*.JPEG"))[:40]:
        mine = VIEW.plain(decode(file.read_bytes(), str(file))).numpy().astype(int)
        worst = max(worst, np.abs(mine - np.asarray(crop(Image.open(file).convert("RGB"))).transpose(2, 0, 1)).max())
    if worst > 2:
        raise SystemExit(f"the middle views differ by {worst} levels: nothing is timed")
    return float(worst)


def milliseconds(step: Callable[[int], Any], count: int = 300) -> float:
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        for i in range(count):
            step(i)
        best = min(best, time.perf_counter() - begun)
    return round(1e3 * best / count, 4)


def parts_of_ours(files: FolderFiles) -> dict[str, float]:
    """ms an image of each part, one thread."""
    data = [files.read(i) for i in range(300)]
    images = [decode(d, "") for d in data]
    seen = [VIEW.train(x, (0, 0, i)) for i, x in enumerate(images)]
    batch = torch.empty(BATCH, 224, 224, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    prepare = ImageAugment(*STATISTICS, 10)
    return {
        "read": milliseconds(files.read),
        "decode (torchvision's decoder)": milliseconds(lambda i: decode(data[i], "")),
        "random part, scaled, mirrored (uint8)": milliseconds(lambda i: VIEW.train(images[i], (0, 0, i))),
        "into the batch": milliseconds(lambda i: batch[i % BATCH].copy_(seen[i])),
        "normalise (whole batches)": round(milliseconds(lambda _: prepare.plain(batch), 8) / BATCH, 4),
    }


def parts_of_pillow(files: FolderFiles) -> dict[str, float]:
    """The same of torchvision's usual way."""
    paths = [files.title(i) for i in range(300)]
    images = [Image.open(p).convert("RGB") for p in paths]
    crop, flip, tensor, normalise = v1.RandomResizedCrop(224), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(*STATISTICS)
    small = [crop(x) for x in images]
    floats = [tensor(x) for x in small[:32]]
    return {
        "read, decode (Pillow)": milliseconds(lambda i: Image.open(paths[i]).convert("RGB")),
        "of it where Pillow may halve the image (draft)": milliseconds(lambda i: half(paths[i])),
        "random part, scaled (Pillow)": milliseconds(lambda i: crop(images[i])),
        "mirror": milliseconds(lambda i: flip(small[i])),
        "to float tensor": milliseconds(lambda i: tensor(small[i])),
        "normalise": milliseconds(lambda i: normalise(floats[i % 32])),
        "stack": round(milliseconds(lambda _: torch.stack(floats), 8) / 32, 4),
    }


def half(path: str) -> Image.Image:
    image = Image.open(path)
    image.draft("RGB", (image.width // 2, image.height // 2))
    return image.convert("RGB")


def measure(folder: Path, rounds: int, shards: Path) -> dict[str, list[float]]:
    tree, packed = imagenet.load_tree(folder, VIEW), imagenet.load_shards(shards, VIEW, root=shards)
    sources = {"torchvision, Pillow": torchvision_pillow(folder / "train"), "torchvision, tensors": torchvision_tensor(folder / "train")}
    order = np.random.default_rng(0).permutation(len(tree.train))
    found: dict[str, list[float]] = {}
    for piece in np.array_split(order, rounds):
        runs: dict[str, Callable[[], Batches]] = {"spiketrain, folder": lambda piece=piece: ours(tree, piece)}
        runs["spiketrain, shards"] = lambda piece=piece: ours(packed, piece)
        runs |= {name: (lambda source=source, piece=piece: theirs(source, piece)) for name, source in sources.items()}
        for name, run in runs.items():
            found.setdefault(name, []).append(rate(run()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shared", type=Path, help="folder with tiny_imagenet_8/ of real images")
    parser.add_argument("--json", type=Path, default=Path("results/benchmarks/jpeg_loader.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in the workers; the main process only normalises
    with tempfile.TemporaryDirectory() as place:
        folder, shards = Path(place, "tree"), Path(place, "shards")
        pool = real(options.shared, 400, (400, 300)) or [made(i, (400, 300), i % 20, 20) for i in range(400)]
        written = write_tree(folder, {"train": options.images // 20, "val": 5}, 20, pool)
        imagenet.shard(folder, shards, 64_000_000)
        worst = check(folder / "val")
        found = measure(folder, options.rounds, shards)
        files = imagenet.load_tree(folder, VIEW).train.stream.files
        parts = {"spiketrain": parts_of_ours(files), "torchvision, Pillow": parts_of_pillow(files)}
    rows = {name: {"images_per_s": round(float(np.median(r)), 1), "per_core": round(float(np.median(r)) / cores(), 1),
                   "rounds": [round(x, 1) for x in r]} for name, r in found.items()}  # fmt: skip
    for name, row in rows.items():
        ratio = row["images_per_s"] / rows["torchvision, Pillow"]["images_per_s"]
        print(f"{name:24s} {row['images_per_s']:8,.0f} images/s, {row['per_core']:6,.0f} a core: {ratio:.2f}x torchvision with Pillow")
    for name, times in parts.items():
        print(f"{name}: " + ", ".join(f"{part} {ms:.3f} ms" for part, ms in times.items()))
    store(
        options.json, images=options.images, real=bool(options.shared), kilobytes_each=round(written / options.images / 1e3, 1),
        pixels="400×300", batch=BATCH, workers=cores(), largest_difference=worst, results=rows, milliseconds=parts,
    )  # fmt: skip


if __name__ == "__main__":
    main()
