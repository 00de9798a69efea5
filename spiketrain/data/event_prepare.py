"""Stored event frames → what a network takes: floats, time first, augmented and mixed. The twin of `image_augment` for events."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from spiketrain.data.event_augment import AUGMENTATIONS, randaugment
from spiketrain.data.event_mix import MIXES, Mix, eventmix, soft
from spiketrain.data.types import ALL, Rows
from spiketrain.errors import unknown


@dataclass(frozen=True)
class EventPrepare:
    """What is done to a batch of frames. `augment` names what, in this order: `AUGMENTATIONS` and `MIXES`.

    mix_beta, mix_prob: λ ~ Beta(β, β), and the probability that a sample is mixed; mix_count: how often, one after the
    other; mix_components: Gaussians in EventMix's mask; randaug_n, randaug_m: operations and level (of 30) of randaugment.
    """

    classes: int
    augment: tuple[str, ...] = ()
    mix_beta: float = 2.0
    mix_prob: float = 0.5
    mix_count: int = 1
    mix_components: int = 3
    randaug_n: int = 3
    randaug_m: float = 15.0

    def __post_init__(self) -> None:
        for name in self.augment:
            if name not in AUGMENTATIONS and name not in MIXES:
                raise unknown("event augmentation", name, [*AUGMENTATIONS, *MIXES])

    def plain(self, inputs: Tensor) -> Tensor:
        """Frames as stored `[B,T,2,H,W]` → float32 `[T,B,2,H,W]`, counts as they are, each step channels-last in memory."""
        return _channels_last(inputs.transpose(0, 1).float())

    def train(self, inputs: Tensor, labels: Tensor, mix: bool = True, rows: Rows = ALL) -> tuple[Tensor, Tensor]:
        """The `rows` of a batch as `plain`, augmented; labels `[B]`, or weights `[B,K]` where samples are mixed.

        What is augmented is the whole batch: some of it draws as many numbers as there are events, or mixes any two samples.
        """
        if not self.augment:
            inputs, labels, rows = inputs[rows], labels[rows], ALL
        frames = self.plain(inputs)
        for name in self.augment:
            if name in AUGMENTATIONS:
                frames = self._augmentation(name)(frames)
            elif mix:
                labels = soft(labels, self.classes) if labels.dim() == 1 else labels
                for _ in range(self.mix_count):
                    frames, labels = self._mix(name)(frames, labels)
        return _channels_last(frames[:, rows]), labels[rows]

    def _augmentation(self, name: str) -> functools.partial[Tensor]:
        if name == "randaugment":
            return functools.partial(randaugment, n=self.randaug_n, m=self.randaug_m)
        return functools.partial(AUGMENTATIONS[name])

    def _mix(self, name: str) -> Mix:
        if name == "eventmix":
            return functools.partial(eventmix, beta=self.mix_beta, prob=self.mix_prob, components=self.mix_components)
        mix: Callable[..., tuple[Tensor, Tensor]] = MIXES[name]
        return functools.partial(mix, beta=self.mix_beta, prob=self.mix_prob)


def _channels_last(frames: Tensor) -> Tensor:
    """`[T,B,2,H,W]` with the channel as the fastest axis in memory: what convolutions are fast at."""
    return frames.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
