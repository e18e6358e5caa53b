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
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.timer import timer as after_the_device

import eqk
from eqk.testing import CASES, TOLERANCES, Case, random_operands, relative_error

PHASES = ("forward", "backward", "double")
STANDARD = ("mace-medium", "mace-large", "nequip-benzene", "sevennet-l3i5")
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "1073741824",
}


def e3nn_product(case: Case, jit_mode: str):
    import e3nn
    from e3nn import o3

    e3nn.set_optimization_defaults(jit_mode=jit_mode)
    plan = case.plan
    irreps = [str(i) for i in (plan.irreps_in1, plan.irreps_in2, plan.irreps_out)]
    # The coefficient of a path is the root of e3nn's path weight where nothing else normalises.
    paths = [(i.i_in1, i.i_in2, i.i_out, i.connection_mode, i.has_weight, i.coefficient**2) for i in plan.instructions]
    if any(i.coefficient < 0 for i in plan.instructions):
        raise ValueError("a negative coefficient")
    return o3.TensorProduct(
        *irreps, paths, irrep_normalization="none", path_normalization="none",
        shared_weights=plan.weights == "shared", internal_weights=False,
    )  # fmt: skip


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
        return e3nn_product(case, "script").to(device)
    if name == "e3nn-compile":
        return torch.compile(e3nn_product(case, "eager").to(device), fullgraph=True, dynamic=False)
    layout = {"cuet-mul_ir": "mul_ir", "cuet-ir_mul": "ir_mul"}[name]
    module = cuet_product(case, layout, device)
    return lambda x, y, w: module(x, y, w)


def phase_function(phase: str, f, operands, g, directions):
    if phase == "forward":

        def run():
            with torch.no_grad():
                return (f(*operands),)

        return run
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in operands]
    wanted = [t for t in leaves if t is not None]
    if phase == "backward":
        return lambda: torch.autograd.grad(f(*leaves), wanted, g)
    g = g.clone().requires_grad_()

    def run():
        gradients = torch.autograd.grad(f(*leaves), wanted, g, create_graph=True)
        return torch.autograd.grad(gradients, (*wanted, g), directions)

    return run


def counts(case: Case) -> dict[str, tuple[float, float]]:
    """Bytes and multiply-adds of a row, for the last op of each phase added to those before it."""
    plan = case.plan
    x, y, w, g = plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim
    w = 0 if plan.weights == "shared" else w
    products = 0
    for ins in plan.instructions:
        (m1, a), (m2, b), (mo, c) = plan.irreps_in1[ins.i_in1], plan.irreps_in2[ins.i_in2], plan.irreps_out[ins.i_out]
        mode = ins.connection_mode
        channels = m1 if mode.startswith("uu") else m1 * (m1 - 1) // 2 if "<" in mode else m1 * m2
        products += channels * int((eqk.wigner_3j(a.l, b.l, c.l) != 0).any(1).sum())
        products += channels * mo * c.dim if mode.endswith("w") else 0
    forward = (4 * (x + y + w + g), products)
    backward = (4 * (2 * (x + y + w) + g), 2 * products)
    double = (4 * (3 * (x + y + w) + 2 * g), 5 * products)
    total, result = (0.0, 0.0), {}
    for phase, part in zip(PHASES, (forward, backward, double), strict=True):
        total = (total[0] + part[0], total[1] + part[1])
        result[phase] = total
    return result


def median(timer: Timer, rounds: int) -> float:
    return statistics.median(timer.timeit(1).mean for _ in range(rounds))


def ceilings(clock, device: str) -> tuple[float, float]:
    """Bytes a second of a copy (read and written) and multiply-adds a second of a matrix product."""
    copied, n = (16 << 20, 1024) if device == "cpu" else (256 << 20, 8192)  # beyond a GPU's caches, and to fill it
    a, b = torch.ones(copied, device=device), torch.ones(copied, device=device)
    m = torch.ones(n, n, device=device)
    names, threads = {"a": a, "b": b, "m": m, "torch": torch}, torch.get_num_threads()
    copy = median(Timer("b.copy_(a)", globals=names, timer=clock, num_threads=threads), 9)
    product = median(Timer("torch.mm(m, m)", globals=names, timer=clock, num_threads=threads), 9)
    return 8 * a.numel() / copy, n**3 / product


def checked(case: Case, functions: dict, operands, g, directions, peer: str = "e3nn") -> None:
    """Value and gradients of eqk against the peer's."""
    for phase in PHASES[:2]:
        results = [phase_function(phase, functions[n], operands, g, directions)() for n in ("eqk", peer)]
        worst = max(relative_error(a, b) for a, b in zip(*results, strict=True))
        if worst > 2 * TOLERANCES[torch.float32][1]:
            sys.exit(f"{case.name}: {phase} of eqk differs from {peer} by {worst:.1e}")


def interleaved(case: str, phase: str, runs: dict[str, Callable], args, clock) -> dict[str, float]:
    """Medians in seconds of --rounds rounds of --calls calls, in which the ``runs`` take turns."""
    timers = {}
    for name, run in runs.items():
        try:
            for _ in range(3):
                run()
        except (RuntimeError, ValueError) as error:
            print(f"{case}: {name} {phase}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        timers[name] = Timer("run()", globals={"run": run}, timer=clock, num_threads=torch.get_num_threads())
    times = {name: [] for name in timers}
    for _ in range(args.rounds):
        for name, timer in timers.items():
            times[name].append(timer.timeit(args.calls).mean)
    return {name: statistics.median(t) for name, t in times.items()}


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
    need = counts(case)
    floors = {phase: args.rows * max(need[phase][0] / limits[0], need[phase][1] / limits[1]) for phase in PHASES}
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


def clock_of(threads: int) -> Callable[[], float]:
    """On the CPU. The time of one thread does not count what other programs take from a shared machine."""
    return time.process_time if threads == 1 else time.perf_counter


def print_table(args, bench_case: Callable, case_of: Callable = CASES.__getitem__) -> None:
    """``bench_case(case, args, clock, limits)`` for each case, of --cases by name, and number of threads."""
    from tabulate import tabulate

    on_cpu, table = args.device == "cpu", []
    for threads in args.threads or ([1, 2] if on_cpu else [torch.get_num_threads()]):
        torch.set_num_threads(threads)
        clock = clock_of(threads) if on_cpu else after_the_device
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
