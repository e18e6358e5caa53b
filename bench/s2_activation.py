"""Time of eqk.s2_activation against dense matrices to a grid of the sphere and back, on the CPU.

    python bench/s2_activation.py --threads 1
    python bench/s2_activation.py --cases silu-6-18x18 --threads 1 --phases forward

Cases FUNCTION-LMAX-BETAxALPHA: --channels channels of degrees 0 to LMAX on a grid, of e3nn's rings where their number
is even and at least 2 (LMAX + 1), else of Gauss and Legendre; --rows rows. Provider dense: einsum("bai,zic->zbac") to
the grid, the function, einsum("bai,zbac->zic") back, as EquiformerV2 and eSCN do. Checks: value and gradients of eqk
against it. Phases, --malloc and how times are taken: as in bench/tensor_product.py. floor: x and the result move once
for each derivative; multiply-adds of the transforms as they are in the kernel, and 16 for each value of the function.
"""

import sys

import torch
from tensor_product import PHASES, main_on_cpu, phase_function, timed

import eqk
from eqk.counts import s2_activation_counts
from eqk.reference.s2_activation import FUNCTIONS, dense
from eqk.testing import TOLERANCES, relative_error

STANDARD = ["silu-4-18x18", "silu-4-7x13", "silu-6-18x18", "silu-6-10x19"]


def plan_of(name: str, channels: int) -> eqk.S2ActivationPlan:
    function, lmax, res = name.split("-")
    lmax, res = int(lmax), tuple(map(int, res.split("x")))
    quadrature = "gausslegendre" if res[0] % 2 or res[0] < 2 * (lmax + 1) else "soft"
    return eqk.S2ActivationPlan.normalized(lmax, lmax, channels, function, res, quadrature)


def dense_activation(plan: eqk.S2ActivationPlan):
    to, back = (t.unflatten(0, plan.res) for t in dense(plan, torch.float32, "cpu"))
    f = torch.nn.functional.silu if plan.function == "silu" else FUNCTIONS[plan.function]
    return lambda x: torch.einsum("bai,zbac->zic", back, f(torch.einsum("bai,zic->zbac", to, x)))


def bench(name: str, args, clock, limits) -> list[list]:
    plan, generator = plan_of(name, args.channels), torch.Generator().manual_seed(0)
    x, g, direction = (
        torch.randn(args.rows, (plan.lmax_in + 1) ** 2, args.channels, generator=generator) for _ in range(3)
    )
    options = {"res": plan.res, "quadrature": plan.quadrature}
    functions = {"eqk": lambda x: eqk.s2_activation(x, plan.function, **options)}
    if "dense" in args.providers:
        functions["dense"] = dense_activation(plan)
        for phase in PHASES[:2]:
            pair = [phase_function(phase, f, (x,), g, [direction])() for f in functions.values()]
            worst = max(relative_error(a, b) for a, b in zip(*pair, strict=True))
            if worst > 2 * TOLERANCES[torch.float32][1]:
                sys.exit(f"{name}: {phase} of eqk differs from dense matrices by {worst:.1e}")
    floor = {phase: args.rows * count.seconds(limits) for phase, count in s2_activation_counts(plan).items()}
    return timed(name, functions, (x,), g, [direction], floor, args, clock, peer="dense")


if __name__ == "__main__":
    main_on_cpu(__doc__, bench, STANDARD, None, ["dense"], more_phases=PHASES[2:], rows=4096, channels=128)
