"""`State`: everything that changes while a run goes on, to a checkpoint and back."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from spiketrain import checkpoint, processes
from spiketrain.checkpoint import Checkpoint
from spiketrain.data.sampler import Sampler
from spiketrain.errors import UserError
from spiketrain.faults import first_bad_weights
from spiketrain.models import Network
from spiketrain.progress import Meter
from spiketrain.recipes import Recipe


@dataclass
class State:
    """A run after `epoch` whole epochs and `batch` batches of the next one, of which meter, seconds spent and steps skipped are.

    seconds: of training and evaluation so far, of whole epochs; curve: an entry for each of them.
    """

    recipe: Recipe
    network: Network
    optimizer: torch.optim.Optimizer
    scheduler: Any
    sampler: Sampler
    ema: ModelEmaV3 | None = None
    epoch: int = 0
    batch: int = 0
    meter: Meter = field(default_factory=Meter)
    spent: float = 0.0
    skipped: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "eval": 0.0})

    @property
    def tested(self) -> Network:
        """The network that is tested: the average of weights where there is one."""
        tested: Network = self.ema.module if self.ema else self.network
        return tested

    def next_epoch(self) -> None:
        """An epoch and its evaluation are done."""
        self.epoch, self.batch, self.meter, self.spent, self.skipped = self.epoch + 1, 0, Meter(), 0.0, 0
        self.sampler.end_epoch()

    def save(self, folder: Path) -> None:
        """Writes a checkpoint, in process 0; all must call it. `UserError` where weights are not finite: the last one is then kept."""
        meters = [list(sums) for sums in processes.gather(self.meter.sums())]
        samples = self.sampler.state()
        processes.first_does(lambda: self._write(folder, meters, samples))

    def _write(self, folder: Path, meters: list[list[float]], samples: dict[str, Tensor]) -> None:
        if bad := first_bad_weights(self.network):
            where = f"epoch {self.epoch + 1}, after step {self.batch}" if self.batch else f"epoch {self.epoch}"
            raise UserError(f"{bad} has become infinite or NaN in {where}: lower --lr or set --clip-grad; the last good checkpoint is kept")
        partial = {"meters": meters, "spent": self.spent, "skipped": self.skipped} if self.batch else {}
        average = self.ema.module.state_dict() if self.ema else {}
        checkpoint.save(
            folder,
            Checkpoint(
                self.epoch, self.recipe.to_dict(), self.network.state_dict(), self.optimizer.state_dict(), self.scheduler.state_dict(),
                average, self.curve, self.seconds, self.batch, partial, samples,
            ),
        )  # fmt: skip

    def restore(self, path: Path) -> None:
        """Goes on from a checkpoint, which process 0 reads; `UserError` where it is damaged, or of another recipe or model."""
        found = processes.first_does(lambda: checkpoint.load(path))
        then, now = Recipe.from_dict(found.recipe).to_dict(), self.recipe.to_dict()  # fields that came later have their defaults
        changed = [k for k in now if then[k] != now[k]]
        if changed:
            raise UserError(f"{path}: was made by another recipe ({', '.join(f'{k} was {then[k]!r}' for k in changed[:4])})")
        checkpoint.restore(self.network, found, path)
        checkpoint.resume(self.optimizer, self.scheduler, self.ema.module if self.ema else None, found, path)
        try:
            self.sampler.restore(found.samples)
        except ValueError as error:
            raise UserError(f"{path}: was made with other data ({error})") from error
        self.epoch, self.batch, self.curve, self.seconds = found.epoch, found.batch, found.curve, found.seconds
        if self.batch:
            self.spent, self.skipped = found.partial["spent"], found.partial["skipped"]
            self.meter = _mine(found.partial["meters"])


def _mine(meters: list[list[float]]) -> Meter:
    """This process's sums; all of them in process 0 where there were another number of processes."""
    if len(meters) == processes.world():
        sums = meters[processes.rank()]
    else:
        sums = [sum(column) for column in zip(*meters, strict=True)] if processes.rank() == 0 else [0.0, 0.0, 0.0]
    return Meter.of(sums) if sums[2] else Meter()
