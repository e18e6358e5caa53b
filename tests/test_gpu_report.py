"""bench/gpu_report.py: its arithmetic against independent values, and the committed counts against a fresh count."""

import ctypes
import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import ptxemu
import pytest
import torch
import triton

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
import gpu_report as report
from emulated_cuda import Emulator, installed_bindings, library_path, ptx_of
from test_cuda import require_nvcc

ARCHITECTURES = sorted(report.ARCHITECTURES)

# NVIDIA's occupancy calculator, which is a header of the CUDA toolkit.
CALCULATOR = """
#include "cuda_occupancy.h"
extern "C" int warps(int major, int minor, int most_warps, int registers_most, int shared_most, int registers,
                     int shared, int threads) {
  cudaOccDeviceProp device;
  device.computeMajor = major, device.computeMinor = minor;
  device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = 32 * most_warps, device.warpSize = 32;
  device.regsPerBlock = device.regsPerMultiprocessor = registers_most;
  device.sharedMemPerBlock = 49152, device.sharedMemPerMultiprocessor = shared_most, device.numSms = 1;
  device.sharedMemPerBlockOptin = shared_most - 1024, device.reservedSharedMemPerBlock = 1024;
  cudaOccFuncAttributes kernel;
  kernel.maxThreadsPerBlock = 1024, kernel.numRegs = registers, kernel.sharedSizeBytes = 0;
  kernel.partitionedGCConfig = PARTITIONED_GC_OFF, kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  kernel.maxDynamicSharedSizeBytes = shared, kernel.numBlockBarriers = 1;
  const cudaOccDeviceState state;
  cudaOccResult result;
  if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared)) return -1;
  return result.activeBlocksPerMultiprocessor * (threads / 32);
}
"""


@pytest.fixture(scope="module")
def calculator(tmp_path_factory):
    directory = tmp_path_factory.mktemp("calculator")
    (directory / "calculator.cpp").write_text(CALCULATOR)
    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    command = [
        "g++",
        "-shared",
        "-fPIC",
        "-I",
        include,
        directory / "calculator.cpp",
        "-o",
        directory / "calculator.so",
    ]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(directory / "calculator.so")).warps


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_occupancy(calculator, architecture):
    limits, number = report.ARCHITECTURES[architecture], int(architecture.removeprefix("sm_"))
    found = set()
    # Whatever a channel kernel may be: registers of each step, shared memory to what every architecture has.
    for registers, shared, threads in itertools.product(range(16, 256), range(0, 99 << 10, 3083), (32, 64, 128, 256)):
        got = report.occupancy(limits, registers, shared, threads)
        expected = calculator(
            *divmod(number, 10), *(limits[k] for k in ("warps", "registers", "shared")), registers, shared, threads
        )
        assert got == expected, (registers, shared, threads)
        found.add(got)
    assert limits["warps"] in found
    assert len(found) > 8


ROW = {
    "problem": "p", "phase": "forward", "of_plan": "any", "compulsory": 20000.0, "arithmetic": 300.0, "read": 400.0,
    "written": 240.0, "wavefronts": 100.0, "shuffles": 20.0, "sass_sm_90": 1000.0, "store_width": 16.0, "warps_sm_90": 16,
}  # fmt: skip
CHIP = {"architecture": "sm_90", "multiprocessors": 100, "lanes": 128, "clock": 2e9, "dram": 4e12, "l2": 8e12}


def test_model():
    """By hand: 200 multiprocessor cycles a nanosecond."""
    expected = {"dram": 5.0, "l2": 2.56, "arithmetic": 0.375, "issue": 1.25, "l1": 1.4}
    assert report.model(ROW, CHIP) == pytest.approx(expected)
    without = {k: v for k, v in CHIP.items() if k != "l2"}
    assert report.model(ROW, without) == pytest.approx({k: v for k, v in expected.items() if k != "l2"})


def test_model_of_the_radial_backward():
    """By hand: products of 64 features on 132 x 128 lanes of 1.98 GHz, beside the weights' share of 3.35 TB/s."""
    numel = report.PROBLEMS["mace-large"].weight_numel
    row = {"chip": "H100 SXM", "problem": "mace-large", "degrees": "24", "modelled": 10.0}
    (result,) = report.radial_backward_rows([{**row, "phase": "backward"}, {**row, "phase": "forward"}])
    assert result["products"] == pytest.approx(max(3 * 64 * numel / 33.454e3, 12 * numel / 3.35e3), rel=1e-4)
    assert result["to_given"] == pytest.approx(1 + result["products"] / 10)


