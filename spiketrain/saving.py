"""What is kept of a layer for its backward pass: spikes as bits, or nothing but bits and the layer computed again. Gradients are the same.

A neuron-step in bfloat16 keeps its current (2 bytes, by `kernels`) and its spike, as the next convolution's input:

    "speed"   2 + 2 bytes: nothing is computed twice but potentials
    "bits"    2 + 1/8
    "least"   1/8: currents are made again in the backward pass (a third more of convolutions), and spikes and gradients take their place
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.func import functional_call

from spiketrain import kernels
from spiketrain.kernels import conv
from spiketrain.kernels.leaky import Anew, over_steps

MEMORY = ("speed", "bits", "least")
Rest = Callable[[Tensor, bool], Tensor]


@dataclass(frozen=True)
class Bits:
    """Spikes `[N,C,H,W]` as bits."""

    bits: Tensor
    how: kernels.Packing

    def images(self, first: int, last: int) -> Tensor:
        """Spikes of some images again; where they are not all, of a multiple of eight numbers before and in them."""
        like, each = self.how.like[first:last], self.how.like[:1].numel()
        part = self.bits[first * each // 8 : -(-last * each // 8)]
        return kernels.unpack(part, replace(self.how, like=like))


class _Conv(torch.autograd.Function):
    """A convolution by `kernels.conv`, forward and backward, plus what is added to it. Its gradient keeps x, or bits where x is spikes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, bits: Bits | None, plus: Tensor | None) -> Tensor:
        ctx.how = bits and bits.how
        ctx.save_for_backward(weight, bits.bits if bits else x)
        ctx.where, ctx.plus = (stride, padding), None if plus is None else (len(plus), plus.dtype)
        return conv.forward(x, weight, stride, padding, plus)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, kept = ctx.saved_tensors
        x = kept if ctx.how is None else kernels.unpack(kept, ctx.how)
        grad = grads[0].to(x.dtype)
        by_x = by_weight = None
        if ctx.needs_input_grad[1]:
            by_weight = conv.by_weight(grad, x, weight, *ctx.where).to(weight.dtype)
        like = torch.empty_like(x, device="meta")
        del x, kept  # before there is a gradient of its size
        if ctx.needs_input_grad[0]:
            by_x = conv.by_input(grad, like, weight, *ctx.where)
        by_plus = None
        if ctx.needs_input_grad[5]:
            images, dtype = ctx.plus
            by_plus = (grads[0] if len(grads[0]) == images else over_steps(grads[0].unflatten(0, (-1, images)))[0]).to(dtype)
        return by_x, by_weight, None, None, None, by_plus


def convolve(layer: nn.Conv2d, x: Tensor, bits: Bits | None = None, plus: Tensor | None = None) -> Tensor:
    """`layer` (no bias, no dilation, one group) of x `[N,C,H,W]` by `kernels.conv`. bits: x's, where they shall be kept instead of it;
    plus: what is added to the result; if it has fewer images, to each so many of them.
    """
    out: Tensor = _Conv.apply(x, layer.weight, *_where(layer), bits, plus)
    return out


def added(y: Tensor, plus: Tensor) -> Tensor:
    """y + plus; if that has fewer images, it is added to each so many of y's."""
    return y + plus if len(y) == len(plus) else (y.unflatten(0, (-1, len(plus))) + plus).flatten(0, 1)


def _where(layer: nn.Conv2d) -> tuple[int, int]:
    """Stride and padding."""
    return layer.stride[0], int(layer.padding[0])


def _computed(x: Tensor) -> Tensor:
    """x in the dtype that a convolution of it has now."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) and x.dtype is not torch.float64 else x


def _bits(x: Tensor) -> Bits | None:
    return Bits(*kernels.pack(x)) if torch.is_grad_enabled() and kernels.packs(x) else None


def conv_of_spikes(layer: nn.Conv2d, spikes: Tensor, plus: Tensor | None = None) -> Tensor:
    """`layer` of spikes `[N,C,H,W]`, which are kept for its gradient as bits where they can be. plus: as in `convolve`."""
    spikes = _computed(spikes)
    bits = _bits(spikes)
    if bits is not None:
        return convolve(layer, spikes, bits, plus)
    out: Tensor = layer(spikes) if plus is None else layer(spikes, plus)
    return out


def conv_and_anew(layer: nn.Conv2d, x: Tensor, spiking: bool) -> tuple[Tensor, Anew]:
    """`layer` of x `[T,B,C,H,W]` step by step, and how it is made again of what its gradient keeps: x, as bits where it is spikes."""
    folded, steps = x.flatten(0, 1), x.shape[:2]
    if spiking:
        folded = _computed(folded)
    bits = _bits(folded) if spiking else None
    if bits is None:
        again = functools.partial(_of_kept, layer, steps, _autocast(x))
        return layer(folded).unflatten(0, steps), Anew((folded, *layer.parameters()), again)
    again = functools.partial(_of_bits, _where(layer), steps, bits.how)
    return convolve(layer, folded, bits).unflatten(0, steps), Anew((bits.bits, layer.weight), again)


def _of_kept(layer: nn.Conv2d, steps: torch.Size, autocast: Callable[[], torch.autocast], x: Tensor, *parameters: Tensor) -> Tensor:
    named = dict(zip((name for name, _ in layer.named_parameters()), parameters, strict=True))
    with torch.no_grad(), autocast():
        y: Tensor = functional_call(layer, named, (x,))
    return y.unflatten(0, steps)


def _of_bits(where: tuple[int, int], steps: torch.Size, how: kernels.Packing, bits: Tensor, weight: Tensor) -> Tensor:
    return conv.forward_of(Bits(bits, how).images, how.like, weight.detach(), *where).unflatten(0, steps)


def _autocast(x: Tensor) -> Callable[[], torch.autocast]:
    """The setting of now, to be set again."""
    device = x.device.type
    return functools.partial(torch.autocast, device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rest: Rest, y: Tensor, anew: Anew, *parameters: Tensor) -> Tensor:
        ctx.rest, ctx.make, ctx.parameters, ctx.autocast = rest, anew.make, parameters, _autocast(y)
        ctx.save_for_backward(*anew.kept)
        return rest(y, True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Nothing is held here while the gradient is computed: each tensor goes where it has been used last."""
        y = ctx.make(*ctx.saved_tensors).requires_grad_(ctx.needs_input_grad[1])
        with torch.enable_grad(), ctx.autocast():
            out = get_gradient_edge(ctx.rest(y, False))
        wanted = [get_gradient_edge(t) if t.requires_grad else None for t in (y, *ctx.parameters)]
        del y
        found = iter(torch.autograd.grad(out, [t for t in wanted if t is not None], grads[0]))
        by = [None if t is None else next(found) for t in wanted]
        return None, by[0], None, *by[1:]


def again(rest: Rest, y: Tensor, anew: Anew, parameters: list[nn.Parameter]) -> Tensor:
    """`rest(y, True)`, for which nothing is kept but what makes y anew: the backward pass computes it again.

    The flag of `rest` says whether it is the first time: running statistics are updated then only.
    """
    if not torch.is_grad_enabled():
        return rest(y, True)
    out: Tensor = _Again.apply(rest, y, anew, *parameters)
    return out
