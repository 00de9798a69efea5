"""What is kept of a layer for its backward pass: spikes as bits, or nothing but bits and the layer computed again. Gradients are the same.

A neuron-step in bfloat16 keeps its current (2 bytes, by `kernels`) and its spike, as the next convolution's input:

    "speed"   2 + 2 bytes: nothing is computed twice but potentials
    "bits"    2 + 1/8
    "least"   1/8: convolution, norm and neuron run again in the backward pass (a third more of convolutions)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spiketrain import kernels
from spiketrain.kernels import conv

MEMORY = ("speed", "bits", "least")


class _Conv(torch.autograd.Function):
    """A convolution by `kernels.conv`, forward and backward; of spikes, one bit each is kept where `bits`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, bits: bool) -> Tensor:
        kept, ctx.how = kernels.pack(x) if bits else (x, None)
        ctx.save_for_backward(weight, kept)
        ctx.where = stride, padding
        return conv.forward(x, weight.to(x.dtype), stride, padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, kept = ctx.saved_tensors
        x = kept if ctx.how is None else kernels.unpack(kept, ctx.how)
        wants: tuple[bool, bool] = ctx.needs_input_grad[:2]
        by_x, by_weight = conv.backward(grads[0].to(x.dtype), x, weight.to(x.dtype), wants, *ctx.where)
        return by_x, None if by_weight is None else by_weight.to(weight.dtype), None, None, None


def convolve(layer: nn.Conv2d, x: Tensor, bits: bool = False) -> Tensor:
    """`layer` (no bias, no dilation, one group) of x `[N,C,H,W]` by `kernels.conv`; bits: x is spikes, of which one bit each is kept."""
    out: Tensor = _Conv.apply(x, layer.weight, layer.stride[0], layer.padding[0], bits)
    return out


def conv_of_spikes(layer: nn.Conv2d, spikes: Tensor) -> Tensor:
    """`layer` of spikes, which are kept for its gradient as bits where they can be."""
    if not torch.is_grad_enabled() or not kernels.packs(spikes):
        out: Tensor = layer(spikes)
        return out
    return convolve(layer, spikes, bits=True)


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor, bool], Tensor], x: Tensor, spiking: bool, *parameters: Tensor) -> Tensor:
        ctx.run, ctx.parameters = run, parameters
        kept, ctx.how = kernels.pack(x) if spiking and kernels.packs(x) else (x, None)
        ctx.save_for_backward(kept)
        device = x.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        return run(x, True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        x = (kept if ctx.how is None else kernels.unpack(kept, ctx.how)).detach()
        x.requires_grad_(ctx.needs_input_grad[1])
        device, dtype, enabled = ctx.autocast
        with torch.enable_grad(), torch.autocast(device, dtype, enabled):
            y = ctx.run(x, False)
        wanted = [t for t in (x, *ctx.parameters) if t.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, grads[0]))
        by = [next(found) if t.requires_grad else None for t in (x, *ctx.parameters)]
        return None, by[0], None, *by[1:]


def again(run: Callable[[Tensor, bool], Tensor], x: Tensor, spiking: bool, parameters: list[nn.Parameter]) -> Tensor:
    """`run(x, True)`, of which nothing but x is kept (as bits where it is spikes): the backward pass calls `run(x, False)` again.

    The flag says whether it is the first time: running statistics are updated then only.
    """
    if not torch.is_grad_enabled():
        return run(x, True)
    out: Tensor = _Again.apply(run, x, spiking, *parameters)
    return out
