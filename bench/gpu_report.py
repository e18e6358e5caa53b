"""What the CUDA kernels of eqk.tensor_product cost, from the installed library: counted, and modelled, without a GPU.

    make gpu-report                                   # all of it, compared with the committed counts
    make gpu-report GPU_REPORT_ARGS=--update          # writes the counts to commit
    python bench/gpu_report.py --problems mace-large --phases forward

Kernels: ptxas assembles the PTX that the library holds, which gives its machine code again (checked byte by byte), and
with it registers, stack, and the time this takes. nvcc's front end, which makes the PTX, is not in that time.

Problems, float32, mul_ir, by the kernels of any plan and, where the library has some, by those of that plan alone:
PTX instructions and memory accesses are counted in the emulator of tests/ptxemu, per edge.
Machine instructions (SASS) are estimated: each of the kernel's was made for a line of PTX and runs as often as it.
Sectors of 32 bytes are those that the warps request; compulsory bytes are those of each operand and result once.

Convolutions: the same of the fused convolution on graphs of two degrees and of very uneven ones, with the launch that
brings edges in order. Compulsory bytes have each node's row once.

Radial: the same of its forward with the last layer of the radial network inside, exact to float32 and not. A block
makes its part of the layer's matrix ready for 576 edges, about as many as on an H100 where there are 50 000. Its
backward is the convolution's and three products of matrices by torch, which are modelled alone: w = h a, and the
gradient of w by a and by h, in float32.

Gaunt: the same of products of signals on the sphere of 128 channels, all of one degree, per row.

Wigner: the same of matrices of degrees 0 to lmax, rows |m'| <= mmax, and of their gradient, per edge.

Messages: the same of the Triton kernels of eSCN's message, of which ptxas makes the machine code when they first run.

Model: the time of an edge, or row, is the largest of these, on a chip of bench/gpu_chips.json. Latency, caches and
launches are not modelled; measured times are printed beside it where there is a GPU.
    dram        compulsory bytes from memory                           the memory floor
    l2          requested sectors through the second-level cache
    arithmetic  float32 instructions on the lanes                      the arithmetic floor
    issue       SASS instructions in the issue slots                   the issue-slot floor
    l1          shared-memory wavefronts, shuffles, and four sectors a cycle, of a multiprocessor
    tensor      products of bfloat16 on tensor cores, at their peak

The tables, and a roofline, go to build/gpu_report.
"""

import argparse
import csv
import functools
import json
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import add
from pathlib import Path
from unittest import mock

import torch
import triton
from gpu_model import ARCHITECTURES, CHIPS, SCHEDULERS, model
from triton.backends.compiler import GPUTarget

import eqk
from eqk._signals import count
from eqk.gaunt_plan import KINDS
from eqk.so2_edge_message import Plan as MessagePlan
from eqk.testing import CASES, depthwise
from eqk.triton_kernels import so2_edge_message
from eqk.wigner import columns as wigner_columns

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from emulated_cuda import (  # noqa: E402
    H100,
    Emulator,
    channel_degrees,
    cuobjdump,
    installed_bindings,
    library_path,
    listed_plans,
    ptx_of,
)
from emulated_triton import emulated  # noqa: E402

MACHINE_CODES = tuple(dict.fromkeys(a["machine_code"] for a in ARCHITECTURES.values()))
PEER = json.loads((ROOT / "bench" / "gpu_peers.json").read_text())
COMMITTED = {
    name: ROOT / "bench" / f"gpu_{name}.csv"
    for name in ("kernels", "problems", "convolutions", "radial", "gaunt", "wigner", "messages")
}

# Duals or not, and the slots of the results.
PHASES = {"forward": (False, "g"), "backward": (False, "xyw"), "double backward": (True, "xywg"), "jvp": (True, "g")}
PROBLEMS = {
    # Without the outputs of degree 3, as OpenEquivariance's benchmark has it.
    "mace-medium-2e": depthwise("128x0e+128x1o", "0e+1o+2e+3o", "0e+1o+2e"),
    **{name: CASES[name].plan for name in ("mace-large", "nequip-benzene", "sevennet-l3i5")},
}
ROWS = 16  # a multiple of the rows of a block
# Of the convolution, by the kernels of any plan: phases, and the degrees of as many destinations as there are sources.
CONVOLUTION_PHASES = ("forward", "backward", "double backward", "jvp")
DEGREES = {"24": (24, 24), "32": (32, 32), "uneven": (0, 1, 2, 5, 14, 33)}
EDGES = 50_000  # measured
# Of the forward with weights h a: precisions, and whether they are exact to float32; as many hidden features and edges,
# since each block makes its part of the matrix ready once for all of its edges.
PRECISIONS = {"float32": True, "bf16x3": False}
HIDDEN, RADIAL_EDGES = 64, 576
# Of products of signals: results x, y, g.
GAUNT_PHASES = {"forward": (False, False, True), "backward": (True, True, False)}
GAUNTS = [(kind, str(lmax), phase) for kind in ("even", "all") for lmax in range(2, 7) for phase in GAUNT_PHASES]
GAUNT_CHANNELS, GAUNT_ROWS = 128, 2
# Of Wigner matrices, whole blocks.
WIGNERS = [(lmax, "2", phase) for lmax in ("2", "4", "6") for phase in ("forward", "backward")]
WIGNER_ROWS = 64
# Of eSCN's message with UMA-S's degrees, activation and radial weights: channels, hidden and features, and edges.
MESSAGES = {"uma-s": (128, 256), "narrow": (32, 128)}
MESSAGE_DEGREE, MESSAGE_TARGET = 24, GPUTarget("cuda", 90, 32)
TOLERANCE = 0.05

# Whose kernels run a problem: those of any plan, or those of its plan alone.
ANY, OWN = "any", "own"

KEYS = {
    "kernels": ("kernel", "architecture"),
    "problems": ("problem", "phase", "of_plan"),
    "convolutions": ("problem", "phase", "degrees"),
    "radial": ("problem", "precision", "degrees"),
    "gaunt": ("kind", "lmax", "phase"),
    "wigner": ("lmax", "mmax", "phase"),
    "messages": ("problem", "kernel", "architecture"),
}
# Of these more is better; of all other numbers less is.
BETTER_MORE = re.compile(r"warps_?.*|store_width|share")
NOT_COMPARED = ("compile_s", "threads")
NOT_COMMITTED = ("compile_s",)  # it differs from run to run


