"""Tests of the tests: faults planted in the CUDA kernels, each of which the check of test_cuda.py must find."""

import functools
import json
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import ptxemu
import pytest
import torch
from emulated_cuda import ROOT, Emulator, build_bindings, configure
from test_cuda import (
    IR_MUL,
    MUL_IR,
    Graph,
    channels_plan,
    check,
    check_convolution,
    check_radial,
    mixed_plan,
    require_nvcc,
    seed,
)

from eqk.testing import CASES

WRONG, UNWRITTEN = (AssertionError, r"error \d"), (AssertionError, "error inf")
OUT_OF_BOUNDS = (ptxemu.MemoryFault, "out-of-bounds access to global memory")
UNINITIALISED = (ptxemu.UninitialisedRead, "shared memory")
RACE = (ptxemu.RaceError, "shared-memory race")
FORWARD, BACKWARD, DOUBLE_BACKWARD = (f"eqk_cuda_{name}_f32_l1" for name in ("forward", "backward", "backward_dual"))
GENERAL = "eqk_cuda_general"
CONV_FORWARD, CONV_JVP = "eqk_cuda_conv_forward", "eqk_cuda_conv_forward_dual"
CONV_BACKWARD, CONV_SUMS, CONV_ORDER = (f"eqk_cuda_conv_{name}" for name in ("backward", "sums", "order"))
CONV_RADIAL = "eqk_cuda_conv_radial_3"  # exact to float32


@dataclass(frozen=True)
class Fault:
    """``text`` of ``file``, found once there, becomes ``instead``; the check of ``kernel`` raises ``found``."""

    kernel: str
    file: str
    text: str
    instead: str
    found: tuple
    plan: object = field(default_factory=lambda: channels_plan(MUL_IR, 1))

    def check(self, emulator, number):
        if "_conv_" in self.kernel:
            graph = Graph(23, 4, 3, torch.Generator().manual_seed(number))
            if self.kernel == CONV_RADIAL:
                check_radial(emulator, self.plan, graph, 4, seed=number, exacts=(True,))
                return
            wanted = (self.kernel == CONV_BACKWARD,) * 3 + (self.kernel != CONV_BACKWARD,)
            check_convolution(emulator, self.plan, graph, 4, self.kernel == CONV_JVP, seed=number, wanted=wanted)
            return
        forward = self.kernel == FORWARD
        # General kernels sum shared weights; enough rows for two parts of unequal length.
        shared = self.plan.weights == "shared"
        wanted = (False, False, True, False) if shared else (not forward,) * 3 + (forward,)
        # A tangent of g would be another launch, of the backward kernel.
        dual = self.kernel == DOUBLE_BACKWARD
        check(emulator, self.plan, "float32", dual, wanted, missing=(3,), rows=37 if shared else 5, seed=number)


