"""3×3 convolutions (padding 1) on the processor by Winograd's F(4×4, 3×3), in C++: 36 products where there are 144; 81 with a stride of 2.

For each tile of 4×4 pixels of y, d the 6×6 pixels of x that it sees, and g the 3×3 taps from one channel to another:

    y = Aᵀ·[ (G·g·Gᵀ) ⊙ (Bᵀ·d·B) ]·A            summed over the channels of x between the products and Aᵀ…A
    ∂g = Dᵀ·[ Σ over tiles (E·∂y·Eᵀ) ⊙ (Bᵀ·d·B) ]·D
    ∂x: as y, of ∂y, the taps mirrored and channels exchanged

by the points 0, ±1, ±2 and ∞, whose rows have factors (powers of two) that make what they give of like size:

         4  0 −5  0  1  0         3  0  0          2  2  2  1  1  0         8  0  0  0          3  0  0
         0 −4 −4  1  1  0        −2 −2 −2          0  2 −2  2 −2  0         4  4  4  4         −4 −4 −4
    Bᵀ = 0  4 −4 −1  1  0   3·G = −2  2 −2   8·Aᵀ = 0  2  2  4  4  0   8·E = 4 −4  4 −4   12·D = −4  4 −4
         0 −4 −2  4  2  0         ½  1  2          0  2 −2  8 −8  8         1  2  4  8          2  4  8
         0  4 −2 −4  2  0         ½ −1  2                                   1 −2  4 −8          2 −4  8
         0  4  0 −5  0  1         0  0  3                                   0  0  0  8          0  0 12

float32 (`winograd_f32.cpp`): relative errors are 2·10⁻⁶, where torch's are 3·10⁻⁷ (a test holds 10⁻⁵).

bfloat16 (`winograd_i16.cpp`): rounded to bfloat16, transformed values would make errors of some per cent, since A's sums cancel. But
transformed spikes are small whole numbers, and whatever has one scale is held better by 16-bit whole numbers than by bfloat16's eight bits.
So they are that, multiplied and added exactly in 32 bits; a tile of x has a scale, an output's weights have one, and for ∂g a channel in
a block of tiles. Relative errors (root mean square) are 0.2 to 0.3 % forward, 0.2 to 0.4 % by x and 0.2 to 0.3 % by the weights, where
plain bfloat16 has 0.17 % (docs/LOG.md; a test holds 0.5). They are relative to what a tile has in all (∂g: a channel in a block of
tiles): what is 10⁻⁵ of its greatest is lost.

Of 0, ¼, ½, ¾ and 1, which spikes and means of four spikes are, 4·Bᵀ·d·B is small whole numbers and needs no other scale.

With a stride of 2 (bfloat16 only), of nine pixels of x that a line of four of y sees, the five that outer taps fall on go through F(4, 2)
by the points 0, ±1, 2 and ∞, and the four that the middle tap falls on are places of their own, with one weight for all four:

         2 −1 −2  1  0         1  0        ½  1  ⅓  ¼  0
         0  2  1 −1  0         ½  ½        0  1 −⅓  ½  0
    Bᵀ = 0  2 −3  1  0    G = −½  ½   Aᵀ = 0  1  ⅓  1  0
         0 −2  0  2  0         ⅓  ⅔        0  1 −⅓  2  1
         0  2 −1 −2  1         0  1

E and D are, but for factors, A and Gᵀ. The gradient by x has tiles of 8×8 pixels, which see 5×5 of ∂y, and the same places.

Source: A. Lavin and S. Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
"""

import ctypes
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from spiketrain import allocator
from spiketrain.kernels import cpp, taps
from spiketrain.kernels.taps import numbers, pointers

LAST = torch.channels_last
TILE, PLACES = 4, {1: 36, 2: 81}
"""Pixels of y a tile's side, and products a tile, with a stride."""
WIDE = 64
"""Channels are dealt with so many at a time."""
FEWEST = 64
"""So many of them are worth what transforms cost. (32 gain too, but the README prints figures of a network that has them.)"""
FEW, MANY, MOST = 1 << 13, 1 << 18, 1 << 20
"""Weights: fewest for the gradient by those of a strided convolution; from which on there are many; most for the gradient by them: more
were not measured.
"""
LEAST = 64, 128
"""Fewest tiles, below `MANY` weights and from there on: the weights' transform costs as much whatever the number of tiles."""
SUMS, TRANSFORMED, ONCE = 40 << 20, 3 << 20, 20 << 20
"""Bytes, of the gradient by the weights. Most of its sums: where there are more, channels of y take turns, and x is transformed anew for
each. Of transformed tiles of x and of y's gradient that threads make together before they multiply: so many, or all of x's, if they are
fewer than the last, and then for all turns."""


