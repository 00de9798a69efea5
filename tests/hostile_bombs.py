"""Files of a few bytes that claim gigabytes, each read with no more than half a gigabyte of memory to be had. A process of its own."""

import io
import os
import resource
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from spiketrain import checkpoint
from spiketrain.data import cache, imagenet, shards
from spiketrain.data.images import IMAGE_SETS, read_image
from spiketrain.data.jpeg import decode
from spiketrain.data.readers import read
from spiketrain.data.unpack import unpack
from spiketrain.data.view import View
from spiketrain.errors import UserError
from spiketrain.record import Record

ROOM = 512 << 20


def jpeg(folder: Path) -> object:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    data = bytearray(stream.getvalue())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff\xdc\xff\xdc"
    return decode(bytes(data), "bomb.jpg")


def _png(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


def png(folder: Path) -> object:
    return decode(_png(60_000, 60_000), "bomb.png")


def png_of_a_folder(folder: Path) -> object:
    (folder / "bomb.png").write_bytes(_png(60_000, 60_000))
    return read_image(folder / "bomb.png")


def strip_of_pixels(folder: Path) -> object:
    return View(224).plain(torch.zeros(3, 1, 60_000, dtype=torch.uint8))


def _tar_header(kind: bytes, size: bytes) -> bytes:
    block = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.GNU_FORMAT))
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def shard_with_a_long_name(folder: Path) -> object:
    (folder / "a.tar").write_bytes(_tar_header(b"L", b"77777777777\0") + bytes(2048))
    return shards.read_index(folder / "a.tar", 0)


def shard_with_an_extended_header(folder: Path) -> object:
    (folder / "a.tar").write_bytes(_tar_header(b"x", b"\x80" + bytes(5) + b"\x01" + bytes(5)) + bytes(2048))
    return shards.read_index(folder / "a.tar", 0)


def shard_with_a_negative_size(folder: Path) -> object:
    (folder / "a.tar").write_bytes(_tar_header(b"x", b"\xff" * 11 + b"\x00") + bytes(4096))
    return shards.read_index(folder / "a.tar", 0)


def shard_with_a_large_image(folder: Path) -> object:
    (folder / "a.tar").write_bytes(_tar_header(b"0", b"37777777777\0") + bytes(2048))
    return shards.read_index(folder / "a.tar", 0)


def archive(folder: Path) -> object:
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as made, made.open("zeros", "w", force_zip64=True) as stream:
        for _ in range(1024):
            stream.write(bytes(1 << 20))
    return unpack(folder / "a.zip", folder / "target")


def archive_in_gzip(folder: Path) -> object:
    with tarfile.open(folder / "a.tar.gz", "w:gz", compresslevel=1) as made:
        header = tarfile.TarInfo("zeros")
        header.size = 1 << 29
        made.addfile(header, _Zeros())
    return unpack(folder / "a.tar.gz", folder / "target")


class _Zeros(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        return bytes(size)


def _checkpoint(folder: Path, **changes: object) -> Path:
    place = folder / "checkpoint-00001"
    place.mkdir()
    state = {"epoch": 1, "recipe": "{}", "optimizer": {}, "scheduler": {}, "ema": {}, "curve": [], "seconds": {"train": 1.0, "eval": 1.0}}
    torch.save(state | changes, place / "state.pt")
    checkpoint.save_weights(place / checkpoint.WEIGHTS, {"a": torch.zeros(1)})
    return place


def state_with_a_stretched_tensor(folder: Path) -> object:
    """Its storage has one number; torch makes the storage that its sizes ask for."""
    place = _checkpoint(folder, ema={"a": torch.zeros(7)})
    file = place / "state.pt"
    with zipfile.ZipFile(file) as old:
        members = {m.filename: old.read(m) for m in old.infolist()}
    with zipfile.ZipFile(file, "w") as new:
        for name, content in members.items():
            new.writestr(name, content.replace(b"K\x07\x85", b"J\xff\xff\xff\x7f\x85") if name.endswith("data.pkl") else content)
    return checkpoint.load(place)


def state_that_is_compressed(folder: Path) -> object:
    place = _checkpoint(folder, ema={"a": torch.zeros(1 << 24)})
    with zipfile.ZipFile(place / "state.pt") as old, zipfile.ZipFile(folder / "new", "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    os.replace(folder / "new", place / "state.pt")
    return checkpoint.load(place)


def weights(folder: Path) -> object:
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}')
    return checkpoint.load_weights(torch.nn.Linear(1, 1), folder / "a.safetensors")


def record(folder: Path) -> object:
    with (folder / "record.json").open("wb") as stream:
        stream.truncate(1 << 40)
    return Record.load(folder)


def record_of_brackets(folder: Path) -> object:
    (folder / "record.json").write_text("[" * (32 << 20))
    return Record.load(folder)


def mnist(folder: Path) -> object:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x0803, 2**31 - 1, 2**31 - 1, 28) + bytes(100))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, 2**31 - 1) + bytes(100))
    return IMAGE_SETS["mnist"].load(folder, False)


def npz_of_events(folder: Path) -> object:
    np.savez_compressed(folder / "a.npz", t=np.zeros(1 << 26, "i8"), x=np.zeros(1), y=np.zeros(1), p=np.zeros(1))
    return read(folder / "a.npz")


def kept_index(folder: Path) -> object:
    header = f"{{'descr': {shards.ENTRY.descr!r}, 'fortran_order': False, 'shape': ({1 << 40},), }}".ljust(245).encode() + b"\n"
    (folder / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64))
    if imagenet._kept(folder / "a.npy", []) is None:
        raise UserError("a kept index is not believed")
    return None


def frame_cache(folder: Path) -> object:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({1 << 40}, 1, 2, 8, 8), }}".ljust(245).encode() + b"\n"
    for name in ("frames", "labels"):
        (folder / f"{name}.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64))
    size = (folder / "frames.npy").stat().st_size
    (folder / "manifest.json").write_text(f'{{"key": "k", "bytes": {size}, "fingerprint": "f"}}')
    if not cache._whole(folder, "k"):
        raise UserError("a frame cache is not believed")
    return None


BOMBS: tuple[Callable[[Path], object], ...] = (
    jpeg, png, png_of_a_folder, strip_of_pixels, shard_with_a_long_name, shard_with_an_extended_header, shard_with_a_negative_size,
    shard_with_a_large_image, archive, archive_in_gzip, state_with_a_stretched_tensor, state_that_is_compressed, weights, record,
    record_of_brackets, mnist, npz_of_events, kept_index, frame_cache,
)  # fmt: skip


def main(folder: Path) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    for bomb in BOMBS:
        place = folder / bomb.__name__
        place.mkdir()
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            if status:
                print(f"{bomb.__name__}: ended with {status}")
            continue
        # two of them are made here, which takes memory itself
        made = pages * os.sysconf("SC_PAGE_SIZE") + ROOM + (2 << 30) * (bomb in (npz_of_events, state_that_is_compressed))
        resource.setrlimit(resource.RLIMIT_AS, (made, made))
        try:
            print(f"{bomb.__name__}: read {bomb(place)!r:.80}")
        except UserError as error:
            print(f"{bomb.__name__}: refused: {error}")
        except BaseException as error:
            print(f"{bomb.__name__}: {type(error).__name__}: {error}")
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
