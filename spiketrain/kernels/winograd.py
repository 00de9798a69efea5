"""3×3 convolutions (stride 1, padding 1) in bfloat16 by Winograd's F(2×2, 3×3), in C++ (`winograd.cpp`): 16 products where there are 36.

For each tile of 2×2 pixels of y, d the 4×4 pixels of x that it sees, and g the 3×3 taps from one channel to another:

    y = Aᵀ·[ (G·g·Gᵀ) ⊙ (Bᵀ·d·B) ]·A            summed over the channels of x between the products and Aᵀ…A
    ∂g = Gᵀ·[ Σ over tiles (A·∂y·Aᵀ) ⊙ (Bᵀ·d·B) ]·G
    ∂x: as y, of ∂y, the taps mirrored and channels exchanged

         1  0 −1  0        1   0   0         1  1  1  0
    Bᵀ = 0  1  1  0    G = ½   ½   ½    Aᵀ = 0  1 −1 −1
         0 −1  1  0        ½  −½   ½
         0  1  0 −1        0   0   1

Transformed values are rounded to bfloat16 once more, sums are in float32: of spikes Bᵀ·d·B is exact, so that y is off by the rounding of
G·g·Gᵀ and its own. Relative errors (root mean square) are 0.3 % forward, 0.4 % by x and 0.25 % by the weights, where plain bfloat16 has
0.17 % (docs/LOG.md; a test holds 0.5). Source: A. Lavin and S. Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
"""

import ctypes
import functools

import torch
from torch import Tensor

from spiketrain.kernels import cpp

LAST = torch.channels_last
COLUMNS = 64
"""Channels come in multiples of it."""
LEAST = 512
"""Fewest tiles: the weights' transform and their way through the cache, once a block, cost as much whatever the number of tiles."""
MANY = 1 << 18
"""So many weights are worth larger blocks of tiles."""
SUMS = 256 << 20
"""Most bytes of that gradient's sums, of which each thread has its own."""


@functools.cache
def _library() -> ctypes.CDLL | None:
    """None where the processor has no AVX512-BF16, or has matrix tiles (AMX), by which torch is faster; or no compiler works."""
    flags = cpp.processor().split()
    if "avx512_bf16" not in flags or "amx_bf16" in flags:
        return None
    try:
        return cpp.load("winograd", {})
    except cpp.FAILURES:
        return None


def forward_pays(x: Tensor, channels: int) -> bool:
    """Whether this is the fastest way to a convolution of x `[N,C,H,W]` to so many channels, or to its gradient by x.

    The numbers here and in `weight_pays` are of measurements with two threads of a processor with AVX512-BF16 (docs/LOG.md).
    """
    return _fits(x, channels) and _tiles(x) >= LEAST and _library() is not None


def weight_pays(x: Tensor, channels: int) -> bool:
    """The same of the gradient by the weights of a convolution of x, whose sums pass through the cache once a block."""
    return _fits(x, channels) and _tiles(x) >= 2 * LEAST and x.shape[1] * channels <= MANY and _library() is not None


def _fits(x: Tensor, channels: int) -> bool:
    return x.dtype is torch.bfloat16 and x.shape[1] % COLUMNS == 0 and channels % COLUMNS == 0 and min(x.shape[2:]) > 3


def _tiles(x: Tensor) -> int:
    return len(x) * ((x.shape[2] + 1) // 2) * ((x.shape[3] + 1) // 2)


def _p(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(t.data_ptr()) for t in tensors]


def _sizes(*sizes: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(size) for size in sizes]


def _convolve(x: Tensor, weight: Tensor, outputs: int, steps: tuple[int, int, int]) -> Tensor:
    """y `[N,K,H,W]`; weight: of which the first element is the first tap of the first weight; steps: see `winograd_weights`."""
    (n, c, h, w), threads = x.shape, torch.get_num_threads()
    library = _library()
    assert library is not None
    u = torch.empty((16, c // 2, outputs, 2), dtype=x.dtype)
    library.winograd_weights(*_p(weight, u), *_sizes(outputs, c, *steps), threads)
    y = torch.empty((n, outputs, h, w), dtype=x.dtype, memory_format=LAST)
    library.winograd_forward(*_p(x, u, y), *_sizes(n, h, w, c, outputs, 96 if c * outputs >= MANY else 48), threads)
    return y


def forward(x: Tensor, weight: Tensor) -> Tensor:
    """`F.conv2d(x, weight, padding=1)` of x `[N,C,H,W]` and weight `[K,C,3,3]`, both bfloat16 and channels last."""
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
    threads = max(1, min(torch.get_num_threads(), SUMS // (64 * c * k)))
    library = _library()
    assert library is not None
    sums = torch.empty((threads, 16, k, c))
    library.winograd_by_weight(*_p(x, grad, sums), *_sizes(n, h, w, c, k, 384 if c * k >= MANY else 192), threads)
    found = torch.empty((k, c, 3, 3), memory_format=LAST)
    library.winograd_gradient(*_p(sums, found), *_sizes(c, k), threads)
    return found
