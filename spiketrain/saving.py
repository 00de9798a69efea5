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
from torch.autograd.graph import GradientEdge, get_gradient_edge

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


class _Anchored(torch.autograd.Function):
    """x, made something whose gradient can be asked for when x itself is no more."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


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
        made, wanted = _made_again(ctx), [p for p in ctx.parameters if p.requires_grad]
        found = list(torch.autograd.grad(made[0], [*made[1:], *wanted], grads[0]))
        by_x = found.pop(0) if len(made) > 1 else None
        return None, by_x, None, *(found.pop(0) if p.requires_grad else None for p in ctx.parameters)


def _made_again(ctx: Any) -> list[GradientEdge]:
    """Where the gradients of what the layer makes and, if it has one, of what it makes it of are to be found.

    The tensors themselves are let go: neither the spikes that come out nor, where bits are kept, those that went in are read by the
    gradient's way back.
    """
    x = (ctx.kept if isinstance(ctx.kept, Tensor) else kernels.unpack(ctx.kept)).detach()
    ctx.kept, edges = None, []
    device, dtype, enabled = ctx.autocast
    with torch.enable_grad(), torch.autocast(device, dtype, enabled):
        if ctx.needs_input_grad[1]:
            x = _Anchored.apply(torch.zeros((), device=device, requires_grad=True), x)
            edges.append(get_gradient_edge(x))
        y = ctx.run(x, False)
    return [get_gradient_edge(y), *edges]


def again(run: Callable[[Tensor, bool], Tensor], x: Tensor, spiking: bool, parameters: list[nn.Parameter]) -> Tensor:
    """`run(x, True)`, of which nothing but x is kept (as bits where it is spikes): the backward pass calls `run(x, False)` again.

    The flag says whether it is the first time: running statistics are updated then only.
    """
    if not torch.is_grad_enabled():
        return run(x, True)
    out: Tensor = _Again.apply(run, x, spiking, *parameters)
    return out
