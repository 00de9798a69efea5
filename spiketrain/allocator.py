"""What becomes of freed memory, on Linux with glibc; elsewhere nothing happens.

Kept, a new tensor costs nothing; given back to the system, it costs a page fault every 4 KiB (or 2 MiB, where pages may be huge). The C
library leaves gaps in what it keeps: a block of 128 MiB does not fit where one was, as its alignment needs a few bytes more, and small
blocks take those. So the large tensors that `kernels` make have a place of their own (`empty`), without gaps.
"""

import collections
import contextlib
import ctypes
import math
import mmap
import os
import platform
import threading
import weakref

import torch
from torch import Tensor

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Parameters of glibc's mallopt."""
HUGEPAGE = 14
"""Advice of madvise."""
NORESERVE = 0x4000
"""Of mmap: more addresses than there is memory may be asked for."""
LARGE = 2 << 20
"""Bytes of a huge page; and of a block from which on it is given back, which is where torch begins to ask for them."""


class Arena:
    """Addresses for blocks of a page and more. What has been freed is kept, and taken again where it fits best."""

    PAGE = 4096

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
        with contextlib.suppress(OSError):  # the system has none
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.first = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.free = {0: size}  # begin: size
        self.apart: dict[int, int] = {}  # free, too, but not joined with its neighbours yet
        self.alive: dict[int, weakref.ref[ctypes.Array[ctypes.c_char]]] = {}
        self.freed: collections.deque[tuple[int, int]] = collections.deque()  # whoever frees may do so while somebody takes
        self.lock = threading.Lock()

    def take(self, size: int) -> ctypes.Array[ctypes.c_char] | None:
        """Memory until the array, and whoever has it, is gone; None where there is not so much."""
        size += -size % self.PAGE
        with self.lock:
            self._hear()
            begin = self._as_large(size)
            if begin is None:
                begin = self._best(size)
            if begin is None:
                return None
        array = (ctypes.c_char * size).from_address(self.first + begin)
        array.arena = self  # type: ignore[attr-defined]  # which is there as long as its blocks are
        self.alive[begin] = weakref.ref(array, lambda gone: self.freed.append((begin, size)))
        return array

    def trim(self) -> None:
        """What is free goes back to the system."""
        with self.lock:
            self._join()
            for begin, size in self.free.items():
                self.memory.madvise(mmap.MADV_DONTNEED, begin, size)

    def _hear(self) -> None:
        """Of what has been freed since."""
        while self.freed:
            begin, size = self.freed.popleft()
            del self.alive[begin]
            self.apart[begin] = size

    def _as_large(self, size: int) -> int | None:
        """A block of that very size that has been freed: training asks for the same ones again."""
        begin = next((begin for begin, there in self.apart.items() if there == size), None)
        if begin is not None:
            del self.apart[begin]
        return begin

    def _best(self, size: int) -> int | None:
        """Of free memory, of which what is left over is the smallest piece."""
        self._join()
        fits = [(free, begin) for begin, free in self.free.items() if free >= size]
        if not fits:
            return None
        free, begin = min(fits)
        del self.free[begin]
        if free > size:
            self.free[begin + size] = free - size
        return begin

    def _join(self) -> None:
        """Joins what has been freed with its neighbours."""
        self._hear()
        if not self.apart:
            return
        self.free |= self.apart
        self.apart.clear()
        joined: dict[int, int] = {}
        last = None
        for begin in sorted(self.free):
            if last is not None and last + joined[last] == begin:
                joined[last] += self.free[begin]
            else:
                joined[last := begin] = self.free[begin]
        self.free = joined


_arenas: list[Arena] = []
"""The one of this program, where it keeps memory."""
LEAST = 1 << 20
"""Bytes of a tensor from which on it lies in the arena."""


def keeps() -> bool:
    """Whether this program keeps memory."""
    return bool(_arenas)


def empty(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """`torch.empty` on the processor; a large one in memory that has been kept, where this program keeps any."""
    numbers = math.prod(shape)
    size = numbers * dtype.itemsize
    block = _arenas[0].take(size) if _arenas and size >= LEAST else None
    if block is None:
        return torch.empty(shape, dtype=dtype, memory_format=memory_format)
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    if memory_format != torch.contiguous_format:
        c, h, w = shape[1:]
        strides = [h * w * c, 1, w * c, c]
    return torch.frombuffer(block, dtype=dtype, count=numbers).as_strided(shape, strides)


def _libc() -> ctypes.CDLL | None:
    """The C library, if it is glibc."""
    return ctypes.CDLL(None) if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc" else None


def _told(*settings: tuple[int, int]) -> bool:
    libc = _libc()
    return libc is not None and all(libc.mallopt(*setting) for setting in settings)


def _ask_for_huge_pages() -> None:
    """For what the heap is going to be: as much as half of the machine's memory lies behind its end now. None of it is touched."""
    libc, size = _libc(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // LARGE * LARGE
    assert libc is not None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if (block := libc.malloc(size)) is not None:  # else there is a limit on addresses
        libc.madvise(block + -block % LARGE, size - LARGE, HUGEPAGE)
        libc.free(block)


def trim() -> None:
    """What is free now goes back to the system, whatever happens with what is freed later."""
    if (libc := _libc()) is not None:
        libc.malloc_trim(ctypes.c_size_t(0))
    for arena in _arenas:
        arena.trim()


def keep_memory() -> bool:
    """Large blocks come from the heap and go back to it, not to the system. For programs, called once at their start.

    Returns whether the allocator could be told so. The process's resident memory then stays at its highest. Pages are huge where the system
    allows it: a processor looks their addresses up, and tensors have thousands of them.
    """
    if not _told((MMAP_MAX, 0), (TRIM_THRESHOLD, -1)):
        return False
    _ask_for_huge_pages()
    with contextlib.suppress(OSError):  # there is a limit on addresses
        _arenas[:] = _arenas or [Arena(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // LARGE * LARGE)]
    return True


def return_memory() -> bool:
    """Large blocks come from the system and go back to it when they are freed; undoes `keep_memory`. Returns whether it could be told so.

    Where it is called before the first tensor is made, torch asks for huge pages, which the system may allow.
    """
    _arenas.clear()  # it goes when the last of its tensors does
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    told = _told((MMAP_MAX, 65536), (MMAP_THRESHOLD, LARGE), (TRIM_THRESHOLD, LARGE))
    trim()  # the heap's end too, of which blocks would be made before the system is asked for any
    return told
