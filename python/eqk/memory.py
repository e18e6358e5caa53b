"""What becomes of the CPU memory of large results."""

import torch


def keep_memory(max_bytes: int = 2**30) -> int:
    """Keeps the freed memory of eqk's results on the CPU for the next ones, for the whole process.

    By default a tensor of more than some MB is memory fresh from the system, which clears it page by page while the
    kernel of an op first writes it: for a result of tens of MB that takes many times as long as computing it. Kept
    memory has its pages already. It is what eqk's ops return, their derivatives included, in blocks of 1 MiB and more;
    other ops and other devices are not touched. The storage of such a tensor cannot be resized in place.

    Glibc's own settings (``MALLOC_TRIM_THRESHOLD_`` and the like) reach every op, but before version 2.38 a block that
    PyTorch freed is often too badly placed for one of its own size, and memory grows instead.

    Args:
        max_bytes: free blocks of at most so many bytes in all are kept, the latest; what is above goes back to the
            system. 0 keeps none, as at the start.

    Returns:
        The bytes of the free blocks that are kept now.

    Raises:
        ValueError: if ``max_bytes`` is not an int from 0 to 2**63 - 1.
    """
    if not isinstance(max_bytes, int) or not 0 <= max_bytes < 2**63:
        raise ValueError(f"max_bytes: expected an int from 0 to 2**63 - 1, got {max_bytes!r}")
    return torch.ops.eqk.keep_memory(max_bytes)
