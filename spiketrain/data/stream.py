"""Images that are decoded when they are needed, by torch's worker processes: for sets that memory does not hold.

A sample's view follows from (seed, epoch, index): not from the number of workers or ranks, nor from what was read before it.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spiketrain.data import parallel
from spiketrain.data.jpeg import decode
from spiketrain.data.types import DataSet, Key, Split
from spiketrain.data.view import View
from spiketrain.errors import UserError
from spiketrain.files import read_bytes

MOST_FILE = 256 << 20
"""Bytes of an encoded image, at most."""


class Files(Protocol):
    """Encoded images, by index."""

    def read(self, index: int) -> bytes:
        """The bytes of one; `UserError` where it cannot be read."""
        ...

    def title(self, index: int) -> str:
        """What a message calls it."""
        ...

    def arrange(self, order: Tensor, generator: torch.Generator, batch: int, world: int) -> Tensor:
        """A shuffled order, moved so that what is read one after the other lies near each other where that matters."""
        ...


@dataclass(frozen=True)
class FolderFiles:
    """Files below a folder. `names`, relative, are one array of bytes: a list would be copied by every worker that looks at it."""

    base: Path
    names: NDArray[np.bytes_]

    def title(self, index: int) -> str:
        """Path of a file."""
        return str(self.base / os.fsdecode(bytes(self.names[index])))

    def read(self, index: int) -> bytes:
        """Content of a file."""
        return read_bytes(self.title(index), MOST_FILE, "image")

    def arrange(self, order: Tensor, generator: torch.Generator, batch: int, world: int) -> Tensor:
        """As it is: a file is as near as another."""
        return order


@dataclass
class _Decoder(Dataset[Any]):
    """A batch by its key: uint8 `[B,3,S,S]`, or the message of the first error (an exception would lose its one line on the way)."""

    files: Files
    view: View

    def __getitem__(self, key: Key) -> Tensor | str:
        seed, epoch, indices = key
        size = self.view.size
        batch = torch.empty(len(indices), size, size, 3, dtype=torch.uint8)
        if torch.utils.data.get_worker_info():
            batch.share_memory_()  # written where the main process reads it
        seen = batch.permute(0, 3, 1, 2)
        title = ""
        try:
            for place, index in enumerate(indices.tolist()):
                title = self.files.title(index)
                image = decode(self.files.read(index), title)
                seen[place] = self.view.plain(image) if epoch < 0 else self.view.train(image, (seed, epoch, index))
        except UserError as error:
            return str(error) if title in str(error) else f"{title}: {error}"
        return seen


@dataclass
class Stream:
    """One part of a set: where its images lie and how they are seen. Its workers start with the first batch and stay."""

    files: Files
    view: View
    workers: int = 0
    _plan: list[Key] = field(default_factory=list, repr=False)
    _loader: Any = field(default=None, repr=False)

    def batches(self, keys: Sequence[Key], pin: bool = False) -> Iterator[Tensor]:
        """The images of each key in turn, uint8 `[B,3,S,S]`, decoded ahead by the workers. `UserError` for a broken one."""
        self._plan[:] = keys
        if self._loader is None:
            self._loader = self._start(pin)
        try:
            for batch in self._loader:
                if isinstance(batch, str):
                    raise UserError(batch)
                yield batch
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            message = f"a process that decodes images ended ({str(error).splitlines()[0]}): try fewer --workers, or a smaller --batch-size"
            raise UserError(message) from error

    def arrange(self, order: Tensor, generator: torch.Generator, batch: int, world: int) -> Tensor:
        """See `Files.arrange`."""
        return self.files.arrange(order, generator, batch, world)

    def take(self, indices: Tensor) -> Tensor:
        """Images as a test sees them, uint8 `[N,3,S,S]`."""
        parts = list(self.batches([(0, -1, part.numpy()) for part in indices.split(64)]))
        return torch.cat(parts)

    def _start(self, pin: bool) -> DataLoader[Any]:
        count = workers_of(self.workers)
        decoder = _Decoder(self.files, self.view)
        options: dict[str, Any] = {"persistent_workers": True, "prefetch_factor": 3} if count else {}
        return DataLoader(decoder, batch_size=None, sampler=self._plan, num_workers=count, collate_fn=_as_it_is, pin_memory=pin, **options)


def _as_it_is(batch: Any) -> Any:
    return batch


def workers_of(asked: int) -> int:
    """Worker processes: as many as asked; 0: a core each, shared among the ranks of this machine; -1: none, the main process decodes."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's
    return max(1, parallel.cores() // ranks) if asked == 0 else max(asked, 0)


def streamed(name: str, train: tuple[Files, Tensor, str], test: tuple[Files, Tensor, str], classes: Sequence[str], view: View,
             workers: int, mean: tuple[float, ...], std: tuple[float, ...], rule: str) -> DataSet:  # fmt: skip
    """A `DataSet` whose parts, (files, labels, fingerprint), are read when they are needed."""
    nothing = torch.empty(0, 3, view.size, view.size, dtype=torch.uint8)
    parts = [Split(nothing, labels, digest, Stream(files, view, workers)) for files, labels, digest in (train, test)]
    return DataSet(name, parts[0], parts[1], tuple(classes), mean, std, rule)


def fingerprint(labels: NDArray[np.int64], sizes: NDArray[np.int64], classes: Sequence[str]) -> str:
    """SHA-256 of the classes and of every image's label and bytes in number, sorted: the same for a folder and for its shards.

    The content itself (150 GB of ImageNet) is not read: an image that is replaced by one of equal length goes unseen.
    """
    order = np.lexsort((sizes, labels))
    digest = hashlib.sha256("\n".join(classes).encode("utf-8", "surrogateescape"))
    for column in (labels, sizes):
        digest.update(np.ascontiguousarray(column[order], dtype="<i8").tobytes())
    return digest.hexdigest()


__all__ = ["Files", "FolderFiles", "Stream", "fingerprint", "streamed", "workers_of"]
