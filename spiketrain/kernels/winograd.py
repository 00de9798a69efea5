"""3×3 convolutions (stride 1, padding 1) on the processor by Winograd's F(m×m, 3×3), in C++: (m + 2)² products where there are 9·m².

For each tile of m×m pixels of y, d the (m + 2)² pixels of x that it sees, and g the 3×3 taps from one channel to another:

    y = Aᵀ·[ (G·g·Gᵀ) ⊙ (Bᵀ·d·B) ]·A            summed over the channels of x between the products and Aᵀ…A
    ∂g = Gᵀ·[ Σ over tiles (A·∂y·Aᵀ) ⊙ (Bᵀ·d·B) ]·G
    ∂x: as y, of ∂y, the taps mirrored and channels exchanged

bfloat16 (`winograd_bf16.cpp`), m = 2:

         1  0 −1  0        1   0   0         1  1  1  0
    Bᵀ = 0  1  1  0    G = ½   ½   ½    Aᵀ = 0  1 −1 −1
         0 −1  1  0        ½  −½   ½
         0  1  0 −1        0   0   1

Transformed values are rounded to bfloat16 once more, sums are in float32: of spikes Bᵀ·d·B is exact, so that y is off by the rounding of
G·g·Gᵀ and its own. Relative errors (root mean square) are 0.3 % forward, 0.4 % by x and 0.25 % by the weights, where plain bfloat16 has
0.17 % (docs/LOG.md; a test holds 0.5).

float32 (`winograd_f32.cpp`), m = 4, by the points 0, ±1, ±2:

         4  0 −5  0  1  0         6   0   0          1  1  1  1  1  0
         0 −4 −4  1  1  0        −4  −4  −4     Aᵀ = 0  1 −1  2 −2  0
    Bᵀ = 0  4 −4 −1  1  0  24·G = −4   4  −4          0  1  1  4  4  0
         0 −2 −1  2  1  0         1   2   4          0  1 −1  8 −8  1
         0  2 −1 −2  1  0         1  −2   4
         0  4  0 −5  0  1         0   0  24

Relative errors are 2·10⁻⁶, where torch's are 3·10⁻⁷ (a test holds 10⁻⁵). Source: A. Lavin and S. Gray, "Fast algorithms for convolutional
neural networks", CVPR 2016.
"""

import ctypes
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from spiketrain.kernels import cpp

LAST = torch.channels_last
LANES = 16
"""Channels come in multiples of it."""
FEWEST = 64
"""So many of them are worth what transforms cost. (32 gain too, but the README prints figures of a network that has them.)"""
SUMS = 256 << 20
"""Most bytes of the sums of the gradient by the weights, of which each thread has its own."""


