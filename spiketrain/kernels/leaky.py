"""The leaky scan, with or without a batch norm before it, as passes over memory: spikes forward, and the adjoint with u computed again.

What is kept for the backward pass is the input x (and the coefficients). With y = x, or y = scale·x + shift behind a norm, and λ
the gradient by v, from the last step to the first:

    hard reset:  e[t] = ∂s[t] − λ·u[t]          λu = λ·(1 − s[t])
    soft reset:  e[t] = ∂s[t] − λ·threshold     λu = λ            ∂threshold −= λ·s[t]
    (with `detach` the term with λ in e[t] is absent)
    ∂u = λu + e[t]·g(u[t] − threshold)          ∂threshold −= e[t]·g    ∂alpha += e[t]·∂primitive/∂alpha
    ∂y[t] = gain·∂u    ∂gain += ∂u·y[t]    ∂decay += ∂u·v[t−1]    λ ← decay·∂u

and through the norm, x̂ = (x − mean)·rstd, n values a channel:

    ∂bias = Σ∂y    ∂weight = Σ∂y·x̂    ∂x = scale·(∂y − Σ∂y/n − x̂·Σ∂y·x̂/n)

Here are the layouts and the gradient's bookkeeping; the passes themselves are `native` (processor) and `gpu`. They see tensors
`[T,P,C,Q]`: P places before the channel axis in memory and Q behind it, whatever the order of a tensor's axes, so that
channels-last costs no copy; a neuron without numbers per channel is `[T,1,1,N]`.
"""

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from spiketrain.functional import Coefficient, Moments, Norm, Rule, line, per_channel, widen

WIDE = 32
"""Channels that a row should have at least: the elements of a block in `native`."""


