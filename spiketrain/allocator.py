"""The C library's allocator, told to keep freed memory: on Linux with glibc, a large tensor else costs a page fault every 4 KiB."""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""


def keep_memory() -> bool:
    """Large blocks come from the heap and go back to it, not to the system. For programs, called once at their start.

    Returns whether the system's allocator could be told so; elsewhere nothing happens. The process's resident memory then
    stays at its highest, as a caching allocator's does.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, -1))