def committed(**changes):
    return [{k: str(v) for k, v in {**ROW, **changes}.items()}]


@pytest.mark.parametrize("column", [c for c in ROW if c not in report.KEYS["problems"]])
def test_growth(column):
    keys = report.KEYS["problems"]
    more = column in ("store_width", "warps_sm_90")
    for percent, complains in ((0, False), (4, False), (6, True), (-6, False)):
        change = 1 - percent / 100 if more else 1 + percent / 100
        complaints = report.growth([{**ROW, column: ROW[column] * change}], committed(), keys)
        assert len(complaints) == complains, complaints
        if complains:
            assert complaints[0].startswith(
                f"p, forward, any: {column} {'fell' if more else 'grew'} from {ROW[column]:g} to"
            )
            assert ("-6.0 %" if more else "+6.0 %") in complaints[0]


def test_rows_that_come_and_go():
    keys = report.KEYS["problems"]
    new = report.growth([{**ROW, "phase": "jvp"}], committed(), keys)
    assert new == ["p, jvp, any: not among the committed counts, which --update writes"]
    lost = report.gone([ROW], committed() + committed(phase="jvp"), keys)
    assert lost == ["p, jvp, any: committed, but no longer counted; --update drops it"]


def test_rows_of_plans_that_the_library_lacks():
    kernels = ["general_x_f32", "forward_f32_l3", "forward_f32_l4", "backward_dual_f32_mace_large"]
    built = [report.in_library({"kernel": kernel}, ["mace_medium"], [3]) for kernel in kernels]
    assert built == [True, True, False, False]
    assert all(report.in_library({"kernel": kernel}, ["mace_medium", "mace_large"], [3, 4]) for kernel in kernels)
    for of_plan, built, others in (("own", True, False), ("any", True, True)):
        row = {"problem": "mace-large", "of_plan": of_plan}
        assert report.in_library(row, ["mace_large"], [3]) == built
        assert report.in_library(row, [], [3]) == others
    assert not report.in_library({"problem": "mace-first", "of_plan": "any"}, [], [3])


def test_spills():
    kernel = {"kernel": "forward_f32_l3", "architecture": "sm_90", "stack": 0}
    assert report.spills([kernel]) == []
    (complaint,) = report.spills([{**kernel, "stack": 8}, kernel])
    assert complaint == "forward_f32_l3, sm_90: expected no stack, got 8 bytes a thread"


