"""What is kept of a layer for its backward pass: spikes as bits, or nothing but bits and the layer computed again. Gradients are the same.

A neuron-step in bfloat16 keeps its current (2 bytes, by `kernels`) and its spike, as the next convolution's input:

    "speed"   2 + 2 bytes, or 2 + 1/8 where convolutions read bits: nothing is computed twice but potentials, and where that costs little
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
from spiketrain.functional import once_differentiable
from spiketrain.kernels import conv
from spiketrain.kernels.forms import Bits, Lazy, at_a_time, dense, in_parts, parted, size_of, without_memory
from spiketrain.kernels.leaky import Anew
from spiketrain.kernels.pool import Means

MEMORY = ("speed", "bits", "least")
SHORT, LARGE = 16 << 20, 64 << 20
"""Bytes of an image's currents that are not kept; of currents whose gradient takes their place in memory, which takes a fifth longer."""
Rest = Callable[[Tensor, bool], Tensor]
Kept = Bits | Means
"""What of a convolution's input is kept as bits."""


@dataclass(frozen=True)
class ByInput:
    """The gradient of a convolution by its input, as a form (`forms.Parted`). grad: by its result, itself in parts or not."""

    grad: Tensor
    weight: Tensor
    where: tuple[int, int]
    like: Tensor

    def part(self, steps: int, first: int, last: int) -> Tensor:
        """Of those images alone."""
        if isinstance(self.grad, Lazy):
            grad: Tensor = self.grad.form.part(steps, first, last)  # type: ignore[attr-defined]
        else:
            grad = self.grad.unflatten(0, (steps, -1))[:, first:last]
        return conv.by_input(grad, self.like[: steps * (last - first)], self.weight, *self.where)

    def some(self, steps: int) -> int:
        """As many as of `grad`."""
        return self.grad.form.some(steps) if isinstance(self.grad, Lazy) else at_a_time(self.like, steps)  # type: ignore[attr-defined]

    def dense(self) -> Tensor:
        return conv.by_input(dense(self.grad), self.like, self.weight, *self.where)


class _Conv(torch.autograd.Function):
    """A convolution by `kernels.conv`, forward and backward, plus what is added to it. Its gradient keeps x, or bits where x is spikes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, bits: Kept | None, plus: Tensor | None) -> Tensor:
        ctx.spikes = isinstance(x, Lazy) and isinstance(x.form, Bits)
        if isinstance(x, Lazy) and kernels.packs(x):
            bits = kernels.pack(x)
        ctx.form = bits and replace(bits, bits=bits.like)
        ctx.save_for_backward(weight, bits.bits if bits else x)
        ctx.where, ctx.plus = (stride, padding), None if plus is None else (plus.shape[0], plus.dtype)
        return conv.forward(x, weight, stride, padding, plus)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, kept = ctx.saved_tensors
        x = kept if ctx.form is None else Lazy(replace(ctx.form, bits=kept))
        grad = grads[0].to(x.dtype)
        if not (parted(grad) and isinstance(x, Lazy)):
            grad = dense(grad)
        by_x = by_weight = None
        if ctx.needs_input_grad[1]:
            by_weight = _by_weight(grad, x, weight, ctx.where).to(weight.dtype)
        like = without_memory(x)
        del x, kept  # before there is a gradient of its size
        if ctx.needs_input_grad[0]:
            by_x = _by_input(ByInput(grad, weight, ctx.where, like), ctx.spikes)
        by_plus = None
        if ctx.needs_input_grad[5]:
            images, dtype = ctx.plus
            same = grads[0].shape[0] == images
            by_plus = (dense(grads[0]) if same else kernels.over_steps(grads[0].unflatten(0, (-1, images)))[0]).to(dtype)
        return by_x, by_weight, None, None, None, by_plus


def _by_input(form: ByInput, spikes: bool) -> Tensor:
    """The gradient: as a form where it goes to who made bits of spikes, which knows what to do with it in parts, or of few pixels."""
    given = form.like, form.weight, *form.where
    if spikes and conv.input_in_parts(form.grad, *given):
        return Lazy(form)
    spread = conv.input_spread(form.grad, *given) if spikes and not isinstance(form.grad, Lazy) else None
    return form.dense() if spread is None else Lazy(spread)


def _by_weight(grad: Tensor, x: Tensor, weight: Tensor, where: tuple[int, int]) -> Tensor:
    """`conv.by_weight`; of a gradient in parts, their sum."""
    if not isinstance(grad, Lazy):
        return conv.by_weight(grad, x, weight, *where)
    steps = grad.form.steps  # type: ignore[attr-defined]
    batch, some, bits = grad.shape[0] // steps, grad.form.some(steps), kernels.pack(x)  # type: ignore[attr-defined]
    found = None
    for first in range(0, batch, some):
        ends = steps, first, min(first + some, batch)
        one = conv.by_weight(grad.form.part(*ends), Lazy(bits.part(*ends)), weight, *where)  # type: ignore[attr-defined]
        found = one if found is None else found.add_(one)
    assert found is not None
    return found


def convolve(layer: nn.Conv2d, x: Tensor, bits: Kept | None = None, plus: Tensor | None = None) -> Tensor:
    """`layer` (no bias, no dilation, one group) of x `[N,C,H,W]` by `kernels.conv`. bits: x's, where they shall be kept instead of it;
    plus: what is added to the result; if it has fewer images, to each so many of them.
    """
    out: Tensor = _Conv.apply(x, layer.weight, *_where(layer), bits, plus)
    return out


def added(y: Tensor, plus: Tensor) -> Tensor:
    """y + plus; if that has fewer images, it is added to each so many of y's."""
    return y + plus if y.shape[0] == plus.shape[0] else (y.unflatten(0, (-1, plus.shape[0])) + plus).flatten(0, 1)


