"""``python -m eqk check``: every op on every backend of this machine against the float64 reference, in two minutes."""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eqk import dispatch, testing
from eqk.cli.cases import Case, all_cases
from eqk.cli.info import ABSENT_GPU, gpu_reason, instruction_set, machine, why_not
from eqk.cli.tables import markdown, number

_LEGEND = """value, gradient, second: the largest error over its tolerance (eqk.testing.TOLERANCES), against
eqk.reference in float64. same bits: of a second run; torch's own operations (backend torch) need not have them.
ms: the value alone; of small sizes, of all together."""
_NEVER = "derivatives of third order, forward mode, torch.func, torch.compile: the test suite does (make test)"


class Row(NamedTuple):
    """One line of the table; ``errors``: the largest of each order over its tolerance."""

    case: Case
    device: torch.device
    backend: str
    dtype: torch.dtype
    errors: list[float]
    same_bits: bool | None
    milliseconds: float | None
    failure: str | None
    late: int = 0  # parts of the case for which no time was left

    def cells(self) -> list[str]:
        worst = ["-" if e is None else number(e, 2) for e in (*self.errors, None, None, None)][:3]
        bits = "-" if self.same_bits is None else "yes" if self.same_bits else "NO"
        time = "-" if self.milliseconds is None else f"{self.milliseconds:.3g}"
        names = self.case.op, self.case.name, str(self.device), self.backend
        return [*names, str(self.dtype).removeprefix("torch."), *worst, bits, time, "FAIL" if self.failure else "ok"]


HEADERS = ("op", "case", "device", "backend", "dtype", "value", "gradient", "second", "same bits", "ms", "verdict")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, help="of the random operands; EQK_SEED, or a new one, by default")
    parser.add_argument("--seconds", type=float, default=120, help="after which nothing is begun; 120 by default")
    parser.add_argument("--quick", action="store_true", help="small sizes alone, no layers of published models")
    parser.add_argument("--ops", nargs="+", default=list(dispatch.OPS), choices=dispatch.OPS, metavar="OP")
    parser.add_argument("--device", nargs="+", choices=("cpu", "cuda"), help="the CPU and the first GPU by default")


