"""How eqk's benchmarks take times: rates of the machine, phases of an op, medians of runs that take turns.

Needs neither e3nn nor matplotlib; :func:`e3nn_product` imports e3nn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.timer import timer as after_the_device

from eqk.plan import Plan

# With these in the environment glibc keeps freed memory, so that no page is faulted in anew in each call.
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "1073741824",
}


def e3nn_product(plan: Plan, jit_mode: str) -> torch.nn.Module:
    """``e3nn.o3.TensorProduct`` of a plan, without weights of its own; ``jit_mode``: of e3nn, from 0.6 on.

    Raises:
        ValueError: if a coefficient is negative, which e3nn has no way to say.
        ImportError: where e3nn is not installed.
    """
    import e3nn
    from e3nn import o3

    irreps = [str(i) for i in (plan.irreps_in1, plan.irreps_in2, plan.irreps_out)]
    # The coefficient of a path is the root of e3nn's path weight where nothing else normalises.
    paths = [(i.i_in1, i.i_in2, i.i_out, i.connection_mode, i.has_weight, i.coefficient**2) for i in plan.instructions]
    if any(i.coefficient < 0 for i in plan.instructions):
        raise ValueError("a negative coefficient")
    before = e3nn.get_optimization_defaults()
    if "jit_mode" in before:
        e3nn.set_optimization_defaults(jit_mode=jit_mode)
    try:
        return o3.TensorProduct(
            *irreps, paths, irrep_normalization="none", path_normalization="none",
            shared_weights=plan.weights == "shared", internal_weights=False,
        )  # fmt: skip
    finally:
        e3nn.set_optimization_defaults(**before)


def phase_function(
    phase: str, f: Callable, operands: Sequence[Tensor | None], g: Tensor, directions: Sequence[Tensor]
) -> Callable[[], tuple[Tensor, ...]]:
    """What runs one phase of :data:`eqk.counts.PHASES`; g: the cotangent, directions: of the gradients."""
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


def clock_of(device: str, threads: int) -> Callable[[], float]:
    """On the CPU the time of one thread does not count what other programs take from a shared machine."""
    if device != "cpu":
        return after_the_device
    return time.process_time if threads == 1 else time.perf_counter


def median(timer: Timer, rounds: int) -> float:
    return statistics.median(timer.timeit(1).mean for _ in range(rounds))


def ceilings(clock: Callable[[], float], device: str) -> tuple[float, float]:
    """Bytes a second of a copy (read and written) and multiply-adds a second of a matrix product."""
    copied, n = (16 << 20, 1024) if device == "cpu" else (256 << 20, 8192)  # beyond a GPU's caches, and to fill it
    a, b = torch.ones(copied, device=device), torch.ones(copied, device=device)
    m = torch.ones(n, n, device=device)
    names, threads = {"a": a, "b": b, "m": m, "torch": torch}, torch.get_num_threads()
    copy = median(Timer("b.copy_(a)", globals=names, timer=clock, num_threads=threads), 9)
    product = median(Timer("torch.mm(m, m)", globals=names, timer=clock, num_threads=threads), 9)
    return 8 * a.numel() / copy, n**3 / product


def interleaved(
    runs: dict[str, Callable],
    rounds: int,
    calls: int,
    clock: Callable[[], float],
    failed: Callable[[str, Exception], None],
) -> dict[str, float]:
    """Medians in seconds of ``rounds`` rounds of ``calls`` calls, in which the ``runs`` take turns.

    What raises RuntimeError or ValueError is left out, and told to ``failed``.
    """
    timers = {}
    for name, run in runs.items():
        try:
            for _ in range(3):
                run()
        except (RuntimeError, ValueError) as error:
            failed(name, error)
            continue
        timers[name] = Timer("run()", globals={"run": run}, timer=clock, num_threads=torch.get_num_threads())
    times = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(timer.timeit(calls).mean)
    return {name: statistics.median(t) for name, t in times.items()}
