"""The one module that every model comes as: it gives images their time axis and checks what goes in."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spiketrain.errors import UserError
from spiketrain.layers import BatchNorm, NormSpec, check_frames, encode
from spiketrain.neurons import Spec


@dataclass(frozen=True)
class Plan:
    """What a model's family needs to build its layers.

    neuron: what each node is; norm: `layers.NORMS`, or a `layers.NormSpec`, which has the threshold and T too; channels: of the
    input; classes: of the output; width: factor on the channels of every layer; memory: `saving.MEMORY`.
    """

    neuron: Spec
    norm: str | NormSpec = "time"
    channels: int = 3
    classes: int = 10
    width: float = 1.0
    memory: str = "speed"

    def wide(self, channels: int) -> int:
        """`channels` times the width, a multiple of 8 where it is not the full one."""
        return channels if self.width == 1 else max(8, round(channels * self.width / 8) * 8)


class Network(nn.Module):
    """A spiking network for classification.

    Takes images `[B,C,H,W]`, which are shown at each of `steps` steps, or frames `[T,B,C,H,W]` of any T ≥ 1; returns logits
    per step `[T,B,K]` (their mean over time is the prediction). A pure function of its input: there is no state to reset.
    With `flatten_time` the steps become channels of a single step, `[1,B,T·C,H,W]`, and T must be `steps`.
    """

    def __init__(self, body: nn.Module, channels: int, steps: int, encoder: str = "direct", flatten_time: bool = False) -> None:
        super().__init__()
        if steps < 1:
            raise UserError(f"steps must be at least 1, not {steps}")
        self.body = body
        self.channels, self.steps, self.encoder, self.flatten_time = channels, steps, encoder, flatten_time

    def forward(self, x: Tensor) -> Tensor:
        check_frames(x, self.channels)
        frames = encode(x, self.steps, self.encoder) if x.dim() == 4 else x
        if self.flatten_time:
            if frames.shape[0] != self.steps:
                raise UserError(f"this network takes exactly {self.steps} steps, not {frames.shape[0]}")
            frames = frames.transpose(0, 1).flatten(1, 2)[None]
        logits: Tensor = self.body(frames)
        return logits

    def extra_repr(self) -> str:
        return f"channels={self.channels}, steps={self.steps}, encoder={self.encoder!r}, flatten_time={self.flatten_time}"


def count_parameters(network: nn.Module) -> int:
    """Numbers in the parameters, frozen ones (thresholds, alphas) included, running statistics not."""
    return sum(p.numel() for p in network.parameters())


def count_macs(network: Network, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of convolutions and linear layers for one step of one sample `[C,H,W]`; biases and norms not counted.
    """
    parameter = next(network.parameters())
    fixed = any(isinstance(m, BatchNorm) and m.p is not None for m in network.modules())  # takes no other number of steps
    steps = network.steps if network.flatten_time or fixed else 1
    x = torch.zeros(steps, 1, *shape, device=parameter.device, dtype=parameter.dtype)
    training = network.training
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x)
    network.train(training)
    return int(counter.get_total_flops()) // (2 if network.flatten_time else 2 * steps)
