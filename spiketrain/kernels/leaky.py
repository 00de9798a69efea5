"""The leaky scan, with or without a batch norm before it, as passes over memory: spikes forward, and the adjoint with u computed again.

What is kept for the backward pass is the input x, or what makes x again (`Anew`), and the coefficients. With y = x, or
y = scale·x + shift behind a norm, and λ the gradient by v, from the last step to the first:

    hard reset:  e[t] = ∂s[t] − λ·u[t]          λu = λ·(1 − s[t])
    soft reset:  e[t] = ∂s[t] − λ·threshold     λu = λ            ∂threshold −= λ·s[t]
    (with `detach` the term with λ in e[t] is absent)
    ∂u = λu + e[t]·g(u[t] − threshold)          ∂threshold −= e[t]·g    ∂alpha += e[t]·∂primitive/∂alpha
    ∂y[t] = gain·∂u    ∂gain += ∂u·y[t]    ∂decay += ∂u·v[t−1]    λ ← decay·∂u, or 0 without `through_time`

and through the norm, x̂ = (x − mean)·rstd, n values a channel:

    ∂bias = Σ∂y    ∂weight = Σ∂y·x̂    ∂x = scale·(∂y − Σ∂y/n − x̂·Σ∂y·x̂/n)

where, if each step has its weight and bias, weight[t]·∂y stands for ∂y, and rstd for scale, in ∂x, and n counts all steps.

Here are the layouts and the gradient's bookkeeping; the passes themselves are `native` (processor) and `gpu`. They see tensors
`[T,P,C,Q]`: P places before the channel axis in memory and Q behind it, whatever the order of a tensor's axes, so that
channels-last costs no copy; a neuron without numbers per channel is `[T,1,1,N]`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from spiketrain.functional import Coefficient, Moments, Norm, Rule, once_differentiable, per_channel, together, wide
from spiketrain.kernels.forms import Bits, Lazy, Pieces, Spread, at_a_time, dense, parted


@dataclass(frozen=True)
class Layout:
    """How a sequence lies in memory: the axes of a step from the slowest to the fastest, their sizes, and (P, C, Q).

    step, strides: sizes and strides of a step's axes in their own order, where it is dense. A view is one operation, as each kind of them
    costs 0.1 ms where the layers before have filled the processor's caches with other things.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, int, int]
    step: tuple[int, ...]
    strides: tuple[int, ...]

    @staticmethod
    def of(x: Tensor, channels: bool) -> "Layout":
        """Of x `[T,B,C,...]`; channels: whether something has a value a channel."""
        return _layout(x.shape[1:], x.stride()[1:], channels)

    def flat(self, x: Tensor) -> Tensor:
        """x `[T,...]` as `[T,P,C,Q]`, dense or the same at every step; no copy of what is one of both already."""
        (p, c, q), steps, strides = self.shape, x.shape[0], x.stride()
        if strides[1:] == self.strides and (steps == 1 or strides[0] in (0, p * c * q)):
            return x.as_strided((steps, p, c, q), (strides[0], c * q, q, 1))
        return x.permute(0, *self.order).reshape(steps, p, c, q).contiguous()

    def back(self, y: Tensor) -> Tensor:
        """`[T,P,C,Q]` in the order of axes and of memory that x had."""
        return y.as_strided((y.shape[0], *self.step), (y.stride(0), *self.strides))

    def like(self, steps: int, dtype: torch.dtype) -> Tensor:
        """What x is like, of so many steps; without memory."""
        return torch.empty_strided((steps, *self.step), (math.prod(self.step), *self.strides), dtype=dtype, device="meta")


@functools.lru_cache(256)
def _layout(step: tuple[int, ...], strides: tuple[int, ...], channels: bool) -> Layout:
    order = tuple(sorted(range(1, len(step) + 1), key=lambda d: (-strides[d - 1], d)))
    sizes = tuple(step[d - 1] for d in order)
    dense = tuple(math.prod(sizes[order.index(d) + 1 :]) for d in range(1, len(step) + 1))
    k = order.index(2) if channels else 0
    shape = (math.prod(sizes[:k]), sizes[k], math.prod(sizes[k + 1 :])) if channels else (1, 1, math.prod(sizes))
    return Layout(order, sizes, shape, step, dense)


