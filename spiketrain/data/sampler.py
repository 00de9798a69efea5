"""Which samples of the training part an epoch has, and in which order."""

from dataclasses import dataclass

import torch
from torch import Tensor

from spiketrain import processes


@dataclass
class Sampler:
    """The order of each epoch, from its number, the seed and, where `hardest` is less than 1, the losses of the epochs before.

    labels: of the whole training part. `limit` > 0 keeps so many samples, of an order drawn once. `balanced` draws an epoch's samples
    with replacement, every class with the same probability. `hardest`: an epoch has this share of the samples, those whose loss was
    the greatest when the network last saw them, and those that it has never seen before all others (after I. Loshchilov and
    F. Hutter, "Online batch selection for faster training of neural networks", 2015). A sample that is left out keeps its loss while
    the others' fall, so it comes back.
    """

    labels: Tensor
    seed: int
    limit: int = 0
    balanced: bool = False
    hardest: float = 1.0

    def __post_init__(self) -> None:
        samples = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(self.seed))
        self._samples = samples[: self.limit or None]
        self.losses = torch.full((len(self.labels),), torch.inf)
        """Of the samples `[N]`, as they were when they were last seen before this epoch; inf: never."""
        self._seen = self._none_seen()

    def __len__(self) -> int:
        """Samples an epoch."""
        return max(1, round(self.hardest * len(self._samples)))

    @property
    def ranks(self) -> bool:
        """Whether losses decide anything."""
        return self.hardest < 1

    def order(self, generator: torch.Generator) -> Tensor:
        """The samples of this epoch, shuffled."""
        samples = self._samples
        if self.balanced:
            labels = self.labels[samples]
            share = 1 / torch.bincount(labels).clamp(min=1)[labels]
            return samples[torch.multinomial(share, len(samples), replacement=True, generator=generator)]
        shuffled = samples[torch.randperm(len(samples), generator=generator)]
        if not self.ranks:
            return shuffled
        by_loss = self.losses[shuffled].argsort(descending=True, stable=True)
        return shuffled[by_loss[: len(self)].sort().values]

    def note(self, samples: Tensor, losses: Tensor) -> None:
        """Losses `[n]` of these samples of this epoch; they stay on their device until the epoch ends."""
        self._seen = self._seen.to(losses.device)
        self._seen[samples.to(losses.device)] = losses.float().clamp(min=torch.finfo(torch.float32).tiny)

    def seen(self) -> Tensor:
        """The losses `[N]` noted in this epoch, by all processes; 0: none. All processes must call it."""
        return processes.add_up(self._seen.cpu().clone())  # each is of one process

    def end_epoch(self) -> None:
        """What has been noted counts from now on. All processes must call it."""
        if not self.ranks:
            return
        seen = self.seen()
        self.losses = torch.where(seen > 0, seen, self.losses)
        self._seen = self._none_seen()

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint. All processes must call it."""
        return {"losses": self.losses, "seen": self.seen()} if self.ranks else {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on from a `state`; `ValueError` where it is that of other samples."""
        if not self.ranks:
            return
        if set(state) != {"losses", "seen"} or any(t.shape != self.losses.shape for t in state.values()):
            raise ValueError(f"losses of {len(self.losses)} samples are expected")
        self.losses = state["losses"]
        self._seen = state["seen"] if processes.leads() else self._none_seen()

    def _none_seen(self) -> Tensor:
        return torch.zeros(len(self.labels))
