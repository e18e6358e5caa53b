"""Time of eqk.gaunt_product against a grid in memory, Clebsch-Gordan products and e3nn-jax, on the CPU.

    python bench/gaunt_product.py
    python bench/gaunt_product.py --cases even-4 all-4 --threads 1 --phases forward backward --providers grid cg
    python bench/gaunt_product.py --cases mimo-2 mimo-4 --threads 1 --phases forward --providers jax-grid jax-cg

Cases even-L, odd-L and all-L: --channels channels of degrees 0 to L, L x L -> L, --rows rows. mimo-L: the benchmark of
Xie et al. 2025 (arXiv:2506.13523), one channel, L x L -> 2 L, 10 000 rows. Providers: grid, e3nn's S2 grid, the
smallest that is exact, by one dense einsum to it and one back; cg, the same paths by eqk.tensor_product; jax-grid and
jax-cg, e3nn-jax (an extra: pip install e3nn-jax) with its Gauss-Legendre grid and with one einsum a path, both
compiled by jax.jit, channels as rows.
JAX takes as many threads as the process has cores: --threads 1 binds it to one core, and times are then wall time.

Checks: value and gradients against each provider. Phases, --malloc and how times are taken: as in
bench/tensor_product.py. floor: x, y and the result move once for each derivative; multiply-adds of Legendre sums on
pairs of rings and of the products of polynomials on each ring, as they are in the kernel.
"""

import argparse
import math
import os
import sys
import time

import numpy
import torch
from tensor_product import PHASES, add_arguments, keep_memory, phase_function, print_table, timed
from torch import Tensor

import eqk
from eqk.counts import gaunt_paths, gaunt_product_counts
from eqk.testing import TOLERANCES, relative_error

PROVIDERS = ("grid", "cg", "jax-grid", "jax-cg")
CASES = [f"{kind}-{lmax}" for kind in ("even", "odd", "all", "mimo") for lmax in range(1, 9)]
STANDARD = [f"{kind}-{lmax}" for kind in ("even", "all") for lmax in range(2, 7)]


def grid_product(plan: eqk.GauntPlan):
    from e3nn.o3 import FromS2Grid, ToS2Grid

    if plan.odd:
        raise ValueError("no bracket")
    points = sum(plan.lmaxes) + 1
    resolution = points + points % 2, points + 1 - points % 2
    to = [ToS2Grid(lmax, resolution, normalization="integral") for lmax in plan.lmaxes[:2]]
    to = [torch.einsum("mbi,am->bai", t.shb, t.sha) for t in to]
    back = FromS2Grid(resolution, plan.lmax_out, normalization="integral")
    back = torch.einsum("am,mbi->bai", back.sha, back.shb)

    def f(x, y):
        on_grid = [torch.einsum("bai,zic->zbac", t, operand) for t, operand in zip(to, (x, y), strict=True)]
        return torch.einsum("bai,zbac->zic", back, on_grid[0] * on_grid[1])

    return f


def cg_product(plan: eqk.GauntPlan):
    irreps = ["+".join(f"{plan.channels}x{l}e" for l in range(lmax + 1)) for lmax in plan.lmaxes]
    instructions = [(l1, l2, l3, "uuu", False, coefficient) for l1, l2, l3, coefficient in gaunt_paths(plan)]
    cg = eqk.Plan(*irreps, instructions, "ir_mul", "ir_mul", "ir_mul")
    return lambda x, y: eqk.tensor_product(x.flatten(1), y.flatten(1), None, cg).unflatten(1, (-1, plan.channels))


class JaxProduct:
    """Runs of a product of x and y [row, component] compiled by jax.jit; channels are rows, as e3nn-jax has them."""

    def __init__(self, product):
        import jax

        def with_gradients(x, y, g):
            value, backward = jax.vjp(product, x, y)
            return value, *backward(g)

        self.compiled = {"forward": jax.jit(product), "backward": jax.jit(with_gradients)}

    def run(self, phase: str, operands):
        """Of x, y and the gradient, [row, component, channel]. Operands are copied before, not in each run."""
        import jax
        import jax.numpy as jnp

        flat = [jnp.asarray(t.mT.flatten(0, 1).numpy()) for t in operands]
        compiled = self.compiled[phase]
        return lambda: jax.block_until_ready(compiled(*(flat if phase == "backward" else flat[:2])))

    @staticmethod
    def to_torch(result, channels: int) -> Tensor:
        return torch.from_numpy(numpy.array(result)).unflatten(0, (-1, channels)).mT


def run_of(phase: str, f, operands, g, directions):
    if isinstance(f, JaxProduct):
        return f.run(phase, (*operands, g))
    return phase_function(phase, f, operands, g, directions)


