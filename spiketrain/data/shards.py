"""Images in tar shards of WebDataset's layout: `KEY.jpg` and `KEY.cls` (the label in digits) one after the other, and classes.txt beside.

A shard is never unpacked: an index of offsets is made once from its headers, and images are read at their places. Names inside
decide nothing but which label belongs to which image, so no name can lead out of a folder.
"""

import hashlib
import os
import random
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spiketrain.data.stream import MOST_FILE, Files
from spiketrain.data.unpack import Bounded
from spiketrain.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")
ENTRY = np.dtype([("shard", "<i8"), ("offset", "<i8"), ("size", "<i8"), ("label", "<i8")])
TOGETHER = 16
"""Shards that are read at once: samples are shuffled within them, and the shards among each other."""
MOST_NAME = 4096


@dataclass(frozen=True)
class TarFiles:
    """Images at places in tar files; `index` has an `ENTRY` a sample."""

    shards: tuple[Path, ...]
    index: NDArray[np.void]

    def title(self, index: int) -> str:
        """Shard and place."""
        return f"{self.shards[self.index['shard'][index]]}: the image at byte {self.index['offset'][index]}"

    def read(self, index: int) -> bytes:
        """The bytes of one image."""
        shard, offset, size, _ = self.index[index].tolist()
        try:
            handle = os.open(self.shards[shard], os.O_RDONLY)
            try:
                data = os.pread(handle, size, offset)
            finally:
                os.close(handle)
        except OSError as error:
            raise UserError(f"{self.title(index)}: cannot be read ({error.strerror})") from error
        if len(data) != size:
            raise UserError(f"{self.title(index)}: the file ends before it: copy the shard again")
        return data

    def arrange(self, order: Tensor, generator: torch.Generator, batch: int, world: int) -> Tensor:
        """The same samples, such that only `TOGETHER` shards are read at a time, and each of `world` ranks has shards of its own.

        A rank's slice of each batch comes from its own part of the shards (parts of equal numbers of samples, so at their edges two
        ranks share one). The order among ranks is that of their slices in a batch of `batch` samples.
        """
        groups = torch.randperm(len(self.shards), generator=generator) // TOGETHER
        shards = torch.from_numpy(self.index["shard"].astype(np.int64))
        near = order[torch.argsort(groups[shards[order]], stable=True)]
        whole = len(order) // batch * batch
        if world == 1 or batch % world:
            return near
        lanes = near[:whole].view(world, -1, batch // world)  # [rank, batches, its slice]
        return torch.cat((lanes.transpose(0, 1).reshape(-1), near[whole:]))


def find_shards(folder: Path, parts: Sequence[str]) -> list[Path]:
    """The tar files of a part (of the first name that has any): `train-000000.tar` …, or all of a folder `train/`."""
    for part in parts:
        found = sorted(folder.glob(f"{part}*.tar")) or sorted((folder / part).glob("*.tar"))
        if found:
            return found
    return []


def is_shard_folder(folder: Path) -> bool:
    """Whether a folder holds shards of a training part."""
    return bool(find_shards(folder, ("train",)))


def read_index(shard: Path, number: int) -> NDArray[np.void]:
    """The entries of one shard; `UserError` where it is no plain tar file, ends too early, or an image or its label is missing."""
    entries: list[tuple[int, int, int, int]] = []
    found: dict[str, list[int]] = {}  # of the sample that is being read: [offset, size] and [label]
    key = ""
    try:
        size = shard.stat().st_size
        with shard.open("rb") as stream, tarfile.open(fileobj=Bounded(stream), mode="r:") as archive:  # type: ignore[call-overload]
            for member in archive:
                archive.members.clear()  # it keeps every header that it has seen
                stem, ending = _split(member, shard, size)
                if stem != key and found:
                    entries.append(_entry(found, key, number, shard))
                    found = {}
                key = stem
                if ending in IMAGES:
                    _once(found, "image", [member.offset_data, member.size], shard, key)
                elif ending == ".cls":
                    _once(found, "label", [_label(archive, member, shard)], shard, key)
        if found:
            entries.append(_entry(found, key, number, shard))
    except UserError:
        raise
    except (OSError, tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError) as error:
        compressed = " (compressed? unpack it first)" if shard.is_file() else ""
        raise UserError(f"{shard}: not a whole tar file{compressed}: {str(error)[:100]}") from error
    if not entries:
        raise UserError(f"{shard}: no image with a label in it: KEY.jpg and KEY.cls are expected")
    return np.array(entries, ENTRY)


def _split(member: tarfile.TarInfo, shard: Path, size: int) -> tuple[str, str]:
    """A member's key and ending in small letters, as WebDataset has them: up to the first dot of the last part of its name."""
    if len(member.name) > MOST_NAME:
        raise UserError(f"{shard}: a name of {len(member.name):,} characters in it")
    if member.isdir():
        return member.name, ""
    if not member.isreg() or member.issparse():
        raise UserError(f"{shard}: {member.name[:80]!r} is a link, a device, or has holes: only plain files may be in a shard")
    if member.size > MOST_FILE or member.size < 0 or member.offset_data + member.size > size:
        raise UserError(f"{shard}: {member.name[:80]!r} claims {member.size:,} bytes, which the file does not have or no image needs")
    folder, _, base = member.name.rpartition("/")
    stem, dot, ending = base.partition(".")
    return f"{folder}/{stem}", (dot + ending).lower()


def _once(found: dict[str, list[int]], what: str, value: list[int], shard: Path, key: str) -> None:
    if what in found:
        raise UserError(f"{shard}: two of {what} for the key {key[:80]!r}")
    found[what] = value


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> int:
    stream = archive.extractfile(member) if member.size <= 20 else None
    text = stream.read().strip() if stream else b""
    if not text.isdigit() or len(text) > 7:
        raise UserError(f"{shard}: {member.name[:80]!r} holds no label: a number from 0 in digits is expected")
    return int(text)


def _entry(found: dict[str, list[int]], key: str, number: int, shard: Path) -> tuple[int, int, int, int]:
    if len(found) != 2:
        missing = "label (.cls)" if "image" in found else "image (.jpg)"
        raise UserError(f"{shard}: the key {key[:80]!r} has no {missing}")
    offset, size = found["image"]
    return number, offset, size, found["label"][0]


def key_of(shards: Iterable[Path]) -> str:
    """Of an index: names, sizes and times of change of the shards."""
    digest = hashlib.sha256()
    for shard in shards:
        try:
            stat = shard.stat()
        except OSError as error:
            raise UserError(f"{shard}: cannot be read ({error.strerror})") from error
        digest.update(f"{shard.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:20]


def write_shards(files: Files, labels: Tensor, folder: Path, part: str, bytes_each: int, seed: int = 0) -> Iterator[Path]:
    """Writes `part-000000.tar` … into a folder, shuffled once, each of about so many bytes; yields each when it is whole."""
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)  # a shard then has every class, and what lies together may be trained on together
    digits = max(6, len(str(len(order))))
    number, at = 0, 0
    while at < len(order):
        target = folder / f"{part}-{number:06d}.tar"
        written = 0
        with tarfile.open(target.with_suffix(".tmp"), "w", format=tarfile.USTAR_FORMAT) as archive:
            while at < len(order) and written < bytes_each:
                data = files.read(order[at])
                for ending, content in ((suffix(data), data), (".cls", str(int(labels[order[at]])).encode())):
                    header = tarfile.TarInfo(f"{at:0{digits}d}{ending}")
                    header.size = len(content)
                    archive.addfile(header, BytesIO(content))
                written += len(data)
                at += 1
        os.replace(target.with_suffix(".tmp"), target)
        yield target
        number += 1


def suffix(data: bytes) -> str:
    """The ending that an image's first bytes ask for."""
    known = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp", b"BM": ".bmp", b"P6": ".ppm", b"P5": ".ppm"}
    return known.get(data[:2], ".jpg")


def new_shard_folder(folder: Path) -> Path:
    """An empty folder beside `folder`, to be renamed to it when all is written; `UserError` where `folder` is there already."""
    if folder.exists():
        raise UserError(f"{folder}: is there already: name a new folder")
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{part}: cannot be made ({error.strerror}): name another folder") from error
    return part
