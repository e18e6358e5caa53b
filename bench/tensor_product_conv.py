"""Time of eqk.tensor_product_conv against gather + product + sum over edges, on the CPU.

    python bench/tensor_product_conv.py
    python bench/tensor_product_conv.py --nodes 1000 --degree 60 --threads 1 --phases forward

A random graph of --nodes nodes with --degree edges into each, sorted by destination or --shuffled. Providers: e3nn and
eqk.tensor_product (eqk-messages), each between a gather and index_add; eqk-graph is eqk given the orders of edges by an
eqk.Graph. Checks, phases, --malloc, and how times are taken: as in bench/tensor_product.py. floor: weights, edges and
their gradients move once for each edge, node features once for each node; the same multiply-adds as the product's.
"""

import argparse

import torch
from tensor_product import PHASES, STANDARD, add_arguments, checked, keep_memory, print_table, timed

import eqk
from eqk.counts import tensor_product_counts
from eqk.measure import e3nn_product
from eqk.testing import Case, random_operands


def provider(name: str, case: Case, src: torch.Tensor, dst: torch.Tensor, nodes: int):
    plan = case.plan
    if name == "eqk":
        return lambda x, y, w: eqk.tensor_product_conv(x, y, w, src, dst, nodes, plan)
    if name == "eqk-graph":
        graph = eqk.Graph.from_edges(src, dst, nodes)
        return lambda x, y, w: graph.conv(x, y, w, plan)
    product = e3nn_product(plan, "script") if name == "e3nn" else lambda x, y, w: eqk.tensor_product(x, y, w, plan)

    def by_messages(x, y, w):
        messages = product(x[src], y, w)
        return messages.new_zeros(nodes, messages.shape[1]).index_add(0, dst, messages)

    return by_messages


def floors(case: Case, nodes: int, edges: int, limits: tuple[float, float]) -> dict[str, float]:
    plan = case.plan
    x, y, w, g = plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim
    w = 0 if plan.weights == "shared" else w
    node, edge, total, result = x + g, y + w, 0.0, {}
    moved = {"forward": (node, edge), "backward": (2 * x + g, 2 * edge), "double": (3 * x + 2 * g, 3 * edge)}
    for phase in PHASES:
        of_node, of_edge = moved[phase]
        total += 4 * (nodes * of_node + edges * of_edge)
        result[phase] = max(total / limits[0], edges * tensor_product_counts(plan)[phase].products / limits[1])
    return result


def add_graph_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser, STANDARD)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--degree", type=int, default=20)
    parser.add_argument("--shuffled", action="store_true", help="edges in no order")


def random_graph(args, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """src, dst of --degree edges into each of --nodes nodes, by destination unless --shuffled."""
    dst = torch.arange(args.nodes).repeat_interleave(args.degree)
    if args.shuffled:
        dst = dst[torch.randperm(len(dst), generator=generator)]
    return torch.randint(args.nodes, dst.shape, generator=generator), dst


def bench(case: Case, args, clock, limits) -> list[list]:
    generator = torch.Generator().manual_seed(0)
    src, dst = random_graph(args, generator)
    edges = len(src)
    _, y, w = random_operands(case.plan, edges, torch.float32, generator)
    x, _, _ = random_operands(case.plan, args.nodes, torch.float32, generator)
    operands = (x, y, w)
    g = torch.randn(args.nodes, case.plan.irreps_out.dim, generator=generator)
    directions = [torch.randn(t.shape, generator=generator) for t in operands if t is not None]
    functions = {name: provider(name, case, src, dst, args.nodes) for name in ["eqk", *args.providers]}
    if "e3nn" in functions:
        checked(case, functions, operands, g, directions)
    else:  # on some edges: the messages of all may need more memory than there is
        few = slice(2000)
        some = {n: provider(n, case, src[few], dst[few], args.nodes) for n in ("eqk", "eqk-messages")}
        along = [d if n == 0 else d[few] for n, d in enumerate(directions)]
        checked(case, some, (x, y[few], w[few]), g, along, "eqk-messages")
    return timed(case.name, functions, operands, g, directions, floors(case, args.nodes, edges, limits), args, clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_graph_arguments(parser)
    choices = ["e3nn", "eqk-messages", "eqk-graph"]
    parser.add_argument("--providers", nargs="*", default=choices[:2], choices=choices)
    args = parser.parse_args()
    args.device, args.calls = "cpu", 1
    keep_memory(args.malloc)
    print_table(args, bench)


if __name__ == "__main__":
    main()
