"""A step of Muon for one weight, by the matrix unit of x86 processors (AMX), in C++.

With the gradient G and the momentum M, both matrices `[rows,columns]`, and no more rows than columns (else both are seen transposed):

    M ← M + (1 − momentum)·(G − M)         U = M, or G + momentum·(M − G) with Nesterov's momentum
    X ← U/max(safety·‖U‖, eps)
    A = X·Xᵀ    X ← a·X + (b·A + c·A²)·X   again and again, with a, b, c of each time
    weight ← (1 − lr·decay)·weight − lr·scale·X

Factors of products are bfloat16, sums float32. A and A² are symmetric, so that half of each is computed; and the weight is written where
the last product is.

Source: Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the coefficients are those that timm takes.
"""

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from spiketrain import allocator
from spiketrain.kernels import amx, cpp
from spiketrain.kernels.taps import numbers, pointers


@functools.cache
def _library() -> ctypes.CDLL | None:
    """None where `amx` is not to be had either."""
    if not amx.ready():
        return None
    try:
        library = cpp.load("muon", {}, contract=True)
    except cpp.FAILURES:
        return None
    library.muon_room.restype = ctypes.c_int64
    return library


def ready() -> bool:
    """Whether `step` works on this machine."""
    return _library() is not None


def step(
    weight: Tensor, grad: Tensor, momentum_buffer: Tensor, *, momentum: float, nesterov: bool, safety: float, eps: float,
    coefficients: Sequence[tuple[float, float, float]], decay: float, rate: float,
) -> None:  # fmt: skip
    """Updates weight and momentum, `[rows,...]` of float32, dense and in one order of memory, which is that of the columns.

    coefficients: a, b and c of each time, at least once; decay: 1 − lr·decay; rate: lr·scale. The same to the bit whatever the number of
    threads.
    """
    library = _library()
    assert library is not None and weight.is_contiguous() and grad.is_contiguous() and momentum_buffer.is_contiguous()
    rows, threads = weight.shape[0], torch.get_num_threads()
    columns = weight.numel() // rows
    room = allocator.empty((library.muon_room(*numbers(rows, columns), threads),), torch.uint8)
    flat = [number for triple in coefficients for number in triple]
    library.muon_step(
        *pointers(weight, grad, momentum_buffer), *numbers(rows, columns), ctypes.c_double(momentum), nesterov, ctypes.c_double(safety),
        ctypes.c_double(eps), (ctypes.c_double * len(flat))(*flat), *numbers(len(coefficients)), ctypes.c_double(decay),
        ctypes.c_double(rate), *pointers(room), threads,
    )  # fmt: skip
