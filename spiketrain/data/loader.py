"""Batches of a data set that is held whole: shuffled, put on the device, augmented there.

Everything random in epoch e, batch i follows from (seed, e, i) alone, so a run that is resumed, at whichever batch, draws what it
would have drawn. Where several processes train one network, each yields its rows of the same batches.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from spiketrain import processes
from spiketrain.data.sampler import Sampler
from spiketrain.data.types import ALL, DataSet, Rows, Split, Streamed
from spiketrain.errors import UserError

MOST_ON_DEVICE = 8 << 30
"""Bytes up to which a split is kept on the accelerator."""


class Prepare(Protocol):
    """What makes a network's input of stored bytes: `[B,C,H,W]` → floats of that shape, or `[B,T,C,H,W]` → `[T,B,C,H,W]`."""

    def plain(self, inputs: Tensor) -> Tensor:
        """For the test part: nothing random."""
        ...

    def train(self, inputs: Tensor, labels: Tensor, mix: bool = True, rows: Rows = ALL) -> tuple[Tensor, Tensor]:
        """For the training part: the `rows` of an augmented batch; labels `[B]`, or weights `[B,K]` where samples were mixed."""
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

    `limit`, `balanced`, `hardest`: which training samples, see `Sampler`. `batch_size` is of all processes together; `parts` is how
    many parts a batch will be split into, each of which the processes share. `turns` mirrors every image every other epoch, half of
    them in the even ones (K. Jordan 2024: an image is then seen from both sides equally often).
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
    parts: int = 1
    turns: bool = False
    hardest: float = 1.0

    def __post_init__(self) -> None:
        self._train, self._test = self._place(self.data.train), self._place(self.data.test)
        self.sampler = Sampler(self.data.train.labels, self.seed, self.limit, self.balanced, self.hardest)
        self._last = torch.empty(0, dtype=torch.int64)
        self._odd = torch.rand(len(self.data.train), generator=torch.Generator().manual_seed(self.seed)) < 0.5
        for i in (0, self.batches - 1):
            if any(len(range(*r.indices(self.size(i)))) == 0 for r in processes.rows(self.size(i), self.parts)):
                cause = f"a batch of {self.size(i)} samples in {self.parts} parts for {processes.world()} processes"
                raise UserError(f"{cause}: each needs one of every part: choose another --batch-size or --accumulate, or set --drop-last")

    def _place(self, split: Split) -> tuple[Tensor, Tensor]:
        inputs, labels = split.inputs, split.labels
        if self.device.type != "cpu" and inputs.numel() * inputs.element_size() <= MOST_ON_DEVICE:
            inputs, labels = inputs.to(self.device), labels.to(self.device)
        return inputs, labels

    @property
    def batches(self) -> int:
        """Training batches an epoch. The last, smaller one is dropped, unless it is the only one or `drop_last` is off."""
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return whole + (rest > 0 and (not self.drop_last or whole == 0))

    def size(self, batch: int) -> int:
        """Samples of a training batch, over all processes."""
        return min(self.batch_size, len(self.sampler) - batch * self.batch_size)

    def train(self, epoch: int, mix: bool = True, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of an epoch from batch `start` on, shuffled and augmented; this process's rows of them.

        The generators are seeded before each batch, alike in all processes; what a network draws by itself differs between them.
        """
        order = self.sampler.order(torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))
        if self.data.train.stream:
            yield from self._train_stream(self.data.train.stream, order, epoch, mix, start)
            return
        for i in range(start, self.batches):
            seed_everything(self.seed, epoch, i)
            chosen = order[i * self.batch_size : (i + 1) * self.batch_size]
            inputs, labels = self._pick(self._train, chosen)
            if self.turns:
                mirrored = (self._odd[chosen] ^ (epoch % 2 == 1)).to(inputs.device)
                inputs = torch.where(mirrored.view(-1, *(1,) * (inputs.dim() - 1)), inputs.flip(-1), inputs)
            rows = self._rows(len(chosen))
            batch = self.prepare.train(inputs, labels, mix=mix, rows=rows)
            self._last = chosen[rows]
            if processes.rank():
                seed_everything(self.seed, epoch, i, processes.rank())
            yield batch

    def note(self, losses: Tensor) -> None:
        """Tells the sampler the losses of the rows that `train` gave last."""
        self.sampler.note(self._last, losses)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test part, every sample once over all processes, nothing random; this process's batches of it, in their order."""
        n, world = len(self.data.test), processes.world()
        mine = torch.arange(n).split(min(self.eval_batch_size, -(-n // world)))[processes.rank() :: world]
        if self.data.test.stream:
            yield from self._test_stream(self.data.test.stream, mine)
            return
        for chosen in mine:
            inputs, labels = self._pick(self._test, chosen)
            yield self.prepare.plain(inputs), labels

    def _rows(self, total: int) -> Rows:
        if processes.world() == 1:
            return ALL
        return torch.cat([torch.arange(r.start, r.stop) for r in processes.rows(total, self.parts)])

    def _train_stream(self, stream: Streamed, order: Tensor, epoch: int, mix: bool, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The same of samples that are decoded ahead: a process decodes its own rows of each batch, and mixes among them."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = stream.arrange(order, generator, self.batch_size, processes.world())
        batches = [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(start, self.batches)]
        mine = [batch[self._rows(len(batch))] for batch in batches]
        images = stream.batches([(self.seed, epoch, rows.numpy()) for rows in mine], self.device.type != "cpu")
        for i, (inputs, rows) in enumerate(zip(images, mine, strict=True), start):
            seed_everything(self.seed, epoch, i, *([processes.rank()] if processes.rank() else []))
            labels = self.data.train.labels[rows].to(self.device)
            self._last = rows
            yield self.prepare.train(inputs.to(self.device, non_blocking=True), labels, mix=mix)

    def _test_stream(self, stream: Streamed, mine: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        images = stream.batches([(self.seed, -1, rows.numpy()) for rows in mine], self.device.type != "cpu")
        for inputs, rows in zip(images, mine, strict=True):
            yield self.prepare.plain(inputs.to(self.device, non_blocking=True)), self.data.test.labels[rows].to(self.device)

    def _pick(self, part: tuple[Tensor, Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
        inputs, labels = part
        there = chosen.to(inputs.device)
        return inputs[there].to(self.device, non_blocking=True), labels[there].to(self.device)
