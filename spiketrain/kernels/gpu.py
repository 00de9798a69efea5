"""The leaky scan on CUDA: moments, forward, backward and packing of spikes, by the Triton kernels in `gpu_kernels.py` and
`gpu_bits.py`.

Tensors are dense, `[T,P,C,Q]` (`leaky.py` says how a layout becomes that); an x with T-stride 0 is the same at every step
and lies in memory once. `A` is the dtype of potentials and sums: float64 for a float64 x, else float32.

Nothing here waits for the device and no shape depends on what is in a tensor, so that all of it can be captured in a CUDA
graph after one call of each kind. That first call compiles and times a few block sizes; Triton keeps the code and the
choice on disk, so that a later process makes the same sums in the same order.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spiketrain.functional import Moments, Norm, Rule, Total, line, wide
from spiketrain.kernels import gpu_bits
from spiketrain.kernels import gpu_kernels as kernels

LONGEST = 16
"""Most steps that one block of a kernel unrolls."""
PIECE = 8
"""Steps unrolled of a longer sequence; the backward pass has one potential in PIECE in memory while it runs."""

OVER = False
"""Results do not take the place of what they are made from, as kernels run several times where block sizes are chosen."""

Affine = tuple[Tensor, Tensor]
Needs = tuple[bool, bool, bool, bool]
"""Whether decay, gain, threshold and alpha want a gradient."""


SMALLEST = 64 if triton.knobs.runtime.interpret else 256
"""The smallest BLOCK of the backward pass: what a row of partial sums stands for."""
NARROW = (1 << 31) - 4096
"""Places of a step that 32 bits can count."""


def _blocks(*choices: tuple[int, int]) -> list[Any]:
    """Choices of (elements of a tile, warps); one small one where the kernels are interpreted."""
    return [triton.Config({"BLOCK": b}, num_warps=w) for b, w in ([(2 * SMALLEST, 4)] if triton.knobs.runtime.interpret else choices)]


_tune = functools.partial(triton.autotune, cache_results=True)
_forward_kernel = _tune(_blocks((512, 4), (1024, 4), (1024, 8), (2048, 8)), ["SIZE", "K", "LAST"])(kernels.forward_kernel)
_backward_kernel = _tune(_blocks((256, 2), (256, 4), (512, 4), (1024, 4), (1024, 8)), ["SIZE", "K", "LAST"])(kernels.backward_kernel)
_moments_kernel = _tune(_blocks((1024, 4), (2048, 4), (2048, 8)), ["SIZE", "LAST"])(kernels.moments_kernel)


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """For a result of this shape."""
    return torch.empty(shape, dtype=dtype, device=device)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _is_constant(x: Tensor) -> bool:
    return x.shape[0] > 1 and x.stride(0) == 0


@functools.cache
def _programs(device: torch.device) -> int:
    """Programs that a reduction is spread over: a few for each multiprocessor."""
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


class _Tiling:
    """How a step of x `[T,P,C,Q]` is cut into tiles."""

    def __init__(self, x: Tensor) -> None:
        _, p, self.channels, q = x.shape
        self.places, self.step = p * q, p * self.channels * q
        self.width = min(triton.next_power_of_2(self.channels), 64) if q == 1 else 1
        self.columns = triton.cdiv(self.channels, self.width)
        self.unit = SMALLEST // self.width
        self.rows = triton.cdiv(self.places, self.unit)
        self.sizes = {"N": self.places, "C": self.channels, "Q": q, "M": self.step, "SIZE": min(self.step.bit_length() // 3, 8)}
        self.shape = {"BC": self.width, "LAST": q == 1, "SPLIT": p > 1 and q > 1, "WIDE": self.places > NARROW}

    def grid(self, chosen: dict[str, Any]) -> tuple[int]:
        """One program a tile, for the BLOCK that was chosen."""
        return (triton.cdiv(self.places, chosen["BLOCK"] // self.width) * self.columns,)


def _launch(kernel: Any, on: Tensor, grid: Any, **arguments: Any) -> None:
    """On the device of `on`; products and sums are rounded one by one, as torch rounds them, or spikes would differ."""
    with torch.cuda.device_of(on):
        kernel[grid](**arguments, enable_fp_fusion=False)


def _time(x: Tensor, affine: Affine | None) -> dict[str, Any]:
    """How a kernel walks over the steps of x."""
    steps = x.shape[0]
    return {
        "T": steps,
        "K": steps if steps <= LONGEST else PIECE,
        "SHORT": steps <= LONGEST,
        "CONSTANT": _is_constant(x),
        "PER_STEP": affine is not None and affine[0].shape[0] > 1,
        "A": tl.float64 if x.dtype == torch.float64 else tl.float32,
    }


def _bits(flags: Any) -> int:
    return sum(bool(flag) << i for i, flag in enumerate(flags))


def packs(shape: tuple[int, int, int], dtype: torch.dtype) -> bool:
    """`forward` gives no bits."""
    return False


def moments(x: Tensor, per_step: bool, rule: Rule | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel of x `[T,P,C,Q]`, each `[S,C]` in A; S = T where `per_step`, else 1 (rule: unused)."""
    distinct = x[:1] if _is_constant(x) else x
    s = distinct.shape[0] if per_step else 1
    tiles = _Tiling(x)
    groups = max(1, min(1024, _programs(x.device) // (tiles.columns * s), tiles.rows))
    parts = empty((3, groups, s, tiles.channels), _wide(x), x.device)
    mean, var = (empty((s, tiles.channels), _wide(x), x.device) for _ in range(2))
    _launch(
        _moments_kernel, x, (groups * tiles.columns, s), x=distinct, parts=parts, T=distinct.shape[0], G=groups, PER_STEP=per_step,
        A=_time(x, None)["A"], **tiles.sizes, **tiles.shape,
    )  # fmt: skip
    rows = triton.next_power_of_2(groups)
    width = max(1, min(64, 2048 // rows))
    numbers = mean.numel()
    grid = (triton.cdiv(numbers, width),)
    _launch(kernels.merge_kernel, x, grid, parts=parts, mean=mean, var=var, G=groups, J=numbers, ROWS=rows, BJ=width)
    return mean, var


def affine(found: Moments, norm: Norm, dtype: torch.dtype, rule: Rule | None = None) -> tuple[Affine, Affine]:
    """`functional.line` of currents of this dtype, and the mean and rstd that it is made of, as the passes take them; updates what is
    running (rule: unused).
    """
    if norm.running is not None:
        norm.running.update(found)
    scale, shift, mean, rstd = (part.to(wide(dtype)) for part in (*line(found, norm), found.mean, torch.rsqrt(found.var + norm.eps)))
    return (scale, shift), (mean, rstd)


def _scan(
    x: Tensor,
    v: Tensor | None,
    affine: Affine | None,
    coefficients: tuple[Tensor, ...],
    rule: Rule,
    spikes: Tensor | None,
    v_last: Tensor | None,
    starts: Tensor | None,
) -> None:
    decay, gain, threshold, _ = coefficients
    scale, shift = affine or (None, None)
    tiles = _Tiling(x)
    _launch(
        _forward_kernel, x, tiles.grid, x=x, v=v, scale=scale, shift=shift, decay=decay, gain=gain, threshold=threshold,
        spikes=spikes, v_last=v_last, starts=starts,
        MANY=_bits(c.numel() > 1 for c in coefficients[:3]), HARD=rule.reset == "hard", STRICT=rule.strict,
        **_time(x, affine), **tiles.sizes, **tiles.shape,
    )  # fmt: skip


def forward(
    x: Tensor, v: Tensor | None, affine: Affine | None, coefficients: tuple[Tensor, ...], rule: Rule, keep: bool = True,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Spikes `[T,P,C,Q]` in x's dtype and, to `keep`, the last potential `[P,C,Q]` in A, of the recurrence over y[t] = scale·x[t] + shift.

    v: potential before the first step, None at rest. affine: (scale, shift), each `[S,C]`, or None for y = x.
    coefficients: decay, gain, threshold, alpha, each `[C]` or `[1]`. All but x in A. out: where spikes go, a new tensor if None.
    """
    spikes = empty(tuple(x.shape), x.dtype, x.device) if out is None else out
    v_last = empty(tuple(x.shape[1:]), _wide(x), x.device) if keep else None
    _scan(x, v, affine, coefficients, rule, spikes, v_last, None)
    return spikes, v_last


def backward(
    x: Tensor,
    v: Tensor | None,
    grad_s: Tensor,
    grad_v: Tensor | None,
    affine: Affine | None,
    stats: Affine | None,
    coefficients: tuple[Tensor, ...],
    rule: Rule,
    needs: Needs,
    total: Total | None = None,
    count: float = 0.0,
    weight: Tensor | None = None,
    out: Tensor | None = None,
    more: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, list[Tensor | None]]:
    """Gradients by x (`[1,P,C,Q]` where x is constant in time), v, the norm's weight and bias (`[S,C]`, to be added up), and the
    coefficients (each `[C]`).

    stats: (mean, rstd), each `[S,C]`, where the affine is a norm by the statistics of x; then the gradient passes through
    them, which takes a pass over memory for the two sums a channel and a second one for the rest. count: numbers behind each
    statistic (0: those that are here; of an x that is the same at every step, one step's); total: sum over the processes that
    share it. weight: the norm's, `[T,C]`, where each step has its own: statistics are then `[1,C]`. out: where the gradient by x goes, a
    new tensor if None. more: added to it.
    """
    tiles, time = _Tiling(x), _time(x, affine)
    starts = None
    if not time["SHORT"]:
        starts = empty((triton.cdiv(x.shape[0], PIECE), tiles.step), _wide(x), x.device)
        _scan(x, v, affine, coefficients, rule, None, None, starts)
    names = ("decay", "gain", "threshold", "alpha")
    common = {
        "x": x, "v": v, "starts": starts, "grad_s": grad_s, "grad_v": grad_v,
        "scale": affine[0] if affine else None, "shift": affine[1] if affine else None,
        "mean": stats[0] if stats else None, "rstd": stats[1] if stats else None,
        **dict(zip(names, coefficients, strict=True)),
        "S": affine[0].shape[0] if affine else 1, "APART": stats is not None and stats[0].shape[0] > 1,
        "rows": tiles.rows, "UNIT": tiles.unit,
        "MANY": _bits(c.numel() > 1 for c in coefficients), "SURROGATE": rule.surrogate,
        "HARD": rule.reset == "hard", "DETACH": rule.detach, "STRICT": rule.strict, "THROUGH": rule.through_time,
        **time, **tiles.sizes, **tiles.shape,
    }  # fmt: skip
    grad_x = empty((1 if time["CONSTANT"] else x.shape[0], *x.shape[1:]), x.dtype, x.device) if out is None else out
    grad_v0 = None if v is None else empty(tuple(v.shape), v.dtype, x.device)
    sums = empty((4, tiles.rows, tiles.channels), _wide(x), x.device) if any(needs) else None
    outputs = {"grad_v0": grad_v0, "sums": sums, "NEEDS": _bits(needs)}
    grad_weight = grad_bias = None
    if stats is None:
        _launch(_backward_kernel, x, tiles.grid, **common, **outputs, grad_x=grad_x, norm_sums=None, norm_means=None)
    else:
        partial = empty((2, tiles.rows, common["S"], tiles.channels), _wide(x), x.device)
        _launch(_backward_kernel, x, tiles.grid, **common, **outputs, grad_x=None, norm_sums=partial, norm_means=None)
        totals = partial.sum(1)
        grad_bias, grad_weight = totals.unbind(0)
        shared = totals if weight is None else (totals * weight).sum(1, keepdim=True)
        means = (shared if total is None else total(shared)) / (count or tiles.places * grad_x.shape[0] / stats[0].shape[0])
        nothing = {"grad_v0": None, "sums": None, "NEEDS": 0}
        _launch(_backward_kernel, x, tiles.grid, **common, **nothing, grad_x=grad_x, norm_sums=None, norm_means=means)
    if more is not None:
        grad_x.add_(more)
    return grad_x, grad_v0, grad_weight, grad_bias, [None if sums is None or not n else sums[i].sum(0) for i, n in enumerate(needs)]


def pack(spikes: Tensor, rule: Rule | None = None) -> Tensor:
    """Spikes (0 and 1, any shape, dense) as bits, uint8 `[ceil(N/8)]`: bit i of byte j is spike 8j + i in order of memory."""
    n = spikes.numel()
    bits = empty((triton.cdiv(n, 8),), torch.uint8, spikes.device)
    _launch(gpu_bits.pack_kernel, spikes, (triton.cdiv(n, 8 * 256),), spikes=spikes, bits=bits, N=n, BLOCK=256)
    return bits


def unpack(bits: Tensor, spikes: Tensor, rule: Rule | None = None) -> Tensor:
    """Fills the dense tensor `spikes` with those that `pack` made bits of; returns it."""
    n = spikes.numel()
    _launch(gpu_bits.unpack_kernel, bits, (triton.cdiv(n, 2048),), bits=bits, spikes=spikes, N=n, BLOCK=2048)
    return spikes
