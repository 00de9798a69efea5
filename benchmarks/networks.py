"""The networks of the benchmarks in plain torch, built of whatever parts a library has: the same weights in the same order as ours.

`NETWORKS` has them by name; `Parts` is what a library brings; `convolutions` lists what a network convolves.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

CLASSES = 10


def conv2d(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    """torch's convolution with the padding that keeps the size, no bias."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


@dataclass(frozen=True)
class Parts:
    """What a network is made of; each may come from another library. By default an ANN in plain torch."""

    neuron: Callable[[], nn.Module] = nn.ReLU
    conv: Callable[[int, int, int, int], nn.Module] = conv2d
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    pool: Callable[[], nn.Module] = lambda: nn.AvgPool2d(2)


class Mean(nn.Module):
    """Mean over space."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))


class Block(nn.Module):
    """y = branch(x) + shortcut(x)."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)


def convnet(stages: tuple[tuple[int, int], ...], channels: int, parts: Parts) -> nn.Module:
    """Stages (channels, convolutions) of conv → norm → neuron, mean-pooled between."""
    layers: list[nn.Module] = []
    for i, (width, convolutions) in enumerate(stages):
        if i:
            layers.append(parts.pool())
        for _ in range(convolutions):
            layers += [parts.conv(channels, width, 3, 1), parts.norm(width), parts.neuron()]
            channels = width
    return nn.Sequential(*layers, Mean(), nn.Linear(channels, CLASSES))


def resnet18(channels: int, parts: Parts) -> nn.Module:
    """Pre-activation: norm → neuron → conv, twice a block; two blocks at each of 64, 128, 256, 512 channels."""

    def unit(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
        return [parts.norm(inputs), parts.neuron(), parts.conv(inputs, outputs, kernel, stride)]

    layers: list[nn.Module] = [parts.conv(channels, 64, 3, 1)]
    inputs = 64
    for width in (64, 128, 256, 512):
        for first in (True, False):
            stride = 2 if first and width > 64 else 1
            branch = nn.Sequential(*unit(inputs, width, 3, stride), *unit(width, width, 3, 1))
            layers.append(Block(branch, nn.Sequential(*unit(inputs, width, 1, stride)) if inputs != width else nn.Identity()))
            inputs = width
    return nn.Sequential(*layers, parts.norm(inputs), Mean(), nn.Linear(inputs, CLASSES))


@dataclass(frozen=True)
class Network:
    """A network to be timed: its input, its steps, its usual batch, and how it is built.

    `stages` are of a convnet, empty for resnet18; events are different frames at every step, images the same one.
    """

    name: str
    stages: tuple[tuple[int, int], ...]
    sample: tuple[int, int, int]
    steps: int
    batch: int
    events: bool = False

    def build(self, parts: Parts) -> nn.Module:
        """The network of these parts."""
        return convnet(self.stages, self.sample[0], parts) if self.stages else resnet18(self.sample[0], parts)

    def inputs(self, batch: int, steps: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Random images `[B,C,H,W]`, or counts of events `[T,B,C,H,W]`, and labels `[B]`."""
        generator = torch.Generator().manual_seed(1)
        labels = torch.randint(0, CLASSES, (batch,), generator=generator)
        if self.events:
            x = torch.poisson(torch.full((steps, batch, *self.sample), 0.4), generator=generator)
        else:
            x = torch.randn(batch, *self.sample, generator=generator)
        return x.to(device), labels.to(device)


NETWORKS = {
    n.name: n
    for n in (
        Network("cifar_convnet", ((256, 2), (256, 2), (512, 2), (1024, 2)), (3, 32, 32), 4, 64),
        Network("resnet18", (), (3, 32, 32), 4, 64),
        Network("three_convnet", ((64, 1), (128, 1), (256, 1)), (3, 32, 32), 4, 32),
        Network("dvs_convnet", ((128, 2), (256, 1), (256, 2), (512, 1), (512, 2)), (2, 48, 48), 10, 16, events=True),
    )
}


def tiny(network: Network) -> Network:
    """The network on inputs so small that a step is a matter of milliseconds."""
    return replace(network, sample=(network.sample[0], 16, 16), batch=2, steps=min(network.steps, 3))


@dataclass(frozen=True)
class Convolution:
    """One convolution of a training step: `images` is the batch, times T unless the input is the same at every step."""

    images: int
    inputs: int
    size: int
    outputs: int
    kernel: int
    stride: int
    first: bool
    """Its input is data: no gradient by it is wanted."""

    @property
    def out(self) -> int:
        """Side of the output."""
        return (self.size - 1) // self.stride + 1

    @property
    def flop(self) -> int:
        """Of one pass: two a multiply-accumulate."""
        return 2 * self.images * self.inputs * self.outputs * self.kernel**2 * self.out**2

    def __str__(self) -> str:
        return f"{self.inputs}→{self.outputs} {self.kernel}×{self.kernel}/{self.stride} @{self.size}² ×{self.images}"


class _Recorder(TorchDispatchMode):
    def __init__(self, images: int, first_images: int) -> None:
        super().__init__()
        self.images, self.first_images = images, first_images
        self.found: list[Convolution] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.convolution.default:
            x, w, first = args[0], args[1], not self.found
            images = self.first_images if first else self.images
            self.found.append(Convolution(images, x.shape[1], x.shape[2], w.shape[0], w.shape[2], args[3][0], first))
        return func(*args, **(kwargs or {}))


def convolutions(network: Network, batch: int, steps: int) -> list[Convolution]:
    """Every convolution of one pass of the network, in their order; the first one is computed once where images do not change."""
    recorder = _Recorder(batch * steps, batch * (steps if network.events else 1))
    with torch.no_grad(), recorder:
        network.build(Parts()).eval()(torch.zeros(1, *network.sample))
    return recorder.found
