"""What inference costs in operations: synaptic operations, estimated and counted, and the energy that papers quote for them.

    SOP estimate of a layer   firing rate of its input × T × its multiply-accumulates (MACs)
    SOP exact                 every spike × the outputs it really reaches (borders have fewer); a value of k spikes counts k
    energy                    4.6 pJ a MAC, where the input is real-valued, and 0.9 pJ a SOP: 45 nm, fp32 (Horowitz 2014)

A layer whose input is the same at every step (an image's first one) is computed once, and counted once. The first layer of event
frames has SOPs where they are binary, and MACs where they hold counts. Norms are taken as folded into the layer before them and
not counted.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spiketrain.layers import AvgPool, BatchNorm, Readout
from spiketrain.models import Network, count_macs
from spiketrain.neurons import IntegerLIF, Leaky

PICOJOULE_MAC, PICOJOULE_SOP = 4.6, 0.9
CAVEAT = "Operation counts leave data movement out, which on real hardware costs more than arithmetic: compare them only with each other."

QUANTA = (1, 4, 16, 64)
"""What multiplies means of spikes over pooling windows to whole numbers of spikes."""


@dataclass
class LayerCount:
    """Of one linear layer (convolution or fully connected), sums over samples: what came in, and what it led to.

    times: how often a sample went through it (T, or 1 where time had not begun); spiking: its input is spikes or counts of them.
    """

    name: str
    macs: int = 0
    samples: int = 0
    times: int = 0
    spiking: bool = True
    inputs: float = 0.0
    spikes: float = 0.0
    sops: float = 0.0

    def row(self) -> dict[str, Any]:
        """Per sample: macs of one step, times, input rate, operations and energy in nJ."""
        rate = self.spikes / self.inputs if self.inputs else 0.0
        macs = self.macs * self.times
        estimate, exact = (rate * macs, self.sops / self.samples) if self.spiking else (0.0, 0.0)
        energy = PICOJOULE_SOP * exact if self.spiking else PICOJOULE_MAC * macs
        return {
            "name": self.name, "macs_per_step": self.macs, "times": self.times, "input": "spikes" if self.spiking else "real",
            "input_rate": round(rate, 6) if self.spiking else None, "macs": 0 if self.spiking else macs, "sops_estimate": round(estimate),
            "sops": round(exact), "energy_nj": round(energy / 1e3, 4),
        }  # fmt: skip


class Counter:
    """Listens to the linear layers of a network while samples go through it; a context manager."""

    def __init__(self, network: Network, samples: int = 0) -> None:
        self.layers = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        self.counts = {name: LayerCount(name.removeprefix("body.")) for name in self.layers}
        self.handles: list[Any] = []
        self.levels = max((m.levels for m in network.modules() if isinstance(m, IntegerLIF)), default=1)
        self.batch = samples
        self.first = ""

    def __enter__(self) -> "Counter":
        self.handles = [m.register_forward_hook(self._listener(name)) for name, m in self.layers.items()]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def rows(self) -> list[dict[str, Any]]:
        """One row a layer, in the order of the network."""
        return [count.row() for count in self.counts.values() if count.samples]

    def _listener(self, name: str):  # type: ignore[no-untyped-def]
        def listen(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            self.first = self.first or name
            self._count(self.counts[name], layer, inputs[0].float(), output, self.first == name)

        return listen

    def _count(self, count: LayerCount, layer: nn.Module, x: Tensor, output: Tensor, first: bool) -> None:
        factor = None if first and float(x.max()) > 1 else quantum(x, 1 if first else self.levels)
        reach = fan_out(layer, x)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        places = output[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
        count.macs = places * weight.numel()
        count.times = len(x) // self.batch
        count.samples += self.batch
        count.spiking &= factor is not None
        if factor is not None:
            spikes = (x * factor).round()
            count.inputs += x.numel()
            count.spikes += float(spikes.double().sum())
            count.sops += float((spikes.sum(0, dtype=torch.float64) * reach).sum())


def quantum(x: Tensor, levels: int = 1) -> int | None:
    """The smallest of `QUANTA` × levels that makes all of x whole numbers ≥ 0 (1: spikes, or counts of them); None for real values.

    levels: of the ilif neurons before it, whose output is a count by them; in bfloat16 a third is a third to two thousandths.
    """
    for factor in (q * levels for q in QUANTA):
        scaled = x * factor
        near = 2e-3 * factor if levels & (levels - 1) else 0.0
        if float(scaled.min()) >= 0 and float((scaled - scaled.round()).abs().max()) <= min(near, 0.1):
            return factor
    return None


def fan_out(layer: nn.Module, x: Tensor) -> Tensor:
    """How many outputs each input of a layer reaches, broadcastable to one sample: `[1,H,W]` of a convolution, `[1]` else."""
    if isinstance(layer, nn.Linear):
        return torch.tensor([float(layer.out_features)], device=x.device)
    assert isinstance(layer, nn.Conv2d)
    reached = torch.zeros(1, 1, *x.shape[-2:], device=x.device, requires_grad=True)
    ones = torch.ones(1, 1, *layer.kernel_size, device=x.device)
    with torch.enable_grad():  # how often an input is added to outputs is the gradient of their sum by it
        total = F.conv2d(reached, ones, stride=layer.stride, padding=layer.padding, dilation=layer.dilation).sum()  # type: ignore[arg-type]
    return torch.autograd.grad(total, reached)[0][0] * (layer.out_channels // layer.groups)


def totals(rows: list[dict[str, Any]], neuron_updates: int = 0) -> dict[str, Any]:
    """Sums over layers, and the energy of the same network as an ANN: every layer once, MACs only. neuron_updates: neurons × T."""
    found = {key: sum(row[key] for row in rows) for key in ("macs", "sops_estimate", "sops", "energy_nj")}
    found["energy_nj"] = round(found["energy_nj"], 4)
    found["ann_energy_nj"] = round(sum(row["macs_per_step"] for row in rows) * PICOJOULE_MAC / 1e3, 4)
    found["neuron_updates"] = neuron_updates
    real = [row for row in rows if row["input"] == "real"]
    if real:  # papers differ in whether the first layer of a static image counts once or T times
        times = max(row["times"] for row in rows)
        found["energy_nj_first_layer_every_step"] = round(
            found["energy_nj"] + real[0]["macs_per_step"] * (times - real[0]["times"]) * PICOJOULE_MAC / 1e3, 4
        )
    return found


def older_macs(network: Network, shape: tuple[int, ...], steps: int) -> float:
    """M-MACs of T steps as the older benchmark's table counts them (with thop): batch norm at 2 an element, mean-pooling at 1 an output.

    shape: `(C,H,W)` of a frame. The mean over space before the readout counts its window and 1 an output.
    """
    extra = 0

    def listen(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal extra
        if isinstance(layer, BatchNorm):
            extra += 2 * output[0].numel()
        elif isinstance(layer, AvgPool):
            extra += output[0].numel()
        elif inputs[0].dim() == 5:
            window = inputs[0].shape[-1] * inputs[0].shape[-2]
            extra += inputs[0].shape[2] * (window + 1)

    handles = [m.register_forward_hook(listen) for m in network.modules() if isinstance(m, BatchNorm | AvgPool | Readout)]
    neurons = [m for m in network.modules() if isinstance(m, Leaky)]
    kernels = [neuron.kernel for neuron in neurons]
    try:
        for neuron in neurons:  # the fast kernels have no norm that could be listened to
            neuron.kernel = "reference"
        macs = count_macs(network, shape)
    finally:
        for neuron, kernel in zip(neurons, kernels, strict=True):
            neuron.kernel = kernel
        for handle in handles:
            handle.remove()
    return steps * (macs + extra) / 1e6
