"""Time of eqk.tensor_product_by_grids against the sparse Clebsch-Gordan product with the same paths, on the CPU.

    python bench/tensor_product_by_grids.py --threads 1
    python bench/tensor_product_by_grids.py --cases 4 6 8 --threads 1 --phases forward --rows 64 --channels 16

Case L: L x L -> 2 L, every path (l1, l2, l3) with an output of its own. Provider cg: eqk.tensor_product, mode uuu.
Checks, phases, --malloc and how times are taken: as in bench/gaunt_product.py. floor: the sum of those of the products
of each (l1, l2) there.
"""

import torch
from gaunt_product import floors
from tensor_product import PHASES, main_on_cpu, phase_function, timed

import eqk
from eqk.testing import TOLERANCES, relative_error

CASES = [str(lmax) for lmax in range(1, 11)]


def cg_product(lmax: int, channels: int):
    irreps = [(channels, (l, 1)) for l in range(lmax + 1)]
    paths = eqk.tensor_product_paths(lmax, lmax, 2 * lmax)
    out = [(channels, (l3, 1)) for *_, l3 in paths]
    instructions = [(l1, l2, n, "uuu", False) for n, (l1, l2, _) in enumerate(paths)]
    plan = eqk.Plan.normalized(irreps, irreps, out, instructions, layout_in1="ir_mul", layout_in2="ir_mul",
                               layout_out="ir_mul")  # fmt: skip
    return lambda x, y: eqk.tensor_product(x.flatten(1), y.flatten(1), None, plan).unflatten(1, (-1, channels))


def bench(name: str, args, clock, limits) -> list[list]:
    lmax, generator = int(name), torch.Generator().manual_seed(0)
    n, channels = (lmax + 1) ** 2, args.channels
    shapes = [(args.rows, k, channels) for k in (n, n, n * n)]
    x, y, g = (torch.randn(shape, generator=generator) for shape in shapes)
    directions = [torch.randn(t.shape, generator=generator) for t in (x, y)]
    functions = {"eqk": eqk.tensor_product_by_grids}
    functions |= {other: cg_product(lmax, channels) for other in args.providers}
    for other in args.providers:
        for phase in PHASES[:2]:
            pair = [phase_function(phase, functions[n], (x, y), g, directions)() for n in ("eqk", other)]
            worst = max(relative_error(a, b) for a, b in zip(*pair, strict=True))
            if worst > 2 * TOLERANCES[torch.float32][1]:
                raise SystemExit(f"{name}: {phase} of eqk differs from {other} by {worst:.1e}")
    total = dict.fromkeys(PHASES, 0.0)
    for l1 in range(lmax + 1):
        for l2 in range(lmax + 1):
            plan = eqk.GauntPlan(l1, l2, l1 + l2, channels, channels, 1.0, 1.0)
            for phase, seconds in floors(plan, args.rows, limits).items():
                total[phase] += seconds
    peer = args.providers[0] if args.providers else ""
    return timed(name, functions, (x, y), g, directions, total, args, clock, peer=peer)


if __name__ == "__main__":
    main_on_cpu(__doc__, bench, ["2", "4", "6", "8"], CASES, ["cg"], more_phases=PHASES[2:], rows=64, channels=16)
