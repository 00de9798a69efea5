"""Spikes as bits, and back, as Triton kernels. `gpu.py` launches them."""

import triton
import triton.language as tl


@triton.jit
def pack_kernel(spikes, bits, N, BLOCK: tl.constexpr):
    """Bit i of byte j is 1 where spike 8j + i is not 0."""
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    i = tl.arange(0, 8)[None, :]
    at = byte[:, None] * 8 + i
    fired = (tl.load(spikes + at, mask=at < N, other=0) != 0).to(tl.int32)
    tl.store(bits + byte, tl.sum(fired << i, 1).to(tl.uint8), mask=byte * 8 < N)


@triton.jit
def unpack_kernel(bits, spikes, N, BLOCK: tl.constexpr):
    """The inverse of `pack_kernel`."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    byte = tl.load(bits + (at >> 3), mask=at < N, other=0).to(tl.int32)
    fired = (byte >> (at & 7).to(tl.int32)) & 1
    tl.store(spikes + at, fired.to(tl.float32).to(spikes.dtype.element_ty), mask=at < N)
