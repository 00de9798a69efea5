"""What is kept of a layer for its backward pass: spikes as bits, or nothing but bits and the layer computed again. Gradients are the same.

A neuron-step in bfloat16 keeps its current (2 bytes, by `kernels`) and its spike, as the next convolution's input:

    "speed"   2 + 2 bytes: nothing is computed twice but potentials
    "bits"    2 + 1/8
    "least"   1/8: convolution, norm and neuron run again in the backward pass (a third more of convolutions)
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from spiketrain import kernels
from spiketrain.kernels import conv

MEMORY = ("speed", "bits", "least")
Currents = Callable[[Tensor], Tensor]
Rest = Callable[[Tensor, bool], Tensor]


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
        grad, w = grads[0].to(x.dtype), weight.to(x.dtype)
        by_x = by_weight = None
        if ctx.needs_input_grad[1]:
            by_weight = conv.by_weight(grad, x, w, *ctx.where).to(weight.dtype)
        like = torch.empty_like(x, device="meta")
        del x, kept  # before there is a gradient of its size
        if ctx.needs_input_grad[0]:
            by_x = conv.by_input(grad, like, w, *ctx.where)
        return by_x, by_weight, None, None, None


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


class _Unpacked(torch.autograd.Function):
    """Spikes of their bits, as a node of the graph that can be asked for a gradient without being kept."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, bits: Tensor, how: kernels.Packing) -> Tensor:
        return kernels.unpack(bits, how)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        raise AssertionError("nobody asks for the gradient by bits")


@contextlib.contextmanager
def _kept_as_bits(x: Tensor, bits: Tensor, how: kernels.Packing) -> Iterator[None]:
    """Whatever the graph keeps of x here it keeps as its bits, which are at hand."""
    place = x.untyped_storage().data_ptr()

    def pack(t: Tensor) -> Any:
        return (t.shape, t.stride(), t.storage_offset()) if t.untyped_storage().data_ptr() == place else t

    def unpack(kept: Any) -> Tensor:
        return kept if isinstance(kept, Tensor) else kernels.unpack(bits, how).as_strided(*kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, currents: Currents, rest: Rest, x: Tensor, spiking: bool, *parameters: Tensor) -> Tensor:
        ctx.currents, ctx.rest, ctx.parameters = currents, rest, parameters
        kept, ctx.how = kernels.pack(x) if spiking and kernels.packs(x) else (x, None)
        ctx.save_for_backward(kept)
        device = x.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        return rest(currents(x), True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Each tensor is let go of where it has been used last: of spikes, currents and their gradients three are alive at most."""
        (kept,), how = ctx.saved_tensors, ctx.how
        device, dtype, enabled = ctx.autocast
        with torch.enable_grad(), torch.autocast(device, dtype, enabled):
            if how is None:
                x = kept.detach().requires_grad_(ctx.needs_input_grad[2])
                y = ctx.currents(x)
            else:
                x = _Unpacked.apply(torch.zeros((), device=device, requires_grad=ctx.needs_input_grad[2]), kept, how)
                with _kept_as_bits(x, kept, how):
                    y = ctx.currents(x)
            wanted = [get_gradient_edge(t) if t.requires_grad else None for t in (x, *ctx.parameters)]
            del x, kept
            out = get_gradient_edge(ctx.rest(y, False))
            del y
        found = iter(torch.autograd.grad(out, [t for t in wanted if t is not None], grads[0]))
        by = [None if t is None else next(found) for t in wanted]
        return None, None, by[0], None, *by[1:]


def again(currents: Currents, rest: Rest, x: Tensor, spiking: bool, parameters: list[nn.Parameter]) -> Tensor:
    """`rest(currents(x), True)`, of which nothing but x is kept (as bits where it is spikes): the backward pass computes it again.

    The flag of `rest` says whether it is the first time: running statistics are updated then only.
    """
    if not torch.is_grad_enabled():
        return rest(currents(x), True)
    out: Tensor = _Again.apply(currents, rest, x, spiking, *parameters)
    return out