def jax_product(plan: eqk.GauntPlan, on_grid: bool) -> JaxProduct:
    import e3nn_jax
    import jax.numpy as jnp

    if on_grid and plan.odd:
        raise ValueError("no bracket")
    irreps = [e3nn_jax.s2_irreps(lmax) for lmax in plan.lmaxes]
    if on_grid:
        points = sum(plan.lmaxes) + 1
        options = {"quadrature": "gausslegendre", "p_val": 1, "p_arg": -1, "fft": False}

        def product(x, y):
            signals = [
                e3nn_jax.to_s2grid(
                    e3nn_jax.IrrepsArray(ir, t), points // 2 + 1, points, normalization="integral", **options
                )
                for ir, t in zip(irreps, (x, y), strict=False)
            ]
            z = e3nn_jax.from_s2grid(signals[0] * signals[1], irreps[2], normalization="integral", fft=False).array
            return z / math.sqrt(4 * math.pi)  # its harmonics are that much larger

    else:
        symbols = [(*l, c * jnp.asarray(eqk.wigner_3j(*l, dtype=torch.float32).numpy())) for *l, c in gaunt_paths(plan)]

        def product(x, y):
            out = [jnp.zeros((x.shape[0], 2 * l + 1)) for l in range(plan.lmax_out + 1)]
            for l1, l2, l3, symbol in symbols:
                parts = x[:, l1 * l1 : (l1 + 1) ** 2], y[:, l2 * l2 : (l2 + 1) ** 2]
                out[l3] = out[l3] + jnp.einsum("zi,zj,ijk->zk", *parts, symbol)
            return jnp.concatenate(out, 1)

    return JaxProduct(product)


def provider(name: str, plan: eqk.GauntPlan):
    if name.startswith("jax"):
        return jax_product(plan, name == "jax-grid")
    return {"grid": grid_product, "cg": cg_product}[name](plan)


def floors(plan: eqk.GauntPlan, rows: int, limits: tuple[float, float]) -> dict[str, float]:
    return {phase: rows * count.seconds(limits) for phase, count in gaunt_product_counts(plan).items()}


def plan_of(name: str, channels: int) -> eqk.GauntPlan:
    kind, lmax = name.split("-")
    lmax = int(lmax)
    if kind == "mimo":
        return eqk.GauntPlan.normalized(lmax, lmax, 2 * lmax, 1, 1)
    return eqk.GauntPlan.normalized(lmax, lmax, lmax, channels, channels, kind)


def bench(name: str, args, clock, limits) -> list[list]:
    plan, generator = plan_of(name, args.channels), torch.Generator().manual_seed(0)
    rows = 10_000 if name.startswith("mimo") else args.rows
    signals = zip(plan.lmaxes, (plan.channels1, plan.channels2, plan.channels), strict=True)
    x, y, g = (torch.randn(rows, (lmax + 1) ** 2, channels, generator=generator) for lmax, channels in signals)
    directions = [torch.randn(t.shape, generator=generator) for t in (x, y)]
    kind = "even" if not plan.odd else "all" if plan.even else "odd"
    functions = {"eqk": lambda x, y: eqk.gaunt_product(x, y, plan.lmax_out, kind=kind)}
    for other in args.providers:
        try:
            functions[other] = provider(other, plan)
        except (ImportError, ValueError) as error:
            print(f"{name}: {other}: {error}", file=sys.stderr)
    for other, f in functions.items():
        for phase in PHASES[:2]:
            pair = [run_of(phase, functions[n], (x, y), g, directions)() for n in ("eqk", other)]
            if isinstance(f, JaxProduct):
                theirs = pair[1][1:] if phase == "backward" else (pair[1],)
                pair[1] = [f.to_torch(t, g.shape[-1]) for t in theirs]
            worst = max(relative_error(a, b) for a, b in zip(*pair, strict=True))
            if worst > 2 * TOLERANCES[torch.float32][1]:
                sys.exit(f"{name}: {phase} of eqk differs from {other} by {worst:.1e}")
    present = [n for n in args.providers if n in functions]
    clock = time.perf_counter if any(n.startswith("jax") for n in present) else clock
    return timed(
        name,
        functions,
        (x, y),
        g,
        directions,
        floors(plan, rows, limits),
        args,
        clock,
        run_of,
        peer=present[0] if present else "",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, STANDARD, CASES)
    parser.set_defaults(phases=["forward", "backward"])  # the double backward of the grid takes 20 GB at degree 6
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--providers", nargs="*", default=["grid", "cg"], choices=PROVIDERS)
    args = parser.parse_args()
    args.device, args.calls = "cpu", 1
    if any(name.startswith("jax") for name in args.providers):
        if args.threads is None or len(args.threads) != 1:
            parser.error("--threads: expected one number, since JAX cannot change its own")
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.threads[0] :])
        if args.threads == [1]:  # else JAX's wait for work on the one core, and cut into calls of others
            os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    keep_memory(args.malloc)
    print_table(args, bench, lambda name: name)


if __name__ == "__main__":
    main()
