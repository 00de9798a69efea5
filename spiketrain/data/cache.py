"""The frame cache: recordings framed once, kept as one memory-mapped array, and never handed out for anything else.

A cache is a folder `<name>-<key>` with `frames.npy`, `labels.npy` and `manifest.json`. The key is the SHA-256 of all that
decides what is in it: every file's name, size, time of last change, label and spans, the framing, the split and its part.
(The content of files is not read to find a cache: touching a file builds anew, and only a change that keeps size and time
of change goes unseen.) The content's own SHA-256s are taken while building and make the fingerprint, which is therefore
the same on every machine.

Building: files are framed in shards, each written under a temporary name and then renamed, in a folder `….part`; at the
end all shards become one array, in a folder that is then renamed. A process killed at any moment leaves whole shards, and
the next one continues from them. A file lock lets one process build while others wait for what it makes. All cores work
once a build turns out to be long.
"""

import hashlib
import json
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spiketrain.data import parallel
from spiketrain.data.framing import Framing, Source, samples_of
from spiketrain.data.types import Split
from spiketrain.errors import UserError
from spiketrain.files import read_json

VERSION = 1
MOST_MANIFEST = 1 << 20
SHARD_FILES, SHARD_BYTES = 64, 8 << 20


def cache_root(root: Path, cache: str | Path | None = None) -> Path:
    """Where caches go: the argument, else the environment's `SPIKETRAIN_CACHE`, else `<root>/.spiketrain-cache`."""
    return Path(cache or os.environ.get("SPIKETRAIN_CACHE") or root / ".spiketrain-cache")


def cached(sources: Sequence[Source], framing: Framing, folder: Path, name: str, split: str, workers: int = 0) -> Split:
    """The frames of `sources` from the cache in `folder`, built first if it is not there.

    `name` is for people (folder name, progress bar), `split` names the rule and the part. `workers` bounds the number of
    processes; 0 = one a core. Raises `UserError` naming the file that cannot be read or the folder that cannot be written.
    """
    key = _key(sources, framing, split)
    done = folder / f"{name}-{key[:20]}"
    part = done.with_name(done.name + ".part")
    if part.exists() or not _whole(done, key):
        try:
            with locked(done):
                if not _whole(done, key):
                    _build(sources, framing, done, part, key, f"framing {name}", workers)
                shutil.rmtree(part, ignore_errors=True)
        except OSError as error:
            raise UserError(
                f"cannot build the frame cache in {folder}: {error}; give it another place with SPIKETRAIN_CACHE=folder"
            ) from error
    return _open(done)


@contextmanager
def locked(done: Path) -> Iterator[None]:
    """Only one process at a time is inside for this path; the system frees the lock of one that is killed."""
    parallel.not_in_a_worker_that_starts()
    done.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{done}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"another process builds {done}: waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _key(sources: Sequence[Source], framing: Framing, split: str) -> str:
    files = []
    for source in sources:
        try:
            stat = source.path.stat()
        except OSError as error:
            raise UserError(f"{source.path}: cannot be read ({error.strerror})") from error
        files.append([source.name, stat.st_size, stat.st_mtime_ns, source.label, source.spans])
    return _sha({"version": VERSION, "files": files, "framing": asdict(framing), "split": split})


