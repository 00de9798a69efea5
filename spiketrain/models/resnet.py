"""Pre-activation residual networks: norm and neuron stand before each convolution, the shortcut carries currents.

The residual stream is analog (a sum of convolutions' outputs), what enters a convolution is spikes: He et al. 2016
("identity mappings"), as the older benchmark has it. The stem has neither norm nor neuron, nor has the head a neuron.
"""

import functools
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from spiketrain.layers import BatchNorm, Conv, Conv1x1, Conv3x3, Readout, fire_along, fold, once, repeated
from spiketrain.models.network import Plan
from spiketrain.saving import conv_of_spikes


class NormNeuronConv(nn.Module):
    """norm → neuron → convolution."""

    def __init__(self, conv: Conv, plan: Plan) -> None:
        super().__init__()
        self.norm = BatchNorm(conv.in_channels, plan.norm)
        self.neuron = plan.neuron.make()
        self.conv = conv
        self.memory = plan.memory

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        return self.along(x, plus)[0]

    def along(self, x: Tensor, plus: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What `forward` gives, and x for a shortcut around it. plus: what is added to the convolution."""
        spikes, given = fire_along(self.norm, self.neuron, once(x), x.shape[0], packed=True)
        convolve = self.conv if self.memory == "speed" else functools.partial(conv_of_spikes, self.conv)
        y = fold(lambda s: convolve(s, None if plus is None else once(plus).flatten(0, 1)), spikes)
        return y, repeated(given, x.shape[0]) if given.shape[0] < x.shape[0] else given


def _basic(inputs: int, planes: int, stride: int, plan: Plan) -> list[NormNeuronConv]:
    return [NormNeuronConv(Conv3x3(inputs, planes, stride), plan), NormNeuronConv(Conv3x3(planes, planes), plan)]


def _bottleneck(inputs: int, planes: int, stride: int, plan: Plan) -> list[NormNeuronConv]:
    convs = (Conv1x1(inputs, planes), Conv3x3(planes, planes, stride), Conv1x1(planes, 4 * planes))
    return [NormNeuronConv(conv, plan) for conv in convs]


class Block(nn.Module):
    """y = branch(x) + shortcut(x); the shortcut is the identity, or norm → neuron → 1×1 convolution where shapes differ."""

    def __init__(self, branch: list[NormNeuronConv], shortcut: NormNeuronConv | None) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        first, *between, last = self.branch
        y, x = first.along(x)  # type: ignore[operator]
        shortcut = x if self.shortcut is None else self.shortcut(x)
        for unit in between:
            y = unit(y)
        out: Tensor = last(y, shortcut)
        return out


class Stem(nn.Module):
    """The first convolution, and a 3×3 max-pooling of stride 2 behind it where `pooled`."""

    def __init__(self, conv: nn.Conv2d, pooled: bool) -> None:
        super().__init__()
        self.conv = conv
        self.pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        x = fold(self.conv, x)
        return fold(lambda y: F.max_pool2d(y, 3, 2, 1), x) if self.pooled else x


class Head(nn.Module):
    """norm → mean over space → linear layer per step."""

    def __init__(self, channels: int, plan: Plan) -> None:
        super().__init__()
        self.norm = BatchNorm(channels, plan.norm)
        self.readout = Readout(channels, plan.classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.norm(x))
        return logits


Branch = Callable[[int, int, int, Plan], list[NormNeuronConv]]


def resnet(depths: tuple[int, ...], plan: Plan, branch: Branch = _basic, stem: str = "small", pooled: bool = False) -> nn.Module:
    """Stages of 64, 128, 256, 512 channels. stem: "small" is 3×3 of stride 1, "imagenet" 7×7 of stride 2."""
    inputs = plan.wide(64)
    first = Conv3x3(plan.channels, inputs) if stem == "small" else nn.Conv2d(plan.channels, inputs, 7, 2, 3, bias=False)
    layers: list[nn.Module] = [Stem(first, pooled)]
    for stage, depth in enumerate(depths):
        planes = plan.wide(64 * 2**stage)
        outputs = planes * (4 if branch is _bottleneck else 1)
        for i in range(depth):
            stride = 2 if stage and i == 0 else 1
            same = stride == 1 and inputs == outputs
            shortcut = None if same else NormNeuronConv(Conv1x1(inputs, outputs, stride), plan)
            layers.append(Block(branch(inputs, planes, stride, plan), shortcut))
            inputs = outputs
    network = nn.Sequential(*layers, Head(inputs, plan))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def resnet18(plan: Plan) -> nn.Module:
    """[2,2,2,2] basic blocks at full resolution after the stem; 11.2 M parameters."""
    return resnet((2, 2, 2, 2), plan)


def resnet18_pooled(plan: Plan) -> nn.Module:
    """`resnet18` with max-pooling after the stem, a quarter of the work: the network that the older benchmark's table was made with."""
    return resnet((2, 2, 2, 2), plan, pooled=True)


def resnet9(plan: Plan) -> nn.Module:
    """[1,1,1,1] basic blocks; 4.9 M parameters."""
    return resnet((1, 1, 1, 1), plan)


def resnet34(plan: Plan) -> nn.Module:
    """[3,4,6,3] basic blocks; 21.3 M parameters."""
    return resnet((3, 4, 6, 3), plan)


def resnet50(plan: Plan) -> nn.Module:
    """[3,4,6,3] bottleneck blocks; 23.5 M parameters."""
    return resnet((3, 4, 6, 3), plan, _bottleneck)


def resnet18_imagenet(plan: Plan) -> nn.Module:
    """`resnet18` with a 7×7 stem of stride 2, for 224×224 images."""
    return resnet((2, 2, 2, 2), plan, stem="imagenet")


def resnet34_imagenet(plan: Plan) -> nn.Module:
    """`resnet34` with a 7×7 stem of stride 2."""
    return resnet((3, 4, 6, 3), plan, stem="imagenet")


def resnet50_imagenet(plan: Plan) -> nn.Module:
    """`resnet50` with a 7×7 stem of stride 2."""
    return resnet((3, 4, 6, 3), plan, _bottleneck, stem="imagenet")