@dataclass(frozen=True)
class Anew:
    """How the backward pass comes by a sequence x that nobody keeps: x = make(*kept), with the same values and layout.

    Such an x is used up: where the passes can do that, spikes take its place in memory, and in the backward pass its gradient does.
    part(first, last, *kept), if there is one: of x's images, those of the batch from `first` to `last` − 1 at all steps, `[N,C,H,W]`.
    Where the passes can do that, there are never all of x and its gradient then. itself: x is kept, and its gradient may take its place
    if nobody else has it by then.
    """

    kept: tuple[Tensor, ...]
    make: Callable[..., Tensor]
    part: Callable[..., Tensor] | None = None
    itself: bool = False

    @staticmethod
    def of(x: Tensor) -> "Anew":
        """Of an x that is kept, as a tensor of its own: whoever else has one of the same memory is counted there."""
        return Anew((x.detach(),), lambda x: x, itself=True)


@dataclass(frozen=True)
class InPieces:
    """The gradient by currents, as a form (`forms.Parted`)."""

    pieces: Pieces
    layout: Layout
    like: Tensor

    @property
    def steps(self) -> int:
        """The only number of them for which there are parts."""
        return self.pieces.shape[0]

    def part(self, steps: int, first: int, last: int) -> Tensor:
        """As images, channels last."""
        assert steps == self.steps
        return self.pieces.make(first, last).view(-1, *self.layout.sizes[1:]).permute(0, 3, 1, 2)

    def some(self, steps: int) -> int:
        """As they are made."""
        return self.pieces.some

    def dense(self) -> Tensor:
        out = torch.empty_strided(self.like.shape, self.like.stride(), dtype=self.like.dtype)
        for first in range(0, self.pieces.images, self.pieces.some):
            last = min(first + self.pieces.some, self.pieces.images)
            out[:, first:last] = self.part(self.steps, first, last).unflatten(0, (self.steps, -1))
        return out