def occupancy(limits: Mapping[str, int], registers: int, shared: int, threads: int) -> int:
    """Warps that a multiprocessor holds at a time."""
    round_up = lambda n, unit: -(-n // unit) * unit  # noqa: E731
    warps = -(-threads // 32)
    # Registers belong to one of the schedulers and are given out by 256 to a warp, shared memory by 128 bytes.
    by_registers = limits["registers"] // SCHEDULERS // round_up(32 * registers, 256) * SCHEDULERS // warps
    by_shared = limits["shared"] // round_up(shared + 1024, 128)
    return warps * min(limits["blocks"], limits["warps"] // warps, by_registers, by_shared)


def text_sections(cubin: bytes) -> dict[str, bytes]:
    """The machine code of each kernel in an ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    # Name, type, flags, address, offset, size.
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + n * size) for n in range(count)]
    at = headers[names][4]
    found = {cubin[at + h[0] : cubin.index(b"\0", at + h[0])].decode(): cubin[h[4] : h[4] + h[5]] for h in headers}
    return {name.removeprefix(".text."): code for name, code in found.items() if name.startswith(".text.")}


class Code:
    """The machine code that ptxas makes of one source's PTX for one architecture."""

    def __init__(self, ptx: str, architecture: str, directory: Path):
        ptxas = shutil.which("ptxas")
        if ptxas is None:
            sys.exit("gpu_report: expected ptxas on PATH, of the CUDA toolkit that built the library")
        self.ptx, self.path = ptx, directory / f"{kernels_of(ptx)[0]}.{architecture}.cubin"
        self.path.with_suffix(".ptx").write_text(ptx)
        command = [ptxas, "-v", "-lineinfo", f"-arch={architecture}", self.path.with_suffix(".ptx"), "-o", self.path]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        self.sections = text_sections(self.path.read_bytes())
        self.kernels = {}
        for name, text in re.findall(r"entry function '(\w+)'.*?\n(.*?Compile time = .*?) ms", log, re.DOTALL):
            number = lambda pattern, text=text: float((re.search(pattern, text) or [0, 0])[1])  # noqa: E731
            self.kernels[name] = {
                "registers": int(number(r"Used (\d+) registers")),
                "stack": int(number(r"(\d+) bytes stack frame")),
                "static": int(number(r"(\d+) bytes smem")),
                "compile_s": round(number(r"Compile time = ([\d.]+)") / 1000, 2),
                "code": len(self.sections[name]),
            }

    @functools.cached_property
    def instructions(self) -> dict[str, list[tuple[str, int]]]:
        """(opcode, line of the PTX) of each machine instruction of each kernel, but for the padding."""
        nvdisasm = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
        command = [nvdisasm, "--print-line-info-ptx", "--print-code", self.path]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        _, *parts = re.split(r"^\.text\.(\w+):\n", listing, flags=re.MULTILINE)
        pattern = r'nv_debug_ptx_txt", line (\d+)|^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)'
        result = {}
        for kernel, body in zip(parts[::2], parts[1::2], strict=True):
            found, line = [], 0
            for at, opcode in re.findall(pattern, body, re.MULTILINE):
                if at:
                    line = int(at)
                elif opcode != "NOP":
                    found.append((opcode, line))
            # What lies behind the last exit are subroutines, and the slow ways of warps whose lanes have diverged.
            result[kernel] = found[: max(n for n, (opcode, _) in enumerate(found) if opcode == "EXIT") + 1]
        return result


def kernels_of(ptx: str) -> list[str]:
    return re.findall(r"\.entry (\w+)\(", ptx)


def check_same_code(codes: Iterable[Code], library: Path, architecture: str, directory: Path) -> None:
    """Raises where the library's machine code is not what ptxas makes of its PTX."""
    directory = directory / architecture
    directory.mkdir()
    cuobjdump("--extract-elf", architecture + ".cubin", library, cwd=directory)
    installed = {k: v for path in directory.glob("*.cubin") for k, v in text_sections(path.read_bytes()).items()}
    for name, code in ((k, v) for c in codes for k, v in c.sections.items()):
        if installed.get(name) != code:
            raise RuntimeError(
                f"{name}, {architecture}: expected the {len(installed.get(name, b''))} bytes of machine code in "
                f"{library}, got {len(code)} others from {shutil.which('ptxas')}: is it of the toolkit that built it?"
            )


def arithmetic(opcode: str) -> bool:
    """Of float32, in SASS or in PTX: what an assembler neither makes nor drops unless it copies a loop's body."""
    return opcode in ("FFMA", "FADD", "FMUL") or bool(re.match(r"(fma|add|sub|mul)\.(\w+\.)*f32", opcode))


def sass_estimate(ptx: str, kernel: str, instructions: Sequence[tuple[str, int]], warps_by_line: Mapping[int, int]):
    """Machine instructions that warps execute, by opcode, from how often each line of the PTX ran."""
    block_of, executed, written = {}, Counter(), Counter()
    body = ptx[: ptx.index(f".entry {kernel}(")].count("\n")
    block = 0
    for n, line in enumerate(ptx.splitlines()[body:], body + 1):
        line = line.strip()
        if n > body + 1 and ".entry" in line:
            break
        block += line.endswith(":")
        block_of[n] = block
        if line.endswith(";") and not line.startswith("."):
            opcode = re.sub(r"^\{?\s*(@!?%\w+\s+)?", "", line).split()[0].rstrip(";")
            if arithmetic(opcode):
                written[block] += 1
            executed[n] = warps_by_line.get(n, 0)
            block += opcode.split(".")[0] in ("bra", "brx", "ret", "exit")
    # Where ptxas has unrolled a loop further, each copy runs so many times less often.
    made = Counter(block_of[line] for opcode, line in instructions if arithmetic(opcode))
    result = Counter()
    for opcode, line in instructions:
        block = block_of[line]
        result[opcode] += executed[line] / max(1.0, made[block] / written[block] if written[block] else 1.0)
    return result


def launches(bindings, plan: eqk.Plan, dtype: str, dual: bool, wanted: str, of_plan: str) -> list[dict]:
    """As the library would make them, for aligned operands; with ANY as if the plan had no kernels of its own."""
    columns = [plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim]
    address = 4096
    values = [address, address, address if plan.weights != "none" else 0, address if wanted != "g" else 0]
    tangents = [*values[:3], 0] if dual else [0] * 4
    results = [address if slot in wanted and (slot != "w" or values[2]) else 0 for slot in "xywg"]
    problem = bindings.Problem(str(plan), dtype, ROWS, dual, values, tangents, columns, results)
    return problem.launches(address, address, of_plan == OWN)


def all_launches(bindings) -> dict[str, set[tuple[int, int]]]:
    """(threads, dynamic shared memory) with which the registry's cases, of any type, launch each kernel."""
    found = {}
    for plan in [*PROBLEMS.values(), *(case.plan for case in CASES.values())]:
        for dtype in ("float32", "float64", "float16", "bfloat16"):
            for dual, wanted in PHASES.values():
                for of_plan in (ANY, OWN):
                    for launch in launches(bindings, plan, dtype, dual, wanted, of_plan):
                        found.setdefault(launch["name"], set()).add((launch["block"], launch["shared"]))
        for dual, wanted in (PHASES[phase] for phase in CONVOLUTION_PHASES):
            for launch in convolution_launches(bindings, plan, dual, wanted):
                found.setdefault(launch["name"], set()).add((launch["block"], launch["shared"]))
    for kind in KINDS:
        for lmax in range(1, 7):
            for phase in GAUNT_PHASES:
                for launch in gaunt_launches(bindings, kind, lmax, phase):
                    found.setdefault(launch["name"], set()).add((launch["block"], launch["shared"]))
    for key in WIGNERS:
        for dtype in ("float32", "float64", "float16", "bfloat16"):
            launch = wigner_launch(bindings, *key, dtype)
            found.setdefault(launch["name"], set()).add((launch["block"], launch["shared"]))
    return found


def all_radial_launches(bindings, architecture: str) -> dict[str, set[tuple[int, int]]]:
    """The same of the forward with weights h a, whose launches depend on the shared memory of a block."""
    found, shared = {}, ARCHITECTURES[architecture]["shared"] - 1024
    for plan in [*PROBLEMS.values(), *(case.plan for case in CASES.values())]:
        for exact in PRECISIONS.values():
            for launch in radial_launches(bindings, plan, exact, shared):
                found.setdefault(launch["name"], set()).add((launch["block"], launch["shared"]))
    return found


def convolution_launches(bindings, plan: eqk.Plan, dual: bool, wanted: str) -> list[dict]:
    """The same of the convolution in float32, none where its kernels do not cover the plan."""
    columns = [plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim]
    address, indices = 4096, [(4096, 1, 8)] * 4
    values = [address, address, address if plan.weights != "none" else 0, address if wanted != "g" else 0]
    tangents = [*values[:3], 0] if dual else [0] * 4
    results = [address if slot in wanted and (slot != "w" or values[2]) else 0 for slot in "xywg"]
    sizes = (ROWS, ROWS, ROWS)
    problem = bindings.Convolution(str(plan), "float32", sizes, indices, dual, values, tangents, columns, results)
    return problem.launches(address) if problem.covered else []


def radial_launches(bindings, plan: eqk.Plan, exact: bool, shared: int = H100[1]) -> list[dict]:
    """The same of the forward with weights h a."""
    columns = [plan.irreps_in1.dim, plan.irreps_in2.dim, HIDDEN, plan.weight_numel]
    indices = [(4096, 1, 8)] * 4
    problem = bindings.RadialConvolution(
        str(plan), (ROWS, ROWS, ROWS, HIDDEN), indices, [4096] * 4, columns, 4096, exact, (H100[0], shared)
    )
    return problem.launches(4096) if problem.covered else []


def gaunt_plan(kind: str, lmax: int | str) -> eqk.GauntPlan:
    return eqk.GauntPlan.normalized(*[int(lmax)] * 3, *[GAUNT_CHANNELS] * 2, kind, "component")


def gaunt_launches(bindings, kind: str, lmax: int | str, phase: str) -> list[dict]:
    """The same of products of signals in float32."""
    wanted = [address * want for address, want in zip([4096] * 3, GAUNT_PHASES[phase], strict=True)]
    values, none = [4096, 4096, 0, 0, 0, 0 if wanted[2] else 4096], [0] * 6
    strides, results = [4096] * 6, [*wanted[:2], 0, 0, 0, wanted[2]]
    plan = str(gaunt_plan(kind, lmax))
    return bindings.GauntProblem(plan, "float32", GAUNT_ROWS, False, values, none, strides, none, results).launches()


def wigner_launch(bindings, lmax: str, mmax: str, phase: str, dtype: str = "float32") -> dict:
    g = 4096 if phase == "backward" else 0
    return bindings.wigner_launch(int(lmax), int(mmax), dtype, WIGNER_ROWS, 4096, 4, g, 4096, 4096)


def kernel_rows(codes: Mapping[str, Sequence[Code]], bindings) -> list[dict]:
    rows, of_any = [], all_launches(bindings)
    for architecture, sources in codes.items():
        launched = of_any | all_radial_launches(bindings, architecture)
        for name, usage in sorted((k, v) for code in sources for k, v in code.kernels.items()):
            limits, registers = ARCHITECTURES[architecture], usage["registers"]
            # Of the launches, the one of fewest warps on a multiprocessor.
            warps, negative, threads = min(
                (occupancy(limits, registers, usage["static"] + shared, threads), -shared, threads)
                for threads, shared in launched[name]
            )
            rows.append({
                "kernel": name.removeprefix("eqk_tensor_product_").removeprefix("eqk_"),
                "architecture": architecture,
                "registers": registers, "stack": usage["stack"], "shared": usage["static"] - negative,
                "threads": threads, "warps": warps, "code": usage["code"], "compile_s": usage["compile_s"],
            })  # fmt: skip
    return rows


def arithmetic_run(ptx: str, instructions: Sequence[tuple[str, int]], warps_by_line: Mapping[int, int]) -> int:
    """Float32 instructions of PTX that ran, without those that have no machine code, as many as products at most: ptxas
    makes one of a product and a sum."""
    made, lines = {line for opcode, line in instructions if arithmetic(opcode)}, ptx.splitlines()
    opcodes = {n: re.sub(r"^\{?\s*(@!?%\w+\s+)?", "", lines[n - 1].strip()).split()[0] for n in warps_by_line}
    ran = {line: n for line, n in warps_by_line.items() if arithmetic(opcodes[line])}
    lost = sum(n for line, n in ran.items() if line not in made)
    return sum(ran.values()) - min(lost, sum(n for line, n in ran.items() if opcodes[line].startswith("mul.f32")))


def sass_of(kernel: str, stats, sources: Sequence[Code]) -> float:
    """Machine instructions that the warps of a launch execute."""
    code = next(code for code in sources if kernel in code.kernels)
    estimate = sass_estimate(code.ptx, kernel, code.instructions[kernel], stats.warps_by_line)
    found = sum(n for opcode, n in estimate.items() if arithmetic(opcode))
    expected = arithmetic_run(code.ptx, code.instructions[kernel], stats.warps_by_line)
    if expected and not 0.9 < found / expected < 1.1:
        raise RuntimeError(
            f"{code.path.stem}: expected an estimate of float32 instructions within 10 % of the {expected} counted, "
            f"got {found:.0f}: the lines of PTX do not tell how often its machine code runs"
        )
    return estimate.total()


def plan_of(problem: str) -> eqk.Plan:
    return PROBLEMS[problem] if problem in PROBLEMS else CASES[problem].plan


def problems(bindings, names: Iterable[str], phases: Iterable[str]) -> list[tuple[str, str, str]]:
    """KEYS["problems"] of what there is to count: by the kernels of any plan, and by a plan's own where it has some."""

    def kernels(problem: str, phase: str, of_plan: str) -> list[str]:
        return [l["name"] for l in launches(bindings, plan_of(problem), "float32", *PHASES[phase], of_plan)]

    keys = [(problem, phase, of_plan) for problem in names for phase in phases for of_plan in (ANY, OWN)]
    return [key for key in keys if key[2] == ANY or kernels(*key) != kernels(*key[:2], ANY)]


def problem_row(
    emulator: Emulator, codes: Mapping[str, Sequence[Code]], problem: str, phase: str, of_plan: str
) -> dict:
    """What an edge of the problem costs."""
    plan, (dual, wanted) = plan_of(problem), PHASES[phase]
    generator = torch.Generator().manual_seed(0)
    columns = [plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim]
    draw = lambda: [torch.randn(ROWS, n, generator=generator).numpy() for n in columns]  # noqa: E731
    values, tangents = draw(), [*draw()[:3], None] if dual else [None] * 4
    if wanted == "g":
        values[3] = None
    wants = [slot in wanted for slot in "xywg"]
    results, executed = emulator.run(
        plan, "float32", values, tangents, wants, dual, pad=0, count=True, listed=of_plan == OWN
    )
    moved = sum(a.nbytes for a in (*values, *tangents, *results) if a is not None)
    row = dict(zip(KEYS["problems"], (problem, phase, of_plan), strict=True))
    return row | costs(executed, moved, ROWS, codes)


def convolution_row(
    emulator: Emulator, codes: Mapping[str, Sequence[Code]], problem: str, phase: str, degrees: str
) -> dict:
    """What an edge costs of a graph whose destinations have such degrees, its edges in order."""
    plan, (dual, wanted) = plan_of(problem), PHASES[phase]
    nodes, edges = len(DEGREES[degrees]), sum(DEGREES[degrees])
    generator = torch.Generator().manual_seed(0)
    columns = [plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim]
    rows = (nodes, edges, edges, nodes)
    draw = lambda: [torch.randn(*shape, generator=generator).numpy() for shape in zip(rows, columns, strict=True)]  # noqa: E731
    values, tangents = draw(), [*draw()[:3], None] if dual else [None] * 4
    if wanted == "g":
        values[3] = None
    src = torch.randint(nodes, (edges,), generator=generator)
    dst = torch.arange(nodes).repeat_interleave(torch.tensor(DEGREES[degrees]))
    graph = (src.numpy(), dst.numpy(), torch.arange(edges).numpy(), src.argsort(stable=True).numpy())
    wants = [slot in wanted for slot in "xywg"]
    results, executed = emulator.run_convolution(
        plan, "float32", (*graph, nodes), values, tangents, wants, dual, pad=0, count=True
    )
    used = graph if "x" in wanted else graph[:3]
    moved = sum(a.nbytes for a in (*values, *tangents, *results, *used) if a is not None)
    row = dict(zip(KEYS["convolutions"], (problem, phase, degrees), strict=True))
    return row | costs(executed, moved, edges, codes)


def radial_row(
    emulator: Emulator, codes: Mapping[str, Sequence[Code]], problem: str, precision: str, degrees: str
) -> dict:
    """The same of the forward with weights h a. tensor: operations on tensor cores."""
    plan, of_nodes = plan_of(problem), DEGREES[degrees] * (RADIAL_EDGES // sum(DEGREES[degrees]))
    nodes, edges = len(of_nodes), sum(of_nodes)
    generator = torch.Generator().manual_seed(0)
    shapes = (nodes, plan.irreps_in1.dim), (edges, plan.irreps_in2.dim), (edges, HIDDEN), (HIDDEN, plan.weight_numel)
    values = [torch.randn(shape, generator=generator).numpy() for shape in shapes]
    src = torch.randint(nodes, (edges,), generator=generator)
    dst = torch.arange(nodes).repeat_interleave(torch.tensor(of_nodes))
    graph = (src.numpy(), dst.numpy(), torch.arange(edges).numpy())
    device = (1, H100[1])
    result, executed = emulator.run_radial(
        plan, (*graph, nodes), values, PRECISIONS[precision], device, pad=0, count=True
    )
    moved = sum(a.nbytes for a in (*values, result, *graph))
    row = dict(zip(KEYS["radial"], (problem, precision, degrees), strict=True))
    tensor = sum(n for _, stats in executed for kind, n in stats.flops.items() if kind.startswith("mma."))
    # One multiprocessor has no work for all teams of a block: warps are counted of the blocks of an H100.
    of_h100 = radial_launches(emulator.bindings, plan, PRECISIONS[precision])
    executed = [(launch, stats) for launch, (_, stats) in zip(of_h100, executed, strict=True)]
    return row | costs(executed, moved, edges, codes) | {"tensor": tensor / edges}


def gaunt_row(emulator: Emulator, codes: Mapping[str, Sequence[Code]], kind: str, lmax: str, phase: str) -> dict:
    """What a row costs."""
    plan, wanted = gaunt_plan(kind, lmax), GAUNT_PHASES[phase]
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(GAUNT_ROWS, n, generator=generator).numpy() for n in plan.dims]
    if wanted[2]:
        values[2] = None
    results, executed = emulator.run_gaunt(plan, values, None, wanted, pad=0, count=True)
    moved = sum(a.nbytes for a in (*values, *results) if a is not None)
    return dict(zip(KEYS["gaunt"], (kind, lmax, phase), strict=True)) | costs(executed, moved, GAUNT_ROWS, codes)


def wigner_row(emulator: Emulator, codes: Mapping[str, Sequence[Code]], lmax: str, mmax: str, phase: str) -> dict:
    """What an edge costs."""
    generator, degrees = torch.Generator().manual_seed(0), (int(lmax), int(mmax))
    q, g = (torch.randn(WIGNER_ROWS, n, generator=generator).numpy() for n in (4, wigner_columns(*degrees)))
    g = g if phase == "backward" else None
    result, executed = emulator.run_wigner(*degrees, "float32", q, g, pad=0, count=True)
    moved = sum(a.nbytes for a in (q, g, result) if a is not None)
    return dict(zip(KEYS["wigner"], (lmax, mmax, phase), strict=True)) | costs(executed, moved, WIGNER_ROWS, codes)


def message_rows(problem: str, directory: Path) -> list[dict]:
    """What the Triton kernels of the message cost, per edge, in a graph whose edges all read two rows of their own.

    registers, stack, shared: on sm_90, which the emulator does not know; the same code for sm_80, in the same tiles,
    gives the counts. traffic: bytes of sectors that are touched, once each, but for those of the matrices, which all
    edges share, and of nodes without edges, of which a graph has few. read, written: sectors that warps request,
    matrices included. tensor, lanes: multiply-adds of float32 on tensor cores, three of TF32 each, and others.
    """
    channels, edges = MESSAGES[problem]
    plan = message_plan(problem)
    one, two = plan.convolutions
    generator = torch.Generator().manual_seed(0)
    nodes = 2 * edges
    shapes = (nodes, 9, channels), (edges, 4), (edges, channels), (channels, plan.weights[1]), (edges, 1)
    operands = [torch.randn(*shape, generator=generator) for shape in (*shapes, (one.numel(),), (two.numel(),))]
    pairs = torch.randperm(nodes, generator=generator).view(2, edges)
    index = torch.cat([pairs, torch.arange(edges)[None] // MESSAGE_DEGREE])
    tile = so2_edge_message.tile_of(MESSAGE_TARGET)
    with mock.patch.object(so2_edge_message, "_tile", return_value=tile), emulated(80, directory) as driver:
        driver.counts = True
        so2_edge_message._forward(*operands, index, str(plan), False)
    isolated = (nodes - len(index[2].unique())) * operands[0][0].numel()
    not_counted = one.numel() + operands[3].numel(), two.numel(), isolated
    rows = []
    for (source, stats), numbers in zip(driver.launches, not_counted, strict=True):
        tensor = stats.flops.get("mma.tf32", 0) / 2 / 3 / edges
        lanes = stats.thread_insts["fma.fp32"] / edges
        rows.append({
            "problem": problem, "kernel": source.fn.__name__, "architecture": f"sm_{MESSAGE_TARGET.arch}",
            **message_usage(source, directory),
            "traffic": (stats.unique_bytes["sectors32"] - 4 * numbers) / edges,
            **{k: stats.mem[f"global.{way}"]["sectors"] / edges for k, way in (("read", "load"), ("written", "store"))},
            "tensor": tensor, "lanes": lanes, "share": tensor / (tensor + lanes) if tensor else 0,
        })  # fmt: skip
    return rows


def message_plan(problem: str) -> MessagePlan:
    channels, _ = MESSAGES[problem]
    return MessagePlan(2, 2, 2 * channels, channels, channels, "gate", False, False, "")


def message_usage(source, directory: Path) -> dict[str, int]:
    made = triton.compile(source, target=MESSAGE_TARGET, options=so2_edge_message.OPTIONS)
    path = directory / "message.cubin"
    path.write_bytes(made.asm["cubin"])
    found = cuobjdump("--dump-resource-usage", path)
    used = {k: int(re.search(rf"{of}:(\d+)", found)[1]) for k, of in (("registers", "REG"), ("stack", "STACK"))}
    return used | {"shared": made.metadata.shared}


def unfused(plan: MessagePlan, features: int) -> int:
    """Bytes an edge of the message as one operation after the other, each of its operands and results once.

    Both nodes' rows gathered and joined, rotated, multiplied by r = h a, the layers with the activation between, rows
    times w, rotated back and added to nodes; without what all edges share.
    """
    one, _ = plan.convolutions
    rows, numbers = count(plan.lmax, plan.mmax), count(plan.lmax)
    weights, dense = plan.weights[1], rows * numbers
    z, y, out = rows * plan.channels_in, rows * one.channels_out + one.extra, rows * plan.channels_out
    gathered, back = numbers * plan.channels_in, numbers * plan.channels_out
    active = rows * plan.hidden
    steps = (
        2 * gathered, gathered + dense + z, features + weights, z + weights + z, z + y, y + active, active + out,
        2 * out + 1, out + dense + back, back,
    )  # fmt: skip
    return 4 * sum(steps)


def costs(executed: Sequence[tuple], moved: int, rows: int, codes: Mapping[str, Sequence[Code]]) -> dict:
    """Of launches and their counts, per row. ``moved``: the bytes of operands and results."""
    total = functools.reduce(add, (stats for _, stats in executed))
    sectors = {kind: total.mem.get(f"global.{kind}", {}).get("sectors", 0) for kind in ("load", "store")}
    counted = {
        "compulsory": moved,
        "multiply_adds": total.thread_insts["fma.fp32"],
        "flops": total.flops["fp32"],
        "arithmetic": total.warp_insts["fma.fp32"] + total.warp_insts["fp32"],
        "ptx": total.total_warp_insts,
        "read": sectors["load"],
        "written": sectors["store"],
        "wavefronts": sum(m.get("wavefronts", 0) for k, m in total.mem.items() if k.startswith("shared.")),
        "shuffles": total.warp_insts["warp"],
        "atomics": sum(n for kind, n in total.warp_insts.items() if kind.startswith("atomic.")),
    }
    row = {k: v / rows for k, v in counted.items()}
    row["sectors"] = 32 * sum(sectors.values()) / moved
    row["store_width"] = total.mem["global.store"]["bytes"] / total.thread_insts["st.global"]
    for architecture, sources in codes.items():
        row[f"sass_{architecture}"] = sum(sass_of(launch["name"], stats, sources) for launch, stats in executed) / rows
    for architecture, limits in ARCHITECTURES.items():
        if limits["machine_code"] in codes:
            usage = {k: v for code in codes[limits["machine_code"]] for k, v in code.kernels.items()}
            row[f"warps_{architecture}"] = min(
                occupancy(limits, usage[n]["registers"], usage[n]["static"] + launch["shared"], launch["block"])
                for n, launch in ((launch["name"], launch) for launch, _ in executed)
            )
    return row


def products(plan: eqk.Plan, chip: Mapping) -> float:
    """Nanoseconds an edge of w = h a, gw a^T and h^T gw: on the lanes, or w written and gw read twice."""
    multiply_adds = 3 * HIDDEN * plan.weight_numel
    on_lanes = multiply_adds / (chip["multiprocessors"] * chip["lanes"] * chip["clock"])
    return 1e9 * max(on_lanes, 3 * 4 * plan.weight_numel / chip["dram"])


def radial_backward_rows(conv_models: Iterable[Mapping]) -> list[dict]:
    rows = []
    for row in conv_models:
        if row["phase"] != "backward":
            continue
        given, of_products = row["modelled"], products(PROBLEMS[row["problem"]], CHIPS[row["chip"]])
        rows.append({
            **{key: row[key] for key in ("chip", "problem", "degrees")}, "given": given, "products": of_products,
            "modelled": given + of_products, "to_given": (given + of_products) / given,
        })  # fmt: skip
    return rows


def model_rows(
    problems: Iterable[Mapping], measured: Mapping[tuple, float], keys: Sequence[str] = KEYS["problems"]
) -> list[dict]:
    """``measured``: nanoseconds on this machine's GPU, by the values of ``keys``."""
    rows = []
    for name, chip in CHIPS.items():
        for row in problems:
            terms = model(row, chip)
            bound = max(terms, key=terms.get)
            rows.append({
                "chip": name, **{key: row[key] for key in keys},
                **{term: terms.get(term, "") for term in ("dram", "l2", "arithmetic", "issue", "l1", "tensor")},
                "modelled": terms[bound], "bound": bound,
                "measured": measured.get(tuple(row[k] for k in keys), "") if here(chip) else "",
                "warps": row[f"warps_{chip['architecture']}"],
            })  # fmt: skip
    return rows


def here(chip: Mapping) -> bool:
    return torch.cuda.is_available() and chip["device"] in torch.cuda.get_device_name()


def operation(plan: eqk.Plan, phase: str, edges: int, device: str):
    """The call that a phase measures."""
    generator = torch.Generator().manual_seed(0)
    columns = [plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim]
    x, y, w, g, *t = (torch.randn(edges, n, generator=generator).to(device) for n in (*columns, *columns[:3]))
    ops, text = torch.ops.eqk, str(plan)
    return {
        "forward": lambda: ops.tensor_product(x, y, w, text),
        "backward": lambda: ops.tensor_product_backward(x, y, w, g, text, [True] * 3),
        "double backward": lambda: ops.tensor_product_double_backward(x, y, w, g, *t, None, text, [True] * 4),
        "jvp": lambda: ops.tensor_product_jvp(x, y, w, *t, text),
    }[phase]


def measured_graph(degrees: str, edges: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, int]:
    pattern = DEGREES[degrees]
    nodes = max(1, edges // sum(pattern)) * len(pattern)
    dst = torch.arange(nodes).repeat_interleave(torch.tensor(pattern).repeat(nodes // len(pattern)))
    return torch.randint(nodes, dst.shape, generator=generator), dst, nodes


def convolution(plan: eqk.Plan, phase: str, degrees: str, edges: int, device: str):
    """The call that a phase of the convolution measures, on a graph of about so many edges, which come in order."""
    generator = torch.Generator().manual_seed(0)
    src, dst, nodes = measured_graph(degrees, edges, generator)
    by_dst = torch.arange(len(dst))
    columns = (plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel)
    shapes = list(zip((nodes, len(dst), len(dst)), columns, strict=True))
    x, y, w, *t = (torch.randn(*shape, generator=generator).to(device) for shape in shapes * 2)
    g = torch.randn(nodes, plan.irreps_out.dim, generator=generator).to(device)
    rest = (src.to(device), dst.to(device), nodes, str(plan), by_dst.to(device))
    by_src = src.argsort(stable=True).to(device)
    ops = torch.ops.eqk
    return {
        "forward": lambda: ops.tensor_product_conv(x, y, w, *rest),
        "backward": lambda: ops.tensor_product_conv_backward(x, y, w, g, *rest, by_src, [True] * 3),
        "double backward": lambda: ops.tensor_product_conv_double_backward(
            x, y, w, g, *t, None, *rest, by_src, [True] * 4
        ),
        "jvp": lambda: ops.tensor_product_conv_jvp(x, y, w, *t, *rest),
    }[phase], len(dst)


def radial_convolution(plan: eqk.Plan, precision: str, degrees: str, edges: int, device: str):
    """The same of the forward with weights h a."""
    generator = torch.Generator().manual_seed(0)
    src, dst, nodes = measured_graph(degrees, edges, generator)
    by_dst = torch.arange(len(dst))
    columns = (plan.irreps_in1.dim, plan.irreps_in2.dim, HIDDEN, plan.weight_numel)
    shapes = zip((nodes, len(dst), len(dst), HIDDEN), columns, strict=True)
    operands = [torch.randn(*shape, generator=generator).to(device) for shape in shapes]
    rest = (src.to(device), dst.to(device), nodes, str(plan), by_dst.to(device))

    def run():
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest" if PRECISIONS[precision] else "high")
        try:
            return torch.ops.eqk.tensor_product_conv_radial(*operands, *rest)
        finally:
            torch.set_float32_matmul_precision(before)

    return run, len(dst)


def measure(run: Callable, edges: int) -> float:
    """Nanoseconds an edge, the median of 20 runs."""
    for _ in range(5):
        run()
    times = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times) * 1e6 / edges


def spills(kernels: Iterable[Mapping]) -> list[str]:
    """Complaints about kernels that keep registers on the stack."""
    return [
        f"{row['kernel']}, {row['architecture']}: expected no stack, got {row['stack']} bytes a thread"
        for row in kernels
        if row["stack"]
    ]


def growth(counted: Iterable[Mapping], committed: Iterable[Mapping], keys: Sequence[str]) -> list[str]:
    """Complaints about numbers that are worse than the committed ones by more than TOLERANCE."""
    known, complaints = {tuple(row[k] for k in keys): row for row in committed}, []
    for row in counted:
        name = ", ".join(row[k] for k in keys)
        before = known.get(tuple(row[k] for k in keys))
        if before is None:
            complaints.append(f"{name}: not among the committed counts, which --update writes")
            continue
        for column in (c for c in row if c not in keys and c not in NOT_COMPARED):
            old, new = float(before[column]), float(row[column])
            more = BETTER_MORE.fullmatch(column)
            worse, limit = (old - new, TOLERANCE * old) if more else (new - old, TOLERANCE * old)
            if worse > limit:
                percent = f" ({100 * (new - old) / old:+.1f} %)" if old else ""
                complaints.append(f"{name}: {column} {'fell' if more else 'grew'} from {old:g} to {new:g}{percent}")
    return complaints


def gone(counted: Iterable[Mapping], committed: Iterable[Mapping], keys: Sequence[str]) -> list[str]:
    """Complaints about rows that are committed and were not counted."""
    names = {tuple(row[k] for k in keys) for row in counted}
    missing = (key for key in (tuple(row[k] for k in keys) for row in committed) if key not in names)
    return [f"{', '.join(key)}: committed, but no longer counted; --update drops it" for key in missing]


def in_library(row: Mapping, plans: Sequence[str], degrees: Sequence[int]) -> bool:
    """Whether the library has what a committed row is of: kernels of some plans or up to some degree it may lack."""
    if "kernel" in row:
        scope = re.search(r"_f\d\d_(?:l(\d)|(\w+))$", row["kernel"])
        return scope is None or (int(scope[1]) in degrees if scope[1] else scope[2] in plans)
    if "problem" not in row:
        return True
    return (row["problem"] in PROBLEMS and row.get("of_plan", ANY) == ANY) or row["problem"].replace("-", "_") in plans


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: Sequence[Mapping], without: Sequence[str] = ()) -> None:
    columns = [c for c in rows[0] if c not in without]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([shorten(row[c]) for c in columns] for row in rows)


def shorten(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def print_table(title: str, rows: Sequence[Mapping]) -> None:
    from tabulate import tabulate

    cells = [[f"{v:.4g}" if isinstance(v, float) and v < 1000 else f"{v:.0f}" if isinstance(v, float) else v
              for v in row.values()] for row in rows]  # fmt: skip
    table = tabulate(cells, headers=list(rows[0]), tablefmt="github", disable_numparse=True)
    print(f"\n{title}\n\n{table}")


def roofline(problems: Sequence[Mapping], path: Path) -> None:
    """A roof a chip; where each problem and phase would be if the model were the time."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(15, 9), sharex=True, sharey=True, layout="constrained")
    names = list(dict.fromkeys(row["problem"] for row in problems))
    colors = dict(zip(names, pyplot.colormaps["tab20"].colors, strict=False))
    markers = dict(zip(PHASES, "osD^", strict=True))
    for axis, (name, chip) in zip(axes.flat, CHIPS.items(), strict=False):
        peak = 2 * chip["multiprocessors"] * chip["lanes"] * chip["clock"]
        intensities = [0.3, peak / chip["dram"], 300]
        roof = [min(peak, chip["dram"] * i) / 1e12 for i in intensities]
        axis.loglog(intensities, roof, color="black", linewidth=1)
        axis.text(0.97, 0.03, f"{chip['dram'] / 1e12:.3g} TB/s, {peak / 1e12:.3g} TFLOPS", transform=axis.transAxes,
                  horizontalalignment="right")  # fmt: skip
        for row in problems:
            axis.plot(
                row["flops"] / row["compulsory"], row["flops"] / max(model(row, chip).values()) / 1e3,
                markers[row["phase"]], color=colors[row["problem"]], markersize=7,
                markerfacecolor=colors[row["problem"]] if row["of_plan"] == OWN else "none",
            )  # fmt: skip
        axis.set_title(f"{name} (modelled)")
        axis.grid(which="both", alpha=0.2)
    for axis in axes[:, 0]:
        axis.set_ylabel("TFLOPS, float32")
    for axis in axes[1]:
        axis.set_xlabel("operations a compulsory byte")
    axes[0, 2].tick_params(labelbottom=True)
    axes[0, 2].set_xlabel("operations a compulsory byte")
    legend = axes[1, 2]
    legend.axis("off")
    for problem, color in colors.items():
        legend.plot([], [], "o", color=color, label=problem)
    for phase, marker in markers.items():
        legend.plot([], [], marker, color="black", markerfacecolor="none", label=phase)
    if any(row["of_plan"] == OWN for row in problems):
        legend.plot([], [], "o", color="black", label="filled: by the kernels of that plan alone")
    legend.plot([], [], color="black", linewidth=1, label="roof: memory, float32 lanes")
    legend.legend(loc="center", frameon=False, fontsize=12)
    figure.savefig(path, dpi=100)


def to_peer(row: Mapping, of: Mapping) -> float | str:
    """Machine instructions over those of the peer; nothing where it has no such kernel."""
    of_problems = of["sass"][row["degrees"]] if "degrees" in row else of["sass"]
    peer = of_problems.get(row["problem"], {}).get(row["phase"])
    return row[f"sass_{PEER['architecture']}"] / peer if peer else ""


def assemble(texts: Iterable[str], architectures: Iterable[str], library: Path, directory: Path):
    """{architecture: the machine code of each text}, checked to be the library's."""
    texts, architectures = list(texts), list(architectures)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {a: [pool.submit(Code, text, a, directory) for text in texts] for a in architectures}
        codes = {a: [job.result() for job in of_one] for a, of_one in jobs.items()}
    for architecture, of_one in codes.items():
        check_same_code(of_one, library, architecture, directory)
    return codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    library = library_path()
    if not library.exists():
        sys.exit("gpu_report: eqk was installed without its CUDA library: install it with EQK_CUDA=1, where nvcc is")
    plans, degrees = listed_plans(library), channel_degrees(library)
    names = list(dict.fromkeys([*PROBLEMS, *(plan.replace("_", "-") for plan in plans)]))
    parser.add_argument("--problems", nargs="+", default=names, choices=names, metavar="PROBLEM")
    parser.add_argument("--phases", nargs="+", default=list(PHASES), choices=PHASES)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu_report")
    parser.add_argument("--update", action="store_true", help="write the committed counts instead of comparing")
    args = parser.parse_args()
    everything = set(args.problems) == set(names) and set(args.phases) == set(PHASES)
    if args.update and not everything:
        parser.error("--update takes all problems and phases")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        texts = ptx_of(library)
        bindings = installed_bindings()
        codes = assemble(texts, MACHINE_CODES, library, directory)
        asked = problems(bindings, args.problems, args.phases)
        needed = {l["name"] for problem, phase, of_plan in asked
                  for l in launches(bindings, plan_of(problem), "float32", *PHASES[phase], of_plan)}  # fmt: skip
        convolutions = [(problem, phase, degrees) for problem in args.problems if problem in PROBLEMS
                        for phase in CONVOLUTION_PHASES if phase in args.phases for degrees in DEGREES]  # fmt: skip
        needed |= {l["name"] for problem, phase, _ in convolutions
                   for l in convolution_launches(bindings, plan_of(problem), *PHASES[phase])}  # fmt: skip
        radial = [(problem, precision, degrees) for problem in args.problems if problem in PROBLEMS
                  for precision in PRECISIONS if "forward" in args.phases for degrees in DEGREES]  # fmt: skip
        needed |= {l["name"] for problem, precision, _ in radial
                   for l in radial_launches(bindings, plan_of(problem), PRECISIONS[precision])}  # fmt: skip
        gaunt = [key for key in GAUNTS if key[2] in args.phases]
        needed |= {l["name"] for key in gaunt for l in gaunt_launches(bindings, *key)}
        wigner = [key for key in WIGNERS if key[2] in args.phases]
        needed |= {wigner_launch(bindings, *key)["name"] for key in wigner}
        messages = MESSAGES if "forward" in args.phases else {}
        emulator = Emulator([text for text in texts if needed & set(kernels_of(text))], bindings)
        counted = {
            "kernels": kernel_rows(codes, bindings),
            "problems": [problem_row(emulator, codes, *names) for names in asked],
            "convolutions": [convolution_row(emulator, codes, *names) for names in convolutions],
            "radial": [radial_row(emulator, codes, *names) for names in radial],
            "gaunt": [gaunt_row(emulator, codes, *names) for names in gaunt],
            "wigner": [wigner_row(emulator, codes, *names) for names in wigner],
            "messages": [row for problem in messages for row in message_rows(problem, directory)],
        }
    # The library takes the plan's own kernels where there are some.
    fastest = [key for key in asked if key[2] == OWN or (*key[:2], OWN) not in asked]
    measured, of_convolutions, of_radial = {}, {}, {}
    if torch.cuda.is_available():
        measured = {key: measure(operation(plan_of(key[0]), key[1], EDGES, "cuda"), EDGES) for key in fastest}
        of_convolutions = {key: measure(*convolution(plan_of(key[0]), *key[1:], EDGES, "cuda")) for key in convolutions}
        of_radial = {key: measure(*radial_convolution(plan_of(key[0]), *key[1:], EDGES, "cuda")) for key in radial}
    models = model_rows(counted["problems"], measured)
    conv_models = model_rows(counted["convolutions"], of_convolutions, KEYS["convolutions"])

    radial_backwards = radial_backward_rows(conv_models)
    gaunt_models, wigner_models = (model_rows(counted[title], {}, KEYS[title]) for title in ("gaunt", "wigner"))
    # Where a block of an H100 does not fit, other launches run.
    radial_models = [r for r in model_rows(counted["radial"], of_radial, KEYS["radial"]) if r["warps"]]

    print_table("Kernels", counted["kernels"])
    for title, peer in (("problems", PEER), ("convolutions", PEER["convolution"])):
        if not (rows := counted[title]):
            continue
        keys, name = KEYS[title], title.capitalize()
        by_code = [c for c in rows[0] if c.startswith(("sass_", "warps_"))]
        print_table(f"{name}, per edge", [{k: v for k, v in r.items() if k not in by_code} for r in rows])
        of_peer = f"{peer['name']} on {PEER['architecture']} ({peer['warps']} warps)"
        print_table(
            f"{name}: machine instructions of warps, per edge, and resident warps; to_peer: over those of {of_peer}",
            [{k: r[k] for k in (*keys, *by_code)} | {"to_peer": to_peer(r, peer)} for r in rows],
        )
    print_table("Model, ns an edge", models)
    if conv_models:
        floors = [{**row, "to_floor": row["modelled"] / row["dram"]} for row in conv_models]
        print_table("Model of the convolutions, ns an edge, and over the memory floor", floors)
    if radial_models:
        given = {(r["chip"], r["problem"], r["degrees"]): r["modelled"] for r in conv_models if r["phase"] == "forward"}
        print_table("Radial, per edge", counted["radial"])
        print_table(
            "Model of the forward with weights h a, ns an edge, and over that with the weights given",
            [{**r, "to_given": r["modelled"] / given[r["chip"], r["problem"], r["degrees"]]} for r in radial_models],
        )
    if radial_backwards:
        print_table(
            "Model of the backward with weights h a: that with the weights given and products in float32, ns an edge",
            radial_backwards,
        )
    if gaunt_models:
        print_table("Products of signals, per row", counted["gaunt"])
        floors = [{**row, "to_floor": row["modelled"] / row["dram"]} for row in gaunt_models]
        print_table("Model of the products of signals, ns a row, and over the memory floor", floors)
    if wigner_models:
        print_table("Wigner matrices, per edge", counted["wigner"])
        floors = [{**row, "to_floor": row["modelled"] / row["dram"]} for row in wigner_models]
        print_table("Model of the Wigner matrices, ns an edge, and over the memory floor", floors)
    if messages:
        print_table("Messages of eSCN, in Triton, per edge", counted["messages"])
    for problem, (channels, _) in messages.items():
        fused = sum(row["traffic"] for row in counted["messages"] if row["problem"] == problem) / 1024
        apart = unfused(message_plan(problem), channels) / 1024
        print(f"{problem}: {fused:.1f} KiB an edge, {apart:.0f} KiB with one operation after the other")
    if measured and not any(here(chip) for chip in CHIPS.values()):
        title = f"Measured on {torch.cuda.get_device_name()}, which bench/gpu_chips.json lacks, ns an edge"
        for of, times in (("problems", measured), ("convolutions", of_convolutions), ("radial", of_radial)):
            if times:
                print_table(
                    title, [dict(zip(KEYS[of], key, strict=True)) | {"measured": t} for key, t in times.items()]
                )
    args.output.mkdir(parents=True, exist_ok=True)
    modelled = {"model": models, "model_of_convolutions": conv_models, "model_of_radial": radial_models,
                "model_of_radial_backward": radial_backwards, "model_of_gaunt": gaunt_models,
                "model_of_wigner": wigner_models}  # fmt: skip
    for title, rows in (counted | modelled).items():
        if rows:  # no convolutions, where only phases or problems without were asked for
            write_csv(args.output / f"{title}.csv", rows)
    roofline(counted["problems"], args.output / "roofline.png")

    complaints = spills([*counted["kernels"], *counted["messages"]])
    for title, path in COMMITTED.items():
        if args.update:
            write_csv(path, counted[title], without=NOT_COMMITTED)
            continue
        complaints += growth(counted[title], read_csv(path), KEYS[title])
        if everything:
            expected = [r for r in read_csv(path) if in_library(r, plans, degrees)]
            complaints += gone(counted[title], expected, KEYS[title])
    if complaints:
        sys.exit("gpu_report: worse than expected:\n" + "\n".join(f"  {c}" for c in complaints))


if __name__ == "__main__":
    main()
