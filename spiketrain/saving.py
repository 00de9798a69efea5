"""What is kept of a layer for its backward pass: spikes as bits, or nothing but bits and the layer computed again. Gradients are the same.

A neuron-step in bfloat16 keeps its current (2 bytes, by `kernels`) and its spike, as the next convolution's input:

    "speed"   2 + 2 bytes: nothing is computed twice but potentials
    "bits"    2 + 1/8
    "least"   1/8: convolution, norm and neuron run again in the backward pass (a third more of convolutions)
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spiketrain import kernels

MEMORY = ("speed", "bits", "least")


class _BitConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spikes: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.kept = kernels.pack(spikes)
        ctx.save_for_backward(weight)
        ctx.where = stride, padding
        return F.conv2d(spikes, weight, None, stride, padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), (stride, padding) = ctx.saved_tensors, ctx.where
        spikes = kernels.unpack(ctx.kept)
        wants = [*ctx.needs_input_grad[:2], False]
        cast = weight.to(spikes.dtype)
        by_spikes, by_weight, _ = torch.ops.aten.convolution_backward(
            grads[0].to(spikes.dtype), spikes, cast, None, stride, padding, (1, 1), False, (0, 0), 1, wants
        )
        return by_spikes, None if by_weight is None else by_weight.to(weight.dtype), None, None


def conv_of_spikes(conv: nn.Conv2d, spikes: Tensor) -> Tensor:
    """`conv` (no bias, no dilation, one group) of spikes `[N,C,H,W]`, of which one bit each is kept for its gradient."""
    if not torch.is_grad_enabled() or not kernels.packs(spikes):
        out: Tensor = conv(spikes)
        return out
    bits: Tensor = _BitConv.apply(spikes, conv.weight, conv.stride, conv.padding)
    return bits


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor, bool], Tensor], x: Tensor, spiking: bool, *parameters: Tensor) -> Tensor:
        ctx.run, ctx.parameters = run, parameters
        ctx.kept = kernels.pack(x) if spiking and kernels.packs(x) else x
        device = x.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        return run(x, True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x = (ctx.kept if isinstance(ctx.kept, Tensor) else kernels.unpack(ctx.kept)).detach()
        x.requires_grad_(ctx.needs_input_grad[1])
        ctx.kept = None
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
