"""What the C library's allocator does with freed memory, on Linux with glibc; elsewhere nothing happens.

Kept, a new tensor costs nothing; given back to the system, it costs a page fault every 4 KiB (or 2 MiB, where pages may be huge), but
blocks of many sizes leave no gaps: resident memory is what tensors take, where kept memory can be twice as much.
"""

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Parameters of glibc's mallopt."""
LARGE = 2 << 20
"""Bytes of a block from which on it is given back: a huge page, which is where torch begins to ask for them."""


def _told(*settings: tuple[int, int]) -> bool:
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all(libc.mallopt(*setting) for setting in settings)


def keep_memory() -> bool:
    """Large blocks come from the heap and go back to it, not to the system. For programs, called once at their start.

    Returns whether the allocator could be told so. The process's resident memory then stays at its highest.
    """
    return _told((MMAP_MAX, 0), (TRIM_THRESHOLD, -1))


def return_memory() -> bool:
    """Large blocks come from the system and go back to it when they are freed; undoes `keep_memory`. Returns whether it could be told so.

    Where it is called before the first tensor is made, torch asks for huge pages, which the system may allow.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    return _told((MMAP_MAX, 65536), (MMAP_THRESHOLD, LARGE), (TRIM_THRESHOLD, LARGE))