def _scaled(operands: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """Of 16-bit types such that no product overflows, and rounded to them."""
    if dtype.itemsize > 2:
        return list(operands)
    return [
        None if t is None else t if t.numel() == 0 else (t / t.abs().max().clamp(min=1e-30)).to(dtype) for t in operands
    ]


def _on(run: Callable[..., Tensor], device: torch.device, backend: str) -> Callable[..., Tensor]:
    """``run`` of operands and for results on the CPU, on a backend of a device."""
    asked = "auto" if backend == "torch" else backend

    def on_device(*operands: Tensor | None) -> Tensor:
        with dispatch.use_backend(asked):
            return run(*(t if t is None else t.to(device) for t in operands)).cpu()

    return on_device


def _milliseconds(run: Callable, operands: Sequence[Tensor | None], device: torch.device, backend: str) -> float:
    """Median of five calls, of 20 at most: of the value alone."""
    there = [None if t is None else t.to(device) for t in operands]
    times = []
    with torch.no_grad(), dispatch.use_backend("auto" if backend == "torch" else backend):
        run(*there)
        for _ in range(5):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            begin = time.perf_counter()
            run(*there)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _same(a: Sequence[Sequence[Tensor]], b: Sequence[Sequence[Tensor]]) -> bool:
    pairs = [(s, t) for p, q in zip(a, b, strict=True) for s, t in zip(p, q, strict=True)]
    return all(torch.equal(s, t) for s, t in pairs)


def check_case(case: Case, places: Sequence[tuple[torch.device, str]], seed: int, deadline: float) -> list[Row]:
    """A row for each dtype and each device and backend of ``places``; ``deadline``: of time.perf_counter."""
    rows = []
    for dtype in case.dtypes if places else ():
        problems, broken = [], None
        try:
            for label, make, size in case.problems():
                if time.perf_counter() > deadline:
                    break
                _, generator = testing.generators(f"{case.op} {case.name} {label} {dtype}", seed)
                problem = make(size, generator)
                operands = _scaled(problem.operands, dtype)
                comparison = testing.Comparison(problem.truth, operands, case.orders, generator)
                problems.append((label, problem, operands, comparison))
        except Exception as error:
            broken = f"{label}: the reference: {_first_line(error)}"
        for device, backend in places:
            rows.append(_check_on(case, dtype, device, backend, problems, broken, deadline))
    return rows


def _check_on(
    case: Case, dtype, device: torch.device, backend: str, problems, broken: str | None, deadline: float
) -> Row:
    errors, same, milliseconds, failure, done = [0.0] * (case.orders + 1), True, 0.0, broken, 0
    if broken:
        return Row(case, device, backend, dtype, [], None, None, broken)
    for label, problem, operands, comparison in problems:
        if time.perf_counter() > deadline:
            break
        try:
            run = _on(problem.run, device, backend)
            results = comparison.results(run, dtype)
            excess = comparison.excess(results, dtype)
            worst = [max(of_order, default=0.0) for of_order in excess]
            errors = [max(pair) if not math.isnan(sum(pair)) else math.inf for pair in zip(errors, worst, strict=True)]
            if not max(worst) <= 1 and failure is None:
                order = next(n for n, e in enumerate(worst) if not e <= 1)
                which = ("value", "gradient", "second derivative")[order]
                failure = f"{label}: the {which} is off by {number(worst[order])} times the tolerance"
            if any(t.dtype != dtype for t in results[0]) and failure is None:
                failure = f"{label}: expected a result of {dtype}, got {results[0][0].dtype}"
            again = _same(results, comparison.results(run, dtype))
            if not again and failure is None and backend != "torch":
                failure = f"{label}: a second run has other bits"
            same = same and again
            cast = testing.cast(operands, dtype)
            milliseconds += _milliseconds(problem.run, cast, device, backend)
        except Exception as error:
            return Row(case, device, backend, dtype, [], None, None, failure or f"{label}: {_first_line(error)}")
        done += 1
    late = len(case.parts) - done
    if not done:
        return Row(case, device, backend, dtype, [], None, None, None, late)
    return Row(case, device, backend, dtype, errors, same, milliseconds, failure, late)


def _places(op: str, kinds: Sequence[str]) -> list[tuple[torch.device, str]]:
    """The backends of ``op`` that can run, but for the reference, on the CPU and the first GPU.

    Triton's interpreter, which runs on the CPU, would take hours.
    """
    found = []
    for kind in kinds:
        device = torch.device("cpu") if kind == "cpu" else ABSENT_GPU
        if kind == "cuda" and gpu_reason() is not None:
            continue
        reasons = dispatch.reasons(op, device)
        left_out = ("reference", "triton") if kind == "cpu" else ("reference",)
        found += [(device, name) for name, reason in reasons.items() if reason is None and name not in left_out]
    return found


def not_checked(ops: Sequence[str], kinds: Sequence[str], cases: Sequence[Case], quick: bool) -> list[str]:
    """What this run leaves out, and why."""
    left: list[str] = []
    if quick:
        left.append("layers of published models: --quick")
    if missing := [op for op in dispatch.OPS if op not in ops]:
        left.append(f"{', '.join(missing)}: --ops")
    gpu = gpu_reason()
    for kind in ("cpu", "cuda"):
        if kind not in kinds:
            left.append(f"{kind}: --device")
    if "cuda" in kinds:
        if gpu is not None:
            left.append(f"GPU: {gpu}")
        reasons: dict[str, list[str]] = {}
        for op in ops:
            for name, reason in why_not(op, ABSENT_GPU).items():
                reasons.setdefault(f"{name}: {reason}", []).append(op)
        left += [f"{reason} ({', '.join(names)})" for reason, names in reasons.items()]
        if gpu is None and torch.cuda.device_count() > 1:
            left.append("other GPUs than the first: CUDA_VISIBLE_DEVICES chooses it")
    for case in cases:
        if case.needs and importlib.util.find_spec(case.needs) is None and case.op in ops:
            left.append(f"{case.op} against {case.needs}: {case.needs} is not installed")
    left.append(f"CPU instruction sets other than {instruction_set()}: EQK_CPU_ISA chooses another")
    left.append(_NEVER)
    return left


def main(args: argparse.Namespace) -> int:
    seed = testing.seed() if args.seed is None else args.seed
    kinds = args.device or ["cpu", "cuda"]
    cases = [case for case in all_cases() if case.op in args.ops and (case.small or not args.quick)]
    print(f"python -m eqk check --seed {seed}\n\n" + markdown(("what", "here"), machine().items()) + "\n", flush=True)
    begin, rows = time.perf_counter(), []
    there = [case for case in cases if case.needs is None or importlib.util.find_spec(case.needs) is not None]
    # Triton compiles a kernel for each plan and dtype, seconds each: last, and one case of each op after the other.
    number_of_op = {case: [c for c in there if c.op == case.op].index(case) for case in there}
    for compiled in (True, False):
        for case in there if compiled else sorted(there, key=number_of_op.__getitem__):
            if sys.stderr.isatty():
                print(f"\r\033[K{case.op}, {case.name}", end="", file=sys.stderr, flush=True)
            places = [place for place in _places(case.op, kinds) if (place[1] != "triton") == compiled]
            rows += check_case(case, places, seed, begin + args.seconds)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    late = [row for row in rows if row.late]
    rows = [row for row in rows if row.late < len(row.case.parts)]
    right = ("value", "gradient", "second", "ms")
    print(markdown(HEADERS, [row.cells() for row in rows], right))
    print(f"\n{_LEGEND}\n\nNot checked:\n")
    for line in not_checked(args.ops, kinds, cases, args.quick):
        print(f"- {line}")
    for row in late:
        print(f"- {' '.join(row.cells()[:5])}: {row.late} of {len(row.case.parts)}, no time left in {args.seconds:g} s")
    failed = [row for row in rows if row.failure]
    if failed:
        print("\nFailed:\n")
    for row in failed:
        print(f"- {' '.join(row.cells()[:5])}: {row.failure}")
    seconds = time.perf_counter() - begin
    if not rows:
        print("\nFAILED: nothing was checked")
        return 1
    verdict = f"FAILED: {len(failed)} of {len(rows)} checks" if failed else f"passed: {len(rows)} checks"
    if late:
        verdict += f", {len(late)} not done or not whole for lack of time (--seconds)"
    print(f"\n{verdict} in {seconds:.0f} s, seed {seed}")
    return 1 if failed else 0
