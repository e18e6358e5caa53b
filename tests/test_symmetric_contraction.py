"""The symmetric contraction against couplings one by one, and against numbers of mace-torch."""

import dataclasses
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo.testing
import torch.utils.checkpoint
from test_tensor_product import DTYPES, assert_same_bits, cast, compare, run_python
from torch.utils._python_dispatch import TorchDispatchMode

import eqk
from eqk import reference, testing
from eqk.symmetric_contraction_plan import chains_to
from eqk.testing import (
    CONTRACTIONS,
    assert_close,
    derivatives,
    random_contraction_operands,
    random_directions,
    relative_error,
)

OPS = torch.ops.eqk
SMALL = [name for name in CONTRACTIONS if not name.startswith("mace")]
CUBIC = CONTRACTIONS["cubic-mixed"]
QUADRATIC = CONTRACTIONS["quadratic-ir_mul"]


def on(species, plan, op=eqk.symmetric_contraction):
    return lambda x, w: op(x, w, species, plan)


def check(plan, nodes, channels, num_species, generator, dtypes=(torch.float64, torch.float32), orders=3):
    x, w, species = random_contraction_operands(plan, nodes, channels, num_species, torch.float32, generator)
    truth = on(species, plan, reference.symmetric_contraction)
    compare(plan, (x, w), generator, dtypes, orders, truth, on(species, plan))


@pytest.mark.parametrize("name", SMALL)
def test_cases(name, generator):
    check(CONTRACTIONS[name], 13, 5, 3, generator)
    check(CONTRACTIONS[name], 3, 17, None, generator)


@pytest.mark.parametrize("name", ["mace-medium", "mace-large", "mace-last"])
def test_problems(name, generator):
    check(CONTRACTIONS[name], 6, 89, 2, generator, orders=2)


@pytest.mark.parametrize("name", ["cubic-mixed", "quadratic-ir_mul"])
@pytest.mark.parametrize(
    ("nodes", "channels", "num_species"),
    [(0, 3, 2), (0, 0, 0), (3, 0, 2), (0, 3, None), (2, 0, None), (1, 1, 1), (4, 8, 1), (5, 33, 1), (40, 2, 9)],
)
def test_sizes(name, nodes, channels, num_species, generator):
    """No nodes, no channels, species without nodes, and counts around those that registers hold."""
    check(CONTRACTIONS[name], nodes, channels, num_species, generator, orders=2)


@pytest.mark.parametrize("chunk", range(4))
def test_random_plans(chunk, rng, generator):
    """160 plans, to third order."""
    for _ in range(40):
        plan = testing.random_contraction(rng)
        nodes, channels, species = rng.randint(0, 9), rng.choice((1, 3, 4, 9)), rng.choice((None, 1, 3))
        check(plan, nodes, channels, species, generator, (torch.float64,))


def test_every_order(generator):
    """Of degree 6 in x, w and the cotangent together, so that order 6 does not hang on them and order 7 is zero."""
    plan = eqk.SymmetricContractionPlan.complete("0e + 1o", "0e + 1o", 4)
    x, w, species = random_contraction_operands(plan, 3, 2, 2, torch.float64, generator)
    x, w = x / x.abs().max(), w / w.abs().max()
    truth = on(species, plan, reference.symmetric_contraction)
    directions = random_directions((x, w), truth(x, w), 7, generator)
    got, want = (derivatives(f, (x, w), directions) for f in (on(species, plan), truth))
    for order, (results, references) in enumerate(zip(got, want, strict=True)):
        for a, b in zip(results, references, strict=True):
            assert_close(a, b, min(order, 3), what=f"order {order}")
    assert all(bool(t.any()) for t in got[5])
    assert not any(bool(t.any()) for t in got[7])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["cubic-mixed", "quadratic-ir_mul"])
def test_16_bit(name, dtype, generator):
    plan = CONTRACTIONS[name]
    x, w, species = random_contraction_operands(plan, 9, 5, 3, torch.float32, generator)
    operands = cast((x / x.abs().max(), w / w.abs().max()), dtype)
    truth = on(species, plan, reference.symmetric_contraction)
    compare(plan, operands, generator, (dtype,), 2, truth, on(species, plan))


