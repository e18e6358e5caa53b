"""Runs the CUDA kernels without a GPU: the PTX in the installed library, launched as the library launches it."""

import contextlib
import fcntl
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import ptxemu
import torch
import triton

ROOT = Path(__file__).resolve().parent.parent
H100 = (132, 227 << 10)  # multiprocessors, and the shared memory that a block may have


def cuobjdump(*arguments: object, cwd: Path | None = None) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout


def ptx_of(library: Path) -> list[str]:
    """The PTX of each source in the library."""
    listing = cuobjdump("--dump-ptx", library)
    texts = re.split(r"^\.version", listing, flags=re.MULTILINE)[1:]
    return [".version" + re.split(r"^Fatbin ", text, flags=re.MULTILINE)[0] for text in texts]


def library_path() -> Path:
    """The CUDA library that was installed with eqk, if it was; eqk is not imported, which would load it."""
    return Path(importlib.util.find_spec("eqk").origin).parent / "lib" / "libeqk_cuda.so"


def listed_plans(library: Path) -> list[str]:
    """The plans of csrc/tensor_product/cuda_plans.txt that have kernels of their own in the library."""
    data = library.read_bytes() if library.exists() else b""
    names = re.findall(rb"\0eqk_tensor_product_forward_f32_(?!l\d+\0)(\w+)\0", data)
    return sorted({name.decode() for name in names})


def channel_degrees(library: Path) -> list[int]:
    """The largest degree of each kind of channel kernels in the library, in ascending order."""
    names = re.findall(rb"\0eqk_tensor_product_forward_f32_l(\d+)\0", library.read_bytes() if library.exists() else b"")
    return sorted({int(degree) for degree in names})


def poisoned(shape: tuple[int, ...], dtype: str, storage: np.dtype) -> np.ndarray:
    """An array of NaN. numpy has no bfloat16: its storage are the bits."""
    return np.full(shape, 0x7FC0 if dtype == "bfloat16" else np.nan, storage)


def spread(a: np.ndarray | None, dtype: str, pad: int) -> np.ndarray | None:
    """The rows of ``a`` with ``pad`` poisoned elements after each; ``a`` itself where it has no rows."""
    if a is None or a.ndim == 1:
        return a
    wide = poisoned((a.shape[0], a.shape[1] + pad), dtype, a.dtype)
    wide[:, : a.shape[1]] = a
    return wide


def configure(directory: Path, source: Path = ROOT, **options: object) -> None:
    """Prepares a build, in ``directory``, of what the tests need and of the library, of ``source``, as it is installed."""
    library = library_path()
    pybind11 = subprocess.check_output([sys.executable, "-m", "pybind11", "--cmakedir"], text=True)
    options = {
        "EQK_TORCH_DIR": Path(torch.__file__).parent,
        "EQK_TEST_BINDINGS": "ON",
        "CMAKE_CXX_FLAGS_RELEASE": "-O0",  # of the host side, which takes longer to compile than to run
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.strip(),
        "EQK_CUDA_PLANS": ";".join(listed_plans(library)),
        "EQK_CUDA_LMAX": max(channel_degrees(library), default=""),
    } | options
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    subprocess.run(
        ["cmake", "-S", source, "-B", directory, *generator, *(f"-D{k}={v}" for k, v in options.items())], check=True
    )


def build_bindings(directory: Path):
    """The host side of the library configured in ``directory``, which chooses the launches, as a module."""
    subprocess.run(["cmake", "--build", directory, "--target", "eqk_cuda_launches"], check=True)
    # pybind11 keeps modules by their full names: a second build under the name of the first would be the first.
    name = f"{str(directory).replace('.', '_')}.eqk_cuda_launches"
    spec = importlib.util.spec_from_file_location(name, next(directory.glob("eqk_cuda_launches*.so")))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def installed_bindings():
    """Those of the installed library, built once for all processes."""
    directory = ROOT / "build" / "bindings"
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure(directory)
        return build_bindings(directory)