LOOP = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry loop(.param .u64 at)
{
  .reg .pred %p<2>;
  .reg .f32 %f<4>;
  .reg .b32 %r<4>;
  .reg .b64 %rd<6>;
  ld.param.u64 %rd1, [at];
  cvta.to.global.u64 %rd2, %rd1;
  mov.u32 %r1, 0;
  mov.f32 %f1, 0f00000000;
LBB:
  mul.wide.u32 %rd3, %r1, 4;
  add.s64 %rd4, %rd2, %rd3;
  ld.global.f32 %f2, [%rd4];
  fma.rn.f32 %f1, %f2, %f2, %f1;
  add.s32 %r1, %r1, 1;
  setp.lt.u32 %p1, %r1, 64;
  @%p1 bra LBB;
  st.global.f32 [%rd2], %f1;
  ret;
}
"""


def test_machine_instructions_of_a_loop(tmp_path):
    """64 passes, of which ptxas makes copies: what cannot be shared among them runs 64 times all the same."""
    require_nvcc()
    code = report.Code(LOOP, "sm_80", tmp_path)
    made = [opcode for opcode, _ in code.instructions["loop"]]
    assert made.count("FFMA") > 1, "ptxas no longer unrolls this loop: the test shows nothing"
    stats = ptxemu.Module(LOOP).launch("loop", (1,), (32,), [np.ones(64, np.float32)], count=True)
    estimate = report.sass_estimate(LOOP, "loop", code.instructions["loop"], stats.warps_by_line)
    assert estimate["FFMA"] == pytest.approx(64)
    assert estimate["LDG"] == pytest.approx(64)
    assert (estimate["STG"], estimate["EXIT"]) == (1, 1)
    # Each pass needs a load and a multiply-add; unrolled, less than half as much again for the loop.
    assert 128 < estimate.total() < 200


def test_the_calls_that_are_measured():
    plan = report.PROBLEMS["mace-medium-2e"]
    columns = [plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim]
    for phase, (_, wanted) in report.PHASES.items():
        results = report.operation(plan, phase, 3, "cpu")()
        results = [results] if isinstance(results, torch.Tensor) else results
        shapes = [(3, n) for slot, n in zip("xywg", columns, strict=True) if slot in wanted]
        assert [tuple(t.shape) for t in results] == shapes
        assert all(t.isfinite().all() and t.abs().max() > 0 for t in results)
    for phase, degrees in itertools.product(report.CONVOLUTION_PHASES, report.DEGREES):
        run, edges = report.convolution(plan, phase, degrees, 120, "cpu")
        assert 60 < edges <= 120
        results = run()
        if report.PHASES[phase][1] == "g":
            assert (results.abs().amax(1) > 0).sum() == sum(d > 0 for d in report.DEGREES[degrees]) * (
                results.shape[0] // len(report.DEGREES[degrees])
            )
            results = [results]
        wanted = [n for slot, n in zip("xywg", columns, strict=True) if slot in report.PHASES[phase][1]]
        assert [t.shape[1] for t in results] == wanted
        assert all(t.isfinite().all() and t.abs().max() > 0 for t in results)


def test_the_radial_calls_that_are_measured():
    plan = report.PROBLEMS["mace-medium-2e"]
    for precision, degrees in itertools.product(report.PRECISIONS, report.DEGREES):
        run, edges = report.radial_convolution(plan, precision, degrees, 120, "cpu")
        assert 60 < edges <= 120
        result = run()
        assert result.shape[1] == plan.irreps_out.dim
        assert result.isfinite().all()
        assert torch.get_float32_matmul_precision() == "highest"


def test_the_committed_counts(tmp_path):
    """One problem, counted anew: a change that makes a kernel worse than committed fails."""
    require_nvcc()
    library = library_path()
    problem, phase, architecture = "mace-medium-2e", "forward", "sm_90"
    bindings = installed_bindings()
    (launch,) = report.launches(bindings, report.PROBLEMS[problem], "float32", *report.PHASES[phase], report.ANY)
    (text,) = (text for text in ptx_of(library) if launch["name"] in report.kernels_of(text))
    codes = report.assemble([text], [architecture], library, tmp_path)
    row = report.problem_row(Emulator([text], bindings), codes, problem, phase, report.ANY)
    kernels = report.kernel_rows(codes, bindings)
    assert report.spills(kernels) == []
    for title, rows in (("problems", [row]), ("kernels", kernels)):
        assert report.growth(rows, report.read_csv(report.COMMITTED[title]), report.KEYS[title]) == []
    # What must happen, from the plan alone: each operand and result once, a multiply-add a nonzero and channel.
    plan = report.PROBLEMS[problem]
    columns = plan.irreps_in1.dim + plan.irreps_in2.dim + plan.weight_numel + plan.irreps_out.dim
    assert row["compulsory"] == 4 * columns
    assert row["read"] + row["written"] >= columns / 8
    assert row["multiply_adds"] > 128 * len(plan.instructions)
    assert row["sass_sm_90"] < row["ptx"]


@pytest.mark.parametrize(("phase", "of_peer"), [("forward", 0.66), ("backward", 0.8)])
def test_the_committed_counts_of_the_convolution(tmp_path, phase, of_peer):
    require_nvcc()
    library = library_path()
    problem, degrees, architecture = "mace-medium-2e", "24", "sm_90"
    bindings, plan = installed_bindings(), report.PROBLEMS[problem]
    names = {launch["name"] for launch in report.convolution_launches(bindings, plan, *report.PHASES[phase])}
    texts = [text for text in ptx_of(library) if names & set(report.kernels_of(text))]
    codes = report.assemble(texts, [architecture], library, tmp_path)
    row = report.convolution_row(Emulator(texts, bindings), codes, problem, phase, degrees)
    committed = report.read_csv(report.COMMITTED["convolutions"])
    assert report.growth([row], committed, report.KEYS["convolutions"]) == []
    # Each operand and result once, the rows of nodes once for all of their edges, and the indices of an edge.
    columns = [plan.irreps_in2.dim + plan.weight_numel, plan.irreps_in1.dim, plan.irreps_out.dim]
    times, indices = ((2, 2, 1), 4) if phase == "backward" else ((1, 1, 1), 3)
    of_edge, *of_nodes = (n * c for n, c in zip(times, columns, strict=True))
    assert row["compulsory"] == pytest.approx(4 * (of_edge + sum(of_nodes) / 24) + 8 * indices)
    assert row["multiply_adds"] > 128 * len(plan.instructions)
    assert report.to_peer(row, report.PEER["convolution"]) < of_peer


def test_the_committed_counts_of_messages(tmp_path):
    """Of few channels, counted anew; of UMA-S's, what was asked of them."""
    keys, committed = report.KEYS["messages"], report.read_csv(report.COMMITTED["messages"])
    rows = report.message_rows("narrow", tmp_path)
    assert report.spills([*rows, *[r | {"stack": int(r["stack"])} for r in committed]]) == []
    assert report.growth(rows, committed, keys) == []
    # A multiply-add of the layers for each of their numbers, twice for orders from 1, and for each radial weight.
    plan = report.message_plan("narrow")
    shapes = [layer.shapes() for layer in plan.convolutions]
    layers = [math.prod(zero) + 2 * sum(map(math.prod, orders)) for zero, _, *orders in shapes]
    assert rows[0]["tensor"] >= layers[0] + 32 * 6 * 64
    assert rows[1]["tensor"] == layers[1]
    first, second, finish = (numbers(r, keys) for r in committed if r["problem"] == "uma-s")
    assert min(first["share"], second["share"]) > 0.9
    assert first["traffic"] + second["traffic"] + finish["traffic"] < 24 * 1024
    assert 115 < report.unfused(report.message_plan("uma-s"), 128) / 1024 < 125


