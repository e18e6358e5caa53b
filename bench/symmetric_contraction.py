"""Time of eqk.symmetric_contraction against the einsums of MACE, on the CPU.

    python bench/symmetric_contraction.py
    python bench/symmetric_contraction.py --nodes 1000 --channels 64 --threads 1 --phases forward forces

Layers of MACE models: --channels channels of 0e + 1o + 2e + 3o, polynomials of degree 3, --nodes nodes of --species
species in turn. Provider einsum: the formula of mace.modules.symmetric_contraction (0.3.16), dense bases U contracted
one factor of x after another by torch.einsum, which orders each contraction by opt_einsum where that is installed, as
MACE does. Checks, --malloc, and how times are taken: as in bench/tensor_product.py.

Phases: forward (no grad); forces = forward + gradient of x; backward = forward + gradients of x and w; double = force
training, forward + gradients with create_graph + the gradients of those with respect to x, w and the cotangent.
floor: x, g and their gradients move once for each node; multiply-adds of the sparse polynomial, that is one for each of
its monomials (forward), two more for the gradient of x, one more for that of w, twice as many on duals.
"""

import sys

import torch
from tensor_product import main_on_cpu, phase_function, timed

import eqk
from eqk.counts import Count, symmetric_contraction_counts
from eqk.o3._symmetric_contraction import basis_of
from eqk.testing import CONTRACTIONS, TOLERANCES, relative_error

PHASES = ("forward", "forces", "backward", "double")
STANDARD = ("mace-medium", "mace-large", "mace-last")
CORRELATION = 3


def einsum_contraction(plan: eqk.SymmetricContractionPlan, species: torch.Tensor, num_species: int):
    bases = [
        [basis_of(plan.irreps_in, ir, degree, torch.float32) for degree in range(CORRELATION, 0, -1)]
        for _, ir in plan.irreps_out
    ]
    y = torch.nn.functional.one_hot(species, num_species).float()

    def f(x, w):
        outs, at = [], 0
        for (_, ir), us in zip(plan.irreps_out, bases, strict=True):
            out = None
            for degree, u in zip(range(CORRELATION, 0, -1), us, strict=True):
                part = w[:, at : at + u.shape[-1]]
                at += u.shape[-1]
                kept = "mpqr"[: degree - 1 + (ir.l > 0)]
                if out is None:
                    out = torch.einsum(f"{kept}ik,ekc,bci,be->bc{kept}", u, part, x, y)
                else:
                    c = torch.einsum(f"{kept}ik,ekc,be->bc{kept}i", u, part, y)
                    out = torch.einsum(f"bc{kept}i,bci->bc{kept}", c + out, x)
            outs.append(out.flatten(1))
        return torch.cat(outs, 1)

    return f


def floors(plan, args, limits: tuple[float, float]) -> dict[str, float]:
    need = symmetric_contraction_counts(plan)
    # The gradient of x takes two of the three multiply-adds that those of x and w do.
    (_, products), backward = need["forward"], need["backward"]
    need["forces"] = Count(backward.moved, products + 2 * (backward.products - products) / 3)
    return {phase: args.nodes * args.channels * count.seconds(limits) for phase, count in need.items()}


def run_of(phase: str, f, operands, g, directions):
    if phase != "forces":
        return phase_function(phase, f, operands, g, directions)
    x, w = operands[0].clone().requires_grad_(), operands[1]
    return lambda: torch.autograd.grad(f(x, w), x, g)


def bench(name: str, args, clock, limits) -> list[list]:
    plan, generator = CONTRACTIONS[name], torch.Generator().manual_seed(0)
    x = torch.randn(args.nodes, args.channels, plan.irreps_in.dim, generator=generator)
    w = torch.randn(args.species, len(plan.paths), args.channels, generator=generator)
    species = torch.arange(args.nodes) % args.species
    g = torch.randn(args.nodes, args.channels * plan.irreps_out.dim, generator=generator)
    directions = [torch.randn(t.shape, generator=generator) for t in (x, w)]
    functions = {"eqk": lambda x, w: eqk.symmetric_contraction(x, w, species, plan)}
    if "einsum" in args.providers:
        functions["einsum"] = einsum_contraction(plan, species, args.species)
        for phase in PHASES[1:]:
            pair = [run_of(phase, functions[n], (x, w), g, directions)() for n in ("eqk", "einsum")]
            worst = max(relative_error(a, b) for a, b in zip(*pair, strict=True))
            if worst > 2 * TOLERANCES[torch.float32][2]:
                sys.exit(f"{name}: {phase} of eqk differs from the einsums by {worst:.1e}")
    return timed(name, functions, (x, w), g, directions, floors(plan, args, limits), args, clock, run_of, "einsum")


if __name__ == "__main__":
    main_on_cpu(__doc__, bench, STANDARD, sorted(CONTRACTIONS), ["einsum"], PHASES, nodes=64, channels=128, species=4)