Scanned = tuple[Tensor, Tensor | None, Moments | None, Tensor]
"""Spikes, the potential after the last step where it was asked for, the norm's statistics where there is one, and x for a shortcut: what
is given to that one as its gradient is added where the gradient by x is written, and costs no pass of its own."""


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, passes: ModuleType, x: Tensor, channels: bool, anew: Anew | None, steps: int, v: Tensor | None, keep: bool, packed: bool,
        along: bool, rule: Rule, norm: Norm | None, weight: Tensor | None, bias: Tensor | None, *coefficients: Coefficient,
    ) -> tuple[Any, ...]:  # fmt: skip
        ctx.set_materialize_grads(False)
        layout = Layout.of(x, channels)
        flat, dtype, device = layout.flat(x), wide(x.dtype), x.device
        found = None if norm is None else _moments(passes, flat, norm, rule)
        affine, ctx.stats = (None, None) if found is None or norm is None else passes.affine(found, norm, x.dtype, rule)
        values = tuple([_tensor(c, device, dtype) for c in coefficients])
        rest = None if v is None else layout.flat(v[None].to(dtype))[0].contiguous()
        kept = anew.kept if anew else (x,)
        ctx.anew, ctx.many = anew and replace(anew, kept=()), len(kept)
        ctx.save_for_backward(*kept, rest, *[c if isinstance(c, Tensor) else None for c in coefficients])
        ctx.passes, ctx.layout, ctx.steps, ctx.rule, ctx.norm = passes, layout, steps, rule, norm
        ctx.constant, ctx.dtype, ctx.over = x.shape[0] < steps, x.dtype, bool(anew) and passes.OVER and x.shape[0] == steps
        ctx.count, ctx.affine, ctx.values = found and found.count, affine, values
        given = _seen(flat, steps), rest, affine, values, rule, keep
        if packed and passes.packs(layout.shape, x.dtype):
            bits, last = passes.forward(*given, packed=True)
            spikes: Tensor = Lazy(Bits(bits, layout.like(steps, x.dtype), passes))
        else:
            instead = ctx.over and not (anew and anew.itself)
            out = flat if instead else passes.empty((steps, *layout.shape), x.dtype, device)
            spikes = layout.back(out)  # before the pass, after which the caches are empty
            _, last = passes.forward(*given, out)
            if instead:
                torch.autograd.graph.increment_version(x)  # so that whoever kept x for a gradient hears of it
        return spikes, None if last is None else layout.back(last[None])[0], found, x if along else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        kept, (rest, *tensors) = ctx.saved_tensors[: ctx.many], ctx.saved_tensors[ctx.many :]
        layout, norm = ctx.layout, ctx.norm
        if grads[0] is None and grads[1] is None:  # x went to its shortcut alone
            return None, grads[3], *[None] * (len(ctx.needs_input_grad) - 2)
        pieces = ctx.passes.OVER and layout.order == (1, 3, 4, 2) and ctx.passes.packs(layout.shape, ctx.dtype)
        if pieces and norm is not None and ctx.anew and ctx.anew.part and grads[3] is None:
            some = at_a_time(layout.like(ctx.steps, ctx.dtype).flatten(0, 1), ctx.steps, 4)  # x, its gradient, those by spikes and images
            x: Tensor | Pieces = _made(ctx.anew.part, kept, ctx.steps, ctx.dtype, layout, some, ctx.steps > 1 and ctx.constant)
        else:
            shared = ctx.anew and ctx.anew.itself and _is_shared(kept[0])
            x = _seen(layout.flat(kept[0] if ctx.anew is None else ctx.anew.make(*kept)), ctx.steps)
            del kept
        grad_s, fewer = _by_spikes(ctx.steps, ctx.dtype, layout, grads[0], pieces, ctx.values[0])
        grad_v = None if grads[1] is None else layout.flat(grads[1][None])[0].contiguous()
        ours = (None, 0.0) if norm is None else (norm.total, ctx.count, *((norm.weight.detach(),) if norm.weight.dim() == 2 else ()))
        needed = ctx.anew and ctx.anew.itself and (shared or _graph_is_kept() or isinstance(grad_s, Pieces))
        out = by_x = None
        if isinstance(x, Tensor) and ctx.over and not needed:  # else somebody needs x, or the second pass that it takes would be a dear one
            out = x
        elif isinstance(x, Tensor) or ctx.constant:
            out = ctx.passes.empty((1 if ctx.constant else ctx.steps, *layout.shape), ctx.dtype, ctx.values[0].device)
        if out is not None:
            by_x = layout.back(out)
        gx, gv, by_weight, by_bias, sums = ctx.passes.backward(
            x, rest, grad_s, grad_v, ctx.affine, ctx.stats, ctx.values, ctx.rule, ctx.needs_input_grad[13:], *ours, **fewer, out=out,
            more=None if grads[3] is None else layout.flat(grads[3]).contiguous(),
        )  # fmt: skip
        if norm is not None:
            by_weight, by_bias = _summed(by_weight, norm.weight), _summed(by_bias, norm.bias)
        by_v = None if gv is None else layout.back(gv[None])[0]
        by_coefficient = [_summed(g, c) for g, c in zip(sums, tensors, strict=True)]
        if by_x is None:
            by_x = Lazy(InPieces(gx, layout, layout.like(ctx.steps, ctx.dtype)))
        return None, by_x, None, None, None, by_v, *[None] * 5, by_weight, by_bias, *by_coefficient


def _summed(grad: Tensor | None, c: Tensor) -> Tensor | None:
    """A gradient by values a step or channel as that by the tensor c."""
    if grad is None:
        return None
    grad = grad.view(c.shape) if grad.numel() == c.numel() else grad.sum_to_size(c.shape)
    return grad if grad.dtype is c.dtype else grad.to(c.dtype)


def _is_shared(x: Tensor) -> bool:
    """Whether the memory of x is that of another tensor too: one reference is x's, one this function's."""
    return bool(torch._C._storage_Use_Count(x.untyped_storage()._cdata) > 2)