CHANNELS, CONV = "cuda_channels.h", "../tensor_product_conv/"
UNITS = channels_plan(MUL_IR, 1, (64, 128), own_outputs=True)
FAULTS = {
    "off_by_one_index": Fault(
        FORWARD, CHANNELS, "for (int e = 0; e < count; ++e)", "for (int e = 1; e < count; ++e)", WRONG
    ),
    "missing_syncthreads": Fault(
        BACKWARD, CHANNELS, "couple(segment.m_begin, segment.m_end, rows);\n        __syncthreads();",
        "couple(segment.m_begin, segment.m_end, rows);", RACE,
    ),
    "sign_of_the_coefficients_of_one_path": Fault(
        BACKWARD, CHANNELS, "static_cast<T>(C::term_c[term])",
        "static_cast<T>(C::l1 == 1 && C::l2 == 1 && C::l3 == 1 ? -C::term_c[term] : C::term_c[term])", WRONG,
    ),
    "unwritten_row": Fault(FORWARD, CHANNELS, "valid = r < rows;", "valid = r < rows - 1;", UNWRITTEN),
    "unwritten_columns": Fault(
        FORWARD, CHANNELS, "clear(kG, a_.view.out_ranges);", ";", UNWRITTEN, CASES["outputs-without-path"].plan
    ),
    "stride_of_an_odd_multiplicity": Fault(
        FORWARD, CHANNELS, "*staged(at) = *row_.at(slice.what, column);",
        "*staged(at) = *row_.at(slice.what, column - (column - slice.offset) / mul_ * (mul_ % 2));",
        WRONG, channels_plan(IR_MUL, 1),
    ),
    "read_past_the_end": Fault(
        FORWARD, CHANNELS, "c < left ? static_cast<T>(from[c]) : T{0}", "static_cast<T>(from[c])", OUT_OF_BOUNDS
    ),
    "uninitialised_shared_memory": Fault(
        BACKWARD, CHANNELS, "row_.all_sums[n] = {};", ";", UNINITIALISED
    ),
    # The kind of https://github.com/PASSIONLab/OpenEquivariance/issues/211.
    "part_of_the_gradient_of_one_instructions_weights": Fault(
        BACKWARD, CHANNELS, "fma_part(gw[c], xi[c], h[c]);",
        "if (C::l1 == 0 || C::l2 == 0 || C::l3 == 1 || i > 0) fma_part(gw[c], xi[c], h[c]);", WRONG,
    ),
    "tangent_dropped_in_double_backward": Fault(
        DOUBLE_BACKWARD, CHANNELS, "if (a_.in[kChannel].tangent) {", "if (false) {", WRONG
    ),
    "store_beyond_the_last_channel": Fault(
        BACKWARD, CHANNELS, "if (c < left) to[c] =", "to[c] =", OUT_OF_BOUNDS
    ),
    "rows_lost_between_partial_sums": Fault(
        GENERAL, "cuda.cu", "begin + a.rows_of_part + (part < longer), column)", "begin + a.rows_of_part, column)", WRONG,
        mixed_plan("shared", MUL_IR, ("uvu", "uvw")),
    ),
    "edge_left_out_at_the_end_of_a_row": Fault(
        CONV_FORWARD, CONV + "cuda_unit_warp.h", "t < count; t += edges_at_once_", "t < count - 1; t += edges_at_once_",
        WRONG, UNITS,
    ),
    "tile_of_x_read_before_it_has_arrived": Fault(
        CONV_FORWARD, CONV + "cuda_unit_warp.h", "__syncthreads();  // x has arrived for all warps, and nobody reads the other buffer",
        ";", UNINITIALISED, UNITS,
    ),
    "sums_of_edges_that_share_a_warp": Fault(
        CONV_FORWARD, CONV + "cuda_unit_warp.h", "sum.template add<T>(other);", ";", WRONG, UNITS,
    ),
    "output_beyond_the_last_channel": Fault(
        CONV_FORWARD, CONV + "cuda_unit_warp.h", "for (int c = lane; c < slice; c += 32) {",
        "for (int c = lane; c < 32; c += 32) {", OUT_OF_BOUNDS, channels_plan(MUL_IR, 1, own_outputs=True),
    ),
    "tangent_of_the_weights_dropped": Fault(
        CONV_JVP, CONV + "cuda_unit_warp.h", "return {weights[0].template get<T>(c), weights[1].template get<T>(c)};",
        "return {weights[0].template get<T>(c), T{0}};", WRONG, UNITS,
    ),
    "gradients_of_x_overwritten_while_they_are_summed": Fault(
        CONV_BACKWARD, CONV + "cuda_backward.h", "__syncthreads();  // nobody reads what warps overwrite now", ";", RACE, UNITS,
    ),
    "gradients_of_y_of_other_lanes_dropped": Fault(
        CONV_BACKWARD, CONV + "cuda_backward.h", "sum_over_lanes<kPart>(y + first, this->lane_);", ";", WRONG, UNITS,
    ),
    "edge_left_out_at_the_end_of_a_quad": Fault(
        CONV_RADIAL, CONV + "cuda_radial_edges.h", "present && place + e < behind;", "present && place + e < behind - 1;",
        WRONG, UNITS,
    ),
    "low_parts_of_features_dropped": Fault(
        CONV_RADIAL, CONV + "cuda_radial_warp.h", "multiply_add(w[tile][slot][m], part[p], h[tile][sum - p]);",
        "if (sum == p) multiply_add(w[tile][slot][m], part[p], h[tile][sum - p]);", WRONG, UNITS,
    ),
    "sums_of_lanes_with_the_same_channels_dropped": Fault(
        CONV_RADIAL, CONV + "cuda_radial_warp.h", "total.template add<float>(other);\n          if (add) {",
        "if (add) {", WRONG, UNITS,
    ),
    "tile_of_edges_read_before_it_has_arrived": Fault(
        CONV_RADIAL, CONV + "cuda_radial_warp.h", "wait_for_copies();\n        synchronize_team();", "wait_for_copies();",
        UNINITIALISED, UNITS,
    ),
    "row_that_begins_an_edge_late": Fault(
        CONV_ORDER, CONV + "cuda.cu", "(low);", "(low + (r > 0 && low < a.edges));", WRONG, UNITS,
    ),
}  # fmt: skip


