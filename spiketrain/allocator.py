"""What the C library's allocator does with freed memory, on Linux with glibc; elsewhere nothing happens.

Kept, a new tensor costs nothing; given back to the system, it costs a page fault every 4 KiB (or 2 MiB, where pages may be huge), but
blocks of many sizes leave no gaps: resident memory is what tensors take, where kept memory can be twice as much.
"""

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Parameters of glibc's mallopt."""
HUGEPAGE = 14
"""Advice of madvise."""
LARGE = 2 << 20
"""Bytes of a huge page; and of a block from which on it is given back, which is where torch begins to ask for them."""


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


def keep_memory() -> bool:
    """Large blocks come from the heap and go back to it, not to the system. For programs, called once at their start.

    Returns whether the allocator could be told so. The process's resident memory then stays at its highest. Pages are huge where the system
    allows it: a processor looks their addresses up, and tensors have thousands of them.
    """
    if not _told((MMAP_MAX, 0), (TRIM_THRESHOLD, -1)):
        return False
    _ask_for_huge_pages()
    return True


def return_memory() -> bool:
    """Large blocks come from the system and go back to it when they are freed; undoes `keep_memory`. Returns whether it could be told so.

    Where it is called before the first tensor is made, torch asks for huge pages, which the system may allow.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    told = _told((MMAP_MAX, 65536), (MMAP_THRESHOLD, LARGE), (TRIM_THRESHOLD, LARGE))
    if told and (libc := _libc()) is not None:
        libc.malloc_trim(ctypes.c_size_t(0))  # the heap's end, of which blocks would be made before the system is asked for any
    return told
