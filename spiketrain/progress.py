"""What a person sees while a run goes on: a live bar in a terminal, a line an epoch elsewhere."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

REFRESH = 0.25
"""Seconds between readings of the loss: reading it stalls an accelerator."""


class Meter:
    """Loss and accuracy of an epoch so far, kept on the device until they are read."""

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        self.right: Tensor | None = None
        self.samples = 0

    @staticmethod
    def of(sums: Sequence[float]) -> "Meter":
        """A meter that goes on from the sums of another."""
        meter = Meter()
        meter.loss, meter.right, meter.samples = torch.tensor(sums[0]), torch.tensor(int(sums[1])), int(sums[2])
        return meter

    def add(self, loss: Tensor, right: Tensor, samples: int) -> None:
        """The mean loss of a part of a batch, how many were right, of how many."""
        loss = loss.detach() * samples
        self.loss = loss if self.loss is None else self.loss + loss
        self.right = right if self.right is None else self.right + right
        self.samples += samples

    def sums(self) -> tuple[float, float, float]:
        """Sum of the losses of all samples, how many were right, how many there were."""
        if self.loss is None or self.right is None:
            return 0.0, 0.0, 0.0
        loss, right = torch.stack((self.loss.double(), self.right.double())).tolist()
        return loss, right, self.samples

    def read(self) -> tuple[float, float]:
        """Mean loss and accuracy in percent of this process's samples."""
        loss, right, samples = self.sums()
        return loss / max(samples, 1), 100 * right / max(samples, 1)


class Display:
    """`with Display(...) as display:` then `step` after every batch and `epoch` after every epoch."""

    def __init__(self, epochs: int, batches: int, start: int, quiet: bool, processes: int = 1) -> None:
        """start: batches done already; processes: how many do as much as this one, whose samples are the ones that are counted."""
        self.console = Console(stderr=True, quiet=quiet)
        self.epochs, self.batches, self.processes = epochs, batches, processes
        columns = (
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]:.3f}  acc {task.fields[accuracy]:5.1f} %  {task.fields[rate]:,.0f} samples/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.console, disable=quiet or not sys.stderr.isatty())
        fields: dict[str, Any] = {"epoch": start // batches + 1, "epochs": epochs, "loss": float("nan"), "accuracy": 0.0, "rate": 0.0}
        self.task = self.progress.add_task("", total=epochs * batches, completed=start, **fields)
        self.read_at = 0.0

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def step(self, epoch: int, batch: int, meter: Meter, seconds: float) -> None:
        """After a batch; seconds: of training in this epoch."""
        done = batch + 1 == self.batches
        if self.progress.disable or (time.monotonic() - self.read_at < REFRESH and not done):
            return
        self.read_at = time.monotonic()
        loss, accuracy = meter.read()
        rate = self.processes * meter.samples / max(seconds, 1e-9)
        completed = epoch * self.batches + batch + 1
        self.progress.update(self.task, completed=completed, epoch=epoch + 1, loss=loss, accuracy=accuracy, rate=rate)

    def epoch(self, epoch: int, entry: dict[str, float]) -> None:
        """After an epoch and its evaluation."""
        self.say(
            f"epoch {epoch + 1:3d}/{self.epochs}  loss {entry['train_loss']:.4f}  train {entry['train_accuracy']:6.2f} %  "
            f"test {entry['test_accuracy']:6.2f} %  {entry['samples_per_second']:,.0f} samples/s  {entry['seconds']:.1f} s"
        )
