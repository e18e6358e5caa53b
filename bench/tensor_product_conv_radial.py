"""Time of eqk.tensor_product_conv_radial against a matrix product and eqk.tensor_product_conv, on the CPU.

    python bench/tensor_product_conv_radial.py
    python bench/tensor_product_conv_radial.py --nodes 1000 --degree 60 --hidden 64 --threads 1 --providers weights

Graphs, checks, phases, --malloc, and how times are taken: as in bench/tensor_product_conv.py. Provider weights: h @ a,
then eqk.tensor_product_conv; e3nn: h @ a, gather, e3nn's product, index_add. floor: nodes, edges and hidden features
move once, the matrix never; multiply-adds of the convolution and of the matrix product (forward one, backward two, on
duals five more).
"""

import argparse

import torch
from tensor_product import PHASES, checked, keep_memory, print_table, timed
from tensor_product_conv import add_graph_arguments, provider, random_graph

import eqk
from eqk.counts import tensor_product_counts
from eqk.testing import Case, random_operands


def floors(case: Case, args, limits: tuple[float, float]) -> dict[str, float]:
    plan, edges = case.plan, args.nodes * args.degree
    x, g, edge = plan.irreps_in1.dim, plan.irreps_out.dim, plan.irreps_in2.dim + args.hidden
    moved = {"forward": (x + g, edge), "backward": (2 * x + g, 2 * edge), "double": (3 * x + 2 * g, 3 * edge)}
    product, total, result = args.hidden * plan.weight_numel, [0.0, 0.0], {}
    for phase, products in zip(PHASES, (1, 3, 8), strict=True):
        total[0] += 4 * (args.nodes * moved[phase][0] + edges * moved[phase][1])
        total[1] = edges * (tensor_product_counts(plan)[phase].products + products * product)
        result[phase] = max(total[0] / limits[0], total[1] / limits[1])
    return result


def bench(case: Case, args, clock, limits) -> list[list]:
    generator = torch.Generator().manual_seed(0)
    src, dst = random_graph(args, generator)
    _, y, _ = random_operands(case.plan, len(src), torch.float32, generator)
    x, _, _ = random_operands(case.plan, args.nodes, torch.float32, generator)
    h = torch.randn(len(src), args.hidden, generator=generator)
    a = torch.randn(args.hidden, case.plan.weight_numel, generator=generator) / args.hidden**0.5
    g = torch.randn(args.nodes, case.plan.irreps_out.dim, generator=generator)
    directions = [torch.randn(t.shape, generator=generator) for t in (x, y, h, a)]

    def fused(x, y, h, a):
        return eqk.tensor_product_conv_radial(x, y, h, a, src, dst, args.nodes, case.plan)

    def unfused(name):
        f = provider(name, case, src, dst, args.nodes)
        return lambda x, y, h, a: f(x, y, h @ a)

    peers = {"weights": "eqk", "e3nn": "e3nn"}
    functions = {"eqk": fused} | {name: unfused(peers[name]) for name in args.providers}
    for peer in args.providers:
        checked(case, functions, (x, y, h, a), g, directions, peer)
    return timed(
        case.name, functions, (x, y, h, a), g, directions, floors(case, args, limits), args, clock, peer="weights"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_graph_arguments(parser)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--providers", nargs="*", default=["weights", "e3nn"], choices=["weights", "e3nn"])
    args = parser.parse_args()
    args.device, args.calls = "cpu", 1
    keep_memory(args.malloc)
    print_table(args, bench)


if __name__ == "__main__":
    main()