def execute(module: ptxemu.Module, launch: dict, count: bool = False):
    """Runs a launch of the library's, checked or counted; its counts or None."""
    return module.launch(
        launch["name"],
        (launch["grid"],),
        (launch["block"],),
        [launch["argument"]],
        dynamic_shared=launch["shared"],
        count=count,
        check_races=not count,
        check_uninitialised=not count,
    )


class Emulator:
    """Runs PTX, launched as the library launches it."""

    def __init__(self, texts, bindings):
        """``texts``: the PTX of each source; ``bindings``: the host side that was built with the same options."""
        # One module a source.
        modules = [ptxemu.Module(text) for text in texts]
        self.module_of = {name: module for module in modules for name in module.kernels}
        self.bindings = bindings
        self.executed = set()

    @classmethod
    def of_library(cls, library: Path) -> "Emulator":
        return cls(ptx_of(library), installed_bindings())

    def run(self, plan, dtype, values, tangents, wanted, dual, pad=3, count=False, listed=True):
        """The wanted results, and [(launch, its counts or None)]. ``listed``: by the plan's own kernels, if it has some.

        values, tangents: numpy arrays or None for x, y, w, g in the storage dtype. Rows are ``pad`` elements further
        apart than their columns, with poison between them.
        """
        rows = values[0].shape[0]
        keep, strides, results = prepared(plan, dtype, values, tangents, wanted, pad, (rows,) * 4)

        def problem(address):
            operands = ([0 if a is None else address(a) for a in arrays] for arrays in (*keep, results))
            values, tangents, outputs = operands
            return self.bindings.Problem(str(plan), dtype, rows, dual, values, tangents, strides, outputs)

        somewhere = problem(lambda array: 16)
        tables = np.frombuffer(somewhere.tables(), np.uint8).copy()
        tables.flags.writeable = False
        scratch = np.full(max(1, somewhere.scratch_bytes // 4), np.nan, np.float32)
        executed = self._execute(
            lambda address: problem(address).launches(address(tables), address(scratch), listed), count
        )
        return results, executed

    def covers_convolution(self, plan, gradients=False) -> bool:
        """Whether there are kernels for its forward, or its gradients."""
        columns = [plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim]
        indices, operands, nothing = [(16, 1, 8)] * 4, [16, 16, 16, 16 * gradients], [0] * 4
        results = [16, 16, 16, 0] if gradients else [0, 0, 0, 16]
        return self.bindings.Convolution(
            str(plan), "float32", (1, 1, 1), indices, False, operands, nothing, columns, results
        ).covered

    def run_convolution(self, plan, dtype, graph, values, tangents, wanted, dual, pad=3, count=False):
        """The same of the convolution; ``graph``: arrays src, dst, by_dst and by_src, and the number of destinations."""
        *indices, num_dst = graph
        rows = (values[0].shape[0], indices[0].shape[0], indices[0].shape[0], num_dst)
        keep, strides, results = prepared(plan, dtype, values, tangents, wanted, pad, rows)

        def problem(address):
            operands = ([0 if a is None else address(a) for a in arrays] for arrays in (*keep, results))
            values, tangents, outputs = operands
            places = [(address(i), i.strides[0] // i.itemsize, i.itemsize) for i in indices]
            sizes = (rows[1], rows[0], num_dst)
            return self.bindings.Convolution(str(plan), dtype, sizes, places, dual, values, tangents, strides, outputs)

        somewhere = problem(lambda array: 16)
        assert somewhere.covered
        scratch = np.full(max(1, somewhere.scratch_bytes // 4), np.nan, np.float32)
        return results, self._execute(lambda address: problem(address).launches(address(scratch)), count)

    def radial_problem(self, plan, sizes, indices, values, strides, result, exact, device=H100):
        """The convolution with weights h a. ``sizes``: edges, sources, destinations, hidden features."""
        return self.bindings.RadialConvolution(str(plan), sizes, indices, values, strides, result, exact, device)

    def run_radial(self, plan, graph, values, exact=True, device=H100, pad=3, count=False):
        """The same of the forward with weights h a; ``values``: of x, y, h and a. Results are behind these."""
        src, dst, by_dst, num_dst = graph
        x, y, h, a = [spread(v, "float32", pad) for v in values]
        result = poisoned((num_dst, plan.irreps_out.dim), "float32", np.float32)
        sizes = (len(src), len(x), num_dst, len(a))

        def problem(address):
            places = [(address(i), i.strides[0] // i.itemsize, i.itemsize) for i in (src, dst, by_dst)]
            operands = [address(v) if v.size else 16 for v in (x, y, h, a)]
            strides = [v.shape[1] for v in (x, y, h, a)]
            return self.radial_problem(
                plan, sizes, [*places, (0, 0, 0)], operands, strides, address(result), exact, device
            )

        somewhere = problem(lambda array: 16)
        assert somewhere.covered
        scratch = np.full(max(1, somewhere.scratch_bytes // 4), np.nan, np.float32)
        return result, self._execute(lambda address: problem(address).launches(address(scratch)), count)

    def run_gaunt(self, plan, values, tangents, wanted, pad=3, count=False):
        """The same of products of signals: of x, y and g, without tangents where there is no list of them."""
        rows, dual = values[0].shape[0], tangents is not None
        keep = [[spread(a, "float32", pad) for a in arrays] for arrays in (values, tangents or [None] * 3)]
        results = [
            poisoned((rows, n), "float32", np.float32) if want else None
            for n, want in zip(plan.dims, wanted, strict=True)
        ]
        signals = (0, 1, 5)  # of x, y, a, b, c, g

        def slots(numbers):
            return [numbers[signals.index(slot)] if slot in signals else 0 for slot in range(6)]

        def problem(address):
            at = [slots([0 if a is None else address(a) for a in arrays]) for arrays in (*keep, results)]
            strides = slots([n + pad for n in plan.dims])
            return self.bindings.GauntProblem(str(plan), "float32", rows, dual, *at[:2], strides, strides, at[2])

        assert problem(lambda array: 16).covered
        return results, self._execute(lambda address: problem(address).launches(), count)

    def run_wigner(self, lmax, mmax, dtype, q, g=None, pad=3, count=False):
        """Matrices of q, or the gradient of q for g as theirs, and [(launch, its counts or None)]; rows as in run."""
        columns = sum((2 * min(l, mmax) + 1) * (2 * l + 1) for l in range(lmax + 1))
        result = poisoned((len(q), columns if g is None else 4), dtype, q.dtype)
        q, g = spread(q, dtype, pad), spread(g, dtype, pad)

        def launches(address):
            of_g = (0, 0) if g is None else (address(g), g.shape[1])
            return [
                self.bindings.wigner_launch(lmax, mmax, dtype, len(q), address(q), q.shape[1], *of_g, address(result))
            ]

        return result, self._execute(launches, count)

    def _execute(self, launches_at, count):
        """``launches_at(address)``: the launches for arrays that lie where ``address`` says."""
        executed = []
        for number, name in enumerate(launch["name"] for launch in launches_at(lambda array: 16)):
            # The addresses that a launch meets are those of the module of its kernel.
            module = self.module_of[name]
            with contextlib.ExitStack() as stack:
                known = {}

                def address(array, module=module, stack=stack, known=known):
                    if id(array) not in known:
                        known[id(array)] = module.register(array)
                        stack.callback(module.free, known[id(array)])
                    return known[id(array)]

                launch = launches_at(address)[number]
                stats = execute(module, launch, count)
            executed.append((launch, stats))
            self.executed.add(name)
        return executed


def prepared(plan, dtype, values, tangents, wanted, pad, rows):
    """(values, tangents) with poison between rows, the strides of rows, and poisoned results, of so many rows a slot."""
    columns = [plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim]
    shared = plan.weights == "shared"
    results = []
    for slot, want in enumerate(wanted):
        shape = (columns[slot],) if slot == 2 and shared else (rows[slot], columns[slot])
        results.append(poisoned(shape, dtype, values[0].dtype) if want else None)
    strides = [c + pad for c in columns]
    if shared:
        strides[2] = 0
    return [[spread(a, dtype, pad) for a in arrays] for arrays in (values, tangents)], strides, results
