"""The leaky scan as two compiled passes over memory: spikes forward, and the adjoint with u computed again.

What is kept for the backward pass is the input current x (and the coefficients). With λ the gradient by v, from the last
step to the first:

    hard reset:  e[t] = ∂s[t] − λ·u[t]          λu = λ·(1 − s[t])
    soft reset:  e[t] = ∂s[t] − λ·threshold     λu = λ            ∂threshold −= λ·s[t]
    (with `detach` the term with λ in e[t] is absent)
    ∂u = λu + e[t]·g(u[t] − threshold)          ∂threshold −= e[t]·g    ∂alpha += e[t]·∂primitive/∂alpha
    ∂x[t] = gain·∂u    ∂gain += ∂u·x[t]    ∂decay += ∂u·v[t−1]    λ ← decay·∂u

The kernels run on flat memory, `[T,N]` whatever the layout of a step is, or `[T,P,C,Q]` where a coefficient has a value a
channel, so that channels-last costs no copy. A sequence longer than `CHUNK` steps is scanned in pieces whose first
potentials are kept: the code that is compiled stays short however long the sequence is.
"""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spiketrain.functional import Coefficient, Rule, heaviside, per_channel, surrogate, widen

CHUNK = 16
"""Steps that one compiled kernel unrolls."""

Coefficients = tuple[Coefficient, Coefficient, Coefficient, Coefficient]
Needs = tuple[bool, bool, bool, bool]
"""Whether decay, gain, threshold and alpha want a gradient."""


def _charge(x: Tensor, v: Tensor, c: Coefficients, rule: Rule) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """u, s and v of every step, from the potential v before the first."""
    decay, gain, threshold, _ = c
    us, ss, vs = [], [], [v]
    for t in range(x.shape[0]):
        u = decay * vs[-1] + gain * widen(x[t])
        s = heaviside(u - threshold, rule.strict)
        us.append(u)
        ss.append(s)
        vs.append(u * (1 - s) if rule.reset == "hard" else u - threshold * s)
    return us, ss, vs


def _forward(x: Tensor, v: Tensor, c: Coefficients, rule: Rule) -> tuple[Tensor, Tensor]:
    _, ss, vs = _charge(x, v, c, rule)
    return torch.stack([s.to(x.dtype) for s in ss]), vs[-1]


