"""The other libraries' neurons and parts: what each documents, taken as it comes. None is a dependency; absent ones are left out.

They are in an environment of their own (benchmarks/README.md). Everyone gets the same equation where their options allow it: a
leaky integrate-and-fire neuron of tau 2, threshold 1, arctan surrogate of steepness 2, hard reset without gradient.
"""

import math
from collections.abc import Callable
from importlib import metadata, util
from typing import Any

import torch
from common import device
from networks import Parts, conv2d
from torch import Tensor, nn

NAMES = ("spikingjelly", "snntorch", "norse")
Layer = Callable[[Tensor], Tensor]
"""A neuron layer along time, `[T,...]` → `[T,...]`, from rest at every call."""


def found() -> dict[str, str]:
    """Version of each of these libraries that is here."""
    return {name: metadata.version(name) for name in NAMES if util.find_spec(name)}


def say_missing() -> None:
    """One line about the libraries that are not here."""
    if missing := [name for name in NAMES if name not in found()]:
        print(f"left out, not installed here: {', '.join(missing)} (benchmarks/README.md says how to get them)")


class Looped(nn.Module):
    """A network without time, called at each step: images `[B,...]` T times, or frames `[T,B,...]` one after the other."""

    def __init__(self, network: nn.Module, steps: int, reset: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.network, self.steps, self.reset = network, steps, reset

    def forward(self, x: Tensor) -> Tensor:
        self.reset(self.network)
        frames = x.unbind(0) if x.dim() == 5 else [x] * self.steps
        return torch.stack([self.network(frame) for frame in frames])


class Sequence(nn.Module):
    """A network of layers that take `[T,B,...]`; an image is repeated T times, as its library's examples do."""

    def __init__(self, network: nn.Module, steps: int, reset: Callable[[nn.Module], Any], layout: torch.memory_format) -> None:
        super().__init__()
        self.network, self.steps, self.reset, self.layout = network, steps, reset, layout

    def forward(self, x: Tensor) -> Tensor:
        self.reset(self.network)
        steps = x.shape[0] if x.dim() == 5 else self.steps
        flat = x.flatten(0, 1) if x.dim() == 5 else x.repeat(steps, 1, 1, 1)
        return self.network(flat.contiguous(memory_format=self.layout).unflatten(0, (steps, -1)))


# SpikingJelly


def spikingjelly_node() -> nn.Module:
    """Its LIFNode in multi-step mode."""
    from spikingjelly.activation_based import neuron, surrogate

    return neuron.LIFNode(tau=2.0, detach_reset=True, surrogate_function=surrogate.ATan(alpha=2.0), step_mode="m")


def spikingjelly_reset(network: nn.Module) -> None:
    """Its neurons back to rest."""
    from spikingjelly.activation_based import functional

    functional.reset_net(network)


class SpikingJellyCompiled(nn.Module):
    """Its LIF over a sequence, from rest, under torch.compile."""

    def __init__(self) -> None:
        super().__init__()
        self.run = torch.compile(_spikingjelly_lif)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def _spikingjelly_lif(x: Tensor) -> Tensor:
    from spikingjelly.activation_based import functional, surrogate

    v = torch.zeros_like(x[0])
    return functional.lif_multi_step(x, v, 2.0, True, 1.0, 0.0, surrogate.ATan(alpha=2.0), True, False)[0]


def spikingjelly_parts(neuron: Callable[[], nn.Module] = spikingjelly_node) -> Parts:
    """Its multi-step layers."""
    from spikingjelly.activation_based import layer

    return Parts(
        neuron,
        lambda i, o, k, s: layer.Conv2d(i, o, k, s, k // 2, bias=False, step_mode="m"),
        lambda c: layer.BatchNorm2d(c, step_mode="m"),
        lambda: layer.AvgPool2d(2, step_mode="m"),
    )


def spikingjelly_layer(compiled: bool) -> Layer:
    """One layer of its LIF."""
    node = SpikingJellyCompiled() if compiled else spikingjelly_node()

    def run(x: Tensor) -> Tensor:
        spikingjelly_reset(node)
        return node(x)

    return run


# snnTorch


def snntorch_leaky(hidden: bool = True) -> nn.Module:
    """Its Leaky with the options nearest to the others': it does not scale its input and resets a step later."""
    import snntorch
    from snntorch import surrogate

    return snntorch.Leaky(beta=0.5, spike_grad=surrogate.atan(alpha=2.0), reset_mechanism="zero", init_hidden=hidden)


def snntorch_reset(network: nn.Module) -> None:
    """Its neurons back to rest."""
    import snntorch

    for module in network.modules():
        if isinstance(module, snntorch.Leaky):
            module.reset_mem()


def snntorch_layer(compiled: bool) -> Layer:
    """One layer of its Leaky, looped over time as its tutorials do."""
    leaky = snntorch_leaky(hidden=False).to(device())

    def run(x: Tensor) -> Tensor:
        memory, spikes = torch.zeros_like(x[0]), []
        for x_t in x.unbind(0):
            s, memory = leaky(x_t, memory)
            spikes.append(s)
        return torch.stack(spikes)

    return torch.compile(run) if compiled else run


# Norse


def norse_layer() -> Layer:
    """One layer of its LIFBox (the LIF without a current of its own), dt/tau = 1/2, looped over time; SuperSpike, its default slope."""
    from norse.torch import LIFBoxCell, LIFBoxParameters

    cell = LIFBoxCell(LIFBoxParameters(tau_mem_inv=torch.tensor(500.0))).to(device())

    def run(x: Tensor) -> Tensor:
        state, spikes = None, []
        for x_t in x.unbind(0):
            s, state = cell(x_t, state)
            spikes.append(s)
        return torch.stack(spikes)

    return run


# the older benchmark's way


class _AtanStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] / (1 + (math.pi * x) ** 2)


class LoopedLIF(nn.Module):
    """v ← v + (x − v)/2; s = H(v − 1); v ← v·(1 − s): an operation at a time, its state an attribute, as the older benchmark has it."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x) if self.v is None else self.v
        v = v + (x - v) / 2.0
        s = _AtanStep.apply(v - 1.0)
        self.v = v * (1 - s.detach())
        return s


def looped_reset(network: nn.Module) -> None:
    """Its neurons back to rest."""
    for module in network.modules():
        if isinstance(module, LoopedLIF):
            module.v = None


LOOPED = Parts(LoopedLIF, conv2d)
