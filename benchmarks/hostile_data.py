"""What `hostile.py` changes of data: image sets, JPEGs, shards, archives, caches, recordings; and what reads them."""

import io
import json
import pickle
import random
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import readers_fuzz
import torch
from hostile_common import Case, Payload, json_bytes, outside, scattered
from jpegs import made
from PIL import Image

from spiketrain.data import cache, imagenet, images, shards
from spiketrain.data.framing import Framing, Source
from spiketrain.data.jpeg import decode
from spiketrain.data.readers import read
from spiketrain.data.unpack import unpack
from spiketrain.data.view import View


def _idx(values: np.ndarray) -> bytes:
    return np.array([0x0800 + values.ndim, *values.shape], ">i4").tobytes() + values.astype(np.uint8).tobytes()


def image_sets(folder: Path) -> Case:
    """The pickles of CIFAR-10 (opened only with the official MD5), MNIST's idx files, .npz of events, folders of images."""
    rng0 = np.random.default_rng(0)
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 6), ("t10k", 4)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(_idx(rng0.integers(0, 256, (count, 6, 6))))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(_idx(np.arange(count) % 10))
    cifar = folder / "cifar-10-batches-py"
    cifar.mkdir()
    evil = pickle.dumps({"data": Payload(outside(folder)), b"labels": [0]})
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (cifar / name).write_bytes(evil)
    np.savez(folder / "a.npz", t=np.arange(20), x=np.arange(20), y=np.arange(20), p=np.arange(20) % 2)
    npz = (folder / "a.npz").read_bytes()
    idx = {f: f.read_bytes() for f in raw.iterdir()}
    tree = folder / "tree" / "a"
    tree.mkdir(parents=True)
    pictures = _pictures()
    for i in range(2):
        (tree / f"{i}.png").write_bytes(pictures[4][1])

    def case(rng: random.Random) -> None:
        kind = rng.randrange(10)
        if kind == 0:
            (cifar / rng.choice(("data_batch_1", "batches.meta"))).write_bytes(scattered(evil, rng))
            images.IMAGE_SETS["cifar10"].load(folder, False)
        elif kind < 6:
            file = rng.choice(list(idx))
            file.write_bytes(scattered(idx[file], rng) if rng.random() < 0.7 else _hostile_idx(rng))
            try:
                images.IMAGE_SETS["mnist"].load(folder, False)
            finally:
                file.write_bytes(idx[file])
        elif kind < 8:
            (folder / "case.npz").write_bytes(scattered(npz, rng) if rng.random() < 0.8 else _hostile_npz(folder, rng))
            read(folder / "case.npz")
        else:
            (tree / "0.png").write_bytes(_picture(pictures, rng))
            images.load_folder(folder / "tree")

    return case


def _hostile_idx(rng: random.Random) -> bytes:
    sizes = [rng.choice((0, 1, 6, 2**16, 2**31 - 1, -1)) for _ in range(rng.choice((0, 1, 3, 9)))]
    kind = rng.choice((0x08, 0x09, 0x0B, 0x0C, 0x0D, 0x0E, 0x77))
    return struct.pack(">BBBB", 0, 0, kind, rng.choice((len(sizes), 3, 255))) + np.array(sizes, ">i4").tobytes() + bytes(rng.randrange(300))


def _hostile_npz(folder: Path, rng: random.Random) -> bytes:
    """Arrays of objects (a pickle), of claimed sizes, of other types; compressed zeros."""
    stream = io.BytesIO()
    evil = np.array([Payload(outside(folder))], dtype=object)
    arrays: dict[str, Any] = {"t": np.arange(9), "x": np.arange(9), "y": np.arange(9), "p": np.arange(9) % 2}
    arrays[rng.choice("txyp")] = rng.choice(
        (evil, np.zeros((2, 2)), np.array("a"), np.zeros(9, "c16"), np.zeros(1 << 22, "u1"), np.zeros(0))
    )
    np.savez_compressed(stream, allow_pickle=True, **arrays)
    return stream.getvalue()