def numbers(row, keys):
    return row | {k: float(v) for k, v in row.items() if k not in keys}


TO_FLOOR = {
    "forward": dict.fromkeys(report.PROBLEMS, 1.05),
    "backward": dict.fromkeys(report.PROBLEMS, 1.15),
    "double backward": {"mace-medium-2e": 1.25, "mace-large": 1.25, "nequip-benzene": 1.5, "sevennet-l3i5": 1.25},
}
OF_PEER = {"forward": 0.66, "backward": 0.8}
# Short rows pay what a row costs each warp (docs/design.md, section 2).
OF_PEER_AT = {("forward", "sevennet-l3i5", "uneven"): 0.82}


@pytest.mark.parametrize("phase", TO_FLOOR)
def test_the_committed_limits_of_the_convolution(phase):
    """Against the peer's instructions, but for its double backward, the memory floor, and what hides latency."""
    rows = [r for r in report.read_csv(report.COMMITTED["convolutions"]) if r["phase"] == phase]
    assert {(r["problem"], r["degrees"]) for r in rows} == set(itertools.product(TO_FLOOR[phase], report.DEGREES))
    for row in rows:
        counts, problem = numbers(row, report.KEYS["convolutions"]), row["problem"]
        if phase in OF_PEER:
            limit = OF_PEER_AT.get((phase, problem, row["degrees"]), OF_PEER[phase])
            assert report.to_peer(counts, report.PEER["convolution"]) < limit
        assert counts["warps_sm_90"] >= 9
        terms = report.model(counts, report.CHIPS["H100 SXM"])
        assert max(terms.values()) < TO_FLOOR[phase][problem] * terms["dram"]


# Over the modelled time of the forward with the weights given, on an H100.
TO_GIVEN = {"float32": 1.05, "bf16x3": 0.8}


def test_the_committed_limits_of_the_radial_convolution():
    chip = report.CHIPS["H100 SXM"]
    given = {
        (r["problem"], r["degrees"]): max(report.model(numbers(r, report.KEYS["convolutions"]), chip).values())
        for r in report.read_csv(report.COMMITTED["convolutions"])
        if r["phase"] == "forward"
    }
    rows = report.read_csv(report.COMMITTED["radial"])
    assert {(r["problem"], r["degrees"]) for r in rows} == set(given)
    for row in rows:
        if row["problem"] == "mace-large":
            terms = report.model(numbers(row, report.KEYS["radial"]), chip)
            assert max(terms.values()) < TO_GIVEN[row["precision"]] * given["mace-large", row["degrees"]]