def test_long_sums(generator):
    """Equal terms, whose rounding errors all have one sign."""
    nodes = 100_000
    x, w, _ = random_contraction_operands(QUADRATIC, 1, 1, 1, torch.float32, generator)
    g = torch.randn(1, QUADRATIC.irreps_out.dim, generator=generator)
    species = torch.zeros(nodes, dtype=torch.int64)
    gw = gradients(x.expand(nodes, -1, -1), w, g.expand(nodes, -1), species, QUADRATIC, (False, True))[1]
    one = gradients(x.double(), w.double(), g.double(), species[:1], QUADRATIC, (False, True))[1]
    assert relative_error(gw, one * nodes) < 2e-6


def derivative(slots, tangents, species, plan, wanted):
    flat = [t for group in (slots, *tangents) for t in group]
    return OPS.symmetric_contraction_derivative(*flat, *[None] * (18 - len(flat)), species, str(plan), wanted)


def gradients(x, w, g, species, plan, wanted):
    return derivative((x, w, g), (), species, plan, (*wanted, False))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bitwise_determinism(dtype, generator):
    """The same bits in two runs, for any number of threads and either dtype of species."""
    x, w, species = random_contraction_operands(CUBIC, 1100, 11, 4, torch.float32, generator)
    g = torch.randn(1100, 11 * CUBIC.irreps_out.dim, generator=generator)
    slots = cast((x / x.abs().max(), w / w.abs().max(), g), dtype)
    tangents = [[torch.randn(t.shape, generator=generator).to(dtype) for t in slots] for _ in range(2)]

    def run(kind):
        of_orders = (derivative(slots, tangents[:n], species.to(kind), CUBIC, [True] * 3) for n in range(3))
        return [OPS.symmetric_contraction(*slots[:2], species.to(kind), str(CUBIC)), *itertools.chain(*of_orders)]

    assert_same_bits(lambda: run(torch.int64), lambda: run(torch.int32), lambda: run(torch.int64))