def _pictures() -> list[tuple[str, bytes]]:
    """Small whole images: JPEG of several kinds, and others."""
    image = Image.open(io.BytesIO(made(0, (48, 40), 1, 5)))
    found = []
    for mode, kind, options in (
        ("RGB", "JPEG", {}), ("RGB", "JPEG", {"progressive": True}), ("L", "JPEG", {}), ("CMYK", "JPEG", {}), ("RGB", "PNG", {}), ("P",
        "GIF", {}),
        ("RGB", "WEBP", {}), ("RGB", "BMP", {}), ("RGB", "TIFF", {}), ("RGB", "PPM", {}), ("RGB", "JPEG", {"restart_marker_blocks": 2}),
    ):  # fmt: skip
        stream = io.BytesIO()
        image.convert(mode).save(stream, kind, **options)  # type: ignore[arg-type]
        found.append((kind, stream.getvalue()))
    return found


def _picture(pool: list[tuple[str, bytes]], rng: random.Random) -> bytes:
    """A changed image: by bytes, or in a JPEG by a marker's length or the claimed size."""
    kind, data = rng.choice(pool)
    if kind != "JPEG" or rng.random() < 0.6:
        return scattered(data, rng)
    out = bytearray(data)
    places = [i for i in range(2, len(out) - 10) if out[i] == 0xFF and 0xC0 <= out[i + 1] <= 0xFE]
    at = rng.choice(places)
    if rng.random() < 0.5:
        out[at + 2 : at + 4] = rng.choice((b"\0\0", b"\0\1", b"\xff\xff", bytes((rng.randrange(256), rng.randrange(256)))))
    else:
        frame = next((i for i in places if out[i + 1] in (0xC0, 0xC2)), at)
        out[frame + 4 : frame + 10] = bytes(rng.choice((0, 1, 3, 4, 8, 12, 0x28, 0xFF)) for _ in range(6))
    return bytes(out)


def jpegs(folder: Path) -> Case:
    """Images of a tree that streams, to their training and test views."""
    file, pool, view = folder / "a.JPEG", _pictures(), View(24, jitter=0.1)

    def case(rng: random.Random) -> None:
        file.write_bytes(_picture(pool, rng))
        image = decode(file.read_bytes(), str(file))
        assert image.dtype == torch.uint8 and image.shape[0] == 3
        for seen in (view.train(image, (0, 0, 0)), view.plain(image)):
            assert seen.shape == (3, 24, 24) and seen.dtype == torch.uint8

    return case


