"""ImageNet and sets of its kind: torchvision's folders, or tar shards. Nothing of them is held but where each image lies."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spiketrain.data import shards
from spiketrain.data.cache import cache_root
from spiketrain.data.images import IMAGE_SUFFIXES
from spiketrain.data.shards import ENTRY, TarFiles
from spiketrain.data.stream import MOST_FILE, Files, FolderFiles, fingerprint, streamed
from spiketrain.data.types import DataSet
from spiketrain.data.view import View
from spiketrain.errors import UserError
from spiketrain.files import read_bytes

FOLDERS = {"imnet": ("imnet", "imagenet", "ILSVRC2012", "."), "imnet-shards": ("imnet-shards", "imagenet-shards", ".")}
TEST = ("val", "test", "validation")
_CITE = "O. Russakovsky et al.: ImageNet Large Scale Visual Recognition Challenge, 2015"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOST_CLASSES = 1 << 20

@dataclass(frozen=True)
class Description:
    """What a set is and where it comes from, as `spiketrain data info` prints it."""

    title: str
    page: str
    licence: str
    citation: str
    layout: str


STREAMED = {
    "imnet": Description(
        "ImageNet (ILSVRC 2012), decoded when needed", "https://www.image-net.org/", "for non-commercial research", _CITE,
        "imnet/train/CLASS/*.JPEG, imnet/val/CLASS/*.JPEG"),
    "imnet-shards": Description(
        "ImageNet in tar shards, decoded when needed", "https://www.image-net.org/", "for non-commercial research", _CITE,
        "imnet-shards/train-*.tar, val-*.tar, classes.txt (spiketrain data shard)"),
}  # fmt: skip
"""The sets of this file."""

Part = tuple[Files, Tensor, str]
"""Files, labels, fingerprint."""


def load(name: str, root: Path, view: View, workers: int = 0) -> DataSet:
    """The set `imnet` (train/CLASS/*.JPEG and val/CLASS/*.JPEG below root/imnet, root/imagenet, root/ILSVRC2012 or root itself) or
    `imnet-shards` (train-*.tar, val-*.tar, classes.txt). `UserError` where there is none."""
    for folder in (root / place for place in FOLDERS[name]):
        if name == "imnet" and is_tree(folder):
            return load_tree(folder, view, workers)
        if name == "imnet-shards" and shards.is_shard_folder(folder):
            return load_shards(folder, view, workers, root)
    kind = "train/CLASS/*.JPEG and val/CLASS/*.JPEG" if name == "imnet" else "train-*.tar and val-*.tar (spiketrain data shard makes them)"
    raise UserError(f"data set {name}: no {kind} in {root / FOLDERS[name][0]}: put it there, or name its folder with --data-root")


def is_tree(folder: Path) -> bool:
    """Whether a folder has a training and a test part with a folder a class each."""
    return (folder / "train").is_dir() and any((folder / part).is_dir() for part in TEST) and not shards.is_shard_folder(folder)


def load_tree(folder: Path, view: View, workers: int = 0) -> DataSet:
    """A folder of torchvision's ImageNet layout, streamed; classes are numbered in the order of their names."""
    test = next(folder / part for part in TEST if (folder / part).is_dir())
    classes = sorted(entry.name for entry in os.scandir(folder / "train") if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UserError(f"{folder / 'train'}: no subfolders: one a class is expected")
    strangers = {e.name for e in os.scandir(test) if e.is_dir() and not e.name.startswith(".")} - set(classes)
    if strangers:
        raise UserError(f"{test}: class folder {min(strangers)!r} is not in {folder / 'train'}")
    parts = [_tree_part(folder / "train", classes, True), _tree_part(test, classes, False)]
    return streamed(folder.resolve().name, parts[0], parts[1], classes, view, workers, MEAN, STD, "folders")


def _tree_part(base: Path, classes: Sequence[str], every: bool) -> Part:
    """Every image of a part, by class and name. A class without images is an error where `every` class must have some."""
    names: list[bytes] = []
    labels: list[int] = []
    sizes: list[int] = []
    for label, name in enumerate(classes):
        entries = _images(base / name)
        if every and not entries:
            raise UserError(f"{base / name}: no image in this class folder ({' '.join(IMAGE_SUFFIXES)})")
        for file, size in entries:
            names.append(os.fsencode(os.path.join(name, file)))
            labels.append(label)
            sizes.append(size)
    if not names:
        raise UserError(f"{base}: no image in any class folder")
    numbers = np.array(labels, np.int64)
    return FolderFiles(base, np.array(names)), torch.from_numpy(numbers), fingerprint(numbers, np.array(sizes, np.int64), classes)


def _images(folder: Path) -> list[tuple[str, int]]:
    """Name and size of each image in a folder, in the order of names."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (e.name, e.stat().st_size)
                for e in entries
                if e.name.lower().endswith(IMAGE_SUFFIXES) and not e.name.startswith(".") and e.is_file()
            )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error


def load_shards(folder: Path, view: View, workers: int = 0, root: Path | None = None) -> DataSet:
    """A folder of tar shards, streamed. Class names are the lines of classes.txt, or numbers where there is none."""
    parts: list[tuple[TarFiles, NDArray[np.int64]]] = []
    for kind in (("train",), TEST):
        found = shards.find_shards(folder, kind)
        if not found:
            raise UserError(f"{folder}: no {kind[0]}-*.tar in it: training and test shards are expected (train-*.tar, val-*.tar)")
        index = _index(found, cache_root(root or folder.parent))
        parts.append((TarFiles(tuple(found), index), np.ascontiguousarray(index["label"])))
    most = 1 + max(int(labels.max()) for _, labels in parts)
    classes = _classes(folder, most)
    made = [(f, torch.from_numpy(n), fingerprint(n, np.ascontiguousarray(f.index["size"]), classes)) for f, n in parts]
    return streamed(folder.resolve().name, made[0], made[1], classes, view, workers, MEAN, STD, "shards")


def _classes(folder: Path, most: int) -> list[str]:
    file = folder / "classes.txt"
    if most > MOST_CLASSES:
        raise UserError(f"{folder}: a label of {most - 1:,} in its shards")
    if not file.exists():
        return [str(i) for i in range(most)]
    names = read_bytes(file, 64 << 20, "list of classes").decode("utf-8", "surrogateescape").splitlines()
    if len(names) < most or len(names) > MOST_CLASSES:
        raise UserError(f"{file}: {len(names):,} classes, and the shards have labels up to {most - 1}")
    return names


def _index(found: Sequence[Path], cache: Path) -> NDArray[np.void]:
    """The entries of all shards: from the cache where they are there, else read from the shards and kept if that is possible."""
    file = cache / f"shards-{shards.key_of(found)}.npy"
    if file.is_file():
        index = _kept(file, found)
        if index is not None:
            return index
    index = np.concatenate([shards.read_index(shard, number) for number, shard in enumerate(found)])
    part = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            np.save(stream, index)
        part.replace(file)
    except OSError:  # a folder that cannot be written: the index is made again next time
        part.unlink(missing_ok=True)
    return index


def _kept(file: Path, found: Sequence[Path]) -> NDArray[np.void] | None:
    """A cached index, or None where it is not one of these shards: its places must lie in them."""
    try:
        index = np.load(file, mmap_mode="r", allow_pickle=False)
        if index.dtype != ENTRY or index.ndim != 1 or not len(index):
            return None
        sizes = np.array([shard.stat().st_size for shard in found])
        good = (index["shard"] >= 0) & (index["shard"] < len(found)) & (index["label"] >= 0) & (index["label"] < MOST_CLASSES)
        good &= (index["offset"] >= 0) & (index["size"] >= 0) & (index["size"] <= MOST_FILE)
        good[good] &= index["offset"][good] <= sizes[index["shard"][good]] - index["size"][good]
    except (OSError, ValueError, EOFError, TypeError, SyntaxError):
        return None
    return index if bool(good.all()) else None


def shard(folder: Path, out: Path, bytes_each: int) -> list[tuple[str, int]]:
    """Writes a tree of images as shards into a new folder; returns parts and how many shards each has."""
    if not is_tree(folder):
        raise UserError(f"{folder}: train/CLASS/ and val/CLASS/ with images are expected in it")
    data = load_tree(folder, View(224))
    part = shards.new_shard_folder(out)
    written = []
    for name, split in (("train", data.train), ("val", data.test)):
        files = split.stream.files  # type: ignore[union-attr]
        written.append((name, len(list(shards.write_shards(files, split.labels, part, name, bytes_each)))))
    (part / "classes.txt").write_bytes("".join(f"{c}\n" for c in data.classes).encode("utf-8", "surrogateescape"))
    part.rename(out)
    return written


__all__ = ["STREAMED", "is_tree", "load", "load_shards", "load_tree", "shard"]
