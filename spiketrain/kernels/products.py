"""Convolutions as matrix products: of 1×1 taps with a stride, and 3×3 ones (padding 1) of few pixels, or strided, and many channels.

oneDNN, which computes convolutions for torch, is slow at such shapes, above all the gradient by the weights, and multiplies the
padding: of nine taps at 3×3 pixels only 49/81 fall on a pixel. Here pixels at the border are multiplied by the taps that see them,
and no others. Values differ from torch's by rounding alone, as sums are taken in another order.
"""

import torch
from torch import Tensor

from spiketrain import allocator

LAST = torch.channels_last


def forward_pays(x: Tensor, channels: int) -> bool:
    """Whether products are the faster way to a convolution of x `[N,C,H,W]` to so many channels, or to its gradient by x.

    The numbers here and in `weight_pays` are of measurements with two threads of a processor with AVX512-BF16 (docs/LOG.md).
    """
    side, weights = max(x.shape[-2:]), x.shape[1] * channels
    pays = (side <= 2 and weights >= 1 << 18) or (side == 3 and weights >= 1 << 17) or (side == 4 and weights >= 1 << 20)
    return pays and x.dtype is torch.bfloat16 and x.shape[0] >= 256


def weight_pays(x: Tensor, channels: int, stride: int = 1) -> bool:
    """The same of the gradient by the weights of a convolution of x, which may have a stride."""
    side, weights = max(x.shape[-2:]), x.shape[1] * channels
    pays = weights >= 1 << 17 if stride > 1 else (side <= 3 and weights >= 1 << 15) or (side == 4 and weights >= 1 << 16)
    return pays and x.shape[0] >= 16


def _seen(at: int, size: int) -> tuple[slice, slice]:
    """What an output at this place of a side sees: the inputs, and the taps that fall on them."""
    low, high = max(0, at - 1), min(size, at + 2)
    return slice(low, high), slice(low - at + 1, high - at + 1)


def _shifted(size: int, tap: int, stride: int = 1) -> tuple[slice, slice]:
    """The outputs of a side that a tap leads to, and the inputs that it leads from."""
    shift, outputs = tap - 1, (size + stride - 1) // stride
    first, last = (1 if shift < 0 else 0), min(outputs - 1, (size - 1 - shift) // stride)
    return slice(first, last + 1), slice(first * stride + shift, last * stride + shift + 1, stride)


def _by_pixel(x: Tensor, taps: Tensor) -> Tensor:
    """x `[N,C,H,W]` by taps `[3,3,C,K]`, of which each range of rows and columns has to be a matrix `[·C,K]` without a copy."""
    n, _, h, w = x.shape
    y = allocator.empty((n, taps.shape[3], h, w), x.dtype, LAST)
    pixels = x.permute(0, 2, 3, 1)
    for at_x in range(w):
        columns, these = _seen(at_x, w)
        part, by = pixels[:, :, columns].contiguous(), taps[:, these].clone()  # which keeps the order in memory
        for at_y in range(h):
            rows, those = _seen(at_y, h)
            torch.mm(part[:, rows].flatten(1), by[those].flatten(0, 2), out=y[:, :, at_y, at_x])
    return y


def forward(x: Tensor, weight: Tensor) -> Tensor:
    """`F.conv2d(x, weight, padding=1)` of x `[N,C,H,W]` and weight `[K,C,3,3]`, channels last: one product a pixel."""
    return _by_pixel(x, weight.contiguous(memory_format=LAST).permute(2, 3, 1, 0))


def by_input(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `forward` by x: the same with the taps mirrored and channels exchanged."""
    return _by_pixel(grad, weight.permute(2, 3, 0, 1).contiguous().flip(0, 1))


def by_weight(grad: Tensor, x: Tensor, stride: int = 1) -> Tensor:
    """The gradient of `forward` (or with a stride) by its weight `[K,C,3,3]`: one product a tap."""
    (_, k, _, _), (_, c, h, w) = grad.shape, x.shape
    out = torch.empty((k, 3, 3, c), dtype=x.dtype)
    for j in range(3):
        after, before = _shifted(w, j, stride)
        # rows outermost: any range of them then lies together in memory (every second one is a copy more)
        grads, pixels = grad[..., after].permute(2, 0, 3, 1).contiguous(), x[..., before].permute(2, 0, 3, 1).contiguous()
        for i in range(3):
            below, above = _shifted(h, i, stride)
            torch.mm(grads[below].reshape(-1, k).t(), pixels[above].reshape(-1, c), out=out[:, i, j])
    return out.permute(0, 3, 1, 2)


def thin_pays(x: Tensor, stride: int) -> bool:
    """Whether products are the faster way to a convolution of x by 1×1 taps with a stride, or to its gradient by x."""
    n, _, h, w = x.shape
    return stride > 1 and x.dtype is torch.bfloat16 and n * h * w >= 1 << 12


def thin(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """`F.conv2d(x, weight, stride=stride)` of x `[N,C,H,W]`, channels last, and weight `[K,C,1,1]`: of the pixels that it sees."""
    pixels = x.permute(0, 2, 3, 1)[:, ::stride, ::stride]
    return torch.mm(pixels.reshape(-1, x.shape[1]), weight.flatten(1).t()).view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)


def thin_by_seen(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `thin` by the pixels that it sees, `[N,C,·,·]` of the size of grad."""
    pixels = grad.permute(0, 2, 3, 1)
    return torch.mm(pixels.reshape(-1, grad.shape[1]), weight.flatten(1)).view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)


def thin_by_weight(grad: Tensor, x: Tensor, stride: int) -> Tensor:
    """The gradient of `thin` by its weight."""
    pixels = x.permute(0, 2, 3, 1)[:, ::stride, ::stride].reshape(-1, x.shape[1])
    return torch.mm(grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1]).t(), pixels)[..., None, None]
