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

from spiketrain.functional import Coefficient, Moments, Norm, Rule, line, per_channel, together, widen
from spiketrain.kernels.forms import Bits, Lazy, Pieces, Spread, at_a_time, dense, parted


@dataclass(frozen=True)
class Layout:
    """How a sequence lies in memory: the axes of a step from the slowest to the fastest, their sizes, and (P, C, Q)."""

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, int, int]

    @staticmethod
    def of(x: Tensor, channels: bool) -> "Layout":
        """Of x `[T,B,C,...]`; channels: whether something has a value a channel."""
        strides = x.stride()
        order = tuple(sorted(range(1, x.dim()), key=lambda d: (-strides[d], d)))
        sizes = tuple(x.shape[d] for d in order)
        if not channels:
            return Layout(order, sizes, (1, 1, math.prod(sizes)))
        k = order.index(2)
        return Layout(order, sizes, (math.prod(sizes[:k]), sizes[k], math.prod(sizes[k + 1 :])))

    def flat(self, x: Tensor) -> Tensor:
        """x `[T,...]` as `[T,P,C,Q]`; no copy of a dense tensor."""
        return x.permute(0, *self.order).reshape(len(x), *self.shape)

    def back(self, y: Tensor) -> Tensor:
        """`[T,P,C,Q]` in the order of axes and of memory that x had."""
        return y.view(-1, *self.sizes).permute(0, *(1 + self.order.index(d) for d in range(1, len(self.order) + 1)))


def over_steps(x: Tensor) -> Tensor:
    """Sum over the steps of x `[T,B,...]`, as one step. In bfloat16 in the order of memory, which takes torch a third of the time."""
    if x.dtype is not torch.bfloat16:  # in torch's order, to the bit
        return x.sum(0, keepdim=True)
    layout = Layout.of(x, False)
    return layout.back(layout.flat(x).sum(0, keepdim=True))


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
        ctx: Any, passes: ModuleType, x: Tensor, anew: Anew | None, steps: int, v: Tensor | None, keep: bool, packed: bool, rule: Rule,
        norm: Norm | None, weight: Tensor | None, bias: Tensor | None, *coefficients: Coefficient,
    ) -> tuple[Any, ...]:  # fmt: skip
        ctx.set_materialize_grads(False)
        layout = Layout.of(x, norm is not None or any(isinstance(c, Tensor) and c.dim() == 1 for c in coefficients))
        flat, wide = layout.flat(x.detach()), widen(x[:0]).dtype
        found = None if norm is None else _moments(passes, flat, norm, rule)
        affine = None if found is None or norm is None else _in(wide, *line(found, norm))
        values = tuple(_tensor(c, x.device, wide) for c in coefficients)
        rest = None if v is None else layout.flat(v[None].to(wide))[0].contiguous()
        ctx.over = {"over": True} if anew and passes.OVER and len(x) == steps else {}
        packed = packed and passes.packs(flat)
        way = {"packed": True} if packed else {} if anew and anew.itself else ctx.over
        spikes, last = passes.forward(flat.expand(steps, *flat.shape[1:]), rest, affine, values, rule, keep, **way)
        if "over" in way:
            torch.autograd.graph.increment_version(x)  # so that whoever kept x for a gradient hears of it
        kept = anew.kept if anew else (x,)
        ctx.anew, ctx.many = anew and replace(anew, kept=()), len(kept)
        ctx.save_for_backward(*kept, rest, *(c if isinstance(c, Tensor) else None for c in coefficients))
        ctx.passes, ctx.layout, ctx.steps, ctx.rule, ctx.norm = passes, layout, steps, rule, norm
        ctx.constant = len(x) < steps
        ctx.like, ctx.device = torch.empty((steps, *layout.shape), dtype=x.dtype, device="meta"), x.device
        ctx.found, ctx.affine, ctx.values = found, affine, values
        spikes = Lazy(Bits(spikes, layout.back(ctx.like), passes)) if packed else layout.back(spikes)
        return spikes, None if last is None else layout.back(last[None])[0], found, None if anew else x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        kept, (rest, *tensors) = ctx.saved_tensors[: ctx.many], ctx.saved_tensors[ctx.many :]
        layout, norm = ctx.layout, ctx.norm
        if grads[0] is None and grads[1] is None:  # x went to its shortcut alone
            return None, grads[3], *[None] * (len(ctx.needs_input_grad) - 2)
        pieces = ctx.passes.OVER and layout.order == (1, 3, 4, 2) and ctx.passes.packs(ctx.like)
        if pieces and norm is not None and ctx.anew and ctx.anew.part and grads[3] is None:
            some = at_a_time(layout.back(ctx.like).flatten(0, 1), ctx.steps, 4)  # x, its gradient, those by spikes and by the images below
            x: Tensor | Pieces = _made(ctx.anew.part, kept, ctx.like, layout, some, ctx.steps > 1 and ctx.constant)
        else:
            shared = ctx.anew and ctx.anew.itself and _is_shared(kept[0])
            flat = layout.flat(kept[0] if ctx.anew is None else ctx.anew.make(*kept))
            x = flat.expand(ctx.steps, *flat.shape[1:])
            del kept, flat
        grad_s, pooled = _by_spikes(ctx.like, layout, grads[0], pieces, ctx.device)
        grad_v = None if grads[1] is None else layout.flat(grads[1][None])[0].contiguous()
        stats, ours = None, (None, 0.0)
        if norm is not None:
            stats = _in(ctx.affine[0].dtype, ctx.found.mean, torch.rsqrt(ctx.found.var + norm.eps))
            ours = norm.total, ctx.found.count, *((norm.weight.detach(),) if norm.weight.dim() == 2 else ())
        needed = ctx.anew and ctx.anew.itself and (shared or _graph_is_kept() or isinstance(grad_s, Pieces))
        over = {} if needed else ctx.over  # somebody needs x, or the second pass that it takes would be a dear one
        gx, gv, by_weight, by_bias, sums = ctx.passes.backward(
            x, rest, grad_s, grad_v, ctx.affine, stats, ctx.values, ctx.rule,
            ctx.needs_input_grad[11:], *ours, **over, **pooled, more=None if grads[3] is None else layout.flat(grads[3]).contiguous(),
        )  # fmt: skip
        if norm is not None:
            by_weight, by_bias = (g.sum_to_size(w.shape).to(w.dtype) for g, w in ((by_weight, norm.weight), (by_bias, norm.bias)))
        by_v = None if gv is None else layout.back(gv[None])[0]
        by_coefficient = [None if g is None else g.sum_to_size(c.shape).to(c.dtype) for g, c in zip(sums, tensors, strict=True)]
        by_x: Tensor = layout.back(gx) if isinstance(gx, Tensor) else Lazy(InPieces(gx, layout, layout.back(ctx.like)))
        return None, by_x, None, None, by_v, None, None, None, None, by_weight, by_bias, *by_coefficient


