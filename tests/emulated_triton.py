"""Runs the Triton kernels without a GPU: the device of Triton's driver is the PTX emulator."""

import contextlib
import functools
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton
from emulated_cuda import spread
from ptxemu.compile import TritonKernel
from triton.backends.compiler import GPUTarget

from eqk import triton_kernels
from eqk.triton_kernels import tensor_product as kernels


def functions() -> list[triton.runtime.JITFunction]:
    """All of Triton's functions in eqk.triton_kernels: kernels and what they are made of."""
    modules = [
        importlib.import_module(f"eqk.triton_kernels.{m.name}") for m in pkgutil.iter_modules(triton_kernels.__path__)
    ]
    return [f for m in modules for f in vars(m).values() if isinstance(f, triton.runtime.JITFunction)]


def name_of(function: triton.runtime.JITFunction) -> str:
    return f"{function.module}.{function.__name__}"


def memory(t: torch.Tensor) -> np.ndarray:
    """What lies from the first element of ``t`` to the end of its storage."""
    storage = torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())
    return storage.numpy()[t.storage_offset() * t.element_size() :]


class Driver:
    """What Triton asks of a driver. It specialises the arguments, compiles and launches as for a GPU of this kind."""

    def __init__(self, architecture: int):
        self.architecture = architecture
        self.utils = self
        self.executed = set()
        self.counts, self.launches = False, []  # the source and the counts of each launch, if it is to count

    @property
    def stats(self):
        """Of the last launch."""
        return self.launches[-1][1]

    def stages(self, backend=None, stages=None, options=None, language=None, capability=None):
        """Ends compilation with the PTX and writes down what functions it is of.

        Without arguments: what names this in Triton's caches.
        """
        if stages is None:
            return "emulated", "emulated"
        optimised = stages["ttir"]

        def named(module, metadata):
            # The kernel is public; the functions that it calls have their types behind two underscores.
            called = re.findall(r'tt\.func private @"?([\w.]+?)__', str(module))
            metadata["functions"] = sorted(set(called))
            return optimised(module, metadata)

        stages["ttir"] = named
        stages["cubin"] = lambda ptx, metadata: ptx.encode()

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        # Kernels keep what they know of a target by the number of its device.
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10 if self.architecture == 90 else 163 << 10}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple:
        """(module, function, registers, spills, threads of a block at most)"""
        return binary, binary.decode(), 0, 0, 1024

    def unload_module(self, module: bytes) -> None:
        pass

    def launcher_cls(self, source, metadata):
        types = source.signature.values()
        at_run_time = [n for n, type in enumerate(types) if type != "constexpr"]

        @functools.cache
        def kernel_of(ptx: str) -> TritonKernel:
            return TritonKernel(SimpleNamespace(asm={"ptx": ptx}, metadata=metadata), len(at_run_time))

        def launch(x, y, z, stream, ptx, packed_metadata, launch_metadata, enter_hook, exit_hook, *arguments):
            assert metadata.global_scratch_size == metadata.profile_scratch_size == 0
            given = [arguments[n] for n in at_run_time]
            given = [memory(a) if isinstance(a, torch.Tensor) else a for a in given]
            options = dict(check_races=True, check_uninitialised=True)
            stats = kernel_of(ptx).launch((x, y, z), given, count=self.counts, **options)
            if self.counts:
                self.launches.append((source, stats))
            self.executed |= {name_of(source.fn), *metadata.functions}

        return launch


@contextlib.contextmanager
def emulated(architecture: int, cache: Path) -> Iterator[Driver]:
    """Triton's kernels run in the emulator, compiled into ``cache``."""
    driver = Driver(architecture)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.knobs.cache, "dir", str(cache))
        patch.setattr(triton.knobs.runtime, "add_stages_inspection_hook", driver.stages)
        triton.runtime.driver.set_active(driver)
        try:
            yield driver
        finally:
            for function in functions():
                function.device_caches.clear()
            triton.runtime.driver.set_active(None)


class Emulator:
    """As emulated_cuda.Emulator, by the family of the Triton op."""

    def run(self, plan, dtype, values, tangents, wanted, dual, pad=3):
        def tensor(a):
            if a is None:
                return None
            t = torch.from_numpy(spread(a, dtype, pad))
            return (t.view(torch.bfloat16) if dtype == "bfloat16" else t)[..., : a.shape[-1]]

        (x, y, w, g), t = ([tensor(a) for a in arrays] for arrays in (values, tangents))
        text, results = str(plan), [None] * 4
        if dual and g is None:
            results[3] = kernels._jvp(x, y, w, *t[:3], text)
        elif dual:
            results = kernels._double_backward(x, y, w, g, *t, text, wanted)
        else:
            if any(wanted[:3]):
                results[:3] = kernels._backward(x, y, w, g, text, wanted[:3])
            if wanted[3]:
                results[3] = kernels._forward(x, y, w, text)
        stored = [r.view(torch.uint16) if r is not None and dtype == "bfloat16" else r for r in results]
        return [r.numpy() if want else None for r, want in zip(stored, wanted, strict=True)], None
