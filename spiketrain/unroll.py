"""A network of I-LIF neurons as the network of binary spikes that it stands for."""

import copy

import torch
from torch import Tensor, nn

from spiketrain.errors import UserError
from spiketrain.models import Network
from spiketrain.neurons import IntegerLIF
from spiketrain.saving import added


class BinaryConv(nn.Module):
    """A convolution of spike counts, as one of binary spikes over virtual steps: k/D `[N,C,H,W]` → `[N,C',H',W']`.

    At virtual step d = 0 … D−1 a spike stands wherever k > d. Each step is convolved by itself, and their results are averaged: as
    convolution is linear, this is the convolution of k/D, to the rounding of sums. `UserError` where an input is not a count over D.
    """

    def __init__(self, conv: nn.Conv2d, levels: int) -> None:
        super().__init__()
        self.conv, self.levels = conv, levels

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """plus: as of `layers.Conv`."""
        counts = (x * self.levels).round()
        if not torch.equal(counts / self.levels, x) or bool(((counts < 0) | (counts > self.levels)).any()):
            raise UserError(f"a convolution's input is not a count of spikes over {self.levels} steps: this network cannot be unrolled")
        steps = torch.arange(self.levels, device=x.device).view(-1, *(1,) * x.dim())
        spikes = (counts > steps).to(x.dtype)  # [D,N,C,H,W], zeros and ones
        out: Tensor = self.conv(spikes.flatten(0, 1)).unflatten(0, spikes.shape[:2]).mean(0)
        return out if plus is None else added(out, plus)


def unroll(network: Network) -> Network:
    """A copy in evaluation mode in which every convolution behind an `ilif` neuron sees binary spikes alone (`BinaryConv`).

    The first convolutions, which see an image and no neuron's output, stay. The readout is a mean over space and linear, so it, too,
    may be applied spike by spike. `UserError` where the network has no such neuron, or neurons of different counts.
    """
    twin = copy.deepcopy(network).eval()
    counts = {m.levels for m in twin.modules() if isinstance(m, IntegerLIF)}
    if len(counts) != 1:
        raise UserError("only a network of ilif neurons, all with the same levels, can be unrolled")
    levels, fired = counts.pop(), False
    for name, module in list(twin.named_modules()):
        if isinstance(module, IntegerLIF):
            fired = True
        if isinstance(module, nn.Conv2d) and fired:
            parent = twin.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], BinaryConv(module, levels))
    return twin


def difference(network: Network, images: Tensor) -> float:
    """Largest difference between the logits of a network and of its unrolled form, both in float64."""
    wide = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        return float((wide(images.double()) - unroll(wide)(images.double())).abs().max())
