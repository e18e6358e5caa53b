"""Time of eqk.so2_edge_message against eager torch operations on whole tensors of edges, on the CPU.

    python bench/so2_edge_message.py --threads 1
    python bench/so2_edge_message.py --cases uma-s --threads 1 --phases forward

Cases, of --edges edges between --nodes nodes: uma-s, L = M = 2 of 128 channels with gates (UMA-S's message); esen-4-2,
the same of degrees to 4 and orders to 2; eqv3-6-2, degrees to 6 with a product on the sphere (EquiformerV3's SwiGLU).
Provider eager: x[src] and x[dst], cat, torch.bmm with dense Wigner matrices [edges, rows, components] that are there
already, as a model has them for all of its layers, radial weights, the layers as in fairchem-core (four products for a
complex one), gates or einsums to a grid and back, bmm with the transposed matrices and index_add. Checks: value and
gradients of eqk against it. Phases, --malloc and how times are taken: as in bench/tensor_product.py; backward has the
gradients of features, of the radial network's last layer's input, of edges' weights, and of quaternions, or for eager
of Wigner matrices. floor: the multiply-adds of the matrix products of eqk, three for a complex one, at the speed of
torch.mm; nothing else.
"""

import sys

import torch
from tensor_product import PHASES, main_on_cpu, phase_function, timed
from torch.nn.functional import linear, sigmoid, silu

import eqk
from eqk.reference.rotate import groups_of_rows, places
from eqk.reference.s2_activation import dense
from eqk.so2_conv import Sizes
from eqk.so2_edge_message import Plan
from eqk.testing import TOLERANCES, relative_error

CASES = {  # lmax, mmax, channels, hidden, activation
    "uma-s": (2, 2, 128, 128, "gate"),
    "esen-4-2": (4, 2, 128, 128, "gate"),
    "eqv3-6-2": (6, 2, 128, 64, "swiglu_s2"),
}
FEATURES = 128  # of the radial network


def eager_layer(x, parameters, sizes: Sizes):
    zero, bias, *orders = parameters
    first = linear(x[:, : sizes.lmax + 1].flatten(1), zero, bias)
    extra, first = first[:, : sizes.extra], first[:, sizes.extra :]
    out = [first.unflatten(1, (-1, sizes.channels_out))]
    for (_, begin, n), weight in zip(list(sizes.blocks())[1:], orders, strict=True):
        both = linear(x[:, begin : begin + 2 * n].reshape(len(x), 2, -1), weight)
        p, q = both.chunk(2, 2)
        out += [t.unflatten(1, (n, -1)) for t in (p[:, 0] - q[:, 1], p[:, 1] + q[:, 0])]
    return torch.cat(out, 1), extra


def eager_activation(y, s, plan: Plan, degrees, grid):
    if plan.activation == "gate":
        gates = sigmoid(s).unflatten(1, (plan.lmax, plan.hidden))[:, degrees[1:] - 1]
        return torch.cat([silu(y[:, :1]), y[:, 1:] * gates], 1)
    to, back = grid
    u, v = torch.einsum("pi,zic->zpc", to, y).chunk(2, 2)
    p, t, gate = s.chunk(3, 1)
    z = torch.einsum("pi,zpc->zic", back, u * v) * sigmoid(gate)[:, None]
    return torch.cat([z[:, :1] + (silu(p) * t)[:, None], z[:, 1:]], 1)


def bench(name: str, args, clock, limits) -> list[list]:
    lmax, mmax, channels, hidden, activation = CASES[name]
    generator, edges, nodes = torch.Generator().manual_seed(0), args.edges, args.nodes
    src, dst = index = torch.randint(nodes, (2, edges), generator=generator)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    plan, on_grid = Plan(lmax, mmax, 2 * channels, hidden, channels, activation, False, False, ""), None
    layers = [[normal(*s) / s[-1] ** 0.5 for s in sizes.shapes()] for sizes in plan.convolutions]
    rows, components = places(lmax, mmax)
    order = groups_of_rows(lmax, mmax, sum(lmax + 1 - m for m in range(mmax + 1)))
    degrees = torch.tensor(groups_of_rows(lmax, mmax, lmax + 1))
    if activation != "gate":
        res = 3 * lmax // 2 + 1, 3 * mmax + 1  # on which the product is exact
        on_grid = eqk.S2ActivationPlan.normalized(
            lmax, lmax, hidden, "identity", res, "gausslegendre", "component", mmax=mmax, order="m_primary"
        )
    grid = None if on_grid is None else dense(on_grid, torch.float32, "cpu")
    x, q, h, w = normal(nodes, (lmax + 1) ** 2, channels), normal(edges, 4), normal(edges, FEATURES), normal(edges)
    a, g = normal(FEATURES, 2 * channels * (max(order) + 1)) / FEATURES**0.5, normal(nodes, (lmax + 1) ** 2, channels)
    matrices = torch.zeros(edges, max(rows) + 1, (lmax + 1) ** 2)
    matrices[:, rows, components] = eqk.wigner(q, lmax, mmax)
    options = {"activation": activation, "res": None if on_grid is None else on_grid.res}

    def ours(x, q, h, w):
        return eqk.so2_edge_message(x, q, index, *layers, lmax, mmax, h=h, a=a, w=w, **options)

    def theirs(x, d, h, w):
        z = torch.bmm(d, torch.cat((x[src], x[dst]), 2)) * (h @ a).unflatten(1, (-1, 2 * channels))[:, order]
        y, s = eager_layer(z, layers[0], plan.convolutions[0])
        message, _ = eager_layer(eager_activation(y, s, plan, degrees, grid), layers[1], plan.convolutions[1])
        return torch.zeros_like(x).index_add(0, dst, torch.bmm(d.mT, message * w[:, None, None]))

    functions = {"eqk": (ours, (x, q, h, w)), "eager": (theirs, (x, matrices, h, w))}

    def run_of(phase, function, *_):
        return phase_function(phase, *function, g, ())

    for phase in PHASES[:2]:
        got, expected = (list(run_of(phase, f)()) for f in functions.values())
        if phase == "backward":
            del got[1], expected[1]  # of quaternions and of matrices
        worst = max(relative_error(a, b) for a, b in zip(got, expected, strict=True))
        if worst > 2 * TOLERANCES[torch.float32][1]:
            sys.exit(f"{name}: {phase} of eqk differs from eager by {worst:.1e}")
    if "eager" not in args.providers:
        del functions["eager"]
    products = [p.numel() for layer in layers for p in layer if p.dim() == 2]
    zero = sum(layer[0].numel() for layer in layers)
    seconds = edges * (a.numel() + zero + 1.5 * (sum(products) - zero)) / limits[1]
    return timed(
        name, functions, (), g, (), {"forward": seconds, "backward": 2 * seconds}, args, clock, run_of, "eager"
    )


if __name__ == "__main__":
    main_on_cpu(__doc__, bench, list(CASES), list(CASES), ["eager"], edges=5000, nodes=64)