def _adjoint_step(u: Tensor, s: Tensor, e: Tensor, lam: Tensor, c: Coefficients, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """∂u, ∂threshold and ∂alpha of one step, elementwise; e comes in as ∂s."""
    threshold, alpha = c[2], c[3]
    g = surrogate(rule.surrogate)
    past = lam * u if rule.reset == "hard" else lam * threshold
    if not rule.detach:
        e = e - past
    through = lam * (1 - s) if rule.reset == "hard" else lam
    h = e * g.slope(u - threshold, alpha)
    grad_threshold = -h if rule.reset == "hard" else -h - lam * s
    grad_alpha = torch.zeros_like(u) if g.alpha_slope is None else e * g.alpha_slope(u - threshold, alpha)
    return through + h, grad_threshold, grad_alpha


def _backward(
    x: Tensor, v: Tensor, grad_s: Tensor, lam: Tensor, c: Coefficients, rule: Rule, needs: Needs
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Gradients by x, by v, and by each coefficient that wants one (summed over time only)."""
    decay, gain = c[0], c[1]
    us, ss, vs = _charge(x, v, c, rule)
    grad_x: list[Tensor] = []
    sums: list[Tensor | None] = [None, None, None, None]
    for t in range(x.shape[0] - 1, -1, -1):
        grad_u, grad_threshold, grad_alpha = _adjoint_step(us[t], ss[t], widen(grad_s[t]), lam, c, rule)
        for i, term in enumerate((grad_u * vs[t], grad_u * widen(x[t]), grad_threshold, grad_alpha)):
            if needs[i]:
                last = sums[i]
                sums[i] = term if last is None else last + term
        grad_x.append((gain * grad_u).to(x.dtype))
        lam = decay * grad_u
    grad_x.reverse()
    return torch.stack(grad_x), lam, sums


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # torch gives up after 8 variants of a function; modes × numbers of steps × dtypes in one process are more than that
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 64)
    # it warns of a CUDA toolkit without a GPU each time the C++ compiler is looked for
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # dynamic: one kernel serves layers of every size; the number of steps is unrolled, so each T has its own
    return torch.compile(function, dynamic=True, fullgraph=True)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, rule: Rule, *coefficients: Coefficient) -> tuple[Tensor, Tensor]:
        tensors = [c if isinstance(c, Tensor) else None for c in coefficients]
        ctx.numbers = [None if isinstance(c, Tensor) else c for c in coefficients]
        ctx.rule = rule
        starts, spikes = [], []
        for piece in x.split(CHUNK):
            starts.append(v)
            s, v = _compiled(_forward)(piece, v, coefficients, rule)
            spikes.append(s)
        ctx.pieces = len(starts)
        ctx.save_for_backward(x, *tensors, *starts)
        return (torch.cat(spikes) if len(spikes) > 1 else spikes[0]), v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        tensors, starts = rest[:4], rest[4:]
        c = tuple(n if t is None else t for n, t in zip(ctx.numbers, tensors, strict=True))
        needs = tuple(ctx.needs_input_grad[3:7])
        lam = grads[1]
        grad_x: list[Tensor] = []
        sums: list[Any] = [0.0 if n else None for n in needs]
        chunks = list(zip(x.split(CHUNK), grads[0].split(CHUNK), starts, strict=True))
        for piece, grad_s, v in reversed(chunks):
            g, lam, terms = _compiled(_backward)(piece, v, grad_s.contiguous(), lam, c, ctx.rule, needs)
            grad_x.append(g)
            sums = [s if term is None else s + _total(term, t) for s, term, t in zip(sums, terms, tensors, strict=True)]
        grad_x.reverse()
        return (torch.cat(grad_x) if len(grad_x) > 1 else grad_x[0]), lam, None, *sums


def _total(term: Tensor, like: Tensor) -> Tensor:
    """term summed to the shape of the coefficient it is the gradient of."""
    return term.sum_to_size(like.shape).to(like.dtype)


def _memory_order(x: Tensor) -> list[int]:
    """The axes of one step of x `[T,...]` from the slowest to the fastest in memory."""
    return sorted(range(1, x.dim()), key=lambda d: (-x.stride()[d], d))


def _flatten(x: Tensor, order: list[int], shape: tuple[int, ...]) -> Tensor:
    """x `[T,...]` as the kernels see it: time, then `shape`, in the order of memory; no copy of a dense tensor."""
    if x.shape[0] > 1 and x.stride(0) == 0:  # the same at every step: let it stay one step in memory
        return x[:1].permute(0, *order).reshape(1, *shape).expand(x.shape[0], *shape)
    return x.permute(0, *order).reshape(x.shape[0], *shape)


def _split_at_channels(x: Tensor, order: list[int]) -> tuple[int, ...]:
    """`(P,C,Q)`: how many places lie before and after the channel axis in memory."""
    k = order.index(1 + 1)
    sizes = [x.shape[d] for d in order]
    return math.prod(sizes[:k]), sizes[k], math.prod(sizes[k + 1 :])


def scan(
    x: Tensor, v: Tensor | None, decay: Coefficient, gain: Coefficient, threshold: Coefficient, alpha: Coefficient, rule: Rule
) -> tuple[Tensor, Tensor]:
    """Twin of `functional.scan`: same arguments, same values, same gradients; keeps x alone for the backward pass."""
    coefficients: tuple[Coefficient, ...] = (decay, gain, threshold, alpha)
    order = _memory_order(x)
    channels = any(isinstance(c, Tensor) and c.dim() == 1 for c in coefficients)
    if channels:
        for c in coefficients:
            per_channel(c, x[0])  # raises where a coefficient does not fit
        coefficients = tuple(c[:, None] if isinstance(c, Tensor) and c.dim() == 1 else c for c in coefficients)
    shape = _split_at_channels(x, order) if channels else (math.prod(x.shape[1:]),)
    v = torch.zeros_like(widen(x[0])) if v is None else v
    flat_v = _flatten(v[None], order, shape)[0]
    s, v = _Scan.apply(_flatten(x, order, shape), flat_v, rule, *coefficients)
    sizes = [x.shape[d] for d in order]
    back = [0, *(1 + i for i in _inverse(order))]
    return s.view(-1, *sizes).permute(back), v.view(1, *sizes).permute(back)[0]


def _inverse(order: list[int]) -> list[int]:
    """Where each axis 1, 2, … of a step went to in `order`."""
    return [order.index(d) for d in range(1, len(order) + 1)]
