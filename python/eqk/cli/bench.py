"""``python -m eqk bench``: times of every op here beside e3nn's, or beside those of eqk.reference."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable

import torch

from eqk import dispatch, measure, testing
from eqk.cli.cases import Case, Problem, all_cases
from eqk.cli.info import gpu_reason, machine
from eqk.cli.tables import markdown, threads
from eqk.counts import PHASES

_LEGEND = """Medians; backward: forward and the gradients of all operands. Value and gradients are first compared with
those of the peer. eqk.reference is the truth by dense torch operations, which is not written to be fast."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ops", nargs="+", default=list(dispatch.OPS), choices=dispatch.OPS, metavar="OP")
    parser.add_argument("--threads", type=_positive, nargs="+", help="of the CPU; torch's number by default")
    parser.add_argument("--rounds", type=_positive, default=5, help="of which times are medians; 5 by default")
    parser.add_argument("--scale", type=float, default=1.0, help="times the rows of the cases")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="the first GPU, if there is one, by default")
    parser.add_argument("--phases", nargs="+", default=list(PHASES[:2]), choices=PHASES)
    parser.add_argument("--malloc", default="kept", choices=("kept", "default"), help="default: with page faults")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, got {text!r}")
    return number


def _peer(problem: Problem, device: str) -> tuple[str, Callable]:
    """e3nn's, if it is installed and can, else the dense reference."""
    if problem.peer is not None:
        try:
            name, make = problem.peer
            f = make()
            return name, f.to(device) if isinstance(f, torch.nn.Module) else f
        except (ImportError, ValueError):
            pass
    return "eqk.reference", problem.truth


def _bench_case(case: Case, args: argparse.Namespace, device: str, count: int) -> list[list[str]]:
    ((label, make),) = case.parts
    rows = max(1, round(case.bench_rows * args.scale * (10 if device == "cuda" else 1)))
    _, generator = testing.generators(f"bench {case.op} {label}", 0)
    problem = make(rows, generator)
    operands = [None if t is None else t.to(device) for t in problem.operands]
    peer, theirs = _peer(problem, device)
    functions = {"eqk": problem.run, peer: theirs}
    with torch.no_grad():
        value = problem.run(*operands)
    g = torch.randn(value.shape, generator=generator).to(device)
    for phase in PHASES[:2]:
        pair = [measure.phase_function(phase, f, operands, g, ())() for f in functions.values()]
        error = max(testing.relative_error(a, b) for a, b in zip(*pair, strict=True))
        if not error <= 2 * testing.TOLERANCES[torch.float32][1]:
            wrong = f"{phase} differs from {peer} by {error:.1e}"
            return [[case.op, case.name, rows, "-", device, wrong, "-", "-", "FAIL"]]
    directions = [torch.randn(t.shape, generator=generator).to(device) for t in (*operands, value) if t is not None]
    table = []
    for phase in args.phases:
        runs = {name: measure.phase_function(phase, f, operands, g, directions) for name, f in functions.items()}
        failures: dict[str, str] = {}
        times = measure.interleaved(
            runs,
            args.rounds,
            10 if device == "cuda" else 1,
            measure.clock_of(device, count),
            lambda name, error, to=failures: to.update({name: str(error).splitlines()[0]}),
        )
        ours, others = times.get("eqk"), times.get(peer)
        ratio = f"{others / ours:.1f}x" if ours and others else "; ".join(failures.values())
        cells = [f"{1e3 * t:.3g}" if t else "-" for t in (ours, others)]
        where = threads(count) if device == "cpu" else device
        table.append([case.op, case.name, rows, phase, where, cells[0], peer, cells[1], ratio])
    return table


def main(args: argparse.Namespace) -> int:
    device = args.device or ("cuda" if gpu_reason() is None else "cpu")
    if device == "cuda" and (reason := gpu_reason()) is not None:
        print(f"python -m eqk bench: --device: expected a device that is here, got cuda: {reason}", file=sys.stderr)
        return 2
    if (
        args.malloc == "kept"
        and args.own_process
        and any(os.environ.get(k) != v for k, v in measure.KEPT_MEMORY.items())
    ):
        command = [sys.executable, "-m", "eqk", *sys.argv[1:]]
        return subprocess.run(command, env={**os.environ, **measure.KEPT_MEMORY}, check=False).returncode
    print(markdown(("what", "here"), machine().items()) + "\n", flush=True)
    before, table = torch.get_num_threads(), []
    try:
        for count in args.threads if args.threads and device == "cpu" else [before]:
            torch.set_num_threads(count)
            for case in all_cases():
                if case.bench_rows is None or case.op not in args.ops:
                    continue
                try:
                    table += _bench_case(case, args, device, count)
                except Exception as error:
                    message = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                    table.append([case.op, case.name, "-", "-", device, message, "-", "-", "FAIL"])
    finally:
        torch.set_num_threads(before)
    headers = ("op", "case", "rows", "phase", "on", "eqk ms", "peer", "peer ms", "ratio")
    print(markdown(headers, table, right=("rows", "eqk ms", "peer ms", "ratio")))
    broken = any(row[-1] == "FAIL" for row in table)
    print(f"\n{_LEGEND}")
    return 1 if broken else 0
