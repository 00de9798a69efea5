"""The passes of `leaky` on the processor: `native.cpp`, compiled for each rule and dtype (about two seconds) when first needed (`cpp`).

The number of steps and all sizes are arguments: no other length of a sequence or layer is ever compiled for again.
"""

import ctypes
import dataclasses
import functools
import math
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spiketrain import allocator
from spiketrain.functional import SURROGATES, Moments, Norm, Rule, Running, Total, unbias, wide
from spiketrain.kernels import cpp
from spiketrain.kernels.cpp import ELEMENTS
from spiketrain.kernels.forms import Pieces

BLOCK = 32
"""Elements of a block in `native.cpp` (of float64 16)."""

OVER = True
"""Spikes can take the place of currents in memory, and gradients by currents too: `out` of `forward` and `backward` can be x."""

Affine = tuple[Tensor, Tensor]
"""scale and shift, or mean and rstd, `[S,C]`."""
Fewer = tuple[int, int, bool]
"""Width of images of spikes, the factor by which what is made of them is smaller, and whether that is means, else every factor-th pixel of
every factor-th row; of width 0 it is the spikes themselves.
"""


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
    found = cpp.load("native", macros)
    for name, arguments in _ARGUMENTS.items():
        getattr(found, name).argtypes = arguments
    found.spike_count.restype = _N
    return found


_P, _N, _D, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_int
_SIZES = _N, _N, _N, _N, _I
_ARGUMENTS = {
    "spike_moments": (_P, _P, _P, _I, _N, *_SIZES), "spike_affine": (*[_P] * 4, _D, _P, _N, _N, _N, _P, _P, _P, _D, _D),
    "spike_norm_sums": (*[_P] * 4, _N, _N, _N), "spike_norm_line": (_P, _D, *[_P] * 5, _I, _N, _N, _N),
    "spike_forward": (*[_P] * 4, *_SIZES), "spike_backward": (_P, _P, *_SIZES), "spike_through_norm": (*[_P] * 6, _N, *_SIZES),
    "spike_over_steps": (_P, _N, _P, _N, _N, _I), "spike_pack": (_P, _P, _N, _I), "spike_unpack": (_P, _P, _N, _I),
    "spike_count": (_P, _N, _I),
}  # fmt: skip
"""Of each function of `native.cpp`."""


_Arguments = struct.Struct("PqPPPq4P4q")
"""x, x_step, v, scale, shift, S, coefficient and count of `Arguments` in native.cpp."""
_Back = struct.Struct("PqqqqPP3PPqPPP")
"""grad_s, grad_step, width, factor, means, grad_v, mean, line, gx, gx_step, gv, coefficient_sums, norm_sums of `Back` there."""


