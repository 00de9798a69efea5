"""What the convolutions in C++ share: the shape of what they fill, and how a C function reaches its weights."""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from spiketrain import allocator

LAST = torch.channels_last
Fill = Callable[[Tensor, Tensor, Tensor, tuple[int, int, int], int], None]
"""fill(x, weight, y, steps, kind): y becomes the convolution of x. weight: of which the first element is the first tap of the first
weight; steps: elements from one output, input, tap to the next; kind: the stride, or less than 0 for the gradient by the input of a strided
convolution.
"""


def halves(side: int, stride: int) -> int:
    """Pixels of y for a side of x."""
    return (side + stride - 1) // stride


def empty(x: Tensor, channels: int, stride: int) -> Tensor:
    """What a convolution of x to so many channels fills."""
    return allocator.empty((x.shape[0], channels, *(halves(side, stride) for side in x.shape[2:])), x.dtype, LAST)


def forward(fill: Fill, x: Tensor, weight: Tensor, out: Tensor | None, stride: int) -> Tensor:
    """`F.conv2d(x, weight, stride=stride, padding=side // 2)` of x `[N,C,H,W]` and weight `[K,C,side,side]`, of one dtype."""
    weight = weight.contiguous(memory_format=LAST)
    k, c = weight.shape[:2]
    y = empty(x, k, stride) if out is None else out
    fill(x, weight, y, (weight[0].numel(), 1, c), stride)
    return y


def by_input(fill: Fill, grad: Tensor, weight: Tensor, like: Tensor | None, stride: int) -> Tensor:
    """The gradient of `forward` by x: a convolution with the taps mirrored. like: of x's shape, where there is a stride."""
    weight = weight.contiguous(memory_format=LAST)
    c = weight.shape[1]
    x = allocator.empty((grad.shape[0], c, *(grad if like is None else like).shape[2:]), grad.dtype, LAST)
    fill(grad, weight.permute(0, 2, 3, 1)[:, -1, -1], x, (1, weight[0].numel(), -c), 1 if stride == 1 else -stride)
    return x


def sizes(x: Tensor, y: Tensor, kind: int) -> tuple[int, int, int, int, int]:
    """N, H, W, C, K of a `Fill`: H and W are of x, or of y where that is the greater."""
    h, w = (x if kind > 0 else y).shape[2:]
    return x.shape[0], h, w, x.shape[1], y.shape[1]


def pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    """As arguments of a C function."""
    return [ctypes.c_void_p(t.data_ptr()) for t in tensors]


def numbers(*values: int) -> list[ctypes.c_int64]:
    """The same of int64."""
    return [ctypes.c_int64(value) for value in values]
