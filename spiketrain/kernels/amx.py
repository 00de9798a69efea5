"""3×3 convolutions (padding 1) and 1×1 ones of bfloat16 by the matrix unit of x86 processors (AMX), in C++: forward and both gradients.

The products are those of the convolution as it is defined, added in float32: values differ from torch's by the order of sums alone.

    y[n,k,p]   = Σ over taps t and inputs c of w[k,c,t]·x[n,c,s·p + t]
    ∂w[k,c,t]  = Σ over images n and pixels p of ∂y[n,k,p]·x[n,c,s·p + t]
    ∂x         : as y, of ∂y, the taps mirrored and channels exchanged; with a stride s of 2 even and odd rows and columns of x are seen
                 by taps of their own, 9 for four pixels

The unit multiplies tiles, [16,32]·[32,16]. Forward, a tile's rows are pixels one behind the other, so what they see has to lie so, too: a
patch of x is copied, 32 channels at a time, with its border of zeros. For ∂w, sums run over pixels: pairs of them lie together, ∂y is
transposed, and each column of taps has a copy, in which the next row is some tiles further.

Source: Intel, "Intel Architecture Instruction Set Extensions Programming Reference" (319433), chapter 3.
"""

import ctypes
import functools

import torch
from torch import Tensor

from spiketrain import allocator
from spiketrain.kernels import cpp, taps
from spiketrain.kernels.forms import Bits, Lazy, dense
from spiketrain.kernels.pool import Means
from spiketrain.kernels.taps import numbers, pointers

WIDE = 32
"""Channels are dealt with so many at a time."""


@functools.cache
def _library() -> ctypes.CDLL | None:
    """None where the processor has no such unit, the system does not allow it, or no compiler works."""
    if not {"amx_bf16", "amx_tile", "avx512_bf16"} <= set(cpp.processor().split()):
        return None
    try:
        library = cpp.load("amx", {}, contract=True)
    except cpp.FAILURES:
        return None
    library.amx_room.restype = ctypes.c_int64
    return library if library.amx_allowed() else None


def ready() -> bool:
    """Whether there is such a unit, and this process may use it."""
    return _library() is not None


def forward_pays(x: Tensor, channels: int, stride: int = 1) -> bool:
    """Whether this is the fastest way to a convolution of x `[N,C,H,W]` to so many channels: it is for all that it can do, but where a
    quarter of what it multiplies would be zeros that fill up x's channels."""
    there = x.shape[1]
    enough = 4 * there >= 3 * _filled(there)
    return x.dtype is torch.bfloat16 and enough and channels % WIDE == 0 and ready()


def _filled(channels: int) -> int:
    """The least multiple of `WIDE` of so many."""
    return -(-channels // WIDE) * WIDE


input_pays = weight_pays = forward_pays
"""The same of the gradient by x, which has so many channels, of y's gradient; and of that by the weights of a convolution of x."""


def reads_bits(x: Tensor) -> bool:
    """Whether spikes `[...,C,H,W]` like x, and means of them, can come as bits."""
    return x.dtype is torch.bfloat16 and x.shape[-3] % WIDE == 0 and ready()


def _ready() -> ctypes.CDLL:
    library = _library()
    assert library is not None
    return library


def _known(weight: Tensor) -> Tensor:
    return weight if weight.dtype is torch.float32 else weight.to(torch.bfloat16)


def _given(x: Tensor) -> tuple[Tensor, int]:
    """What there is of x, and its form as `amx.cpp` has it."""
    form = x.form if isinstance(x, Lazy) else None
    if isinstance(form, Bits):
        return form.bits, 1
    return (form.bits, 2) if isinstance(form, Means) and form.factor == 2 else (dense(x), 0)


def _fill(
    x: Tensor, weight: Tensor, y: Tensor, steps: tuple[int, int, int], kind: int, plus: Tensor | None = None,
    lie: tuple[int, int] | None = None, side: int = 3,
) -> None:  # fmt: skip
    """lie: where so many images of x lie one behind the other, and the next so many images from their first."""
    more = ctypes.c_void_p(None if plus is None else plus.data_ptr()), *numbers(1 if plus is None else plus.shape[0])
    sizes = numbers(*taps.sizes(x, y, kind), *steps)
    wide = int(weight.dtype is torch.float32)
    given, form = _given(x)
    room = allocator.empty((2 * side * side * _filled(x.shape[1]) * y.shape[1],), torch.uint8)
    lie = lie or (x.shape[0], x.shape[0])
    where = *pointers(given), form, *numbers(*lie), *pointers(weight, y, room)
    _ready().amx_forward(*where, *sizes, *more, wide, kind, side, torch.get_num_threads())


def forward(x: Tensor, weight: Tensor, out: Tensor | None = None, stride: int = 1, plus: Tensor | None = None) -> Tensor:
    """`taps.forward` of an x that may be of bits. weight: bfloat16, or float32 to be rounded to it; out: where it is to be; plus: what
    is added, of y's dtype and layout, to each so many images as it has.

    An image's values are the same whatever others are in x.
    """
    return taps.forward(functools.partial(_fill, plus=plus, side=weight.shape[2]), x, _known(weight), out, stride)


def by_input(grad: Tensor, weight: Tensor, like: Tensor | None = None, stride: int = 1) -> Tensor:
    """`taps.by_input`. weight: as in `forward`. grad may have an axis more in front, along which it need not be dense."""
    fill = functools.partial(_fill, side=weight.shape[2])
    if grad.dim() == 4:
        return taps.by_input(fill, grad, _known(weight), like, stride)
    image = grad.shape[2:].numel()  # an axis of one image says nothing by its stride
    fill = functools.partial(fill, lie=(grad.shape[1], grad.stride(0) // image if grad.shape[0] > 1 else grad.shape[1]))
    # as many images, as if they lay one behind the other: of these `fill` is told nothing but the first one's place
    images = grad.as_strided((grad.shape[0] * grad.shape[1], *grad.shape[2:]), (image, *grad.stride()[2:]))
    return taps.by_input(fill, images, _known(weight), like, stride)


def by_weight(grad: Tensor, x: Tensor, stride: int = 1, side: int = 3) -> Tensor:
    """The gradient by its weight of `forward`, or of a 1×1 convolution (side 1), float32 `[K,C,side,side]`, channels last: the same
    whatever the number of threads, and whether x is of bits.
    """
    found = allocator.empty((grad.shape[1], x.shape[1], side, side), torch.float32, taps.LAST)
    n, c, h, w = x.shape
    k, threads = grad.shape[1], torch.get_num_threads()
    given, form = _given(x)
    room = allocator.empty((_ready().amx_room(*numbers(n, c, k), side, threads),), torch.uint8)
    _ready().amx_by_weight(*pointers(given), form, *pointers(grad, found, room), *numbers(n, h, w, c, k), stride, side, threads)
    return found
