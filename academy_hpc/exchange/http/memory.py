"""How a process that exchanges large messages should treat freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools

__all__ = ["keep_freed_memory"]

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_SIZES = {_M_TRIM_THRESHOLD: 64 << 20, _M_MMAP_THRESHOLD: 32 << 20, _M_TOP_PAD: 1 << 20}


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep up to 64 MiB, which it would give back to the kernel and fault in again for each large message.

    For the whole process, once. It halves the time of a call with more than 10 kB. Other C libraries have no mallopt,
    and are left alone.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, size in _SIZES.items():
            mallopt(option, size)
