"""Two GPUs that are not there: what libeqk_cuda asks of torch and of the CUDA runtime, answered, recorded, failed.

Imported before torch. CUDA tensors are those of stub_torch_cuda.cpp, whose memory is the host's. The CUDA runtime is
linked into the library; its functions are replaced where they begin, found by the library's symbol table. A driver is
no place for a stub: the runtime verifies that a driver is NVIDIA's own. Launches are recorded, and executed in the PTX
emulator where ``Runtime.execute`` says so: the addresses in their arguments are the host's.
"""

import collections
import contextlib
import ctypes
import functools
import itertools
import mmap
import os
import platform
import re
import struct
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
from stub_torch import load_stub_torch_cuda

DEVICES = 2

load_stub_torch_cuda()

import ptxemu  # noqa: E402
import torch  # noqa: E402
from emulated_cuda import execute, ptx_of  # noqa: E402

torch.version.cuda, torch.cuda._initialized = "13.0", True
torch.cuda.get_device_capability = lambda device=None: (9, 0)
OPS = torch.ops.stub_cuda


def groups(words: list[int], size: int) -> list[tuple[int, ...]]:
    return list(zip(*[iter(words)] * size, strict=True))


def live() -> list[tuple[int, int]]:
    """Address and bytes of each block of torch's that is in use."""
    return groups(OPS.live(), 2)


def allocated() -> list[tuple[int, int, int]]:
    """Address, bytes and device of each block that torch was asked for since the last call."""
    return groups(OPS.allocated(), 3)


# Of cudaError_t.
INVALID_VALUE, MEMORY_ALLOCATION, INSUFFICIENT_DRIVER, NO_DEVICE, NO_KERNEL_IMAGE = 1, 2, 35, 100, 209
INVALID_HANDLE, LAUNCH_FAILURE, CAPTURE_UNSUPPORTED, UNKNOWN = 400, 719, 900, 999

RELAXED = 2  # cudaStreamCaptureModeRelaxed
HOST_TO_DEVICE = 1
MAX_DYNAMIC_SHARED_MEMORY = 8  # cudaFuncAttributeMaxDynamicSharedMemorySize
NON_BLOCKING = 1
COMPUTE_CAPABILITY_MAJOR = 75  # cudaDevAttrComputeCapabilityMajor
# cudaDevAttrMultiProcessorCount and cudaDevAttrMaxSharedMemoryPerBlockOptin.
H100 = {16: 132, 97: 232448}


class Dim3(ctypes.Structure):
    _fields_ = [(axis, ctypes.c_uint) for axis in "xyz"]


class Call(NamedTuple):
    name: str
    device: int
    error: int
    details: dict


P, INT, SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
SIGNATURES = {
    "cudaMalloc": (P, SIZE),
    "cudaFree": (P,),
    "cudaStreamCreateWithFlags": (P, ctypes.c_uint),
    "cudaStreamDestroy": (P,),
    "cudaStreamSynchronize": (P,),
    "cudaMemcpyAsync": (P, P, SIZE, INT, P),
    "cudaThreadExchangeStreamCaptureMode": (P,),
    "cudaFuncSetAttribute": (P, INT, INT),
    "cudaDeviceGetAttribute": (P, INT, INT),
    "cudaLaunchKernel": (P, Dim3, Dim3, P, SIZE, P),
}
# What a capture in progress allows in any mode: launches, which it records, and what touches no stream.
HARMLESS = {"cudaLaunchKernel", "cudaFuncSetAttribute", "cudaDeviceGetAttribute", "cudaThreadExchangeStreamCaptureMode"}
NEEDS_NO_DRIVER = {"cudaGetErrorString", "cudaGetErrorName"}


def symbols(library: Path) -> dict[str, list[int]]:
    """Offsets of functions, local ones too."""
    found = collections.defaultdict(list)
    for line in subprocess.check_output(["nm", "--defined-only", library], text=True).splitlines():
        value, kind, name = line.split()
        if kind in "tT":
            found[name].append(int(value, 16))
    assert found, f"{library} was stripped: expected a symbol table, by which the functions of the runtime are found"
    return found


emulated = functools.cache(ptxemu.Module)


