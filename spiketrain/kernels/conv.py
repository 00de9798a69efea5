"""3×3 convolutions, padding 1, and thin (1×1) ones on the processor: by torch, `amx`, `winograd` or as `products`, whichever is faster.

Values differ by rounding alone, which for Winograd is relative to the values around.
"""

import functools
import math
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from spiketrain import allocator
from spiketrain.kernels import amx, products, taps, winograd
from spiketrain.kernels.forms import Bits, Lazy, Spread, dense, in_parts, plain
from spiketrain.kernels.pool import Means

LAST = torch.channels_last
PART = 16 << 20
"""Bytes of x that `forward_of` has made at a time: enough for each part to be as fast as the whole."""
FEW = 4
"""Channels of an image."""
CUT = 4 << 20
"""Bytes of an image's currents that torch makes at a time, and from four of which on they are put where the kernels' tensors are: glibc
leaves gaps beside what is large."""
Way = Callable[[Tensor, Tensor], Tensor]


def _ours(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether it is a 3×3 convolution of the kind that this file is about, of x `[N,C,H,W]`."""
    return stride in (1, 2) and (padding, *weight.shape[2:]) == (1, 3, 3) and _known(x)


def _thin(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether it is a 1×1 convolution that is faster as products."""
    return (padding, *weight.shape[2:]) == (0, 1, 1) and _known(x) and products.thin_pays(x, stride)


def _single(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether it is a 1×1 convolution of which `amx` makes the gradient by the weights, and that of spikes that are bits itself."""
    single = (padding, *weight.shape[2:]) == (0, 1, 1) and stride in (1, 2) and _known(x)
    return single and amx.weight_pays(x, weight.shape[0], stride)


def _known(x: Tensor) -> bool:
    kind = x.dim() == 4 and x.dtype in (torch.bfloat16, torch.float32) and x.device.type == "cpu"
    if not kind or torch.compiler.is_compiling() or not plain(x):
        return False
    return x.shape[0] > 0 and x.is_contiguous(memory_format=LAST)


def _imagewise(x: Tensor, channels: int, stride: int) -> ModuleType | None:
    """The library that is the fastest way from x to so many channels, image by image."""
    return next((library for library in (amx, winograd) if library.forward_pays(x, channels, stride)), None)


def _forward_by(x: Tensor, channels: int, stride: int = 1) -> Way | None:
    """The fastest way from x to so many channels; None: torch's."""
    if library := _imagewise(x, channels, stride):
        return functools.partial(library.forward, stride=stride)
    return products.forward if stride == 1 and products.forward_pays(x, channels) else None


def _weight_by(x: Tensor, channels: int, stride: int = 1) -> Way | None:
    """The fastest way to the gradient by the weights of a convolution of x; None: torch's."""
    for library in (amx, winograd, products):
        if library.weight_pays(x, channels, stride):
            return functools.partial(library.by_weight, stride=stride)
    return None


def _by_unit(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether `amx` can make a convolution of x, which may be of bits."""
    return (_ours(x, weight, stride, padding) and amx.forward_pays(x, weight.shape[0], stride)) or _single(x, weight, stride, padding)


def _cut(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether torch's convolution of images x is made some of them at a time."""
    few = x.shape[1] <= FEW and _known(x) and allocator.keeps()
    return few and math.prod(_made(x, weight, stride, padding)) * x.element_size() >= 4 * CUT


def _made(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int, int, int]:
    """The shape of a convolution's result."""
    height, width = ((side + 2 * padding - taps) // stride + 1 for side, taps in zip(x.shape[2:], weight.shape[2:], strict=True))
    return x.shape[0], weight.shape[0], height, width


def reads_bits(x: Tensor) -> bool:
    """Whether the convolutions here take spikes `[...,C,H,W]` of x's dtype and device as `forms.Bits`, and are so faster."""
    return x.device.type == "cpu" and amx.reads_bits(x) and not torch.compiler.is_compiling() and plain(x)


def pays(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether any part of the work of a convolution, forward or backward, is better done here than by torch."""
    if _cut(x, weight, stride, padding):
        return True
    if not _ours(x, weight, stride, padding):
        return _thin(x, weight, stride, padding) or _single(x, weight, stride, padding)
    return _forward_by(x, weight.shape[0], stride) is not None or _weight_by(x, weight.shape[0], stride) is not None


def forward(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 1, plus: Tensor | None = None) -> Tensor:
    """`F.conv2d(x, weight, None, stride, padding)` by whichever way is fastest, and plus, of as many images or of each so many of them.

    weight: of x's dtype, or to be rounded to it. No gradient goes through it.
    """
    # one of a single tap is as fast by torch, but for passes over memory: for the numbers that bits stand for, or for what is added
    needed = weight.shape[2] > 1 or plus is not None or isinstance(x, Lazy)
    if needed and _by_unit(x, weight, stride, padding):
        return amx.forward(x, weight, None, stride, None if plus is None else plus.to(x.dtype).contiguous(memory_format=LAST))
    y = _forward(dense(x), weight.to(x.dtype), stride, padding)
    if plus is not None:
        y.unflatten(0, (-1, plus.shape[0])).add_(plus)
    return y


def _forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    if _thin(x, weight, stride, padding):
        return products.thin(x, weight, stride)
    way = _forward_by(x, weight.shape[0], stride) if _ours(x, weight, stride, padding) else None
    if way is not None:
        return way(x, weight)
    if not _cut(x, weight, stride, padding):
        return F.conv2d(x, weight, None, stride, padding)
    y = allocator.empty(_made(x, weight, stride, padding), x.dtype, LAST)
    some = max(1, CUT // (y[:1].numel() * y.element_size()))
    for part, there in zip(x.split(some), y.split(some), strict=True):
        there.copy_(F.conv2d(part, weight, None, stride, padding))
    return y


def forward_of(bits: Bits | Means, weight: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
    """`forward` of spikes, or means, that are bits; the same values.

    Where the way of the convolution takes images one by one, spikes are made so, at multiples of eight: then there is never more than a
    part of them.
    """
    lazy = Lazy(bits)
    if isinstance(bits, Means) or _by_unit(lazy, weight, stride, padding):
        return forward(lazy, weight, stride, padding)
    like, images = bits.like, bits.images
    n = like.shape[0]
    size = max(8, PART // max(1, like[:1].numel() * like.element_size()) // 8 * 8)
    part = images(0, min(size, n))
    if size >= n:
        return forward(part, weight, stride, padding)
    library = _imagewise(part, weight.shape[0], stride) if _ours(part, weight, stride, padding) else None
    if library is None:
        del part
        return forward(images(0, n), weight, stride, padding)
    y, rounded = taps.empty(like, weight.shape[0], stride), weight.to(like.dtype)
    for first in range(0, n, size):
        library.forward(part if first == 0 else images(first, min(first + size, n)), rounded, y[first : first + size], stride)
    return y


def by_weight(grad: Tensor, x: Tensor, weight: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
    """The gradient of `forward` by weight (which may come out in float32). grad and x are of one dtype."""
    if _single(x, weight, stride, padding):
        return amx.by_weight(grad.contiguous(memory_format=LAST), x, stride, 1)
    if not (_ours(x, weight, stride, padding) and amx.weight_pays(x, weight.shape[0], stride)):
        x = dense(x)
    if _ours(x, weight, stride, padding) and (way := _weight_by(x, weight.shape[0], stride)):
        return way(grad.contiguous(memory_format=LAST), x)
    if _thin(x, weight, stride, padding):
        return products.thin_by_weight(grad.contiguous(memory_format=LAST), x, stride)
    return _torchs(grad, x, weight.to(x.dtype), stride, padding, 1)


def input_in_parts(grad: Tensor, like: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether the gradient by x is made as fast some images at a time, and so large that it should be."""
    fits = in_parts(like) and like.is_contiguous(memory_format=LAST) and _ours(grad, weight, stride, padding)
    return fits and amx.input_pays(grad, like.shape[1], stride)


def input_spread(grad: Tensor, like: Tensor, weight: Tensor, stride: int, padding: int) -> Spread | None:
    """`by_input` of a thin convolution, by the pixels that it sees; None where it is no such one."""
    if not (like.is_contiguous(memory_format=LAST) and _thin(grad, weight, stride, padding)):
        return None
    return Spread(products.thin_by_seen(grad, weight.to(like.dtype)), stride, like, means=False)


def by_input(grad: Tensor, like: Tensor, weight: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
    """The gradient of `forward` by x. like: of x's shape, dtype and layout, on whatever device: its values are not read.

    grad may have an axis more in front, along which it is not dense, where `input_in_parts` says so.
    """
    if grad.dim() == 5:
        return amx.by_input(grad, weight, like, stride)
    last = like.is_contiguous(memory_format=LAST)
    if last:
        grad = grad.contiguous(memory_format=LAST)
    ours = last and _ours(grad, weight, stride, padding)
    if ours and amx.input_pays(grad, like.shape[1], stride):
        return amx.by_input(grad, weight, like, stride)
    if spread := input_spread(grad, like, weight, stride, padding):
        return spread.dense()
    weight = weight.to(like.dtype)
    if ours and winograd.input_pays(grad, like.shape[1], stride):
        return winograd.by_input(grad, weight, like, stride)
    if ours and stride == 1 and products.forward_pays(grad, like.shape[1]):
        return products.by_input(grad, weight)
    return _torchs(grad, torch.empty_like(like, device=grad.device), weight, stride, padding, 0)


def _torchs(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, which: int) -> Tensor:
    """torch's gradient by x (0) or weight (1)."""
    mask = [which == 0, which == 1, False]
    found: Tensor = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, mask
    )[which]
    return found