@dataclass(frozen=True)
class Form:
    """How convolutions of a dtype are done.

    The numbers here and above are of measurements with two threads of a processor with AVX512-BF16 (docs/LOG.md).

    source: C++ file; lanes: channels come in multiples of it; size: bytes of a transformed value; blocks: tiles a block, forward and for
    the weights' gradient; deepest: most channels to add up (the error of whole numbers grows with their root: it is 0.5 % at 1024).
    """

    source: str
    lanes: int
    size: int
    blocks: tuple[int, int]
    deepest: int
    strides: tuple[int, ...]

    def block(self, which: int, weights: int, stride: int) -> int:
        """Tiles a block: half as many of the greater ones of a stride, and twice as many with many weights, as all of them, or their sums,
        pass through the cache once a block.
        """
        return self.blocks[which] // stride * (2 if weights >= MANY else 1)


FORMS = {
    torch.bfloat16: Form("winograd_i16", lanes=32, size=2, blocks=(32, 192), deepest=1024, strides=(1, 2)),
    torch.float32: Form("winograd_f32", lanes=16, size=4, blocks=(32, 192), deepest=1 << 16, strides=(1,)),
}


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """None where it would not be faster than torch's convolutions, or no compiler works.

    bfloat16 needs AVX512-VNNI; float32 has been measured on x86 with FMA only.
    """
    flags = cpp.processor().split()
    good = "fma" in flags if dtype is torch.float32 else "avx512_vnni" in flags
    try:
        return cpp.load(FORMS[dtype].source, {}, contract=True) if good else None
    except cpp.FAILURES:
        return None


def forward_pays(x: Tensor, channels: int, stride: int = 1) -> bool:
    """Whether this is the fastest way to a convolution of x `[N,C,H,W]` to so many channels."""
    return _pays(x, channels, stride, *(taps.halves(side, stride) for side in x.shape[2:]))


def input_pays(grad: Tensor, channels: int, stride: int = 1) -> bool:
    """The same of the gradient by x, which has so many channels, of y's gradient."""
    return _pays(grad, channels, stride, *grad.shape[2:])


def _pays(x: Tensor, channels: int, stride: int, h: int, w: int) -> bool:
    """h, w: of y."""
    n, c = x.shape[:2]
    form = FORMS.get(x.dtype)
    if form is None or stride not in form.strides or c % form.lanes or channels % form.lanes or c > form.deepest:
        return False
    if min(c, channels) < FEWEST or min(h, w) <= 3:
        return False
    tiles = -(-h // TILE) * -(-w // TILE)
    enough = n * tiles >= LEAST[c * channels >= MANY] and tiles * TILE**2 <= 2 * h * w  # which are mostly filled
    return enough and _library(x.dtype) is not None


def weight_pays(x: Tensor, channels: int, stride: int = 1) -> bool:
    """The same of the gradient by the weights of a convolution of x."""
    fewest = 1 if stride == 1 else FEW
    return fewest <= x.shape[1] * channels <= MOST and forward_pays(x, channels, stride)


def _of(dtype: torch.dtype) -> tuple[Form, ctypes.CDLL]:
    library = _library(dtype)
    assert library is not None
    return FORMS[dtype], library


def _fill(x: Tensor, weight: Tensor, y: Tensor, steps: tuple[int, int, int], kind: int) -> None:
    form, library = _of(x.dtype)
    block = form.block(0, x.shape[1] * y.shape[1], abs(kind))
    library.winograd_forward(*pointers(x, weight, y), *numbers(*taps.sizes(x, y, kind), *steps, block), kind, torch.get_num_threads())


def forward(x: Tensor, weight: Tensor, out: Tensor | None = None, stride: int = 1) -> Tensor:
    """`taps.forward`. out: where it is to be. An image's values are the same whatever others are in x."""
    return taps.forward(_fill, x, weight, out, stride)


def by_input(grad: Tensor, weight: Tensor, like: Tensor | None = None, stride: int = 1) -> Tensor:
    """`taps.by_input`."""
    return taps.by_input(_fill, grad, weight, like, stride)


def by_weight(grad: Tensor, x: Tensor, stride: int = 1) -> Tensor:
    """The gradient of `forward` by its weight, float32 `[K,C,3,3]`, channels last: the same whatever the number of threads."""
    (n, c, h, w), k = x.shape, grad.shape[1]
    form, library = _of(x.dtype)
    turn = min(k, max(WIDE, SUMS // (4 * PLACES[1] * c) // WIDE * WIDE))
    block = form.block(1, c * k, stride)
    tiles, size = n * -(-grad.shape[2] // TILE) * -(-grad.shape[3] // TILE), PLACES[stride] * block * form.size  # size: bytes a channel
    blocks = -(-tiles // block)
    if blocks * size * c > ONCE:
        blocks = min(blocks, max(1, TRANSFORMED // (size * (c + turn))))
    sums = torch.empty((PLACES[1], turn, c))
    found = allocator.empty((k, c, 3, 3), torch.float32, LAST)
    library.winograd_by_weight(
        *pointers(x, grad, sums, found), *numbers(n, h, w, c, k, turn, block, blocks), stride, torch.get_num_threads()
    )
    return found