def test_the_committed_counts_of_the_radial_convolution(tmp_path, rng):
    """At one precision, which is drawn anew in each run: their kernels are one template."""
    require_nvcc()
    precision = rng.choice(list(report.PRECISIONS))
    library, problem, degrees = library_path(), "mace-medium-2e", "24"
    bindings, plan = installed_bindings(), report.PROBLEMS[problem]
    names = {launch["name"] for launch in report.radial_launches(bindings, plan, report.PRECISIONS[precision])}
    texts = [text for text in ptx_of(library) if names & set(report.kernels_of(text))]
    codes = report.assemble(texts, ["sm_90"], library, tmp_path)
    row = report.radial_row(Emulator(texts, bindings), codes, problem, precision, degrees)
    assert report.growth([row], report.read_csv(report.COMMITTED["radial"]), report.KEYS["radial"]) == []
    # As of the convolution, with features and the matrix in place of weights; products of 24 edges, which 24 divides.
    of_edge, of_nodes = plan.irreps_in2.dim + report.HIDDEN, plan.irreps_in1.dim + plan.irreps_out.dim
    matrix = 4 * report.HIDDEN * plan.weight_numel / report.RADIAL_EDGES
    assert row["compulsory"] == pytest.approx(4 * (of_edge + of_nodes / 24) + 24 + matrix)
    products = {"float32": 6, "bf16x3": 3}[precision]
    assert row["tensor"] == pytest.approx(2 * products * report.HIDDEN * plan.weight_numel)


# Over the memory floor on an H100, for degrees from 2.
GAUNT_TO_FLOOR = {
    ("even", "forward"): (1.01,) * 5, ("all", "forward"): (1.05, 1.05, 1.05, 1.25, 1.55),
    ("even", "backward"): (1.01,) * 5, ("all", "backward"): (1.01, 1.01, 1.15, 1.45, 1.85),
}  # fmt: skip


def test_the_committed_limits_of_products_of_signals():
    rows = report.read_csv(report.COMMITTED["gaunt"])
    assert [(r["kind"], r["lmax"], r["phase"]) for r in rows] == report.GAUNTS
    for row in rows:
        counts, lmax = numbers(row, report.KEYS["gaunt"]), int(row["lmax"])
        assert counts["sectors"] == 1
        assert counts["warps_sm_90"] >= 8
        terms = report.model(counts, report.CHIPS["H100 SXM"])
        assert max(terms.values()) < GAUNT_TO_FLOOR[row["kind"], row["phase"]][lmax - 2] * terms["dram"]


def test_the_committed_counts_of_products_of_signals(tmp_path):
    require_nvcc()
    library, bindings, key = library_path(), installed_bindings(), ("all", "3", "backward")
    names = {launch["name"] for launch in report.gaunt_launches(bindings, *key)}
    texts = [text for text in ptx_of(library) if names & set(report.kernels_of(text))]
    codes = report.assemble(texts, ["sm_90"], library, tmp_path)
    row = report.gaunt_row(Emulator(texts, bindings), codes, *key)
    for title, rows in (("gaunt", [row]), ("kernels", report.kernel_rows(codes, bindings))):
        assert report.growth(rows, report.read_csv(report.COMMITTED[title]), report.KEYS[title]) == []
    # Three operands and two results of 16 components.
    assert row["compulsory"] == 4 * 5 * 16 * report.GAUNT_CHANNELS


# Over the memory floor on an H100, for degrees to 2, 4 and 6: what each rotation costs is shared by few numbers at first.
WIGNER_TO_FLOOR = {"forward": (1.45, 1.01, 1.01), "backward": (1.75, 1.35, 1.25)}


def test_the_committed_limits_of_wigner():
    rows = report.read_csv(report.COMMITTED["wigner"])
    assert [(r["lmax"], r["mmax"], r["phase"]) for r in rows] == report.WIGNERS
    for row in rows:
        counts = numbers(row, report.KEYS["wigner"])
        assert counts["sectors"] == 1
        assert counts["warps_sm_90"] >= 20
        terms = report.model(counts, report.CHIPS["H100 SXM"])
        assert max(terms.values()) < WIGNER_TO_FLOOR[row["phase"]][int(row["lmax"]) // 2 - 1] * terms["dram"]


def test_the_committed_counts_of_wigner(tmp_path):
    require_nvcc()
    library, bindings, key = library_path(), installed_bindings(), ("4", "2", "backward")
    name = report.wigner_launch(bindings, *key)["name"]
    texts = [text for text in ptx_of(library) if name in report.kernels_of(text)]
    codes = report.assemble(texts, ["sm_90"], library, tmp_path)
    row, kernels = report.wigner_row(Emulator(texts, bindings), codes, *key), report.kernel_rows(codes, bindings)
    assert report.spills(kernels) == []
    for title, rows in (("wigner", [row]), ("kernels", kernels)):
        assert report.growth(rows, report.read_csv(report.COMMITTED[title]), report.KEYS[title]) == []
    # q, its gradient, and 115 cotangents.
    assert row["compulsory"] == 4 * (4 + 4 + 115)
