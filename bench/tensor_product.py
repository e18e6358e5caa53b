"""Time of eqk.tensor_product against its peers and against the machine's own limits: on the GPU if there is one.

    python bench/tensor_product.py                         # the table of the README
    python bench/tensor_product.py --cases mace-large --threads 1 2 --providers e3nn
    EQK_CPU_ISA=avx2 python bench/tensor_product.py        # with AVX2 alone
    python bench/tensor_product.py --device cpu            # although there is a GPU

Every case is first checked: value and gradients of eqk against e3nn within the float32 tolerance. The providers then
run in turn, round by round; printed are medians and the ratio to e3nn's default (script) mode. Phases: forward (no
grad); backward = forward + gradients of x, y, w; double = force training, forward + gradients with create_graph + the
gradients of those with respect to x, y, w and the cotangent.

floor: the larger of bytes that must move over the bandwidth of a copy, and multiply-adds over the rate of a matrix
product, both measured in the same run; the last column says how much of it eqk reaches. The allocator is told to keep
its memory, for all alike, by its environment variables; --malloc default shows the page faults too, --malloc hint what
eqk.keep_memory() makes of eqk's. On a GPU a round is --calls calls, after which the device is waited for.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import torch

import eqk
from eqk import measure
from eqk.counts import PHASES, tensor_product_counts
from eqk.measure import KEPT_MEMORY, ceilings, clock_of, e3nn_product, phase_function
from eqk.testing import CASES, TOLERANCES, Case, random_operands, relative_error

STANDARD = ("mace-medium", "mace-large", "nequip-benzene", "sevennet-l3i5")


def cuet_product(case: Case, layout: str, device: str):
    import cuequivariance as cue
    import cuequivariance_torch as cuet

    plan = case.plan
    if plan.weights != "per_sample" or any(i.connection_mode != "uvu" for i in plan.instructions):
        raise ValueError("only uvu with per-sample weights")
    in1, in2, out = (cue.Irreps("O3", str(i)) for i in (plan.irreps_in1, plan.irreps_in2, plan.irreps_out))
    return cuet.ChannelWiseTensorProduct(
        in1, in2, [m.ir for m in out], layout=getattr(cue, layout), shared_weights=False, internal_weights=False,
        method="naive" if device == "cpu" else None, dtype=torch.float32, device=device,
    )  # fmt: skip


def provider(name: str, case: Case, device: str):
    if name == "eqk":
        return lambda x, y, w: eqk.tensor_product(x, y, w, case.plan)
    if name == "e3nn":
        return e3nn_product(case.plan, "script").to(device)
    if name == "e3nn-compile":
        return torch.compile(e3nn_product(case.plan, "eager").to(device), fullgraph=True, dynamic=False)
    layout = {"cuet-mul_ir": "mul_ir", "cuet-ir_mul": "ir_mul"}[name]
    module = cuet_product(case, layout, device)
    return lambda x, y, w: module(x, y, w)


def checked(case: Case, functions: dict, operands, g, directions, peer: str = "e3nn") -> None:
    """Value and gradients of eqk against the peer's."""
    for phase in PHASES[:2]:
        results = [phase_function(phase, functions[n], operands, g, directions)() for n in ("eqk", peer)]
        worst = max(relative_error(a, b) for a, b in zip(*results, strict=True))
        if worst > 2 * TOLERANCES[torch.float32][1]:
            sys.exit(f"{case.name}: {phase} of eqk differs from {peer} by {worst:.1e}")


def interleaved(case: str, phase: str, runs: dict[str, Callable], args, clock) -> dict[str, float]:
    """Medians in seconds of --rounds rounds of --calls calls, in which the ``runs`` take turns."""

    def failed(name: str, error: Exception) -> None:
        print(f"{case}: {name} {phase}: {str(error).splitlines()[0]}", file=sys.stderr)

    return measure.interleaved(runs, args.rounds, args.calls, clock, failed)


def timed(
    case: str,
    functions: dict,
    operands,
    g,
    directions,
    floors: dict[str, float],
    args,
    clock,
    run_of: Callable = phase_function,
    peer: str = "e3nn",
) -> list[list]:
    """A row of the table for each phase: medians of ``functions`` by name, of which eqk is one. floors: in seconds;
    peer: what the others are compared with."""
    rows = []
    for phase in args.phases:
        runs = {name: run_of(phase, f, operands, g, directions) for name, f in functions.items()}
        medians = interleaved(case, phase, runs, args, clock)
        base = medians.get(peer)
        row = [case, phase, torch.get_num_threads() if args.device == "cpu" else args.device]
        for name in ["eqk", *args.providers]:
            t = medians.get(name)
            ratio = f" ({base / t:.1f}x)" if t and base and name != peer else ""
            row.append(f"{1e3 * t:.2f}{ratio}" if t else "-")
        rows.append([*row, f"{1e3 * floors[phase]:.2f}", f"{100 * floors[phase] / medians['eqk']:.0f} %"])
    return rows


