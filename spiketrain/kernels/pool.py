"""Max-pooling of currents without overlap on the processor (`pool.cpp`): a byte a window is kept, where torch keeps its input and eight."""

import ctypes
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spiketrain.kernels import cpp

MOST = 15
"""Largest factor: a pixel of a window is counted in a byte."""


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    try:
        return cpp.load("pool", {"ELEMENT": cpp.ELEMENTS[dtype]})
    except cpp.FAILURES:
        return None


def _call(name: str, tensors: tuple[Tensor, Tensor, Tensor], x: Tensor, factor: int) -> None:
    n, c, h, w = x.shape
    sizes = map(ctypes.c_int64, (n, h, w, c, factor))
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in tensors)
    getattr(_library(x.dtype), name)(*pointers, *sizes, torch.get_num_threads())


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: int) -> Tensor:
        n, c, h, w = x.shape
        out = torch.empty((n, c, h // factor, w // factor), dtype=x.dtype, memory_format=torch.channels_last)
        which = torch.empty_like(out, dtype=torch.uint8)
        _call("pool_forward", (x, out, which), x, factor)
        ctx.save_for_backward(which)
        ctx.like, ctx.factor = torch.empty_like(x, device="meta"), factor
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (which,) = ctx.saved_tensors
        gx = torch.empty_like(ctx.like, device="cpu")
        grad = grads[0].to(gx.dtype).contiguous(memory_format=torch.channels_last)
        _call("pool_backward", (grad, which, gx), gx, ctx.factor)
        return gx, None


def max_pool(x: Tensor, factor: int) -> Tensor:
    """`F.max_pool2d(x, factor)` of x `[N,C,H,W]`: the same values and gradients, by `pool.cpp` where x is on the processor, channels
    last, and a compiler works. Sides that the factor does not divide lose their last pixels."""
    last = x.dim() == 4 and x.shape[1] > 1 and x.is_contiguous(memory_format=torch.channels_last)
    fits = 1 < factor <= min(MOST, *x.shape[2:]) and x.numel() > 0
    if x.device.type == "cpu" and x.dtype in cpp.ELEMENTS and last and fits and _library(x.dtype) is not None:
        out: Tensor = _MaxPool.apply(x, factor)
        return out
    return F.max_pool2d(x, factor)
