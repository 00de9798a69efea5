"""Batches of a data set that is held whole: shuffled, put on the device, augmented there.

Everything random in epoch e, batch i follows from (seed, e, i) alone, so a run that is resumed draws what it would have drawn.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from spiketrain.data.types import DataSet, Split

MOST_ON_DEVICE = 8 << 30
"""Bytes up to which a split is kept on the accelerator."""


class Prepare(Protocol):
    """What makes a network's input of stored bytes: `[B,C,H,W]` → floats of that shape, or `[B,T,C,H,W]` → `[T,B,C,H,W]`."""

    def plain(self, inputs: Tensor) -> Tensor:
        """For the test part: nothing random."""
        ...

    def train(self, inputs: Tensor, labels: Tensor, mix: bool = True) -> tuple[Tensor, Tensor]:
        """For the training part: augmented; labels `[B]`, or weights `[B,K]` where samples were mixed."""
        ...


def seed_everything(*numbers: int) -> None:
    """The generators of torch, numpy and random, from any count of integers ≥ 0."""
    state = np.random.SeedSequence(numbers).generate_state(2, np.uint64)
    torch.manual_seed(int(state[0]) >> 1)
    np.random.seed(int(state[1]) & 0xFFFFFFFF)
    random.seed(int(state[1]))


@dataclass
class Loader:
    """The batches of a data set.

    `limit` > 0 keeps so many training samples, of an order drawn once. `balanced` draws an epoch's samples with replacement,
    every class with the same probability.
    """

    data: DataSet
    prepare: Prepare
    batch_size: int
    eval_batch_size: int
    seed: int
    device: torch.device
    drop_last: bool = True
    limit: int = 0
    balanced: bool = False
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        self._train, self._test = self._place(self.data.train), self._place(self.data.test)
        self._samples = torch.randperm(len(self.data.train), generator=torch.Generator().manual_seed(self.seed))
        self._samples = self._samples[: self.limit or None]

    def _place(self, split: Split) -> tuple[Tensor, Tensor]:
        inputs, labels = split.inputs, split.labels
        if self.device.type != "cpu" and inputs.numel() * inputs.element_size() <= MOST_ON_DEVICE:
            inputs, labels = inputs.to(self.device), labels.to(self.device)
        return inputs, labels

    @property
    def batches(self) -> int:
        """Training batches an epoch. The last, smaller one is dropped, unless it is the only one or `drop_last` is off."""
        whole, rest = divmod(len(self._samples), self.batch_size)
        return whole + (rest > 0 and (not self.drop_last or whole == 0))

    def train(self, epoch: int, mix: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of an epoch, shuffled and augmented. The generators are seeded before each batch."""
        order = self._order(torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))
        chosen = [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(self.batches)]
        for i, batch in enumerate(self._fetch(self.data.train, self._train, chosen, epoch)):
            seed_everything(self.seed, epoch, i)
            yield self.prepare.train(*batch, mix=mix)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test part in its order, every sample once, nothing random."""
        chosen = torch.arange(len(self.data.test)).split(self.eval_batch_size)
        for inputs, labels in self._fetch(self.data.test, self._test, chosen, -1):
            yield self.prepare.plain(inputs), labels

    def _order(self, generator: torch.Generator) -> Tensor:
        n = len(self._samples)
        if not self.balanced:
            order = self._samples[torch.randperm(n, generator=generator)]
        else:
            labels = self.data.train.labels[self._samples]
            share = 1 / torch.bincount(labels).clamp(min=1)[labels]
            order = self._samples[torch.multinomial(share, n, replacement=True, generator=generator)]
        stream = self.data.train.stream
        return stream.arrange(order, generator, self.batch_size, self.world) if stream else order

    def _fetch(
        self, split: Split, part: tuple[Tensor, Tensor], chosen: Sequence[Tensor], epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples of each batch: picked from what is held, or from the stream, which decodes them ahead."""
        if split.stream is None:
            for batch in chosen:
                yield self._pick(part, batch)
            return
        keys = [(self.seed, epoch, batch.numpy()) for batch in chosen]
        images = split.stream.batches(keys, self.device.type != "cpu")
        for inputs, batch in zip(images, chosen, strict=True):
            yield inputs.to(self.device, non_blocking=True), split.labels[batch].to(self.device)

    def _pick(self, part: tuple[Tensor, Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
        inputs, labels = part
        there = chosen.to(inputs.device)
        return inputs[there].to(self.device, non_blocking=True), labels[there].to(self.device)
