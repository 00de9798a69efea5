"""What data are once they are in memory: recordings, as readers return them, and data sets, as the loader takes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Generator, Tensor

from spiketrain.errors import UserError

EVENT = np.dtype({"names": ["t", "x", "y", "p"], "formats": ["<i8", "<u2", "<u2", "u1"], "offsets": [0, 8, 10, 12], "itemsize": 16})
"""One event: time in µs, column, row, polarity (1 = brighter, ON; 0 = darker, OFF). 16 bytes, as AEDAT 4 stores it: aligned."""

Rows = slice | Tensor
"""Some rows of a batch: those of one process where several train one network."""
ALL = slice(None)


@dataclass(frozen=True)
class Recording:
    """What an event camera saw: `events` is a structured array of dtype `EVENT`, in file order.

    `size` is the sensor's (width, height) where the file states it, else None.
    """

    events: NDArray[np.void]
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.events)


Key = tuple[int, int, NDArray[np.int64]]
"""Seed, epoch (−1: nothing random), and the indices of a batch."""


class Streamed(Protocol):
    """Samples that are decoded when they are needed."""

    def batches(self, keys: Sequence[Key], pin: bool = False) -> Iterator[Tensor]:
        """The inputs of each key in turn, uint8 `[B,C,H,W]`."""
        ...

    def take(self, indices: Tensor) -> Tensor:
        """The inputs at these indices, nothing random."""
        ...

    def arrange(self, order: Tensor, generator: Generator, batch: int, world: int) -> Tensor:
        """A shuffled order, moved so that what is read in turn lies together."""
        ...


@dataclass(frozen=True)
class Split:
    """One part (training or test) of a data set.

    `inputs` is uint8: images `[N,C,H,W]`, or the frames of recordings `[N,T,C,H,W]` (counts; a tensor over a memory map
    will do). `labels` is int64 `[N]`. `fingerprint` is the SHA-256 of what was read, as hexadecimal text. Where there is a `stream`
    the samples come from it, and `inputs` is empty, `[0,C,H,W]`.
    """

    inputs: Tensor
    labels: Tensor
    fingerprint: str
    stream: Streamed | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Tensor:
        """The samples at these indices, as `inputs` has them."""
        return self.stream.take(indices) if self.stream else self.inputs[indices]

    @property
    def framed(self) -> bool:
        """True where each sample has a time axis of its own."""
        return self.inputs.dim() == 5


@dataclass(frozen=True)
class DataSet:
    """Training and test split with what both share.

    `mean` and `std` (one a channel, of inputs scaled to 0…1) normalise training and test alike; both empty for event
    frames, which go in as counts. `split_rule` names how the two parts were divided.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    split_rule: str = "official"

    def __post_init__(self) -> None:
        for part, split in (("training", self.train), ("test", self.test)):
            if len(split) == 0:
                raise UserError(f"data set {self.name}: the {part} part is empty")
            worst = int(split.labels.max())
            if worst >= len(self.classes) or int(split.labels.min()) < 0:
                raise UserError(f"data set {self.name}: label {worst} in the {part} part, but {len(self.classes)} classes")

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """`(C,H,W)` of an image or of one frame."""
        return tuple(self.train.inputs.shape[-3:])