def _graph_is_kept() -> bool:
    """Whether this backward pass may not be the last one (`retain_graph`)."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def _seen(x: Tensor, steps: int) -> Tensor:
    """x, or its one step so many times."""
    return x if x.shape[0] == steps else x.expand(steps, *x.shape[1:])


def _made(
    part: Callable[..., Tensor], kept: tuple[Tensor, ...], steps: int, dtype: torch.dtype, layout: Layout, some: int, constant: bool = False
) -> Pieces:  # fmt: skip
    """What part(first, last, *kept) makes as images, in pieces of so many; of one step where all are the same (constant)."""

    def make(first: int, last: int) -> Tensor:
        found = part(first, last, *kept).permute(0, 2, 3, 1).reshape(1 if constant else steps, -1, *layout.shape[1:])
        return _seen(found, steps)

    return Pieces(make, torch.Size((steps, *layout.shape)), dtype, layout.sizes[0], some, constant)


def _by_spikes(
    steps: int, dtype: torch.dtype, layout: Layout, grad: Tensor | None, pieces: bool, like: Tensor
) -> tuple[Tensor | Pieces, dict[str, Any]]:
    """The gradient by spikes `[T,P,C,Q]` as `passes.backward` takes it, and with the keyword `fewer` where it is that by fewer pixels.

    pieces: whether the passes can take pieces, and fewer pixels; like: a tensor of that device.
    """
    if grad is None:
        return torch.zeros((steps, *layout.shape), dtype=dtype, device=like.device), {}
    grad = grad if grad.dtype is dtype else grad.to(dtype)
    form = grad.form if isinstance(grad, Lazy) else None  # all its images, whichever axes are seen
    if pieces and isinstance(form, Spread) and not any(side % form.factor for side in form.like.shape[2:]):
        pixels = form.grad.permute(0, 2, 3, 1).contiguous()
        return pixels.reshape(steps, -1, *layout.shape[1:]), {"fewer": (form.like.shape[3], form.factor, form.means)}
    if pieces and form is not None and parted(grad):
        some = form.some(steps)  # type: ignore[attr-defined]
        return _made(functools.partial(form.part, steps), (), steps, dtype, layout, some), {}  # type: ignore[attr-defined]
    return layout.flat(dense(grad)).contiguous(), {}


def _tensor(c: Coefficient, device: torch.device, dtype: torch.dtype) -> Tensor:
    """One number, or one a channel, that no gradient goes through."""
    if not isinstance(c, Tensor):
        return _number(c, device, dtype)
    return c if c.dtype is dtype and c.is_contiguous() else c.detach().to(dtype).contiguous()


@functools.lru_cache(64)
def _number(c: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.full((1,), c, device=device, dtype=dtype)


def _moments(passes: ModuleType, flat: Tensor, norm: Norm, rule: Rule) -> Moments:
    """`functional.moments`, each process's from one pass over memory."""
    mean, var = passes.moments(flat, norm.per_step and flat.shape[0] > 1, rule)
    return together(Moments(mean, var, flat.numel() / flat.shape[2] / mean.shape[0]), norm.total)


def scan(
    passes: ModuleType, x: Tensor, v: Tensor | None, norm: Norm | None, coefficients: tuple[Coefficient, ...], rule: Rule, steps: int,
    keep: bool, anew: Anew | None = None, packed: bool = False, along: bool = False,
) -> Scanned:  # fmt: skip
    """Twin of `functional.scan` and `norm_scan` by the passes of a module; keeps x alone (or what anew does) for the backward pass.

    x: `[T,B,C,...]`, or `[1,B,C,...]` to be seen `steps` times; keep: whether the potential after the last step is wanted; packed: whether
    spikes are wanted as `forms.Bits`, where the passes can give them; along: whether x is, for a shortcut.
    """
    channels = norm is not None
    for c in coefficients:
        if isinstance(c, Tensor) and c.dim():
            per_channel(c, x[0])  # raises where a coefficient does not fit
            channels = True
    given = passes, x, channels, anew, steps, v, keep, packed, along, rule, norm
    weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
    spikes, last, found, again = _Fire.apply(*given, weight, bias, *coefficients)
    return spikes, last, found, x if again is None else again


def affine_scan(
    passes: ModuleType, x: Tensor, affine: tuple[Tensor, Tensor], coefficients: tuple[Coefficient, ...], rule: Rule, steps: int,
    packed: bool = False,
) -> Tensor:  # fmt: skip
    """Spikes of y = scale·x + shift, both `[S,C]`, from rest and without a gradient: what a network in evaluation mode needs. packed: as in
    `scan`."""
    layout, dtype = Layout.of(x, True), wide(x.dtype)
    values, (scale, shift) = tuple(_tensor(c, x.device, dtype) for c in coefficients), affine
    given = _seen(layout.flat(x), steps), None, (scale.to(dtype), shift.to(dtype)), values, rule, False
    if packed and passes.packs(layout.shape, x.dtype):
        return Lazy(Bits(passes.forward(*given, packed=True)[0], layout.like(steps, x.dtype), passes))
    return layout.back(passes.forward(*given)[0])