def test_strided_operands(generator):
    """Nodes apart, columns apart, expanded nodes and species, species apart."""
    for plan in (CUBIC, QUADRATIC):
        x, w, species = random_contraction_operands(plan, 7, 5, 3, torch.float32, generator)
        g = torch.randn(7, 5 * plan.irreps_out.dim, generator=generator)
        expected = gradients(x, w, g, species, plan, (True, True))

        def apart(t, dim):
            wide = t.new_full([2 * n if d == dim else n for d, n in enumerate(t.shape)], 7)
            return wide[tuple(slice(None, None, 2) if d == dim else slice(None) for d in range(t.dim()))].copy_(t)

        for dim in range(3):
            got = gradients(apart(x, dim), apart(w, dim), apart(g, min(dim, 1)), apart(species, 0), plan, (True, True))
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        one = (x[:1].expand_as(x), w[:1].expand_as(w), g[:1].expand_as(g))
        whole = [t.contiguous() for t in one]
        for a, b in zip(*(gradients(*t, species, plan, (True, True)) for t in (one, whole)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_stay_in_their_node_and_channel(value, generator):
    x, w, species = random_contraction_operands(CUBIC, 7, 5, 3, torch.float32, generator)
    expected = eqk.symmetric_contraction(x, w, species, CUBIC).reshape(7, -1, 5)
    x[2, 3, 0] = value
    out = eqk.symmetric_contraction(x, w, species, CUBIC).reshape(7, -1, 5)
    touched = torch.zeros(7, 1, 5, dtype=torch.bool)
    touched[2, 0, 3] = True
    assert not out.isfinite().all(1)[2, 3]
    assert torch.equal(out.masked_fill(touched, 0), expected.masked_fill(touched, 0))


def test_equivariance(generator):
    for plan in CONTRACTIONS.values():
        x, w, species = random_contraction_operands(plan, 4, 3, 2, torch.float64, generator)
        angle = torch.randn(3, generator=generator, dtype=torch.float64)
        x = x if plan.layout_in == "mul_ir" else x.mT
        out_irreps = [(3, ir) for _, ir in plan.irreps_out]

        def f(x, plan=plan, w=w, species=species):
            return eqk.symmetric_contraction(x if plan.layout_in == "mul_ir" else x.mT, w, species, plan)

        moved = f(testing.rotate(x, plan.irreps_in, angle, inversion=True))
        assert_close(moved, testing.rotate(f(x), out_irreps, angle, plan.layout_out, inversion=True))


BAD = {
    "species: expected indices from 0 to 2, got 3 at position 1": dict(species=torch.tensor([0, 3, 1, 2])),
    "species: expected indices from 0 to 2, got -1 at position 3": dict(
        species=torch.tensor([0, 0, 1, -1], dtype=torch.int32)
    ),
    r"species: expected shape \[4\], got \[3\]": dict(species=torch.tensor([0, 0, 1])),
    "species: expected dtype int32 or int64, got Float": dict(species=torch.zeros(4)),
    r"x: expected shape \[nodes, channels, 7\], got \[4, 5, 6\]": dict(x=torch.zeros(4, 5, 6)),
    r"x: expected shape \[nodes, channels, 7\], got \[4, 7\]": dict(x=torch.zeros(4, 7)),
    r"x: expected dtype float32, float64, float16 or bfloat16, got Long": dict(x=torch.zeros(4, 5, 7).long()),
    r"w: expected 3 dimensions, got shape \[5\]": dict(w=torch.zeros(5)),
    r"w: expected shape \[3, \d+, 5\], got \[3, 1, 5\]": dict(w=torch.zeros(3, 1, 5)),
    r"w: expected shape \[4, \d+, 5\], got \[3, \d+, 5\]": dict(species=None),
    r"w: expected dtype Float as x has, got Double": dict(w=torch.zeros(3, len(CUBIC.paths), 5).double()),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message, generator):
    x, w, species = random_contraction_operands(CUBIC, 4, 5, 3, torch.float32, generator)
    arguments = dict(x=x, w=w, species=species)
    eqk.symmetric_contraction(**arguments, plan=CUBIC)
    with pytest.raises(RuntimeError, match=f"eqk::symmetric_contraction: {message}"):
        eqk.symmetric_contraction(**arguments | BAD[message], plan=CUBIC)


def test_bad_types(generator):
    x, w, species = random_contraction_operands(CUBIC, 4, 5, 3, torch.float32, generator)
    with pytest.raises(TypeError, match="w: expected a tensor, got None"):
        eqk.symmetric_contraction(x, None, species, CUBIC)
    with pytest.raises(TypeError, match="plan: expected"):
        eqk.symmetric_contraction(x, w, species, 3)
    with pytest.raises(RuntimeError, match="x: expected a dense tensor"):
        eqk.symmetric_contraction(x.to_sparse(), w, species, CUBIC)
    with pytest.raises(RuntimeError, match="g: expected a tensor, got None"):
        derivative((x, w, None), [(x, None, None)], species, CUBIC, [True, False, True])
    with pytest.raises(RuntimeError, match="wanted: expected 3 flags, got 2"):
        derivative((x, w, None), (), species, CUBIC, [True, False])
    g = torch.zeros(4, 5 * CUBIC.irreps_out.dim)
    for n, slots in ((1, [(x, w[:2], g)]), (2, [(x, None, None), (None, w[:2], None)])):
        with pytest.raises(RuntimeError, match=f"tangent {n} of w: expected shape"):
            derivative((x, w, g), slots, species, CUBIC, [True] * 3)


BAD_PLANS = {
    "irreps_in: expected at most 256 irreps of multiplicity 1": dict(irreps_in="2x0e"),
    "irreps_out: ": dict(irreps_out="0x"),
    "layout_in: expected one of mul_ir, ir_mul, got 'xyz'": dict(layout_in="xyz"),
    "path 0: expected i_out below 2, got 2": dict(paths=((2, ((1.0, (0,)),)),)),
    "path 0: expected a finite coefficient": dict(paths=((0, ((math.nan, (0,)),)),)),
    "path 1: expected chains of 1 to 4 irreps": dict(paths=((0, ()), (0, ((1.0, (0, 0, 0, 0, 0), (0, 0, 0, 0)),)))),
    "path 0: expected irreps of x": dict(paths=((0, ((1.0, (2,)),)),)),
    "path 0: expected one degree fewer than irreps": dict(paths=((0, ((1.0, (0, 0), ()),)),)),
    "path 0: expected degrees that couple": dict(paths=((0, ((1.0, (1, 1), (3,)),)),)),
    "path 0: expected a chain to 0e": dict(paths=((0, ((1.0, (1, 1), (2,)),)),)),
}


@pytest.mark.parametrize("message", BAD_PLANS)
def test_bad_plans(message):
    good = dict(irreps_in="0e + 1o", irreps_out="0e + 1o", paths=((0, ((1.0, (1, 1), (0,)),)),))
    eqk.SymmetricContractionPlan(**good)
    with pytest.raises(ValueError, match=message):
        eqk.SymmetricContractionPlan(**good | BAD_PLANS[message])


def test_plan_text(rng):
    """Complete in its string, hashable, and the same language for both parsers."""
    texts = [str(plan) for plan in CONTRACTIONS.values()] + [str(testing.random_contraction(rng)) for _ in range(40)]
    for text in texts:
        plan = eqk.SymmetricContractionPlan.parse(text)
        assert str(plan) == text
        assert hash(plan) == hash(dataclasses.replace(plan))
    assert texts[3].startswith("1x0e+1x1o -> 1x1o+1x0e [mul_ir,mul_ir] {0: 1.0 1; 1: 1.0 0}")
    alphabet = "0123456789 xeo+-*>[],;:{}._mulir\n\x00é"
    for _ in range(3000):
        text = min(rng.sample(texts, 3), key=len)
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(("", rng.choice(alphabet), text[at] * 2)) + text[at + 1 :]
        try:
            eqk.SymmetricContractionPlan.parse(text)
            expected = "shape"
        except ValueError:
            expected = "plan: expected|embedded null"
        with pytest.raises((RuntimeError, ValueError), match=expected):
            OPS.symmetric_contraction.default.redispatch(
                torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), torch.zeros(1), torch.zeros(1), None, text
            )


def test_gradcheck(generator):
    for name in SMALL:
        plan = CONTRACTIONS[name]
        for num_species in (2, None):
            x, w, species = random_contraction_operands(plan, 3, 2, num_species, torch.float64, generator)
            operands = [(t / t.abs().max()).requires_grad_() for t in (x, w)]
            f = on(species, plan)
            everything = dict(check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
            assert torch.autograd.gradcheck(f, operands, fast_mode=True, **everything)
            twice = dict(check_fwd_over_rev=True, check_rev_over_rev=True)
            assert torch.autograd.gradgradcheck(f, operands, fast_mode=True, **twice)


def test_functional_transforms(generator):
    """hessian, jvp of a gradient, jvp of a jvp, against the same of the reference."""
    x, w, species = random_contraction_operands(CUBIC, 3, 2, 2, torch.float64, generator)
    x, w = x / x.abs().max(), w / w.abs().max()
    t, u = (torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(2))
    s = torch.randn(w.shape, generator=generator, dtype=w.dtype)
    results = []
    for op in (eqk.symmetric_contraction, reference.symmetric_contraction):

        def energy(x, w, op=op):
            return op(x, w, species, CUBIC).sin().sum()

        def along(x, w, energy=energy):
            return torch.func.jvp(energy, (x, w), (t, s))[1]

        results.append(
            [
                torch.func.hessian(energy)(x, w),
                *torch.func.jvp(torch.func.grad(energy, (0, 1)), (x, w), (t, s))[1],
                torch.func.jvp(along, (x, w), (u, s))[1],
                *torch.func.grad(along, (0, 1))(x, w),
                *torch.func.grad(lambda x, w, along=along: torch.func.jvp(along, (x, w), (u, s))[1], (0, 1))(x, w),
            ]
        )
    for got, want in zip(*results, strict=True):
        assert_close(got, want, 3)


@pytest.mark.parametrize(
    ("mapped", "with_species"),
    [
        (m, with_species)
        for m in itertools.product((0, None), repeat=3)
        for with_species in (True, False)
        if 0 in m[: 3 if with_species else 2]
    ],
    ids=str,
)
def test_vmap(mapped, with_species, generator):
    """Value and gradients mapped over any subset of x, w and species."""
    samples = [
        random_contraction_operands(QUADRATIC, 4, 3, 3 if with_species else None, torch.float64, generator)
        for _ in range(3)
    ]
    mapped = (*mapped[:2], mapped[2] if with_species else None)
    batched = [
        None if t[0] is None else t[0] if d is None else torch.stack(t)
        for t, d in zip(zip(*samples, strict=True), mapped, strict=True)
    ]

    def f(op):
        def both(x, w, species):
            def energy(x, w):
                return op(x, w, species, QUADRATIC).pow(2).sum()

            return op(x, w, species, QUADRATIC), torch.func.grad(energy, (0, 1))(x, w)

        return both

    value, gradient = torch.func.vmap(f(eqk.symmetric_contraction), mapped)(*batched)
    for b in range(3):
        sample = [t if d is None else t[b] for t, d in zip(batched, mapped, strict=True)]
        expected, expected_gradient = f(reference.symmetric_contraction)(*sample)
        assert_close(value[b], expected)
        for got, want in zip(gradient, expected_gradient, strict=True):
            assert_close(got[b], want, 1)
    nothing = [t if d is None else t[:0] for t, d in zip(batched, mapped, strict=True)]
    value, gradient = torch.func.vmap(f(eqk.symmetric_contraction), mapped)(*nothing)
    assert value.shape == (0, 4, 3 * QUADRATIC.irreps_out.dim)
    assert [g.shape[1:] for g in gradient] == [
        t.shape[int(d == 0) :] for t, d in zip(batched, mapped[:2], strict=False)
    ]
    if mapped[2] == 0:
        for bad in (-1, 3):
            species = batched[2].clone()
            species[1, 2] = bad
            with pytest.raises(RuntimeError, match="species: expected indices"):
                torch.func.vmap(f(eqk.symmetric_contraction), mapped)(*batched[:2], species)


class Calls(TorchDispatchMode):
    """What of each derivative was wanted, and how many tangents it had."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is OPS.symmetric_contraction_derivative.default:
            tangents = sum(any(t is not None for t in args[n : n + 3]) for n in range(3, 18, 3))
            self.seen.append((tangents, list(args[-1])))
        return func(*args, **(kwargs or {}))


def test_nothing_that_nobody_asked_for(generator):
    x, w, species = random_contraction_operands(CUBIC, 4, 3, 2, torch.float64, generator)
    for needs_x, needs_w in ((True, False), (False, True), (True, True)):
        a, b = x.clone().requires_grad_(needs_x), w.clone().requires_grad_(needs_w)
        leaves = [t for t in (a, b) if t.requires_grad]
        with Calls() as calls:
            first = torch.autograd.grad(eqk.symmetric_contraction(a, b, species, CUBIC).pow(2).sum(), leaves)
        assert calls.seen == [(0, [needs_x, needs_w, False])]
    a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
    with Calls() as calls:
        out = eqk.symmetric_contraction(a, b, species, CUBIC)
        (first,) = torch.autograd.grad(out, a, torch.ones_like(out), create_graph=True)
        torch.autograd.grad(first.sum(), b)
    assert calls.seen == [(0, [True, False, False]), (1, [False, True, False])]


def test_written_to_before_backward(generator):
    """Autograd refuses, instead of a gradient of other species."""
    x, w, species = random_contraction_operands(CUBIC, 4, 3, 2, torch.float64, generator)
    out = eqk.symmetric_contraction(x.requires_grad_(), w, species, CUBIC)
    species.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_opcheck(generator):
    for plan in (CUBIC, QUADRATIC):
        x, w, species = random_contraction_operands(plan, 4, 3, 2, torch.float64, generator)
        g = torch.randn(4, 3 * plan.irreps_out.dim, generator=generator, dtype=torch.float64)
        v = [t.requires_grad_() for t in (x, w)]
        t = [torch.randn(s.shape, generator=generator, dtype=s.dtype).requires_grad_() for s in (*v, g)]
        rest = (species, str(plan))
        torch.library.opcheck(OPS.symmetric_contraction.default, (*v, *rest))
        op, none = OPS.symmetric_contraction_derivative.default, (None,) * 18
        for args, wanted in (
            ((*v, g), [True, True, False]),
            ((*v, None, t[0], None, None), [False, False, True]),
            ((*v, g, *t), [True, False, True]),
            ((*v, g, *t, t[0], None, t[2]), [True, True, True]),
        ):
            torch.library.opcheck(op, (*args, *none[len(args) :], *rest, wanted))
    torch.library.opcheck(OPS.one_hot_index.default, (torch.eye(3),))


def test_compile_dynamic_sizes(generator):
    """Energy and forces under inductor; other numbers of nodes compile nothing again."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")

    def energy_and_gradient(x, w, species):
        out = eqk.symmetric_contraction(x, w, species, CUBIC).pow(2).sum()
        return out, *torch.autograd.grad(out, (x, w))

    compiled = torch.compile(energy_and_gradient, backend=counter, dynamic=True)
    for nodes in (4, 9, 30):
        x, w, species = random_contraction_operands(CUBIC, nodes, 3, 2, torch.float64, generator)
        x.requires_grad_(), w.requires_grad_()
        for got, want in zip(compiled(x, w, species), energy_and_gradient(x, w, species), strict=True):
            assert_close(got, want, 1)
    assert counter.frame_count <= 2, "one more for the first call's default layout"
    forward = torch.compile(on(species, CUBIC), fullgraph=True, backend="aot_eager")
    assert torch.equal(forward(x, w), on(species, CUBIC)(x, w))


def test_export(generator):
    class Contraction(torch.nn.Module):
        def forward(self, x, w, species):
            return eqk.symmetric_contraction(x, w, species, CUBIC)

    nodes = torch.export.Dim("nodes", min=2)
    inputs = random_contraction_operands(CUBIC, 5, 3, 2, torch.float32, generator)
    program = torch.export.export(Contraction(), inputs, dynamic_shapes=({0: nodes}, None, {0: nodes}))
    other = random_contraction_operands(CUBIC, 12, 3, 2, torch.float32, generator)
    assert torch.equal(program.module()(*other), Contraction()(*other))


def test_script_autocast_meta_backends_checkpoint(generator):
    @torch.jit.script
    def scripted(x: torch.Tensor, w: torch.Tensor, species: torch.Tensor, plan: str):
        return torch.ops.eqk.symmetric_contraction(x, w, species, plan)

    x, w, species = random_contraction_operands(CUBIC, 4, 5, 3, torch.float32, generator)
    expected = eqk.symmetric_contraction(x, w, species, CUBIC)
    assert torch.equal(scripted(x, w, species, str(CUBIC)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        out = eqk.symmetric_contraction(x, w.bfloat16(), species, CUBIC)
    assert torch.equal(out, eqk.symmetric_contraction(x, w.bfloat16().float(), species, CUBIC))
    meta = [t.to("meta") for t in (x, w, species)]
    assert eqk.symmetric_contraction(*meta, CUBIC).shape == expected.shape
    for bad, message in (
        (meta[0][:3], "species: expected"),
        (meta[0][:, :4], "w: expected shape"),
        (meta[0][0], "x: e"),
    ):
        with pytest.raises(RuntimeError, match=message):
            eqk.symmetric_contraction(bad, *meta[1:], CUBIC)
    with eqk.dispatch.use_backend("reference"):
        assert_close(eqk.symmetric_contraction(x, w, species, CUBIC), expected)
    assert "-> cpu" in eqk.dispatch.explain("symmetric_contraction", x)
    leaves = [t.double().requires_grad_() for t in (x, w)]

    def f(x, w):
        return eqk.symmetric_contraction(x, w, species, CUBIC).pow(2).sum()

    want = torch.autograd.grad(f(*leaves), leaves)
    got = torch.autograd.grad(torch.utils.checkpoint.checkpoint(f, *leaves, use_reentrant=False), leaves)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# Plans of bases.


def test_complete_is_every_chain():
    plan = eqk.SymmetricContractionPlan.complete("0e + 1o + 2e + 3o", "0e + 1o", 3)
    counts = [sum(p.i_out == o and len(p.chains[0].irreps) == n for p in plan.paths) for o in (0, 1) for n in (3, 2, 1)]
    assert counts == [23, 4, 1, 51, 6, 1], "paths of MACE's basis"


def test_from_basis(rng, generator):
    """Random mixtures of chains, as in a reduced basis, rounded to float32 or not."""
    irreps_in, out = eqk.Irreps("0e + 1o + 2e"), eqk.Irreps("1o")
    for correlation in (1, 2, 3):
        chains = chains_to(irreps_in, out[0].ir, correlation)
        single = [eqk.SymmetricContractionPlan(irreps_in, out, ((0, (c,)),)) for c in chains]
        dense = torch.stack([basis_tensor(plan, correlation) for plan in single], -1)
        mixed = dense @ torch.randn(len(chains), 3, generator=generator, dtype=torch.float64)
        for dtype in (torch.float64, torch.float32):
            basis = [(0, dense.to(dtype)), (0, mixed.to(dtype))]
            plan = eqk.SymmetricContractionPlan.from_basis(irreps_in, out, basis, layout_out="ir_mul")
            assert max(len(p.chains) for p in plan.paths[: len(chains)]) == 1
            for p, want in zip(plan.paths, torch.cat([dense, mixed], -1).unbind(-1), strict=True):
                got = basis_tensor(dataclasses.replace(plan, paths=(p,)), correlation)
                x = torch.randn(5, irreps_in.dim, generator=generator, dtype=torch.float64)
                a, b = (polynomial(u, x) for u in (got, want))
                assert (a - b).abs().max() <= (1e-12 if dtype == torch.float64 else 1e-5) * dense.abs().max() * 10
    wrong = mixed.clone()
    wrong[0, 0, 0, 0, 1] += 0.01
    with pytest.raises(ValueError, match=r"basis\[1\]: expected equivariant paths to 1o, path 1 is not"):
        eqk.SymmetricContractionPlan.from_basis(irreps_in, out, [(0, mixed), (0, wrong)])
    with pytest.raises(ValueError, match=re.escape("basis[0]: expected shape [3, 9, ..., 9, paths], got [3, 9, 8, 2]")):
        eqk.SymmetricContractionPlan.from_basis(irreps_in, out, [(0, mixed[..., 0, :8, :2])])


def polynomial(u, x):
    for _ in range(u.dim() - 1):
        u = (
            torch.einsum("...i,ni->n...", u, x)
            if u.dim() and u.shape[0] != len(x)
            else torch.einsum("n...i,ni->n...", u, x)
        )
    return u


def basis_tensor(plan, degree):
    """[out, dim_in, ...] of a plan of one path, by derivatives of the reference."""
    dim = plan.irreps_in.dim
    w = torch.ones(1, len(plan.paths), 1, dtype=torch.float64)

    def f(x):
        return reference.symmetric_contraction(
            x[None, None] if plan.layout_in == "mul_ir" else x[None, :, None], w, None, plan
        )[0]

    for _ in range(degree):
        f = torch.func.jacfwd(f)
    return f(torch.zeros(dim, dtype=torch.float64)) / math.factorial(degree)


# The module, and MACE's numbers.

GOLDEN = Path(__file__).parent / "data" / "mace_symmetric_contraction.npz"


def golden(name):
    with np.load(GOLDEN) as file:
        arrays = {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}
    arguments = {key: arrays.pop(key).item() for key in ("irreps_in", "irreps_out", "correlation", "num_elements")}
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    state = {key.removeprefix("state/"): value for key, value in tensors.items() if key.startswith("state/")}
    return arguments, state, tensors


@pytest.mark.parametrize("name", ["cubic", "signs", "quartic", "zero-paths"])
def test_module_has_the_numbers_of_mace(name, float64_default):
    """Value, forces' gradient and double backward of mace-torch 0.3.16 (tests/data/make_mace_symmetric_contraction.py)."""
    arguments, state, numbers = golden(name)
    module = eqk.o3.SymmetricContraction(**arguments)
    assert {key: value.shape for key, value in module.state_dict().items()} == {k: v.shape for k, v in state.items()}
    module.load_state_dict(state)
    x = numbers["x"].requires_grad_()
    parameters = [p for _, p in sorted(module.named_parameters()) if p.requires_grad]
    out = module(x, numbers["y"])
    assert_close(out, numbers["out"])
    first = torch.autograd.grad(out.pow(2).sum(), (x, *parameters), create_graph=True)
    second = torch.autograd.grad(first[0].pow(2).sum(), (x, *parameters))
    for n, (a, b) in enumerate(zip(first, second, strict=True)):
        assert_close(a, numbers[f"first/{n}"], 1)
        assert_close(b, numbers[f"second/{n}"], 2)
    assert_close(module(x, numbers["mixed"]), numbers["out_mixed"])


def test_module(generator):
    """One-hot attributes of either kind, eager, scripted, compiled and exported; derivatives along them."""
    module = eqk.o3.SymmetricContraction("5x0e + 5x1o", "5x0e + 5x1o", 3, num_elements=7)
    x = torch.randn(9, 5, 4, generator=generator)
    index = torch.tensor([0, 6, 2, 2, 0, 5, 5, 5, 6])
    y = torch.nn.functional.one_hot(index, 7).float()
    mixed = torch.rand(9, 7, generator=generator)
    weights = torch.cat([torch.cat([c.weights_max, *c.weights], 1) for c in module.contractions], 1)
    plan = module._plan_text
    for attributes in (y, mixed):
        w = torch.einsum("ne,epc->npc", attributes, weights)
        expected = reference.symmetric_contraction(x, w, None, plan)
        for f in (module, torch.jit.script(module)):
            assert_close(f(x, attributes), expected)
        got = [torch.autograd.grad(op.pow(2).sum(), [*module.parameters()]) for op in (module(x, attributes), expected)]
        for a, b in zip(*got, strict=True):
            assert_close(a, b, 1)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    assert_close(compiled(x, y), module(x, y))
    with pytest.raises(RuntimeError, match="species: expected indices from 0 to 6, got -1 at position 0"):
        compiled(x, mixed)
    nodes = torch.export.Dim("nodes", min=2)
    program = torch.export.export(module, (x, y), dynamic_shapes=({0: nodes}, {0: nodes}))
    assert_close(program.module()(x[:5], y[:5]), module(x[:5], y[:5]))
    # Attributes of which somebody asks derivatives are no index, whatever their numbers are.
    along = torch.randn(9, 7, generator=generator)
    _, tangent = torch.func.jvp(lambda y: module(x, y), (y,), (along,))
    assert_close(
        tangent, reference.symmetric_contraction(x, torch.einsum("ne,epc->npc", along, weights), None, plan), 1
    )
    y.requires_grad_()
    (gradient,) = torch.autograd.grad((module(x, y) * module(x, y).detach()).sum(), y)
    both = [(gradient * along).sum().detach(), (tangent * module(x, y)).sum().detach()]
    assert abs(both[0] - both[1]) < 1e-5 * (gradient * along).abs().sum()
    assert module(x[:0], y[:0]).shape == (0, 20)


def test_module_arguments():
    for message, arguments in (
        ("irreps_in: expected irreps of equal multiplicity", dict(irreps_in="2x0e + 3x1o")),
        ("correlation: expected an int from 1 to 4, got 5", dict(correlation=5)),
        ("num_elements: expected a positive int, got None", dict(num_elements=None)),
        ("use_reduced_cg: expected False, got True", dict(use_reduced_cg=True)),
        ("internal_weights: expected None or True, got False", dict(internal_weights=False)),
        ("irrep_normalization: expected component, norm or none, got 'x'", dict(irrep_normalization="x")),
        ("path_normalization: expected element, path or none, got 'x'", dict(path_normalization="x")),
    ):
        good = dict(irreps_in="2x0e + 2x1o", irreps_out="2x0e", correlation=2, num_elements=3)
        with pytest.raises(ValueError, match=message):
            eqk.o3.SymmetricContraction(**good | arguments)


def test_one_hot_index():
    rows = torch.tensor([[0, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0.5, 0], [1, float("nan"), 0], [0, 0, 1]])
    for dtype in DTYPES:
        assert OPS.one_hot_index(rows.to(dtype)).tolist() == [1, 0, -1, -1, -1, -1, 2]
        assert OPS.one_hot_index(rows.to(dtype).T.contiguous().T).tolist() == [1, 0, -1, -1, -1, -1, 2]
    assert OPS.one_hot_index(rows[:0]).shape == (0,)
    with pytest.raises(RuntimeError, match="rows: expected 2 dimensions"):
        OPS.one_hot_index(rows[0])
    for f in (torch.func.grad(lambda t: OPS.one_hot_index(t).sum() * t.sum()), OPS.one_hot_index):
        with pytest.raises(RuntimeError, match="nobody asks for derivatives"):
            f(rows.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="nobody asks for derivatives"):
        torch.func.jvp(OPS.one_hot_index, (rows,), (rows,))


def test_memory():
    """No tensor of all nodes and products, forward and backward."""
    code = """
import resource, torch, eqk
from eqk.testing import CONTRACTIONS
eqk.keep_memory(0)
plan = CONTRACTIONS["mace-medium"]
nodes = 2000
x = torch.randn(nodes, 64, plan.irreps_in.dim).requires_grad_()
w = torch.randn(3, len(plan.paths), 64)
species = torch.arange(nodes) % 3
def step(n):
    out = eqk.symmetric_contraction(x[:n], w, species[:n], plan)
    torch.autograd.grad(out, x, torch.ones_like(out))
step(100)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(nodes)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(grown / (x.numel() * 4))
"""
    assert float(run_python(code).strip()) < 6
