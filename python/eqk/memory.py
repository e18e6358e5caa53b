"""What the CPU's allocator does with large results."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc
_LARGEST = 2**31 - 1  # mallopt takes an int


def keep_memory(top_pad: int = 2**26) -> bool:
    """Asks glibc's malloc to keep freed memory for the next allocation, for the whole process and every library in it.

    By default each tensor above 32 MB, in a young process each above 128 KB, is memory fresh from the kernel, which
    clears it page by page while the kernel of an op first writes it: for a result of tens of MB that takes many times
    as long as computing it. Memory once used then stays with the process. The same as the environment variables
    MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_, which have to be set before Python starts.

    Arguments:
        top_pad: bytes to take from the kernel at a time beyond what is asked for, at least 0 and below 2**31.

    Returns:
        True if the allocator took the settings, False where there is no glibc: other allocators (jemalloc, tcmalloc)
        keep memory by themselves or have settings of their own.

    Raises:
        ValueError: ``top_pad`` is out of range.
    """
    if not isinstance(top_pad, int) or not 0 <= top_pad <= _LARGEST:
        raise ValueError(f"top_pad: expected an int from 0 to {_LARGEST}, got {top_pad!r}")
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    settings = {_M_MMAP_THRESHOLD: _LARGEST, _M_TRIM_THRESHOLD: _LARGEST, _M_TOP_PAD: top_pad}
    return all(mallopt(key, value) == 1 for key, value in settings.items())
