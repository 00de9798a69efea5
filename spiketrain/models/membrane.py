"""Residual networks with a membrane shortcut: neuron → convolution → norm, added to a stream of currents that nothing interrupts.

    y = norm(conv(S(norm(conv(S(x)))))) + x        x, y real-valued; what enters a convolution is spikes

Hu et al. 2021 ("Advancing spiking neural networks towards deep residual learning", MS-ResNet). `resnet` differs in where its
norms stand: there norm → neuron → conv, so the stream is a sum of convolutions' outputs and is normed where a branch begins; here
a branch ends with its norm and the neuron sees the stream as it is, whose spread grows with depth. Where shapes differ, the
shortcut is a 1×1 convolution and a norm. It is given the spikes with which its branch begins, so that the stem has the only
convolution of real values; the authors' code for 18 layers gives it the stream itself.
"""

import functools

import torch.nn.functional as F
from torch import Tensor, nn

from spiketrain.layers import BatchNorm, Conv1x1, Conv3x3, ConvBlock, NormSpec, Readout, fold, once
from spiketrain.models.network import Plan
from spiketrain.neurons import Neuron
from spiketrain.saving import again, conv_and_anew, conv_of_spikes


class ConvNorm(nn.Module):
    """conv → norm → (max-pool 3×3 of stride 2): `[T,B,Cin,H,W]` → currents `[T,B,Cout,H',W']`, in the convolution's dtype.

    spiking: whether what goes in is spikes; memory: what is kept for the backward pass, see `saving`.
    """

    def __init__(self, conv: nn.Conv2d, norm: str | NormSpec, pooled: bool = False, spiking: bool = True, memory: str = "speed") -> None:
        super().__init__()
        self.conv = conv
        self.norm = BatchNorm(conv.out_channels, norm)
        self.pooled, self.spiking, self.memory = pooled, spiking, memory

    def forward(self, x: Tensor) -> Tensor:
        def normed(y: Tensor, first: bool) -> Tensor:
            y = y.expand(steps, *y.shape[1:])
            z = (self.norm(y) if first else self.norm.again(y)).to(y.dtype)
            return fold(lambda current: F.max_pool2d(current, 3, 2, 1), z) if self.pooled else z

        steps, given = len(x), once(x)
        if self.memory == "least":
            y, anew = conv_and_anew(self.conv, given, self.spiking)
            return again(normed, y, anew, list(self.norm.parameters()))
        convolve = functools.partial(conv_of_spikes, self.conv) if self.spiking and self.memory == "bits" else self.conv
        return normed(fold(convolve, given), True)


class Block(nn.Module):
    """y = branch(S(x)) + shortcut: x itself, or a 1×1 convolution of S(x) and a norm.

    pooled: a stride is a max-pooling of currents behind the first norm, and the convolution before it sees all pixels; else it is
    the convolution's own.
    """

    def __init__(self, inputs: int, planes: int, stride: int, plan: Plan, pooled: bool) -> None:
        super().__init__()
        norm = NormSpec.of(plan.norm)
        self.neuron: Neuron = plan.neuron.make()
        if pooled and stride == 2:
            current = ConvNorm(Conv3x3(inputs, planes), norm, True, True, plan.memory)
            self.inner: nn.Module = nn.Sequential(current, plan.neuron.make())
        else:
            self.inner = ConvBlock(inputs, planes, plan.neuron, norm, 1, True, plan.memory, stride)
        self.last = ConvNorm(Conv3x3(planes, planes), norm.one_of(2), False, True, plan.memory)
        self.shortcut: nn.Module | None = None
        if stride > 1 or inputs != planes:
            self.shortcut = ConvNorm(Conv1x1(inputs, planes, stride), norm.one_of(2), False, True, plan.memory)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neuron(x)
        y: Tensor = self.last(self.inner(spikes))
        return y + (x if self.shortcut is None else self.shortcut(spikes))


def membrane(channels: tuple[int, ...], depths: tuple[int, ...], plan: Plan, pooled: bool, zero: bool) -> nn.Module:
    """Stem of conv 3×3 and norm, stages of blocks, a neuron, mean over space, linear layer per step.

    pooled: see `Block`; zero: the last norm of a branch begins with a weight of zero, so that a block begins as its shortcut.
    """
    inputs = plan.wide(channels[0])
    layers: list[nn.Module] = [ConvNorm(Conv3x3(plan.channels, inputs), plan.norm, spiking=False, memory=plan.memory)]
    for stage, depth in enumerate(depths):
        planes = plan.wide(channels[stage])
        for i in range(depth):
            layers.append(Block(inputs, planes, 2 if stage and i == 0 else 1, plan, pooled))
            inputs = planes
    network = nn.Sequential(*layers, plan.neuron.make(), Readout(inputs, plan.classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero and isinstance(module, Block):
            nn.init.zeros_(module.last.norm.bn.weight)
    return network


def ms_resnet18(plan: Plan) -> nn.Module:
    """Membrane shortcuts, [2,2,2,2] blocks of 64 … 512 channels, 3×3 stem; 11.2 M parameters.

    As the authors' code has it, the last norm of a branch begins with a weight of zero.
    """
    return membrane((64, 128, 256, 512), (2, 2, 2, 2), plan, pooled=False, zero=True)


def max_resnet18(plan: Plan) -> nn.Module:
    """`ms_resnet18` that goes down by max-pooling of currents: conv of stride 1, norm, max-pool 3×3, neuron; 11.2 M parameters.

    Fang et al. 2025 ("Spiking neural networks need high-frequency information"), where the maximum keeps what a stride or a mean
    loses; no weight begins with zero there.
    """
    return membrane((64, 128, 256, 512), (2, 2, 2, 2), plan, pooled=True, zero=False)


def max_resnet18_wide(plan: Plan) -> nn.Module:
    """`max_resnet18` in three stages, [3,3,2] blocks of 128, 256, 512 channels, as published for CIFAR; 12.6 M parameters."""
    return membrane((128, 256, 512), (3, 3, 2), plan, pooled=True, zero=False)