class Runtime:
    """The CUDA runtime that the library calls from now on. It answers as CUDA does where a call breaks CUDA's rules."""

    def __init__(self, library: Path):
        assert platform.machine() == "x86_64", "expected x86_64, whose jump this writes"
        self.log: list[Call] = []
        self.faults: dict[str, int] = {}  # the error that the next call of a function returns
        self.broken: list[str] = []  # what no test may cause
        self.capturing = False  # a stream of torch is
        self.capability = 9  # major compute capability of the GPUs
        self.execute = False
        self.memory: dict[int, tuple[int, np.ndarray]] = {}
        self.streams: dict[int, int] = {}
        self.handles = itertools.count(0x51000, 0x10)
        self.pending: list[tuple[int, int, bytes]] = []
        self.allowed_shared: dict[tuple[int, str], int] = {}
        self.thread = threading.local()
        self.lock = threading.Lock()
        self.kernels: dict[int, str] = {}
        self.ptx = {name: text for text in ptx_of(library) for name in re.findall(r"\.entry (\w+)\(", text)}
        self._keep: list = []
        self._replace(library)

    def _replace(self, library: Path) -> None:
        found = symbols(library)
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(library) in line]
        base = min(int(m[0].split("-")[0], 16) for m in maps)
        begin, end = next([int(a, 16) for a in m[0].split("-")] for m in maps if "x" in m[1])
        libc = ctypes.CDLL(None, use_errno=True)
        everything = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        if libc.mprotect(P(begin), SIZE(end - begin), everything):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

        def write(name: str, code: bytes) -> None:
            for offset in found.pop(name):
                ctypes.memmove(base + offset, code, len(code))

        def jump(function, *arguments) -> bytes:
            """mov rdi, the text that the function is to get, if any; mov rax, its address; jmp rax"""
            code = b"".join(b"\x48\xbf" + ctypes.addressof(a).to_bytes(8, "little") for a in arguments)
            self._keep += [function, *arguments]
            return code + b"\x48\xb8" + ctypes.cast(function, P).value.to_bytes(8, "little") + b"\xff\xe0"

        for name, types in SIGNATURES.items():
            write(name, jump(ctypes.CFUNCTYPE(INT, *types)(functools.partial(self._called, name))))
        refused = ctypes.CFUNCTYPE(INT, ctypes.c_char_p)(self._refused)
        for name in [n for n in found if re.fullmatch(r"cuda[A-Z]\w*", n) and n not in NEEDS_NO_DRIVER]:
            write(name, jump(refused, ctypes.create_string_buffer(name.encode())))

        # The library registers its kernels when it is loaded; once more, to hear what it says.
        register = ctypes.CFUNCTYPE(None, P, P, ctypes.c_char_p, ctypes.c_char_p)
        write("__cudaRegisterFunction", jump(register(self._register)))
        for name in ("FatBinary", "FatBinaryEnd", "Var"):
            write(f"__cudaRegister{name}", b"\xc3")  # ret
        write("__cudaUnregisterFatBinary", b"\xc3")
        for offset in found["_ZL24__sti____cudaRegisterAllv"]:
            ctypes.CFUNCTYPE(None)(base + offset)()
        assert set(self.kernels.values()) == set(self.ptx)

    def _register(self, handle, function, name, device_name) -> None:
        self.kernels[function] = device_name.decode()

    def _refused(self, name: bytes) -> int:
        self.broken.append(f"{name.decode()} has no stub")
        return UNKNOWN

    def _called(self, name: str, *arguments) -> int:
        device, details, error = OPS.device(), {}, self.faults.pop(name, 0)
        try:
            relaxed = getattr(self.thread, "mode", 0) == RELAXED
            if not error and self.capturing and name not in HARMLESS and not relaxed:
                error = CAPTURE_UNSUPPORTED
            if not error:
                with self.lock:
                    error = getattr(self, name)(device, details, *arguments) or 0
        except Exception as exception:
            self.broken.append(f"{name}: {exception!r}")
            error = UNKNOWN
        self.log.append(Call(name, device, error, details))
        return error

    def cudaMalloc(self, device, details, out, size):
        memory = np.full(size + 256, 0xFF, np.uint8)
        memory = memory[-memory.ctypes.data % 256 :][:size]
        address = memory.ctypes.data
        self.memory[address] = device, memory
        P.from_address(out).value = address
        details |= {"address": address, "size": size}

    def cudaFree(self, device, details, address):
        details["address"] = address
        return 0 if self.memory.pop(address, None) else INVALID_VALUE

    def cudaStreamCreateWithFlags(self, device, details, out, flags):
        handle = next(self.handles)
        self.streams[handle] = device
        P.from_address(out).value = handle
        details |= {"stream": handle, "flags": flags}

    def cudaStreamDestroy(self, device, details, stream):
        """What was not waited for never arrives."""
        details["stream"] = stream
        self.pending = [c for c in self.pending if c[0] != stream]
        return 0 if self.streams.pop(stream, None) is not None else INVALID_HANDLE

    def cudaMemcpyAsync(self, device, details, to, source, size, kind, stream):
        details |= {"address": to, "size": size, "kind": kind, "stream": stream}
        if self.memory.get(to, (None,))[0] != device or size > self.memory[to][1].size or kind != HOST_TO_DEVICE:
            return INVALID_VALUE
        if self.streams.get(stream) != device:
            return INVALID_HANDLE
        self.pending.append((stream, to, source, size))

    def cudaStreamSynchronize(self, device, details, stream):
        """Not before this does a copy arrive."""
        details["stream"] = stream
        for copy in [c for c in self.pending if c[0] == stream]:
            self.pending.remove(copy)
            ctypes.memmove(*copy[1:])

    def cudaThreadExchangeStreamCaptureMode(self, device, details, mode):
        word = INT.from_address(mode)
        self.thread.mode, word.value = word.value, getattr(self.thread, "mode", 0)
        details["mode"] = self.thread.mode

    def cudaFuncSetAttribute(self, device, details, function, attribute, value):
        details |= {"kernel": self.kernels[function], "attribute": attribute, "value": value}
        self.allowed_shared[device, self.kernels[function]] = value

    def cudaDeviceGetAttribute(self, device, details, out, attribute, of_device):
        if attribute not in (COMPUTE_CAPABILITY_MAJOR, *H100) or of_device not in range(DEVICES):
            return INVALID_VALUE
        INT.from_address(out).value = self.capability if attribute == COMPUTE_CAPABILITY_MAJOR else H100[attribute]

    def cudaLaunchKernel(self, device, details, function, grid, block, arguments, shared, stream):
        name = self.kernels[function]
        [size] = re.findall(
            rf"\.entry {name}\(\s*\.param \.align \d+ \.b8 {name}_param_0\[(\d+)\]\s*\)", self.ptx[name]
        )
        argument = ctypes.string_at(P.from_address(arguments).value, int(size))
        details |= {"name": name, "grid": grid.x, "block": block.x, "shared": shared, "argument": argument}
        details["stream"] = stream or 0
        if (grid.y, grid.z, block.y, block.z) != (1, 1, 1, 1) or not grid.x or block.x > 1024:
            return INVALID_VALUE
        if shared > max(48 << 10, self.allowed_shared.get((device, name), 0)):
            return INVALID_VALUE
        # As these tests number the streams of torch; 0 is the default stream of the current device.
        if stream and stream % DEVICES != device:
            return INVALID_HANDLE
        # Another thread may be copying what no launch has been told of.
        words = [w for at in range(0, len(argument) - 7, 8) for w in struct.unpack_from("<Q", argument, at)]
        if any(to <= word < to + size for word in words for _, to, _, size in self.pending):
            self.broken.append(f"{name} was launched on a copy that was not complete")
        if self.execute:
            self.run(details)

    def run(self, launch: dict) -> None:
        module = emulated(self.ptx[launch["name"]])
        blocks = {a: np.ctypeslib.as_array((ctypes.c_uint8 * n).from_address(a)) for a, n in live()}
        blocks |= {address: memory for address, (_, memory) in self.memory.items()}
        with contextlib.ExitStack() as stack:
            for address, memory in blocks.items():
                stack.callback(module.free, module.register(memory, address))
            execute(module, launch)

    def take(self) -> list[Call]:
        """The calls since the last time."""
        calls, self.log = self.log, []
        return calls
