"""Which GPU architectures a library has code for, read from its fat binaries as nvcc embeds them in the ELF file."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_MAGIC = struct.pack("<I", 0xBA55ED50)
_PTX, _CUBIN = 1, 2


def architectures(library: Path) -> tuple[list[str], list[str]]:
    """Names such as ``sm_90`` of the machine code, and such as ``compute_75`` of the PTX, each once and in order.

    Both are empty for a library without fat binaries.
    """
    found: dict[int, set[int]] = {_PTX: set(), _CUBIN: set()}
    with library.open("rb") as file:
        if not library.stat().st_size:
            return [], []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = data.find(_MAGIC)
            while at >= 0:
                header, size = _container(data, at)
                for kind, architecture in _entries(data, at + header, at + header + size):
                    found.setdefault(kind, set()).add(architecture)
                at = data.find(_MAGIC, at + (header + size if size else len(_MAGIC)))
    return [f"sm_{a}" for a in sorted(found[_CUBIN])], [f"compute_{a}" for a in sorted(found[_PTX])]


def _container(data: mmap.mmap, at: int) -> tuple[int, int]:
    """Bytes of the header, and of what follows; (0, 0) where the magic number is only a number."""
    if at + 16 > len(data):
        return 0, 0
    version, header, size = struct.unpack_from("<HHQ", data, at + 4)
    return (header, size) if version == 1 and header == 16 and at + header + size <= len(data) else (0, 0)


def _entries(data: mmap.mmap, at: int, end: int):
    """(kind, architecture) of each image; kind, two bytes, header size, payload size, .., architecture at byte 28."""
    while at + 32 <= end:
        kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
        if header < 32 or at + header + size > end:
            return
        yield kind, struct.unpack_from("<I", data, at + 28)[0]
        at += header + size