def _header(name: str, size: int, rng: random.Random, data: bytes = b"") -> bytes:
    """A tar header with a right checksum and perhaps a hostile field."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    block = bytearray(header.tobuf(rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT)))[-512:])
    if size >= 0:
        block[124:136] = b"%011o\0" % (size % 8**11)
    kind = rng.randrange(6)
    if kind == 0:
        block[156:157] = rng.choice((b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"L", b"K", b"x", b"g", b"S", b"V", b"\xff"))
    elif kind == 1:
        block[124:136] = rng.choice(
            (b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\x80" + bytes(6) + b"\xff" * 5, b"7" * 12, b" " * 12, b"-1".ljust(12))
        )
    elif kind == 2:
        block[rng.randrange(512)] = rng.randrange(256)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(-len(data) % 512)


NAMES = (
    "a.jpg",
    "a.cls",
    "b.jpg",
    "b.cls",
    "../../escaped",
    "/tmp/escaped.jpg",
    "a/../b.jpg",
    "é.jpg",
    "x" * 90 + ".jpg",
    ".jpg",
    "a",
    "..",
    "a.cls.jpg",
    "C:\\x.jpg",
)


def _tar(rng: random.Random, picture: bytes) -> bytes:
    parts = [_header(rng.choice(NAMES), rng.choice((-1, -1, -1, 0, 2**20, 2**33 - 1)), rng, rng.choice((picture, b"1", b"x",
    b"99999999"))) for _ in range(rng.randrange(1, 5))]  # fmt: skip
    return b"".join(parts) + bytes(rng.choice((0, 512, 1024)))


def tar_shards(folder: Path) -> Case:
    """Shards: their index, labels and images; and the kept index."""
    picture = _pictures()[0][1]
    data = folder / "data"
    data.mkdir()
    for part in ("train", "val"):
        with tarfile.open(data / f"{part}-0.tar", "w") as archive:
            for i in range(3):
                for name, content in ((f"{i}.jpg", picture), (f"{i}.cls", b"%d" % i)):
                    header = tarfile.TarInfo(name)
                    header.size = len(content)
                    archive.addfile(header, io.BytesIO(content))
    whole = (data / "train-0.tar").read_bytes()
    view = View(16)

    def case(rng: random.Random) -> None:
        kind = rng.randrange(5)
        (data / "train-0.tar").write_bytes(_tar(rng, picture) if kind < 3 else scattered(whole, rng))
        if kind == 4:
            (data / "classes.txt").write_bytes(rng.choice((b"a\nb\nc\n", b"a\n", b"\xff\n\n\n", b"\0" * 99)))
        index = shards.read_index(data / "train-0.tar", 0)
        files = shards.TarFiles((data / "train-0.tar",), index)
        for i in range(len(index)):
            decode(files.read(i), files.title(i))
        if rng.random() < 0.1:
            found = imagenet.load_shards(data, view, -1, folder)
            assert found.train.take(torch.tensor([0])).shape == (1, 3, 16, 16)

    return case


def archives(folder: Path) -> Case:
    """Downloaded archives, unpacked into a folder."""
    picture = _pictures()[0][1]
    target = folder / "deep" / "target"

    def case(rng: random.Random) -> None:
        kind = rng.randrange(3)
        if kind == 0:
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made_:
                for _ in range(rng.randrange(1, 4)):
                    made_.writestr(rng.choice(NAMES), rng.choice((picture, b"", bytes(1 << 20))))
            data, name = stream.getvalue(), "a.zip"
        else:
            data, name = _tar(rng, picture), rng.choice(("a.tar", "a.tar.gz", "a.tar.xz"))
            packer = {"a.tar.gz": _gzip, "a.tar.xz": _xz}.get(name, bytes)
            data = packer(data)
        (folder / name).write_bytes(scattered(data, rng) if rng.random() < 0.4 else data)
        unpack(folder / name, target)
        assert not any(p.is_symlink() or not (p.is_file() or p.is_dir()) for p in target.rglob("*"))

    return case


def _gzip(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data, 1)


def _xz(data: bytes) -> bytes:
    import lzma

    return lzma.compress(data, preset=0)


def caches(folder: Path) -> Case:
    """A frame cache (manifest, arrays, shards of a build that was cut off): it is used only if it is whole, and else made again."""
    events = np.zeros((40, 4))
    events[:, 0], events[:, 1], events[:, 2], events[:, 3] = np.arange(40) % 8, np.arange(40) % 7, np.arange(40) % 2, np.arange(40)
    np.save(folder / "a.npy", events)
    sources = [Source(folder / "a.npy", "a.npy", 0)]
    framing = Framing(2, (8, 8))
    place = folder / "cache"
    first = cache.cached(sources, framing, place, "x", "train", 1)
    done = next(p for p in place.iterdir() if p.is_dir())
    whole = {f.name: f.read_bytes() for f in done.iterdir()}
    manifest = json.loads(whole["manifest.json"])
    evil = io.BytesIO()
    np.save(evil, np.array([Payload(outside(folder))], dtype=object), allow_pickle=True)

    def case(rng: random.Random) -> None:
        name = rng.choice(list(whole))
        data = json_bytes(manifest, rng) if name == "manifest.json" else scattered(whole[name], rng)
        if name != "manifest.json" and rng.random() < 0.1:
            data = evil.getvalue()
        (done / name).write_bytes(data)
        if rng.random() < 0.2:
            part = done.with_name(done.name + ".part")
            part.mkdir(exist_ok=True)
            (part / "shard-00000.npz").write_bytes(scattered(_hostile_npz(folder, rng), rng))
            (done / "manifest.json").write_bytes(b"{}")
        found = cache.cached(sources, framing, place, "x", "train", 1)
        assert found.inputs.shape == first.inputs.shape and found.labels.dtype == torch.int64
        for file, content in whole.items():
            (done / file).write_bytes(content)

    return case


def events(folder: Path) -> Case:
    """Recordings of every format, as `readers_fuzz.py` changes them."""
    pool = readers_fuzz.samples(folder, None)

    def case(rng: random.Random) -> None:
        ending, data = rng.choice(pool)
        file = folder / f"case{ending}"
        file.write_bytes(readers_fuzz.mutated(data, rng))
        read(file)

    return case
