"""What the CUDA kernels of eqk.tensor_product cost, counted without a GPU.

    python bench/gpu_report.py                                    # or `make gpu-report`, which installs all
    python bench/gpu_report.py --cases mace-large --arch sm_80

Per edge of a published problem (mul_ir, float32), from a run in the emulator: warp instructions of PTX, and how many of
them are float32 arithmetic; 32-byte sectors that the kernels request, over those that must move, each operand and
result once; shared-memory wavefronts. Of each kernel's machine code: registers, bytes on the stack, and the warps that
fit a multiprocessor of 64 K registers and 228 KiB. Counts, not times: no GPU runs.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

import eqk
from eqk.testing import CASES, depthwise

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from emulated_cuda import Emulator, cuobjdump

PHASES = {"forward": (False, "g"), "backward": (False, "xyw"), "double backward": (True, "xywg"), "jvp": (True, "g")}
# mace-medium without the outputs of degree 3, as OpenEquivariance's benchmark has it.
PLANS = {
    "mace-medium-2e": depthwise("128x0e+128x1o", "0e+1o+2e+3o", "0e+1o+2e"),
    **{name: case.plan for name, case in CASES.items() if case.problem},
}
ROWS = 16


def count(emulator: Emulator, plan: eqk.Plan, dual: bool, wanted: str):
    generator = torch.Generator().manual_seed(0)
    columns = [plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim]
    draw = lambda: [torch.randn(ROWS, n, generator=generator).numpy() for n in columns]  # noqa: E731
    values, tangents = draw(), [*draw()[:3], None] if dual else [None] * 4
    if wanted == "g":
        values[3] = None
    wants = [slot in wanted for slot in "xywg"]
    results, launches = emulator.run(plan, "float32", values, tangents, wants, dual, pad=0, count=True)
    moved = sum(a.nbytes for a in (*values, *tangents, *results) if a is not None)
    assert all(np.isfinite(a).all() for a in results if a is not None)
    return launches, moved


def warps(registers: int, shared: int, threads: int) -> int:
    """That fit a multiprocessor: 64 K registers in units of 256 a warp, 228 KiB of which each block reserves 1."""
    by_registers = 4 * (65536 // 4 // (-(-registers * 32 // 256) * 256)) // (threads // 32)
    return threads // 32 * min(32, 2048 // threads, by_registers, (228 << 10) // (shared + 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    standard = ["mace-medium-2e", "mace-large", "nequip-benzene", "sevennet-l3i5"]
    parser.add_argument("--cases", nargs="+", default=standard, choices=sorted(PLANS), metavar="CASE")
    parser.add_argument("--phases", nargs="+", default=list(PHASES)[:3], choices=PHASES)
    parser.add_argument("--arch", default="sm_90", choices=["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"])
    args = parser.parse_args()
    library = Path(eqk.__file__).parent / "lib" / "libeqk_cuda.so"
    if not library.exists():
        sys.exit("eqk was installed without its CUDA library: install it with EQK_CUDA=1, where nvcc is")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        emulator = Emulator.of_library(library, directory)
        usage = cuobjdump("--dump-resource-usage", "-arch", args.arch, library)
        for case in args.cases:
            for phase in args.phases:
                launches, moved = count(emulator, PLANS[case], *PHASES[phase])
                for launch, stats in launches:
                    kernel = launch["name"]
                    found = re.search(rf"Function {kernel}:\s*REG:(\d+) STACK:(\d+)", usage)
                    registers, stack = int(found[1]), int(found[2])
                    floats = sum(stats.warp_insts[k] for k in ("fma.fp32", "fp32"))
                    sectors = sum(stats.mem.get(f"global.{k}", {}).get("sectors", 0) for k in ("load", "store"))
                    wavefronts = sum(m.get("wavefronts", 0) for k, m in stats.mem.items() if k.startswith("shared"))
                    rows.append([
                        case, phase, kernel.removeprefix("eqk_tensor_product_"),
                        f"{stats.total_warp_insts / ROWS:.0f}", f"{floats / ROWS:.0f}",
                        f"{32 * sectors / moved:.3f}", f"{wavefronts / ROWS:.0f}", registers, stack,
                        warps(registers, launch["shared"], launch["block"]),
                    ])  # fmt: skip
    headers = ["case", "phase", "kernel", "instructions", "arithmetic", "sectors", "wavefronts"]
    headers += ["registers", "stack", "warps"]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
