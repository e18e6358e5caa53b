"""``python -m eqk explain PLAN``: the paths of a plan, what they cost, and which kernels run them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch

import eqk
from eqk import _library, counts, dispatch, measure, testing
from eqk.cli.info import ABSENT_GPU, devices, gpu_reason, why_not
from eqk.cli.tables import markdown, number, threads
from eqk.counts import PHASES
from eqk.plan import MAX_LENGTH

AnyPlan = eqk.Plan | eqk.GauntPlan | eqk.S2ActivationPlan | eqk.SymmetricContractionPlan

# Beyond, the monomials of a symmetric contraction are not counted: it would take minutes.
MAX_MONOMIALS = 300_000

OPS: dict[type, tuple[str, ...]] = {
    eqk.Plan: ("tensor_product", "tensor_product_conv", "tensor_product_conv_radial"),
    eqk.GauntPlan: ("gaunt_product",),
    eqk.S2ActivationPlan: ("s2_activation",),
    eqk.SymmetricContractionPlan: ("symmetric_contraction",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "plan",
        metavar="PLAN",
        help="the string of an eqk.Plan, GauntPlan, S2ActivationPlan or SymmetricContractionPlan, the name of a case "
        "of eqk.testing, such as mace-medium, or - for a string from standard input",
    )


def _named() -> dict[str, list[AnyPlan]]:
    named: dict[str, list[AnyPlan]] = {}
    products = {name: case.plan for name, case in testing.CASES.items()}
    for registry in (products, testing.CONTRACTIONS, testing.GAUNTS):
        for name, plan in registry.items():
            named.setdefault(name, []).append(plan)
    return named


def parse(text: str) -> list[AnyPlan]:
    """The plans that ``text`` is the name of, or the one that it is the string of.

    Raises:
        ValueError: with the parser's words, or if it is no plan of any kind.
    """
    if text in (named := _named()):
        return named[text]
    head = text.partition("{")[0]
    if "->" not in head or len(text) > MAX_LENGTH:
        raise ValueError(
            f"PLAN: expected the string of a plan, at most {MAX_LENGTH} characters, or the name of a case such as "
            f"mace-medium, got {text[:200]!r}"
        )
    if "rank" in head and "even" in head:
        return [eqk.GauntPlan.parse(text)]
    if "*" in head:
        return [eqk.Plan.parse(text)]
    if "l_primary" in head or "m_primary" in head:
        return [eqk.S2ActivationPlan.parse(text)]
    return [eqk.SymmetricContractionPlan.parse(text)]


def _of_product(plan: eqk.Plan) -> tuple[list[str], list[tuple], str, Callable]:
    headers = ["path", "l1 x l2 -> l3", "mode", "channels", "weights", "coefficient", "3j terms", "multiply-adds"]
    rows = []
    for n, (ins, shape) in enumerate(zip(plan.instructions, plan.path_shapes, strict=True)):
        (m1, a), (m2, b), (mo, c) = (
            irreps[i] for irreps, i in zip((plan.irreps_in1, plan.irreps_in2, plan.irreps_out), ins, strict=False)
        )
        weights = "x".join(map(str, shape)) if ins.has_weight else "-"
        terms, products = counts.coupling_terms(a.l, b.l, c.l), counts.path_products(plan, ins)
        coupled = f"{a} x {b} -> {c}"
        rows.append(
            (
                n,
                coupled,
                ins.connection_mode,
                f"{m1} x {m2} -> {mo}",
                weights,
                number(ins.coefficient, 6),
                terms,
                products,
            )
        )
    sizes = (
        f"{len(rows)} paths, columns {plan.irreps_in1.dim} * {plan.irreps_in2.dim} -> {plan.irreps_out.dim}, "
        f"{plan.weight_numel} weights ({plan.weights})"
    )
    return headers, rows, sizes, counts.tensor_product_counts


def _of_gaunt(plan: eqk.GauntPlan) -> tuple[list[str], list[tuple], str, Callable]:
    rows = [
        (
            n,
            f"{l1} x {l2} -> {l3}",
            "bracket" if (l1 + l2 + l3) % 2 else "product",
            number(c, 6),
            counts.coupling_terms(l1, l2, l3),
        )
        for n, (l1, l2, l3, c) in enumerate(counts.gaunt_paths(plan))
    ]
    rings = sum(plan.lmaxes) // 2 + 1
    sizes = (
        f"{len(rows)} paths on {rings} rings of Gauss and Legendre, channels {plan.channels1} * {plan.channels2} -> "
        f"{plan.channels}, rank {plan.rank}, columns {plan.dims[0]} * {plan.dims[1]} -> {plan.dims[2]}"
    )
    return ["path", "l1 x l2 -> l3", "part", "coefficient", "3j terms"], rows, sizes, counts.gaunt_product_counts


def _of_s2(plan: eqk.S2ActivationPlan) -> tuple[list[str], list[tuple], str, Callable]:
    degree = eqk.exact_degree(plan.res, plan.quadrature)
    rows = [
        ("degrees", f"{plan.lmax_in} -> {plan.lmax_out}, |m| <= {plan.mmax}, {plan.order}"),
        ("function", f"{plan.function}, times {number(plan.gain, 6)}"),
        ("grid", f"{plan.res[0]} rings x {plan.res[1]} angles, {plan.quadrature}, exact to degree {degree}"),
    ]
    sizes = f"{plan.channels} channels, columns {plan.dims[0]} -> {plan.dims[1]}"
    return ["what", "here"], rows, sizes, counts.s2_activation_counts


def _of_contraction(plan: eqk.SymmetricContractionPlan) -> tuple[list[str], list[tuple], str, Callable | None]:
    rows = []
    for n, (i_out, chains) in enumerate(plan.paths):
        text = " + ".join(
            f"{number(c.coefficient, 6)} "
            + str(plan.irreps_in[c.irreps[0]].ir)
            + "".join(f" x {plan.irreps_in[i].ir} -> {l}" for i, l in zip(c.irreps[1:], c.degrees, strict=True))
            for c in chains
        )
        rows.append((n, str(plan.irreps_out[i_out].ir), max((len(c.irreps) for c in chains), default=0), text))
    sizes = f"{len(rows)} paths, components {plan.irreps_in.dim} -> {plan.irreps_out.dim} of a channel"
    bound = counts.monomials_bound(plan)
    if bound > MAX_MONOMIALS:
        return ["path", "to", "degree", "chains"], rows, f"{sizes}; up to {bound:.1e} monomials, not counted", None
    sizes += f"; {counts.monomial_count(plan)} monomials"
    return ["path", "to", "degree", "chains"], rows, sizes, counts.symmetric_contraction_counts


_TABLES = {
    eqk.Plan: _of_product,
    eqk.GauntPlan: _of_gaunt,
    eqk.S2ActivationPlan: _of_s2,
    eqk.SymmetricContractionPlan: _of_contraction,
}


def own_cuda_kernel(plan: eqk.Plan) -> str:
    """Whether the CUDA library here has kernels for this plan alone: it holds the texts of the plans that it has.

    It is the one that is loaded or, where none is, each that is there.
    """
    there = _library.cuda_libraries()
    libraries = [there[_library.cuda_loaded]] if _library.cuda_loaded else list(there.values())
    if not libraries:
        return f"unknown: {_library.cuda_reason}"
    if all(str(plan).encode() in library.read_bytes() for library in libraries):
        return (
            "float32 of this plan has kernels of its own (csrc/tensor_product/cuda_plans.txt), where rows are aligned"
        )
    return "no kernels of its own (csrc/tensor_product/cuda_plans.txt): those that run any plan"


def _kernel(plan: AnyPlan, op: str, backend: str) -> str:
    """What is known of the kernel beyond its backend."""
    if op.startswith("tensor_product") and backend == "cpu":
        which = torch.ops.eqk.tensor_product_cpu_kernel
        if op != "tensor_product":
            which = torch.ops.eqk.tensor_product_conv_cpu_kernel
        same: dict[str, list[str]] = {}
        for dtype in testing.TOLERANCES:
            name = which(torch.empty(0, dtype=dtype), str(plan))
            same.setdefault(name, []).append(str(dtype).removeprefix("torch."))
        return "; ".join(f"{', '.join(dtypes)}: {name}" for name, dtypes in same.items())
    if op == "tensor_product" and backend == "cuda":
        return own_cuda_kernel(plan)
    return ""


def _applies(plan: AnyPlan, op: str) -> str | None:
    """Why ``op`` takes no such plan; None if it does."""
    if op == "tensor_product_conv_radial" and plan.weights != "per_sample":
        return f"its weights are per sample, those of the plan {plan.weights}"
    return None


def _kernels(plan: AnyPlan) -> list[tuple[str, str, str, str, str]]:
    rows = []
    places = [(str(device), device) for device in devices()]
    if (reason := gpu_reason()) is not None:
        places.append((f"a GPU ({reason})", ABSENT_GPU))
    for op in OPS[type(plan)]:
        if (why := _applies(plan, op)) is not None:
            rows.append((op, "any", "none", "", why))
            continue
        for name, device in places:
            why = "; ".join(f"{backend}: {text}" for backend, text in why_not(op, device).items())
            if device == ABSENT_GPU and reason is not None:
                rows.append((op, name, "none", _kernel(plan, op, "cuda"), why or reason))
                continue
            try:
                backend = dispatch.choose(op, device)
            except RuntimeError as error:
                backend, why = "none", str(error)
            rows.append((op, name, backend, _kernel(plan, op, backend), why))
    return rows


def _costs(plan: AnyPlan, count: Callable, limits: dict[str, tuple[float, float]]) -> str:
    unit = "channel of a node" if isinstance(plan, eqk.SymmetricContractionPlan) else "row"
    need = count(plan)
    rows = []
    for phase in PHASES:
        floors = [number(1e9 * need[phase].seconds(limit)) for limit in limits.values()]
        bound = [
            "bytes" if need[phase].moved / limit[0] >= need[phase].products / limit[1] else "multiply-adds"
            for limit in limits.values()
        ]
        cells = [cell for pair in zip(floors, bound, strict=True) for cell in pair]
        rows.append((phase, number(need[phase].moved, 6), number(need[phase].products, 6), *cells))
    headers = [f"float32, a {unit}", "bytes", "multiply-adds"]
    for device in limits:
        headers += [f"floor ns, {device}", "by"]
    return markdown(headers, rows, right=[h for h in headers if h != "by" and "float32" not in h])


def measured_limits() -> dict[str, tuple[float, float]]:
    """Of each kind of device the bytes and multiply-adds a second."""
    kinds = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return {kind: measure.ceilings(measure.clock_of(kind, torch.get_num_threads()), kind) for kind in kinds}


def main(args: argparse.Namespace) -> int:
    text = sys.stdin.read(MAX_LENGTH + 2).strip() if args.plan == "-" else args.plan
    try:
        plans = parse(text)
    except ValueError as error:
        print(f"python -m eqk explain: {error}", file=sys.stderr)
        return 2
    limits = measured_limits()
    for n, plan in enumerate(plans):
        if n:
            print()
        headers, rows, sizes, count = _TABLES[type(plan)](plan)
        print(f"eqk.{type(plan).__name__}: {sizes}\n\n    {plan}\n")
        print(markdown(headers, rows, right=("path", "weights", "coefficient", "3j terms", "multiply-adds", "degree")))
        if count is not None:
            print("\n" + _costs(plan, count, limits))
        print("\n" + markdown(("op", "device", "backend", "kernel", "why not the others"), _kernels(plan)))
    for kind, (copy, products) in limits.items():
        where = threads(torch.get_num_threads()) if kind == "cpu" else torch.cuda.get_device_name()
        rates = (
            f"{copy / 1e9:.1f} GB/s, a copy's rate, and multiply-adds at {products / 1e9:.0f} G/s, a matrix product's"
        )
        print(f"\nfloor, {kind} ({where}): the larger of bytes at {rates}. Phases include the ones before.")
    return 0
