"""Plain networks that end in a linear layer of a whole grid of features, not of their mean over space."""

import torch.nn.functional as F
from torch import Tensor, nn

from spiketrain.layers import AvgPool, ConvBlock, Readout, fold
from spiketrain.models.network import Plan

GRID = 3
"""Side of the grid: 48 pixels halved four times."""


class Grid(nn.Module):
    """Means over a grid of 3×3 windows, flattened: `[T,B,C,H,W]` → `[T,B,9·C]`. Of 6×6 pixels, a mean over 2×2."""

    def forward(self, x: Tensor) -> Tensor:
        return fold(lambda y: F.adaptive_avg_pool2d(y, GRID).flatten(1), x)


def vgg_snn(plan: Plan) -> nn.Module:
    """64-128 | 256-256 | 512-512 | 512-512, a mean over 2×2 pixels of spikes behind each, for 2×48×48 frames; 9.27 M parameters.

    VGGSNN of Deng et al., ICLR 2022 (TET). What enters the first convolution of a stage is a mean of four spikes.
    """
    layers: list[nn.Module] = []
    inputs = plan.channels
    stages = ((64, 128), (256, 256), (512, 512), (512, 512))
    for i, stage in enumerate(stages):
        for j, channels in enumerate(stage):
            layers.append(ConvBlock(inputs, plan.wide(channels), plan.neuron, plan.norm, 1, j > 0, plan.memory))
            inputs = plan.wide(channels)
        layers.append(AvgPool(2) if i + 1 < len(stages) else Grid())
    return nn.Sequential(*layers, Readout(GRID**2 * inputs, plan.classes))