def _is_shared(x: Tensor) -> bool:
    """Whether the memory of x is that of another tensor too: one reference is x's, one this function's."""
    return bool(torch._C._storage_Use_Count(x.untyped_storage()._cdata) > 2)


def _graph_is_kept() -> bool:
    """Whether this backward pass may not be the last one (`retain_graph`)."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def _made(
    part: Callable[..., Tensor], kept: tuple[Tensor, ...], like: Tensor, layout: Layout, some: int, constant: bool = False
) -> Pieces:  # fmt: skip
    """What part(first, last, *kept) makes as images, in pieces of so many; of one step where all are the same (constant)."""

    def make(first: int, last: int) -> Tensor:
        found = part(first, last, *kept).permute(0, 2, 3, 1).reshape(1 if constant else len(like), -1, *layout.shape[1:])
        return found.expand(len(like), *found.shape[1:])

    return Pieces(make, like.shape, like.dtype, layout.sizes[0], some, constant)


def _by_spikes(
    like: Tensor, layout: Layout, grad: Tensor | None, pieces: bool, device: torch.device
) -> tuple[Tensor | Pieces, dict[str, Any]]:
    """The gradient by spikes `[T,P,C,Q]` as `passes.backward` takes it, and with the keyword `pooled` where it is that by means of spikes.

    like: the spikes, without memory; pieces: whether the passes can take pieces, and means.
    """
    if grad is None:
        return torch.zeros(like.shape, dtype=like.dtype, device=device), {}
    grad = grad.to(like.dtype)
    form = grad.form if isinstance(grad, Lazy) else None  # all its images, whichever axes are seen
    if pieces and isinstance(form, Spread):
        pixels = form.grad.permute(0, 2, 3, 1).contiguous()
        return pixels.reshape(len(like), -1, like.shape[2], 1), {"pooled": (form.like.shape[3], form.factor)}
    if pieces and form is not None and parted(grad):
        some = form.some(len(like))  # type: ignore[attr-defined]
        return _made(functools.partial(form.part, len(like)), (), like, layout, some), {}  # type: ignore[attr-defined]
    return layout.flat(dense(grad)).contiguous(), {}


def _tensor(c: Coefficient, device: torch.device, dtype: torch.dtype) -> Tensor:
    return c.detach().to(dtype).reshape(-1) if isinstance(c, Tensor) else _number(c, device, dtype)


@functools.lru_cache(64)
def _number(c: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.full((1,), c, device=device, dtype=dtype)


def _in(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.to(dtype) for t in tensors)


def _moments(passes: ModuleType, flat: Tensor, norm: Norm, rule: Rule) -> Moments:
    """`functional.moments`, each process's from one pass over memory."""
    mean, var = passes.moments(flat, norm.per_step and len(flat) > 1, rule)
    return together(Moments(mean, var, flat.numel() / flat.shape[2] / len(mean)), norm.total)


def scan(
    passes: ModuleType, x: Tensor, v: Tensor | None, norm: Norm | None, coefficients: tuple[Coefficient, ...], rule: Rule, steps: int,
    keep: bool, anew: Anew | None = None, packed: bool = False,
) -> Scanned:  # fmt: skip
    """Twin of `functional.scan` and `norm_scan` by the passes of a module; keeps x alone (or what anew does) for the backward pass.

    x: `[T,B,C,...]`, or `[1,B,C,...]` to be seen `steps` times; keep: whether the potential after the last step is wanted; packed: whether
    spikes are wanted as `forms.Bits`, where the passes can give them.
    """
    for c in coefficients:
        per_channel(c, x[0])  # raises where a coefficient does not fit
    weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
    spikes, last, found, again = _Fire.apply(passes, x, anew, steps, v, keep, packed, rule, norm, weight, bias, *coefficients)
    return spikes, last, found, x if again is None else again


def affine_scan(
    passes: ModuleType, x: Tensor, affine: tuple[Tensor, Tensor], coefficients: tuple[Coefficient, ...], rule: Rule, steps: int
) -> Tensor:
    """Spikes of y = scale·x + shift, both `[S,C]`, from rest and without a gradient: what a network in evaluation mode needs."""
    layout, wide = Layout.of(x, True), widen(x[:0]).dtype
    flat = layout.flat(x)
    values = tuple(_tensor(c, x.device, wide) for c in coefficients)
    spikes, _ = passes.forward(flat.expand(steps, *flat.shape[1:]), None, _in(wide, *affine), values, rule, False)
    return layout.back(spikes)
