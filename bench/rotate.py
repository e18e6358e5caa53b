"""Time of eqk.rotate and eqk.rotate_back against gather, products with dense Wigner matrices and index_add, on the CPU.

    python bench/rotate.py --threads 1
    python bench/rotate.py --cases rotate-6-2 back-6-2 --threads 1 --weights --phases forward

Cases rotate-LMAX-MMAX and back-LMAX-MMAX: --edges edges between --nodes nodes, --channels channels of degrees 0 to
LMAX; rotate takes the features of source and target, back sums messages of as many channels into targets. Provider
dense: x[src] and x[dst], cat, torch.bmm with matrices [edges, rows, components] that are there already, and back bmm
with their transpose and index_add, as fairchem's general backend does. --weights: times radial weights for each degree,
order and channel in rotate, and for an edge in back; dense multiplies by them afterwards and before. Checks: value and
gradients of eqk against it. Phases, --malloc and how times are taken: as in bench/tensor_product.py; backward has the
gradients of features, of Wigner matrices and of weights. floor: numbers of edges and nodes, but for the index, move
once for each derivative, and the multiply-adds of the blocks.
"""

import sys

import torch
from tensor_product import PHASES, main_on_cpu, phase_function, timed

import eqk
from eqk.reference.rotate import groups_of_rows, places
from eqk.testing import TOLERANCES, relative_error

STANDARD = [f"{name}-{degrees}" for degrees in ("2-2", "4-2", "6-2") for name in ("rotate", "back")]


def bench(name: str, args, clock, limits) -> list[list]:
    back, lmax, mmax = name.startswith("back"), *map(int, name.split("-")[1:])
    generator, edges = torch.Generator().manual_seed(0), args.edges
    src, dst = torch.randint(args.nodes, (2, edges), generator=generator)
    rows, components = places(lmax, mmax)
    count, size = len(eqk.m_primary(lmax, mmax)), (lmax + 1) ** 2
    orders = sum(lmax + 1 - m for m in range(mmax + 1))

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    packed, channels = normal(edges, len(rows)), args.channels * (1 if back else 2)
    dense = torch.zeros(edges, count, size)
    dense[:, rows, components] = packed
    weights = [normal(edges, 1, 1) if back else normal(edges, orders, channels)] if args.weights else []
    group = groups_of_rows(lmax, mmax, 1 if back else orders)
    if back:
        x, g = normal(edges, count, channels), normal(args.nodes, size, channels)

        def ours(z, d, *w):
            return eqk.rotate_back(z, d, lmax, mmax, dst, args.nodes, *w)

        def theirs(z, d, *w):
            z = z * w[0][:, group] if w else z
            return z.new_zeros(args.nodes, size, channels).index_add(0, dst, torch.bmm(d.mT, z))

    else:
        x, g = normal(args.nodes, size, args.channels), normal(edges, count, channels)
        index = torch.stack((src, dst))

        def ours(x, d, *w):
            return eqk.rotate(x, d, lmax, mmax, index, *w)

        def theirs(x, d, *w):
            z = torch.bmm(d, torch.cat((x[src], x[dst]), 2))
            return z * w[0][:, group] if w else z

    functions = {"eqk": (ours, (x, packed, *weights)), "dense": (theirs, (x, dense, *weights))}

    def run_of(phase, function, *_):
        return phase_function(phase, *function, g, ())

    for phase in PHASES[:2]:
        (first, *got), (want, *expected) = (list(run_of(phase, f)()) for f in functions.values())
        if phase == "backward":
            expected[0] = expected[0][:, rows, components]
        worst = max(relative_error(a, b) for a, b in zip([first, *got], [want, *expected], strict=True))
        if worst > 2 * TOLERANCES[torch.float32][1]:
            sys.exit(f"{name}: {phase} of eqk differs from dense matrices by {worst:.1e}")
    if "dense" not in args.providers:
        del functions["dense"]
    of_weights = sum(w.numel() for w in weights)
    moved = x.numel() + packed.numel() + of_weights + g.numel()
    products, floors, total = edges * len(rows) * channels, {}, [0, 0]
    for phase, (numbers, gradients) in {"forward": (moved, 1), "backward": (2 * moved - g.numel(), 2)}.items():
        total = [total[0] + 4 * numbers, total[1] + gradients * products]
        floors[phase] = max(total[0] / limits[0], total[1] / limits[1])
    return timed(name, functions, (), g, (), floors, args, clock, run_of, "dense")


if __name__ == "__main__":
    main_on_cpu(__doc__, bench, STANDARD, None, ["dense"], edges=5000, nodes=64, channels=128, weights=False)