class Build:
    """A copy of the source, to be compiled for degrees up to 1, which takes seconds a kernel."""

    def __init__(self, directory: Path):
        self.source, build = directory / "source", directory / "build"
        shutil.copytree(ROOT / "csrc", self.source / "csrc")
        shutil.copy(ROOT / "CMakeLists.txt", self.source)
        options = {"EQK_CUDA": "ON", "EQK_LMAX": 1, "EQK_CUDA_LMAX": 1, "CMAKE_EXPORT_COMPILE_COMMANDS": "ON"}
        configure(build, self.source, **options)
        subprocess.run(["cmake", "--build", build, "--target", "eqk_cg_table"], check=True)
        self.bindings = build_bindings(build)
        self.commands = json.loads((build / "compile_commands.json").read_text())
        self.sound = functools.cache(self.ptx)
        self.sound_emulator = functools.cache(lambda kernel: self.emulator(kernel, self.sound(kernel)))

    def emulator(self, kernel: str, ptx: str) -> Emulator:
        """With this PTX of the kernel; the convolution's with the sound one that orders edges, and one that sums them."""
        others = []
        if "_conv_" in kernel:
            others = [CONV_FORWARD if kernel == CONV_ORDER else CONV_ORDER, *[CONV_SUMS] * (kernel == CONV_BACKWARD)]
        return Emulator([ptx, *map(self.sound, others)], self.bindings)

    def ptx(self, kernel: str) -> str:
        """Compiled as the build compiles it, but to PTX alone."""
        found = [c for c in self.commands if f"/{kernel}.dir/" in c["command"]]
        assert len(found) == 1, f"{kernel}: expected one source in the build, got {len(found)}"
        command = shlex.split(found[0]["command"])
        ptx = self.source / f"{kernel}.ptx"
        command[command.index("-c")], command[command.index("-o") + 1] = "-ptx", ptx
        subprocess.run(command, cwd=found[0]["directory"], check=True)
        return ptx.read_text()

    def emulator_of(self, fault: Fault) -> Emulator:
        path = self.source / "csrc" / "tensor_product" / fault.file
        sound = path.read_text()
        assert sound.count(fault.text) == 1, (
            f"{fault.file}: expected {fault.text!r} once, got {sound.count(fault.text)}"
        )
        path.write_text(sound.replace(fault.text, fault.instead))
        try:
            ptx = self.ptx(fault.kernel)
        finally:
            path.write_text(sound)
        return self.emulator(fault.kernel, ptx)


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Build:
    require_nvcc()
    return Build(tmp_path_factory.mktemp("planted"))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_fault_is_found(build, fault):
    number = seed()
    fault.check(build.sound_emulator(fault.kernel), number)
    error, message = fault.found
    with pytest.raises(error, match=message):
        fault.check(build.emulator_of(fault), number)