@dataclass(frozen=True)
class Layout:
    """How a sequence lies in memory: the axes of a step from the slowest to the fastest, their sizes, and (P, C, Q)."""

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, int, int]
    rows: int = 1
    """Rows of channels taken as one row, so that narrow layers fill the processor's vectors."""

    @staticmethod
    def of(x: Tensor, channels: bool) -> "Layout":
        """Of x `[T,B,C,...]`; channels: whether something has a value a channel."""
        strides = x.stride()
        order = tuple(sorted(range(1, x.dim()), key=lambda d: (-strides[d], d)))
        sizes = tuple(x.shape[d] for d in order)
        if not channels:
            return Layout(order, sizes, (1, 1, math.prod(sizes)))
        k = order.index(2)
        p, c, q = math.prod(sizes[:k]), sizes[k], math.prod(sizes[k + 1 :])
        rows = WIDE // math.gcd(c, WIDE)
        return Layout(order, sizes, (p // rows, c * rows, q), rows) if q == 1 and p % rows == 0 else Layout(order, sizes, (p, c, q))

    def flat(self, x: Tensor) -> Tensor:
        """x `[T,...]` as `[T,P,C,Q]`; no copy of a dense tensor."""
        return x.permute(0, *self.order).reshape(len(x), *self.shape)

    def back(self, y: Tensor) -> Tensor:
        """`[T,P,C,Q]` in the order of axes and of memory that x had."""
        return y.view(-1, *self.sizes).permute(0, *(1 + self.order.index(d) for d in range(1, len(self.order) + 1)))

    def spread(self, c: Tensor) -> Tensor:
        """Values a channel `[...,C]` for the channels of the kernels."""
        return c.repeat(*(1,) * (c.dim() - 1), self.rows) if self.rows > 1 and c.shape[-1] > 1 else c.contiguous()

    def gathered(self, sums: Tensor) -> Tensor:
        """Sums a channel of the kernels as sums a channel of x."""
        return sums.unflatten(-1, (self.rows, -1)).sum(-2) if self.rows > 1 else sums


Scanned = tuple[Tensor, Tensor | None, Moments | None]
"""Spikes, the potential after the last step where it was asked for, and the norm's statistics where there is one."""


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, passes: ModuleType, x: Tensor, steps: int, v: Tensor | None, keep: bool, rule: Rule, norm: Norm | None,
        weight: Tensor | None, bias: Tensor | None, *coefficients: Coefficient,
    ) -> tuple[Any, ...]:  # fmt: skip
        layout = Layout.of(x, norm is not None or any(isinstance(c, Tensor) and c.dim() == 1 for c in coefficients))
        flat, wide = layout.flat(x), widen(x[:0]).dtype
        found = None if norm is None else _moments(passes, flat, layout, norm, rule)
        affine = None if found is None or norm is None else tuple(layout.spread(c.to(wide)) for c in line(found, norm))
        values = [layout.spread(_tensor(c, x.device, wide)) for c in coefficients]
        rest = None if v is None else layout.flat(v[None].to(wide))[0].contiguous()
        last = flat.new_empty(flat.shape[1:], dtype=wide) if keep else None
        spikes = passes.forward(flat.expand(steps, *flat.shape[1:]), rest, affine, values, rule, last)
        ctx.save_for_backward(x, rest, *(c if isinstance(c, Tensor) else None for c in coefficients))
        ctx.passes, ctx.layout, ctx.steps, ctx.rule, ctx.norm = passes, layout, steps, rule, norm
        ctx.found, ctx.affine, ctx.values = found, affine, values
        return layout.back(spikes), None if last is None else layout.back(last[None])[0], found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        (x, rest, *tensors), layout, passes, rule = ctx.saved_tensors, ctx.layout, ctx.passes, ctx.rule
        assert grads[0] is not None
        flat = layout.flat(x)
        flat = flat.expand(ctx.steps, *flat.shape[1:])
        grad_s = layout.flat(grads[0].to(x.dtype)).contiguous()
        grad_v = None if grads[1] is None else layout.flat(grads[1][None])[0].contiguous()
        gv = torch.empty_like(rest) if rest is not None and ctx.needs_input_grad[3] else None
        learned = any(ctx.needs_input_grad[9:])
        sums, back, by_weight, by_bias = None, None, None, None
        if ctx.norm is not None:
            wide = ctx.affine[0].dtype
            mean = layout.spread(ctx.found.mean.to(wide))
            norms, sums = passes.sums(flat, rest, grad_s, grad_v, ctx.affine, mean, ctx.values, rule, learned)
            by_weight, by_bias, back = _through_norm(layout.gathered(norms), ctx.found, ctx.norm)
            back = tuple(layout.spread(c.to(wide)) for c in back)
        gx, more = passes.backward(flat, rest, grad_s, grad_v, ctx.affine, back, ctx.values, rule, learned and sums is None, gv)
        by_coefficient = [
            layout.gathered(total).sum_to_size(like.shape).to(like.dtype) if needed else None
            for total, like, needed in zip(more if sums is None else sums, tensors, ctx.needs_input_grad[9:], strict=True)
        ] if learned else [None] * 4  # fmt: skip
        by_v = None if gv is None else layout.back(gv[None])[0]
        return None, layout.back(gx), None, by_v, None, None, None, by_weight, by_bias, *by_coefficient


def _tensor(c: Coefficient, device: torch.device, dtype: torch.dtype) -> Tensor:
    return c.detach().to(dtype).reshape(-1) if isinstance(c, Tensor) else torch.full((1,), c, device=device, dtype=dtype)


def _moments(passes: ModuleType, flat: Tensor, layout: Layout, norm: Norm, rule: Rule) -> Moments:
    """`functional.moments`, from sums that are made in one pass."""
    total, squares = passes.moments(flat, norm.per_step and len(flat) > 1, rule)  # Σx, and Σ(x − its mean)² of a kernel's channel
    n = flat.numel() / flat.shape[2] / len(total)
    if layout.rows > 1:
        total, squares, n = _merge(total.unflatten(-1, (layout.rows, -1)), squares.unflatten(-1, (layout.rows, -1)), n)
    if norm.total is None:
        return Moments(total / n, squares / n, n)
    ours = total / n
    both = norm.total(torch.stack([total, torch.full_like(total, n)]))
    mean, count = both[0] / both[1], float(n * norm.total(torch.ones(1, device=total.device)))
    return Moments(mean, norm.total(squares + n * (ours - mean).square()) / count, count)


def _merge(total: Tensor, squares: Tensor, n: float) -> tuple[Tensor, Tensor, float]:
    """Sums of several groups of n numbers, `[S,groups,C]`, as those of all of them."""
    groups = total.shape[1]
    apart = total / n - total.sum(1, keepdim=True) / (n * groups)
    return total.sum(1), squares.sum(1) + n * apart.square().sum(1), n * groups


def _through_norm(norms: Tensor, found: Moments, norm: Norm) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Gradients by weight and bias, and ∂x as a·∂y + b·x + c, `[S,C]` each. norms: Σ∂y and Σ∂y·(x − mean), `[S,2,C]`."""
    rstd = torch.rsqrt(found.var + norm.eps)
    scale, _ = line(found, norm)
    ours = torch.stack([norms[:, 0], norms[:, 1] * rstd])
    first, second = ours if norm.total is None else norm.total(ours)
    slope = -scale * rstd * second / found.count
    back = (scale, slope, -scale * first / found.count - slope * found.mean)
    return ours[1].sum(0).to(norm.weight.dtype), ours[0].sum(0).to(norm.bias.dtype), back


def scan(
    passes: ModuleType, x: Tensor, v: Tensor | None, norm: Norm | None, coefficients: tuple[Coefficient, ...], rule: Rule, steps: int,
    keep: bool,
) -> Scanned:  # fmt: skip
    """Twin of `functional.scan` and `norm_scan` by the passes of a module; keeps x alone for the backward pass.

    x: `[T,B,C,...]`, or `[1,B,C,...]` to be seen `steps` times; keep: whether the potential after the last step is wanted.
    """
    for c in coefficients:
        per_channel(c, x[0])  # raises where a coefficient does not fit
    weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
    spikes, last, found = _Fire.apply(passes, x, steps, v, keep, rule, norm, weight, bias, *coefficients)
    return spikes, last, found


def affine_scan(
    passes: ModuleType, x: Tensor, affine: tuple[Tensor, Tensor], coefficients: tuple[Coefficient, ...], rule: Rule, steps: int
) -> Tensor:
    """Spikes of y = scale·x + shift, both `[C]`, from rest and without a gradient: what a network in evaluation mode needs."""
    layout, wide = Layout.of(x, True), widen(x[:0]).dtype
    flat = layout.flat(x)
    scale, shift = (layout.spread(c.to(wide)[None]) for c in affine)
    values = [layout.spread(_tensor(c, x.device, wide)) for c in coefficients]
    return layout.back(passes.forward(flat.expand(steps, *flat.shape[1:]), None, (scale, shift), values, rule, None))
