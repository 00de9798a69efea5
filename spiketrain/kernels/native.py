"""The passes of `leaky` on the processor: `native.cpp`, compiled for each rule and dtype (about two seconds) when first needed (`cpp`).

The number of steps and all sizes are arguments: no other length of a sequence or layer is ever compiled for again.
"""

import ctypes
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spiketrain.functional import SURROGATES, Rule, Total, widen
from spiketrain.kernels import cpp
from spiketrain.kernels.cpp import ELEMENTS

BLOCK = 32
"""Elements of a block in `native.cpp`."""

OVER = True
"""Spikes can take the place of currents in memory, and gradients by currents too (`over` of `forward` and `backward`)."""

Affine = tuple[Tensor, Tensor]
"""scale and shift, or mean and rstd, `[S,C]`."""


@functools.cache
def available(rule: Rule, dtype: torch.dtype) -> bool:
    """True where the kernels of this rule and dtype are, or can be, compiled here."""
    if dtype not in ELEMENTS:
        return False
    try:
        library(rule, dtype)
    except cpp.FAILURES:
        return False
    return True


@functools.cache
def library(rule: Rule, dtype: torch.dtype) -> ctypes.CDLL:
    """The compiled kernels of a rule and dtype; one of `cpp.FAILURES` where they cannot be had."""
    macros: dict[str, int | str] = {
        "SURROGATE": list(SURROGATES).index(rule.surrogate), "HARD": int(rule.reset == "hard"), "DETACH": int(rule.detach),
        "STRICT": int(rule.strict), "THROUGH": int(rule.through_time), "ELEMENT": ELEMENTS[dtype],
    }  # fmt: skip
    return cpp.load("native", macros)


class _Arguments(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p), ("x_step", ctypes.c_int64), ("v", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("shift", ctypes.c_void_p),
        ("S", ctypes.c_int64), ("coefficient", ctypes.c_void_p * 4), ("count", ctypes.c_int64 * 4),
    )  # fmt: skip


class _Back(ctypes.Structure):
    _fields_ = (
        ("grad_s", ctypes.c_void_p), ("grad_v", ctypes.c_void_p), ("mean", ctypes.c_void_p),
        ("line", ctypes.c_void_p * 3), ("gx", ctypes.c_void_p), ("gv", ctypes.c_void_p), ("coefficient_sums", ctypes.c_void_p),
        ("norm_sums", ctypes.c_void_p),
    )  # fmt: skip