def _sha(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _whole(done: Path, key: str) -> bool:
    """True where the cache is there, is for this key, and its array has the size that its manifest states."""
    try:
        manifest = read_json(done / "manifest.json", "manifest", MOST_MANIFEST)
        if manifest["key"] != key or (done / "frames.npy").stat().st_size != manifest["bytes"]:
            return False
        _open(done)
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _open(done: Path) -> Split:
    """The content of a cache folder; `ValueError` where it is not one that was made here."""
    manifest = read_json(done / "manifest.json", "manifest", MOST_MANIFEST)
    frames = _array(done / "frames.npy", "c")  # copy on write: nobody can change the file through it
    labels = np.array(_array(done / "labels.npy", "r"))
    if labels.dtype != np.int64 or labels.shape != frames.shape[:1] or frames.ndim != 5 or frames.dtype.kind not in "uif":
        raise ValueError("arrays of other types or sizes")
    return Split(torch.from_numpy(frames), torch.from_numpy(labels), str(manifest["fingerprint"]))


def _array(file: Path, mode: Literal["r", "c"]) -> NDArray[Any]:
    """A memory-mapped array: no more of it is there than the file has, whatever its header claims."""
    try:
        array = np.load(file, mmap_mode=mode, allow_pickle=False)
    except Exception as error:  # NumPy evaluates the header as a literal: what that may raise is not listed
        raise ValueError(f"{file}: damaged") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{file}: not one array")
    return array


def _build(
    sources: Sequence[Source], framing: Framing, done: Path, part: Path, key: str, title: str, workers: int
) -> None:
    part.mkdir(exist_ok=True)
    for leftover in part.glob("*.tmp"):
        leftover.unlink(missing_ok=True)
    shards = [(part / f"shard-{i:05d}.npz", files) for i, files in enumerate(_shards(sources))]
    todo = [(target, files, framing) for target, files in shards if not _readable(target)]
    with _progress() as progress:
        finished = len(sources) - sum(len(files) for _, files, _ in todo)
        task = progress.add_task(title, total=len(sources), completed=finished, rate="")
        start, fresh = time.monotonic(), 0
        for i in parallel.run(_make, todo, workers):
            fresh += len(todo[i][1])
            rate = f"{fresh / (time.monotonic() - start + 1e-9):.0f} files/s"
            progress.update(task, completed=finished + fresh, rate=rate)
    _join(sources, framing, [target for target, _ in shards], part / "whole", key)
    shutil.rmtree(done, ignore_errors=True)  # one that `_whole` has refused
    os.rename(part / "whole", done)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files, {task.fields[rate]}, left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _shards(sources: Sequence[Source]) -> list[list[Source]]:
    """Consecutive files, at most `SHARD_FILES` and (unless one alone is larger) `SHARD_BYTES` a shard."""
    shards: list[list[Source]] = []
    room = 0
    for source in sources:
        size = source.path.stat().st_size
        if not shards or len(shards[-1]) == SHARD_FILES or size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(source)
        room -= size
    return shards


def _readable(shard: Path) -> bool:
    """True where the shard is there and whole (a zip file checks every byte that is read from it)."""
    try:
        size = shard.stat().st_size
        with zipfile.ZipFile(shard) as members:  # it was written without compression: more than the file has is not in it
            if any(m.file_size > size or m.compress_type != zipfile.ZIP_STORED for m in members.infolist()):
                return False
        with np.load(shard, allow_pickle=False) as arrays:
            whole = {name: arrays[name] for name in ("frames", "labels", "hashes", "shape", "dtype")}
        good = len(whole["frames"]) == len(whole["labels"]) and whole["frames"].dtype.name == str(whole["dtype"])
        return bool(good and whole["shape"].tolist() == list(whole["frames"].shape) and whole["labels"].dtype == np.int64)
    except Exception:  # whatever a damaged archive raises: the shard is made again
        return False


def _make(target: Path, sources: list[Source], framing: Framing) -> None:
    """Frames the files of one shard."""
    frames, labels, hashes = zip(*(samples_of(source, framing) for source in sources), strict=True)
    _alike(frames, sources)
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        stack = np.concatenate(frames)
        shape, dtype = np.array(stack.shape), np.array(stack.dtype.name)
        np.savez(
            file, frames=stack, labels=np.concatenate(labels), hashes=np.array(hashes), shape=shape, dtype=dtype
        )
    os.replace(temporary, target)


def _alike(frames: Sequence[NDArray[Any]], sources: Sequence[Source]) -> None:
    for array, source in zip(frames, sources, strict=True):
        if array.shape[1:] != frames[0].shape[1:]:
            raise UserError(f"{source.path}: a recording of another size than those before it; give all frames one (size=48)")


def _join(sources: Sequence[Source], framing: Framing, shards: list[Path], whole: Path, key: str) -> None:
    """All shards → `frames.npy`, `labels.npy`, `manifest.json`. The type is the widest of the shards'."""
    headers = [_header(shard) for shard in shards]
    labels, hashes = (np.concatenate([h[i] for h in headers]) for i in (0, 1))
    shapes = {h[2][1:] for h in headers}
    if len(shapes) != 1:
        raise UserError(f"{shards[0].parent.name}: recordings of several sizes; give all frames one (size=48)")
    kind = np.result_type(*(h[3] for h in headers))
    whole.mkdir(exist_ok=True)
    frames = np.lib.format.open_memmap(whole / "frames.npy", "w+", kind, (len(labels), *shapes.pop()))
    row = 0
    for shard in shards:
        with np.load(shard) as arrays:
            frames[row : row + len(arrays["labels"])] = arrays["frames"]
            row += len(arrays["labels"])
    frames.flush()
    np.save(whole / "labels.npy", labels)
    content = [[s.name, s.label, s.spans, h] for s, h in zip(sources, hashes.tolist(), strict=True)]
    manifest = {
        "key": key,
        "fingerprint": _sha([content, asdict(framing)]),
        "bytes": (whole / "frames.npy").stat().st_size,
        "shape": frames.shape,
        "dtype": kind.name,
        "framing": asdict(framing),
        "files": len(sources),
    }
    (whole / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _header(shard: Path) -> tuple[NDArray[np.int64], NDArray[np.str_], tuple[int, ...], str]:
    with np.load(shard) as arrays:
        return arrays["labels"], arrays["hashes"], tuple(arrays["shape"].tolist()), str(arrays["dtype"])