def bench(case: Case, args, clock, limits) -> list[list]:
    generator = torch.Generator().manual_seed(0)
    operands = random_operands(case.plan, args.rows, torch.float32, generator, args.device)
    g = torch.randn(args.rows, case.plan.irreps_out.dim, generator=generator).to(args.device)
    directions = [torch.randn(t.shape, generator=generator).to(args.device) for t in operands if t is not None]
    functions = {}
    for name in ["eqk", *args.providers]:
        try:
            functions[name] = provider(name, case, args.device)
        except (ImportError, ValueError) as error:
            print(f"{case.name}: {name}: {error}", file=sys.stderr)
    if "e3nn" in functions:
        checked(case, functions, operands, g, directions)
    floors = {phase: args.rows * need.seconds(limits) for phase, need in tensor_product_counts(case.plan).items()}
    return timed(case.name, functions, operands, g, directions, floors, args, clock)


def add_arguments(
    parser: argparse.ArgumentParser, cases: Sequence[str], choices: Sequence[str] | None = sorted(CASES), phases=PHASES
) -> None:
    """What the benchmarks have in common."""
    parser.add_argument("--cases", nargs="+", default=cases, choices=choices, metavar="CASE")
    parser.add_argument("--threads", type=int, nargs="+", help="1 2 on the CPU")
    parser.add_argument("--phases", nargs="+", default=list(phases), choices=phases)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--malloc", default="kept", choices=["kept", "default", "hint"])


def keep_memory(malloc: str) -> None:
    """Runs this script again in the environment that ``malloc`` names, if it is not that already."""
    if malloc == "kept" and any(os.environ.get(k) != v for k, v in KEPT_MEMORY.items()):
        sys.exit(subprocess.run([sys.executable, *sys.argv], env={**os.environ, **KEPT_MEMORY}).returncode)
    if malloc == "hint":
        eqk.keep_memory()


def print_table(args, bench_case: Callable, case_of: Callable = CASES.__getitem__) -> None:
    """``bench_case(case, args, clock, limits)`` for each case, of --cases by name, and number of threads."""
    from tabulate import tabulate

    on_cpu, table = args.device == "cpu", []
    for threads in args.threads or ([1, 2] if on_cpu else [torch.get_num_threads()]):
        torch.set_num_threads(threads)
        clock = clock_of(args.device, threads)
        limits = ceilings(clock, args.device)
        rates = f"copy {limits[0] / 1e9:.1f} GB/s, multiply-adds {limits[1] / 1e9:.0f} G/s"
        print(f"{f'{threads} thread(s)' if on_cpu else args.device}: {rates}", file=sys.stderr)
        for name in args.cases:
            table += bench_case(case_of(name), args, clock, limits)
    names = [f"{name} ms" for name in ["eqk", *args.providers]]
    headers = ["case", "phase", "threads" if on_cpu else "device", *names, "floor ms", "of floor"]
    print(tabulate(table, headers=headers, tablefmt="github"))


def main_on_cpu(
    doc: str,
    bench_case: Callable,
    cases: Sequence[str],
    choices: Sequence[str] | None,
    providers: Sequence[str],
    phases: Sequence[str] = PHASES[:2],
    more_phases: Sequence[str] = (),
    **options: int,
) -> None:
    """A benchmark of the CPU alone, whose cases are names. ``options``: further ones, with their defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, cases, choices, (*phases, *more_phases))
    parser.set_defaults(phases=list(phases))
    parser.add_argument("--providers", nargs="*", default=providers, choices=providers)
    for name, default in options.items():
        flag = {"action": "store_true"} if default is False else {"type": int, "default": default}
        parser.add_argument(f"--{name}", **flag)
    args = parser.parse_args()
    args.device, args.calls = "cpu", 1
    keep_memory(args.malloc)
    print_table(args, bench_case, lambda name: name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, [*STANDARD, "depthwise-1", "depthwise-3", "depthwise-8"])  # the last have few channels
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device)
    parser.add_argument("--rows", type=int, help="2000 on the CPU, 50000 on a GPU")
    parser.add_argument("--calls", type=int, help="in a round: 1 on the CPU, 20 on a GPU")
    choices = ["e3nn", "e3nn-compile", "cuet-mul_ir", "cuet-ir_mul"]
    parser.add_argument("--providers", nargs="*", default=["e3nn", "e3nn-compile", "cuet-ir_mul"], choices=choices)
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    args.rows, args.calls = args.rows or (2000 if on_cpu else 50_000), args.calls or (1 if on_cpu else 20)
    keep_memory(args.malloc)
    print_table(args, bench)


if __name__ == "__main__":
    main()