@dataclass(frozen=True)
class Form:
    """How convolutions of a dtype are done, and from where on they pay.

    The numbers are of measurements with two threads of a processor with AVX512-BF16 (docs/LOG.md).

    source: C++ file; tile: m; least: fewest tiles, below `many` weights and from there on (the weights' transform and their way through
    the cache, once a block, cost as much whatever the number of tiles); blocks: tiles a block, forward and for the weights' gradient,
    below `many` weights: from there on twice as many.
    """

    source: str
    tile: int
    least: tuple[int, int]
    blocks: tuple[int, int]
    many: int = 1 << 18

    @property
    def places(self) -> int:
        """Products a tile."""
        return (self.tile + 2) ** 2

    def enough(self, x: Tensor, channels: int, times: int = 1) -> bool:
        """Whether x `[N,C,H,W]` has as many tiles as are needed, or so many times that, and they are mostly filled."""
        (n, c, h, w), m = x.shape, self.tile
        covered = -(-h // m) * -(-w // m) * m * m
        return n * covered // m**2 >= times * self.least[c * channels >= self.many] and covered <= 2 * h * w

    def block(self, which: int, weights: int) -> int:
        """Tiles a block."""
        return self.blocks[which] * (2 if weights >= self.many else 1)


FORMS = {
    torch.bfloat16: Form("winograd_bf16", tile=2, least=(512, 512), blocks=(48, 192)),
    torch.float32: Form("winograd_f32", tile=4, least=(64, 128), blocks=(32, 96)),
}


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """None where it would not be faster than torch's convolutions, or no compiler works.

    bfloat16 needs AVX512-BF16, and with matrix tiles (AMX) torch is faster; float32 has been measured on x86 with FMA only.
    """
    flags = cpp.processor().split()
    good = "fma" in flags if dtype is torch.float32 else "avx512_bf16" in flags and "amx_bf16" not in flags
    try:
        return cpp.load(FORMS[dtype].source, {}, contract=True) if good else None
    except cpp.FAILURES:
        return None


def forward_pays(x: Tensor, channels: int) -> bool:
    """Whether this is the fastest way to a convolution of x `[N,C,H,W]` to so many channels, or to its gradient by x."""
    return _fits(x, channels) and FORMS[x.dtype].enough(x, channels) and _library(x.dtype) is not None


def weight_pays(x: Tensor, channels: int) -> bool:
    """The same of the gradient by the weights of a convolution of x, whose sums pass through the cache once a block."""
    if not _fits(x, channels) or x.shape[1] * channels > FORMS[x.dtype].many:
        return False
    return FORMS[x.dtype].enough(x, channels, 2) and _library(x.dtype) is not None


def _fits(x: Tensor, channels: int) -> bool:
    both = x.shape[1], channels
    return x.dtype in FORMS and all(c % LANES == 0 for c in both) and min(both) >= FEWEST and min(x.shape[2:]) > 3


def _p(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(t.data_ptr()) for t in tensors]


def _sizes(*sizes: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(size) for size in sizes]


def _of(dtype: torch.dtype) -> tuple[Form, ctypes.CDLL]:
    library = _library(dtype)
    assert library is not None
    return FORMS[dtype], library


def _convolve(x: Tensor, weight: Tensor, outputs: int, steps: tuple[int, int, int]) -> Tensor:
    """y `[N,K,H,W]`; weight: of which the first element is the first tap of the first weight; steps: see `winograd_weights`."""
    (n, c, h, w), threads = x.shape, torch.get_num_threads()
    form, library = _of(x.dtype)
    u = torch.empty(form.places * c * outputs, dtype=x.dtype)
    library.winograd_weights(*_p(weight, u), *_sizes(outputs, c, *steps), threads)
    y = torch.empty((n, outputs, h, w), dtype=x.dtype, memory_format=LAST)
    library.winograd_forward(*_p(x, u, y), *_sizes(n, h, w, c, outputs, form.block(0, c * outputs)), threads)
    return y


def forward(x: Tensor, weight: Tensor) -> Tensor:
    """`F.conv2d(x, weight, padding=1)` of x `[N,C,H,W]` and weight `[K,C,3,3]`, both of one dtype and channels last."""
    weight = weight.contiguous(memory_format=LAST)
    k, c = weight.shape[:2]
    return _convolve(x, weight, k, (9 * c, 1, c))


def by_input(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `forward` by x."""
    weight = weight.contiguous(memory_format=LAST)
    c = weight.shape[1]
    return _convolve(grad, weight.permute(0, 2, 3, 1)[:, 2, 2], c, (1, 9 * c, -c))


def by_weight(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of `forward` by its weight, float32 `[K,C,3,3]`, channels last."""
    (n, k, h, w), c = grad.shape, x.shape[1]
    form, library = _of(x.dtype)
    threads = max(1, min(torch.get_num_threads(), SUMS // (4 * form.places * c * k)))
    sums = torch.empty((threads, form.places, k, c))
    library.winograd_by_weight(*_p(x, grad, sums), *_sizes(n, h, w, c, k, form.block(1, c * k)), threads)
    found = torch.empty((k, c, 3, 3), memory_format=LAST)
    library.winograd_gradient(*_p(sums, found), *_sizes(c, k), threads)
    return found
