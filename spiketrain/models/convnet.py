"""Plain convolutional networks: stages of conv → norm → neuron with pooling between them."""

from collections.abc import Sequence

from torch import Tensor, nn

from spiketrain.layers import AvgPool, ConvBlock, Dense, Dropout, Readout, fold
from spiketrain.models.network import Plan

Stages = Sequence[tuple[int, int]]
"""(channels, convolutions) of each stage; of `_stemmed`: (channels, pooling)."""


def averaging(stages: Stages, plan: Plan) -> nn.Module:
    """Stages with a mean over 2×2 pixels of the spikes between them (so what enters a stage has five levels)."""
    layers: list[nn.Module] = []
    inputs = plan.channels
    for i, (channels, convolutions) in enumerate(stages):
        if i:
            layers.append(AvgPool(2))
        for j in range(convolutions):
            layers.append(ConvBlock(inputs, plan.wide(channels), plan.neuron, plan.norm, 1, j > 0, plan.memory))
            inputs = plan.wide(channels)
    return nn.Sequential(*layers, Readout(inputs, plan.classes))


def pooling(stages: Stages, plan: Plan) -> nn.Module:
    """Stages that end in a 2×2 max-pooling of the currents before their last neuron: every layer but the first sees spikes."""
    layers: list[nn.Module] = []
    inputs = plan.channels
    for i, (channels, convolutions) in enumerate(stages):
        last = i == len(stages) - 1
        for j in range(convolutions):
            pool = 2 if j == convolutions - 1 and not last else 1
            layers.append(ConvBlock(inputs, plan.wide(channels), plan.neuron, plan.norm, pool, i + j > 0, plan.memory))
            inputs = plan.wide(channels)
    return nn.Sequential(*layers, Readout(inputs, plan.classes))


def cifar_convnet(plan: Plan) -> nn.Module:
    """The older benchmark's: 256-256 | 256-256 | 512-512 | 1024-1024, mean-pooled between; 19.5 M parameters for 3×32×32."""
    return averaging([(256, 2), (256, 2), (512, 2), (1024, 2)], plan)


def dvs_convnet(plan: Plan) -> nn.Module:
    """The older benchmark's for 2×48×48 frames: 128-128 | 256 | 256-256 | 512 | 512-512; 7.53 M parameters."""
    return averaging([(128, 2), (256, 1), (256, 2), (512, 1), (512, 2)], plan)


def dvs_convnet7(plan: Plan) -> nn.Module:
    """`dvs_convnet` with one convolution in its last stage: the network that the older benchmark's table was made with."""
    return averaging([(128, 2), (256, 1), (256, 2), (512, 1), (512, 1)], plan)


def digits_convnet(plan: Plan) -> nn.Module:
    """32-32 | 64, pooled once: for 8×8 images."""
    return pooling([(32, 2), (64, 1)], plan)


def small_convnet(plan: Plan) -> nn.Module:
    """32-64 | 128-128 | 256-256 with max-pooled currents: for 32×32 images on a laptop."""
    return pooling([(32, 1), (64, 1), (128, 2), (256, 1)], plan)


class Stem(nn.Module):
    """A 2×2 convolution that sees pixels, without norm or neuron: what `initial.whiten` sets. `[T,B,C,H,W]` → `[T,B,4C,H−1,W−1]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        return fold(self.conv, x)


def _stemmed(stages: Stages, plan: Plan) -> nn.Module:
    """`Stem`, then one convolution for each (channels, factor of the max-pooling of its currents), and the readout.

    The first sees an image that does not change and is computed once for all steps: each of its currents is the greatest of two channels.
    """
    layers: list[nn.Module] = [Stem(plan.channels)]
    inputs = 4 * plan.channels
    for i, (channels, pool) in enumerate(stages):
        outputs = plan.wide(channels)
        layers.append(ConvBlock(inputs, outputs, plan.neuron, plan.norm, pool, i > 0, plan.memory, pieces=1 if i else 2))
        inputs = outputs
    return nn.Sequential(*layers, Readout(inputs, plan.classes))


def fast_convnet(plan: Plan) -> nn.Module:
    """2×2 stem, then 64 | 128-128 | 256-256 with max-pooled currents: the most accuracy for half an hour of a processor at T=1.

    Shaped after K. Jordan's airbench94 (2024): as there, the stem is linear and can be set by the data (`initial.whiten`).
    """
    return _stemmed([(64, 2), (128, 1), (128, 2), (256, 1), (256, 2)], plan)


def fast_convnet4(plan: Plan) -> nn.Module:
    """2×2 stem, then 64 | 128 | 256 | 512, one convolution each: for binary spikes at several steps.

    What a layer makes binary is lost to all behind it, and every layer but the first is computed T times: four wide layers, most of
    their weights where there are 3×3 pixels, learn more in the same time than the five of `fast_convnet`. The first costs a
    twenty-fifth (docs/LOG.md).
    """
    return _stemmed([(64, 2), (128, 2), (256, 2), (512, 1)], plan)


def mnist_convnet(plan: Plan) -> nn.Module:
    """The older benchmark's for 1×28×28: 128 | 128, a node after each mean-pooling too, dropout, 2048 hidden units."""
    wide, spec = plan.wide(128), plan.neuron
    return nn.Sequential(
        ConvBlock(plan.channels, wide, spec, plan.norm),
        AvgPool(2),
        ConvBlock(wide, wide, spec, plan.norm),
        AvgPool(2),
        spec.make(),
        Dropout(0.5),
        Dense(wide * 7 * 7, plan.wide(2048), spec),
        Dropout(0.5),
        Readout(plan.wide(2048), plan.classes),
    )