class _Rows:
    """A narrow layer `[T,P,C,1]` with several rows of channels taken as one, so that they fill the vectors of `native.cpp`."""

    def __init__(self, x: Tensor | Pieces) -> None:
        _, p, c, q = x.shape
        rows = BLOCK // math.gcd(c, BLOCK) if q == 1 else 1
        self.rows = rows if p % rows == 0 else 1
        self.shape = (p // self.rows, c * self.rows, q)

    def sizes(self, x: Tensor) -> tuple[int, ...]:
        """T, P, C, Q and the number of threads as a pass takes them."""
        return x.shape[0], *self.shape, torch.get_num_threads()

    def spread(self, c: Tensor) -> Tensor:
        """Values a channel `[...,C]`; one value for all stays one."""
        return c.repeat(*(1,) * (c.dim() - 1), self.rows) if self.rows > 1 and c.dim() and c.shape[-1] > 1 else c.contiguous()

    def split(self, sums: Tensor) -> Tensor:
        """Sums `[...,C']` made with rows taken together, as `[rows,...,C]`."""
        return sums.unflatten(-1, (self.rows, -1)).movedim(-2, 0)


class _Given:
    """What a pass reads, and everything that must stay in memory while it does."""

    def __init__(self, rows: _Rows, x: Tensor, v: Tensor | None, affine: Affine | None, coefficients: tuple[Tensor, ...]) -> None:
        self.kept = decay, gain, threshold, alpha = tuple([rows.spread(c) for c in coefficients]) if rows.rows > 1 else coefficients
        self.affine = scale, shift = (rows.spread(affine[0]), rows.spread(affine[1])) if affine else (None, None)
        self.sizes = rows.sizes(x)
        self.arguments = _Arguments.pack(
            x.data_ptr(), x.stride(0) if x.shape[0] > 1 else 0, _at(v), _at(scale), _at(shift), 1 if scale is None else scale.shape[0],
            decay.data_ptr(), gain.data_ptr(), threshold.data_ptr(), alpha.data_ptr(),
            decay.numel(), gain.numel(), threshold.numel(), alpha.numel(),
        )  # fmt: skip


def _running(running: Running | None, found: Moments, dtype: torch.dtype) -> tuple[Any, ...]:
    """Where the statistics lie that `spike_affine` updates, and by how much; it knows one dtype, and other ones are updated here."""
    if running is not None and {running.mean.dtype, running.var.dtype} == {dtype}:
        torch.autograd.graph.increment_version((running.mean, running.var))
        return *map(_at, (running.mean, running.var, running.updates)), running.momentum, unbias(found.count)
    if running is not None:
        running.update(found)
    return 0, 0, 0, 0.0, 0.0


def _plain(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as the passes read it."""
    return x if x.dtype is dtype and x.is_contiguous() else x.detach().to(dtype).contiguous()


def _at(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _each(three: Tensor) -> tuple[int, int, int]:
    """Where each of three tensors in one begins."""
    first, apart = three.data_ptr(), three.stride(0) * three.element_size()
    return first, first + apart, first + 2 * apart


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """For a result of this shape."""
    return allocator.empty(shape, dtype)


def moments(x: Tensor, per_step: bool, rule: Rule) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of x `[T,P,C,Q]` by channel, float64 `[S,C]`; S = T where `per_step`, else 1."""
    rows = _Rows(x)
    steps = x[:1] if x.shape[0] > 1 and x.stride(0) == 0 else x
    mean, var = torch.empty((2, steps.shape[0] if per_step else 1, x.shape[2]), dtype=torch.float64).unbind()
    library(rule, x.dtype).spike_moments(_at(steps), _at(mean), _at(var), per_step, rows.rows, *rows.sizes(steps))
    return mean, var


def affine(found: Moments, norm: Norm, dtype: torch.dtype, rule: Rule) -> tuple[Affine, Affine]:
    """`functional.line` of currents of this dtype, and the mean and rstd that it is made of, as the passes take them; updates what is
    running.
    """
    weight, bias = _plain(norm.weight, wide(dtype)), _plain(norm.bias, wide(dtype))
    means, channels = found.mean.shape
    weights = weight.numel() // channels
    four = torch.empty(4, max(means, weights), channels, dtype=weight.dtype)
    given = *map(_at, (found.mean, found.var, weight, bias)), norm.eps, _at(four), means, weights, channels
    library(rule, dtype).spike_affine(*given, *_running(norm.running, found, weight.dtype))
    scale, shift, mean, rstd = four.unbind()
    return (scale, shift), (mean, rstd) if means >= weights else (mean[:means], rstd[:means])


def packs(shape: tuple[int, int, int], dtype: torch.dtype) -> bool:
    """Whether `forward` can give the spikes of steps of (P, C, Q) as bits."""
    _, c, q = shape
    return dtype is not torch.float64 and c % BLOCK == 0 and q == 1


def forward(
    x: Tensor, v: Tensor | None, affine: Affine | None, coefficients: tuple[Tensor, ...], rule: Rule, keep: bool = True,
    out: Tensor | None = None, packed: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Spikes `[T,P,C,Q]` in x's dtype and, to `keep`, the last potential `[P,C,Q]`, of y = scale·x + shift, or y = x.

    x may have a stride of 0 along time. affine: scale and shift `[S,C]`; coefficients: decay, gain, threshold, alpha, `[1]` or `[C]`.
    out: where spikes go, a new tensor if None; it can be x, where that is not the same at every step. packed: they come as bits (see
    `pack`), where `packs` says so.
    """
    rows = _Rows(x)
    if out is None:
        out = allocator.empty((x.numel() // 8,), torch.uint8) if packed else allocator.empty(x.shape, x.dtype)
    last = x.new_empty(x.shape[1:], dtype=coefficients[0].dtype) if keep else None
    given = _Given(rows, x, v, affine, coefficients)
    where = (0, _at(out)) if packed else (_at(out), 0)
    library(rule, x.dtype).spike_forward(given.arguments, *where, _at(last), *given.sizes)
    return out, last


def backward(
    x: Tensor | Pieces, v: Tensor | None, grad_s: Tensor | Pieces, grad_v: Tensor | None, affine: Affine | None, stats: Affine | None,
    coefficients: tuple[Tensor, ...], rule: Rule, needs: tuple[bool, ...], total: Total | None = None, count: float = 0.0,
    weight: Tensor | None = None, out: Tensor | None = None, more: Tensor | None = None, fewer: Fewer = (0, 0, False),
) -> tuple[Tensor | Pieces, Tensor | None, Tensor | None, Tensor | None, list[Tensor | None]]:  # fmt: skip
    """Gradients by x (`[1,P,C,Q]` where x is the same at every step), v, the norm's weight and bias (`[S,C]`, to be added up), and
    the coefficients `[C]`.

    stats: mean and rstd `[S,C]` where the affine is a norm by the statistics of x, `count` numbers behind each (0: those that
    are here); total: sum over the processes that share them. weight: the norm's, `[T,C]`, where each step has its own. Between
    the pass for the norm's sums and the one that uses them the gradient by y waits in gx, rounded to x's dtype, as where norm and neuron
    are two layers; where gx takes the place of x, it is computed twice instead.
    out: where gx goes, a new tensor if None; it can be x. more: a gradient of gx's shape that is added to it. fewer: where grad_s is by
    what is made of spikes, and has fewer places P.
    An x in pieces (with a norm) is made for each pass, and so is, piece by piece, what is returned as its gradient.
    """
    scan = _Backward(x, v, grad_s, grad_v, affine, coefficients, rule, fewer)
    pieces = isinstance(x, Pieces) and not scan.constant
    twice = pieces or out is x or (scan.constant and affine is not None and affine[0].shape[0] > 1)
    gx = out
    if gx is None and not pieces:
        gx = allocator.empty((1 if scan.constant else x.shape[0], *x.shape[1:]), x.dtype)
    gv = None if v is None else torch.empty_like(v)
    learned = scan.sums(4) if any(needs) else None
    line = by_weight = by_bias = None
    if stats is not None and affine is not None:
        mean, rstd = [part if part.shape[0] == affine[0].shape[0] else part.expand_as(affine[0]).contiguous() for part in stats]
        norms = scan.sums(mean.shape[0], 2)
        scan.run(None if twice else gx, None if twice else gv, learned, mean=scan.rows.spread(mean), norms=norms)
        numbers = math.prod(x.shape[1 if scan.constant else 0 :]) / x.shape[2] / stats[0].shape[0]
        given = norms, mean, rstd, affine[0], weight, total or _alone, count or numbers
        line, by_bias, by_weight = _through_norm(*given, scan.rows, library(rule, x.dtype))
    if gx is not None and line is not None and not twice:
        scan.through_norm(gx, more, line)
    elif gx is not None:
        scan.run(gx, gv, learned if line is None else None, line)
        if more is not None:
            gx.add_(more)
    found: Sequence[Tensor | None] = [None] * 4 if learned is None else scan.rows.split(learned).sum(0).unbind()
    by_coefficient = [g if need else None for g, need in zip(found, needs, strict=True)]
    return scan.pieces(line) if gx is None else gx, gv, by_weight, by_bias, by_coefficient


class _Backward:
    """What the passes of `backward` read, a piece after the other where there are any."""

    def __init__(
        self, x: Tensor | Pieces, v: Tensor | None, grad_s: Tensor | Pieces, grad_v: Tensor | None, affine: Affine | None,
        coefficients: tuple[Tensor, ...], rule: Rule, fewer: Fewer,
    ) -> None:  # fmt: skip
        self.x, self.v, self.grad_s, self.grad_v, self.affine, self.coefficients = x, v, grad_s, grad_v, affine, coefficients
        self.rule, self.fewer, self.rows = rule, fewer, _Rows(x)
        self.constant = x.constant if isinstance(x, Pieces) else x.shape[0] > 1 and x.stride(0) == 0
        self.images, self.some, self.cuts = 1, 1, [(0, 1)]
        if cut := [part for part in (x, grad_s) if isinstance(part, Pieces)]:
            self.images, self.some = cut[0].images, min(part.some for part in cut)
            self.cuts = [(first, min(first + self.some, self.images)) for first in range(0, self.images, self.some)]

    def run(
        self, gx: Tensor | None, gv: Tensor | None, learned: Tensor | None, line: Tensor | None = None, mean: Tensor | None = None,
        norms: Tensor | None = None,
    ) -> None:  # fmt: skip
        """One pass: fills gx and gv where they are wanted, and the sums."""
        totals = learned, norms
        for cut in self.cuts:
            x = _some(self.x, *cut, self.images)
            sums = totals if len(self.cuts) == 1 else [None if total is None else torch.empty_like(total) for total in totals]
            self._one(x, cut, _some(gx, *cut, self.images), _some(gv, *cut, self.images, 0), line, mean, *sums)
            for total, found in zip(totals, sums, strict=True):
                if total is not None and found is not None and total is not found:
                    total.add_(found)

    def sums(self, *kinds: int) -> Tensor:
        """Of so many kinds, for `run` to fill."""
        return (torch.empty if len(self.cuts) == 1 else torch.zeros)(*kinds, self.rows.shape[1], dtype=torch.float64)

    def through_norm(self, gx: Tensor, more: Tensor | None, line: Tensor) -> None:
        """gx, which holds gy, becomes the gradient by x."""
        run, lines = library(self.rule, self.x.dtype).spike_through_norm, (*_each(line), line.shape[1])
        if isinstance(self.x, Tensor):
            run(self.x.data_ptr(), gx.data_ptr(), _at(more), *lines, *self.rows.sizes(gx))
            return
        for cut in self.cuts:
            x, there, added = [_some(part, *cut, self.images) for part in (self.x, gx, more)]
            run(_at(x), _at(there), _at(added), *lines, *_Rows(there).sizes(there))

    def pieces(self, line: Tensor | None) -> Pieces:
        """The gradient by x, made as x is, in the place of that."""

        def make(first: int, last: int) -> Tensor:
            x: Tensor = _some(self.x, first, last, self.images)
            self._one(x, (first, last), x, None, line)
            return x

        assert isinstance(self.x, Pieces)
        return dataclasses.replace(self.x, make=make, some=self.some)

    def _one(
        self, x: Tensor, cut: tuple[int, int], gx: Tensor | None, gv: Tensor | None, line: Tensor | None, mean: Tensor | None = None,
        learned: Tensor | None = None, norms: Tensor | None = None,
    ) -> None:  # fmt: skip
        grad_s, grad_v = _some(self.grad_s, *cut, self.images), _some(self.grad_v, *cut, self.images, 0)
        rows = self.rows if x is self.x else _Rows(x)
        given = _Given(rows, x, _some(self.v, *cut, self.images, 0), self.affine, self.coefficients)
        back = _Back.pack(
            grad_s.data_ptr(), grad_s.stride(0), *self.fewer, _at(grad_v), _at(mean), *((0, 0, 0) if line is None else _each(line)),
            _at(gx), 0 if gx is None else gx.stride(0), _at(gv), _at(learned), _at(norms),
        )  # fmt: skip
        library(self.rule, x.dtype).spike_backward(given.arguments, back, *given.sizes)


def _some(x: Tensor | Pieces | None, first: int, last: int, images: int, axis: int = 1) -> Any:
    """Those places along the axis which belong to some of so many images."""
    if x is None or (isinstance(x, Tensor) and images == 1):
        return x
    if isinstance(x, Pieces):
        return x.make(first, last)
    each = x.shape[axis] // images
    return x.narrow(axis, first * each, (last - first) * each)


def _through_norm(
    norms: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, weight: Tensor | None, total: Total, count: float, rows: _Rows,
    passes: ctypes.CDLL,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """a, b and c `[3,S,rows·C]` of gx = a·gy + b·x + c, and the gradients by the norm's bias and weight, of Σgy and Σgy·(x − mean)."""
    steps, channels = mean.shape
    ours = torch.empty((2, steps, channels), dtype=torch.float64)
    found = torch.empty((2, steps, channels), dtype=mean.dtype)
    passes.spike_norm_sums(norms.data_ptr(), rstd.data_ptr(), ours.data_ptr(), found.data_ptr(), rows.rows, steps, channels)
    shared = total(ours if weight is None else (ours * weight).sum(1, keepdim=True)).contiguous()
    line = torch.empty((3, steps, channels * rows.rows), dtype=mean.dtype)
    passes.spike_norm_line(
        shared.data_ptr(), count, scale.data_ptr(), (scale if weight is None else rstd).data_ptr(), mean.data_ptr(), rstd.data_ptr(),
        line.data_ptr(), weight is not None, rows.rows, steps, channels,
    )  # fmt: skip
    by_bias, by_weight = found.unbind()
    return line, by_bias, by_weight


def _alone(sums: Tensor) -> Tensor:
    """The total where there is one process."""
    return sums


def over_steps(x: Tensor, rule: Rule) -> Tensor:
    """Sum over the steps of x `[T,P,C,Q]`, `[1,P,C,Q]`; that of bfloat16 is added in float32."""
    total = allocator.empty((1, *x.shape[1:]), x.dtype)
    library(rule, x.dtype).spike_over_steps(_at(x), x.stride(0), _at(total), x.shape[0], total.numel(), torch.get_num_threads())
    return total


def pack(spikes: Tensor, rule: Rule) -> Tensor:
    """Dense spikes as bits, uint8 `[⌈N/8⌉]`: bit i of byte j is the spike 8j + i in the order of memory."""
    bits = allocator.empty((-(-spikes.numel() // 8),), torch.uint8)
    library(rule, spikes.dtype).spike_pack(_at(spikes), _at(bits), spikes.numel(), torch.get_num_threads())
    return bits


def count(bits: Tensor, dtype: torch.dtype, rule: Rule) -> int:
    """How many spikes of this dtype the bits stand for."""
    return int(library(rule, dtype).spike_count(_at(bits), 8 * bits.numel(), torch.get_num_threads()))


def unpack(bits: Tensor, spikes: Tensor, rule: Rule) -> Tensor:
    """Fills the dense tensor `spikes` with the spikes that `pack` made bits of; returns it."""
    library(rule, spikes.dtype).spike_unpack(_at(bits), _at(spikes), spikes.numel(), torch.get_num_threads())
    return spikes