class _Rows:
    """A narrow layer `[T,P,C,1]` with several rows of channels taken as one, so that they fill the vectors of `native.cpp`."""

    def __init__(self, x: Tensor) -> None:
        _, p, c, q = x.shape
        rows = BLOCK // math.gcd(c, BLOCK) if q == 1 else 1
        self.rows = rows if p % rows == 0 else 1
        self.shape = (p // self.rows, c * self.rows, q)

    def of(self, x: Tensor) -> Tensor:
        """A sequence `[T,P,C,Q]` so."""
        return x[:1].view(1, *self.shape).expand(len(x), *self.shape) if len(x) > 1 and x.stride(0) == 0 else x.view(-1, *self.shape)

    def spread(self, c: Tensor) -> Tensor:
        """Values a channel `[...,C]`; one value for all stays one."""
        return c.repeat(*(1,) * (c.dim() - 1), self.rows) if self.rows > 1 and c.shape[-1] > 1 else c.contiguous()

    def split(self, sums: Tensor) -> Tensor:
        """Sums `[...,C']` made with rows taken together, as `[rows,...,C]`."""
        return sums.unflatten(-1, (self.rows, -1)).movedim(-2, 0)


class _Given:
    """What a pass reads, and everything that must stay in memory while it does."""

    def __init__(self, rows: _Rows, x: Tensor, v: Tensor | None, affine: Affine | None, coefficients: tuple[Tensor, ...]) -> None:
        self.kept = [rows.spread(c) for c in (*(affine or ()), *coefficients)]
        scale, shift = self.kept[:2] if affine else (None, None)
        four = self.kept[-4:]
        self.sizes = [*map(ctypes.c_int64, (len(x), *rows.shape)), torch.get_num_threads()]
        self.arguments = _Arguments(
            x.data_ptr(), x.stride(0) if len(x) > 1 else 0, _at(v), _at(scale), _at(shift), 1 if scale is None else len(scale),
            (ctypes.c_void_p * 4)(*map(_at, four)), (ctypes.c_int64 * 4)(*(c.numel() for c in four)),
        )  # fmt: skip


def _back(
    grad_s: Tensor, grad_v: Tensor | None, mean: Tensor | None, line: tuple[Tensor, ...], gx: Tensor | None, gv: Tensor | None,
    learned: Tensor | None, norms: Tensor | None,
) -> _Back:  # fmt: skip
    lines = (ctypes.c_void_p * 3)(*map(_at, line or (None,) * 3))
    return _Back(_at(grad_s), _at(grad_v), _at(mean), lines, _at(gx), _at(gv), _at(learned), _at(norms))


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _sizes(x: Tensor) -> list[ctypes.c_int64 | int]:
    return [*map(ctypes.c_int64, x.shape), torch.get_num_threads()]


def _p(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(_at(x))


def moments(x: Tensor, per_step: bool, rule: Rule) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of x `[T,P,C,Q]` by channel, float64 `[S,C]`; S = T where `per_step`, else 1."""
    rows = _Rows(x)
    steps = x[:1] if x.stride(0) == 0 else x
    wide, s = rows.of(steps), len(steps) if per_step else 1
    origin = widen(wide[0, 0, :, 0]).contiguous()  # near the values, so that no digits are lost in the squares
    found = torch.empty(s, 2, wide.shape[2], dtype=torch.float64)
    library(rule, x.dtype).spike_moments(_p(wide), _p(origin), _p(found), int(per_step), *_sizes(wide))
    n = wide.numel() // wide.shape[2] // s
    far, squares = rows.split(found).unbind(2)  # [rows,S,C]
    means = rows.split(origin.double())[:, None] + far / n
    mean = means.mean(0)
    return mean, ((squares / n - (far / n).square()).clamp(min=0) + (means - mean).square()).mean(0)


def forward(
    x: Tensor, v: Tensor | None, affine: Affine | None, coefficients: tuple[Tensor, ...], rule: Rule, keep: bool = True, over: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Spikes `[T,P,C,Q]` in x's dtype and, to `keep`, the last potential `[P,C,Q]`, of y = scale·x + shift, or y = x.

    x may have a stride of 0 along time. affine: scale and shift `[S,C]`; coefficients: decay, gain, threshold, alpha, `[1]` or `[C]`.
    over: spikes take the place of x, which is not the same at every step.
    """
    rows = _Rows(x)
    spikes = x if over else x.new_empty(x.shape)
    last = x.new_empty(x.shape[1:], dtype=coefficients[0].dtype) if keep else None
    given = _Given(rows, x, v, affine, coefficients)
    library(rule, x.dtype).spike_forward(ctypes.byref(given.arguments), _p(spikes), _p(last), *given.sizes)
    return spikes, last


def backward(
    x: Tensor, v: Tensor | None, grad_s: Tensor, grad_v: Tensor | None, affine: Affine | None, stats: Affine | None,
    coefficients: tuple[Tensor, ...], rule: Rule, needs: tuple[bool, ...], total: Total | None = None, count: float = 0.0,
    weight: Tensor | None = None, over: bool = False, more: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, list[Tensor | None]]:  # fmt: skip
    """Gradients by x (`[1,P,C,Q]` where x is the same at every step), v, the norm's weight and bias (`[S,C]`, to be added up), and
    the coefficients `[C]`.

    stats: mean and rstd `[S,C]` where the affine is a norm by the statistics of x, `count` numbers behind each (0: those that
    are here); total: sum over the processes that share them. weight: the norm's, `[T,C]`, where each step has its own. Between
    the pass for the norm's sums and the one that uses them the gradient by y waits in gx, rounded to x's dtype, as where norm and neuron
    are two layers; where x is the same at every step, or the gradient by x is to take its place (over), it is computed twice instead.
    more: a gradient of gx's shape that is added to it.
    """
    rows = _Rows(x)
    given = _Given(rows, x, v, affine, coefficients)
    run = library(rule, x.dtype).spike_backward
    constant = len(x) > 1 and x.stride(0) == 0
    twice = constant or over
    gx = x if over else x.new_empty((1, *x.shape[1:]) if constant else x.shape)
    gv = None if v is None else torch.empty_like(v)
    learned = torch.empty(4, rows.shape[1], dtype=torch.float64) if any(needs) else None
    line: tuple[Tensor, ...] = ()
    by_weight: Tensor | None = None
    by_bias: Tensor | None = None
    if stats is not None and affine is not None:
        norms = torch.empty(len(affine[0]), 2, rows.shape[1], dtype=torch.float64)
        mean = rows.spread(stats[0].expand_as(affine[0]))
        first = _back(grad_s, grad_v, mean, (), None if twice else gx, None if twice else gv, learned, norms)
        run(ctypes.byref(given.arguments), ctypes.byref(first), *given.sizes)
        sums = rows.split(norms).sum(0)  # [S,2,C]: Σgy, Σgy·(x − mean)
        ours = torch.stack([sums[:, 0], sums[:, 1] * stats[1]])
        by_bias, by_weight = ours
        shared = ours if weight is None else (ours * weight).sum(1, keepdim=True)
        means = (shared if total is None else total(shared)) / (count or x[: 1 if constant else None].numel() / x.shape[2] / len(stats[0]))
        slope, shift = _through_norm(means[0], means[1], affine[0] if weight is None else stats[1], stats)
        line = tuple(rows.spread(c.expand_as(affine[0])) for c in (affine[0], slope, shift))
    if line and not twice:
        steps = ctypes.c_int64(len(line[0]))
        library(rule, x.dtype).spike_through_norm(_p(x), _p(gx), _p(more), *map(_p, line), steps, *given.sizes)
    else:
        second = _back(grad_s, grad_v, None, line, gx, gv, None if line else learned, None)
        run(ctypes.byref(given.arguments), ctypes.byref(second), *given.sizes)
        if more is not None:
            gx.add_(more)
    found: Sequence[Tensor | None] = [None] * 4 if learned is None else rows.split(learned).sum(0).unbind()
    by_coefficient = [g if need else None for g, need in zip(found, needs, strict=True)]
    return gx, gv, by_weight, by_bias, by_coefficient


def _through_norm(by_bias: Tensor, by_weight: Tensor, scale: Tensor, stats: Affine) -> tuple[Tensor, ...]:
    """b and c `[S,C]` of gx = scale·gy + b·x + c, from the means of gy and of gy·x̂."""
    mean, rstd = stats
    slope = -scale * rstd * by_weight
    return tuple(c.to(scale.dtype) for c in (slope, -scale * by_bias - slope * mean))


def pack(spikes: Tensor, rule: Rule) -> Tensor:
    """Dense spikes as bits, uint8 `[⌈N/8⌉]`: bit i of byte j is the spike 8j + i in the order of memory."""
    bits = torch.empty(-(-spikes.numel() // 8), dtype=torch.uint8)
    library(rule, spikes.dtype).spike_pack(_p(spikes), _p(bits), ctypes.c_int64(spikes.numel()), torch.get_num_threads())
    return bits


def unpack(bits: Tensor, spikes: Tensor, rule: Rule) -> Tensor:
    """Fills the dense tensor `spikes` with the spikes that `pack` made bits of; returns it."""
    library(rule, spikes.dtype).spike_unpack(_p(bits), _p(spikes), ctypes.c_int64(spikes.numel()), torch.get_num_threads())
    return spikes