def _where(layer: nn.Conv2d) -> tuple[int, int]:
    """Stride and padding."""
    return layer.stride[0], int(layer.padding[0])


def computed(x: Tensor) -> Tensor:
    """x in the dtype that a convolution of it has now."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) and x.dtype is not torch.float64 else x


def _bits(x: Tensor) -> Kept | None:
    return kernels.pack(x) if torch.is_grad_enabled() and kernels.packs(x) else None


def conv_of_spikes(layer: nn.Conv2d, spikes: Tensor, plus: Tensor | None = None) -> Tensor:
    """`layer` of spikes `[N,C,H,W]`, which are kept for its gradient as bits where they can be. plus: as in `convolve`."""
    spikes = computed(spikes)
    bits = _bits(spikes)
    if bits is not None:
        return convolve(layer, spikes, bits, plus)
    out: Tensor = layer(spikes) if plus is None else layer(spikes, plus)
    return out


def conv_and_anew(layer: nn.Conv2d, x: Tensor, spiking: bool) -> tuple[Tensor, Anew]:
    """`layer` of x `[T,B,C,H,W]` step by step, and how it is made again of what its gradient keeps: x, as bits where it is spikes."""
    folded, steps = x.flatten(0, 1), x.shape[:2]
    if spiking:
        folded = computed(folded)
    bits = _bits(folded) if spiking or isinstance(folded, Lazy) else None
    if bits is None:
        again = functools.partial(_of_kept, layer, _autocast(x))
        y = layer(folded).unflatten(0, steps)

        def whole(*kept: Tensor) -> Tensor:
            return again(slice(None), *kept).unflatten(0, steps)

        def some(first: int, last: int, *kept: Tensor) -> Tensor:
            return again(slice(first, last), *kept)

        return y, Anew((folded, *layer.parameters()), whole, some if x.shape[0] == 1 and _pays(y, SHORT) else None)
    form = replace(bits, bits=bits.like)
    again = functools.partial(_of_bits, _where(layer), steps, form)
    y = convolve(layer, folded, bits).unflatten(0, steps)
    part = functools.partial(_part_of_bits, _where(layer), x.shape[0], form)
    return y, Anew((bits.bits, layer.weight), again, part if conv.reads_bits(y) and in_parts(y) else None)


def currents(layer: nn.Conv2d, x: Tensor, steps: int, spiking: bool, memory: str) -> tuple[Tensor, Anew | None]:
    """`layer` of x `[T,B,C,H,W]` step by step, to be seen at so many steps, and how the backward pass of the one neuron that sees it comes
    by it, where it is not just kept.

    If not to save memory, that is so where it costs next to nothing: an image has few channels, so that its currents are soon made again;
    where currents are large their gradient takes their place.
    """
    if memory == "least":
        return conv_and_anew(layer, x, spiking)
    if x.shape[0] < steps and x.shape[2] <= conv.FEW:
        y, anew = conv_and_anew(layer, x, spiking)
        return y, replace(anew, part=None) if _pays(y, SHORT) else None
    folded = x.flatten(0, 1)
    y = (conv_of_spikes(layer, folded) if spiking and memory == "bits" else layer(folded)).unflatten(0, x.shape[:2])
    return y, Anew.of(y) if _pays(y, LARGE) else None


def _pays(y: Tensor, least: int) -> bool:
    """Whether something is done with the currents y because they have so many bytes."""
    return conv.reads_bits(y) and size_of(y) >= least


def _of_kept(layer: nn.Conv2d, autocast: Callable[[], torch.autocast], images: slice, x: Tensor, *parameters: Tensor) -> Tensor:
    named = dict(zip((name for name, _ in layer.named_parameters()), parameters, strict=True))
    with torch.no_grad(), autocast():
        y: Tensor = functional_call(layer, named, (x if images == slice(None) else x[images],))
    return y


def _of_bits(where: tuple[int, int], steps: torch.Size, form: Kept, bits: Tensor, weight: Tensor) -> Tensor:
    return conv.forward_of(replace(form, bits=bits), weight.detach(), *where).unflatten(0, steps)


def _part_of_bits(where: tuple[int, int], steps: int, form: Kept, first: int, last: int, bits: Tensor, weight: Tensor) -> Tensor:
    return conv.forward_of(replace(form, bits=bits).part(steps, first, last), weight.detach(), *where)


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
    @once_differentiable
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
