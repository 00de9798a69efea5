"""Pooling without overlap that keeps for its gradient what it needs, where torch keeps its input: a byte a window for the maximum (on the
processor, `pool.cpp`), nothing for the mean. Spikes that are bits are pooled as such, and their gradient is left as that of the mean.
"""

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spiketrain import allocator
from spiketrain.functional import once_differentiable
from spiketrain.kernels import cpp
from spiketrain.kernels.forms import Bits, Lazy, OfBits, Spread, dense, without_memory

MOST = 256
"""Most values in a window: which of them is the maximum is kept as a byte."""


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    try:
        return cpp.load("pool", {"ELEMENT": cpp.ELEMENTS[dtype]})
    except cpp.FAILURES:
        return None


def _call(name: str, tensors: tuple[Tensor, Tensor, Tensor], x: Tensor, factor: int, pieces: int) -> None:
    n, c, h, w = x.shape
    sizes = map(ctypes.c_int64, (n, h, w, c // pieces, factor, pieces))
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in tensors)
    getattr(_library(x.dtype), name)(*pointers, *sizes, torch.get_num_threads())


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: int, pieces: int) -> Tensor:
        x = dense(x)
        n, c, h, w = x.shape
        out = allocator.empty((n, c // pieces, h // factor, w // factor), x.dtype, torch.channels_last)
        which = allocator.empty(tuple(out.shape), torch.uint8, torch.channels_last)
        _call("pool_forward", (x, out, which), x, factor, pieces)
        ctx.save_for_backward(which)
        ctx.like, ctx.window = torch.empty_like(x, device="meta"), (factor, pieces)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (which,) = ctx.saved_tensors
        gx = allocator.empty(tuple(ctx.like.shape), ctx.like.dtype, torch.channels_last)
        grad = grads[0].to(gx.dtype).contiguous(memory_format=torch.channels_last)
        _call("pool_backward", (grad, which, gx), gx, *ctx.window)
        return gx, None, None


def max_pool(x: Tensor, factor: int, pieces: int = 1) -> Tensor:
    """The greatest of factor·factor pixels and `pieces` channels of x `[N,pieces·C,H,W]` → `[N,C,H/factor,W/factor]`.

    Of channel c those are c, C + c, 2·C + c, … Sides that the factor does not divide lose their last pixels. `F.max_pool2d` and
    `Tensor.max`, the gradient going to the first of equals; by `pool.cpp` where x is on the processor, channels last, and a compiler works.
    """
    last = x.dim() == 4 and x.shape[1] > 1 and x.is_contiguous(memory_format=torch.channels_last)
    fits = 1 < factor * factor * pieces <= MOST and factor <= min(x.shape[2:]) and x.numel() > 0
    if x.device.type == "cpu" and x.dtype in cpp.ELEMENTS and last and fits and _library(x.dtype) is not None:
        out: Tensor = _MaxPool.apply(x, factor, pieces)
        return out
    y = F.max_pool2d(x, factor)
    return y.unflatten(1, (pieces, -1)).max(1).values if pieces > 1 else y


@dataclass(frozen=True)
class Means(OfBits):
    """Means over factor × factor spikes. like: of the means `[N,C,H,W]`."""

    factor: int

    def dense(self) -> Tensor:
        n, c, h, w = self.like.shape
        out = allocator.empty((n, c, h, w), self.like.dtype, torch.channels_last)
        sizes = map(ctypes.c_int64, (n, h * self.factor, w * self.factor, c, self.factor, 1))
        pointers = (ctypes.c_void_p(t.data_ptr()) for t in (self.bits, out))
        _library(self.like.dtype).pool_spikes(*pointers, *sizes, torch.get_num_threads())  # type: ignore[union-attr]
        return out


class _AvgPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: int, packed: bool) -> Tensor:
        ctx.sides, ctx.factor, ctx.like = x.shape[2:], factor, None
        if not _of_bits(x, factor):
            return F.avg_pool2d(dense(x), factor)
        ctx.like = without_memory(x)
        n, c, h, w = x.shape
        like = torch.empty((n, c, h // factor, w // factor), dtype=x.dtype, device="meta", memory_format=torch.channels_last)
        means = Means(x.form.bits, like, factor)  # type: ignore[attr-defined]
        return Lazy(means) if packed else means.dense()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        if ctx.like is not None:
            grad = dense(grads[0]).to(ctx.like.dtype).contiguous(memory_format=torch.channels_last)
            return Lazy(Spread(grad, ctx.factor, ctx.like)), None, None
        gx = F.interpolate(grads[0] / ctx.factor**2, scale_factor=ctx.factor, mode="nearest")
        down, across = (side - whole for side, whole in zip(ctx.sides, gx.shape[2:], strict=True))
        return (F.pad(gx, (0, across, 0, down)) if down or across else gx), None, None


def _of_bits(x: Tensor, factor: int) -> bool:
    """Whether means of x's spikes can be made of bits: windows fill the sides, and a mean has few digits, so that nothing is rounded."""
    if not (isinstance(x, Lazy) and isinstance(x.form, Bits)) or x.dtype not in cpp.ELEMENTS or factor not in (2, 4):
        return False
    fits = x.shape[1] % 32 == 0 and x.is_contiguous(memory_format=torch.channels_last)
    return fits and not any(side % factor for side in x.shape[2:]) and _library(x.dtype) is not None


def avg_pool(x: Tensor, factor: int, packed: bool = False) -> Tensor:
    """`F.avg_pool2d(x, factor)` of x `[N,C,H,W]`: the same values and gradients. packed: of spikes that are bits, as `Means` of them."""
    out: Tensor = _AvgPool.apply(x, factor, packed)
    return out
