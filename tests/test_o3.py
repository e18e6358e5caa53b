"""eqk.o3 against e3nn.o3: values, derivatives, weights, checkpoints, and what torch does with a module."""

import copy
import io
import itertools
import math
import os
import pickle
import random
import subprocess
import sys

import pytest
import torch
from e3nn import o3 as theirs

from eqk import Plan, o3

if (theirs.wigner_3j(1, 2, 2) * o3.wigner_3j(1, 2, 2)).sum() < 0:
    pytest.skip(
        "e3nn 0.4 has other signs in its Wigner 3j symbols (test_convert.py covers it)", allow_module_level=True
    )

# e3nn rounds its constants to the default dtype when it builds a module.
pytestmark = pytest.mark.usefixtures("float64_default")

MODES = ("uvw", "uvu", "uvv", "uuw", "uuu", "uvuv", "uvu<v", "u<vw")


def random_product(compile_right=False, **kwargs):
    """(ours, theirs): one product of random irreps with all modes that fit, mixed, of equal weights."""
    mul = random.randint(1, 5)
    irreps = lambda n, muls: [(random.choice(muls), (random.randint(0, 3), random.choice((-1, 1)))) for _ in range(n)]  # noqa: E731
    in1, in2 = irreps(3, (mul, 2)), irreps(3, (mul, 3))
    out, instructions = [], []
    for mode, (i, (m1, ir1)), (j, (m2, ir2)) in itertools.product(MODES, enumerate(in1), enumerate(in2)):
        if random.random() < 0.6 or (mode in ("uuw", "uuu", "uvu<v", "u<vw") and m1 != m2):
            continue
        ir = random.choice(list(o3.Irrep(*ir1) * o3.Irrep(*ir2)))
        weighted = mode in ("uvw", "u<vw", "uuw") or random.random() < 0.5
        free = random.randint(1, 4)
        mul_out = {"uvu": m1, "uvv": m2, "uuu": m1, "uvuv": m1 * m2, "uvu<v": m1 * (m2 - 1) // 2}.get(mode, free)
        instructions.append((i, j, len(out), mode, weighted, random.uniform(0.1, 3.0)))
        out.append((mul_out, tuple(ir)))
    options = {
        "irrep_normalization": random.choice(("component", "norm", "none")),
        "path_normalization": random.choice(("element", "path", "none")),
        "in1_var": [random.uniform(0.5, 2) for _ in in1],
        **kwargs,
    }
    ours = o3.TensorProduct(in1, in2, out, instructions, compile_right=compile_right, **options)
    other = theirs.TensorProduct(in1, in2, out, instructions, **options)
    if isinstance(ours.weight, torch.nn.Parameter):
        ours.weight.data.copy_(other.weight.data)
    return ours, other


def operands(m, rows=4, weights=True):
    x, y = torch.randn(rows, m.irreps_in1.dim), torch.randn(rows, m.irreps_in2.dim)
    w = torch.randn(*(() if m.shared_weights else (rows,)), m.weight_numel)
    return [t.requires_grad_() for t in ((x, y, w) if weights else (x, y))]


def assert_close(a, b, tol=1e-12):
    assert a.shape == b.shape
    scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
    error = (a - b).abs().max().item() if b.numel() else 0.0
    assert error <= tol * scale, f"{error} > {tol} * {scale}"


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("shared", [True, False])
def test_random_products_equal_e3nn(case, shared):
    ours, other = random_product(compile_right=True, shared_weights=shared, internal_weights=False)
    assert repr(ours) == repr(other)
    assert ours.weight_numel == other.weight_numel
    assert torch.equal(ours.output_mask, other.output_mask)
    for mine, ref in zip(ours.instructions, other.instructions, strict=True):
        assert mine._fields == ref._fields
        assert mine[:5] == ref[:5]
        assert mine.path_shape == ref.path_shape
        assert mine.path_weight == pytest.approx(ref.path_weight, rel=1e-14)
    args = operands(ours)
    a, b = ours(*args), other(*args)
    assert_close(a, b)
    g = torch.randn_like(b)
    grads = [
        torch.autograd.grad(t, args, g, create_graph=True, allow_unused=True, materialize_grads=True) for t in (a, b)
    ]
    for p, q in zip(*grads, strict=True):
        assert_close(p, q)
    second = [
        torch.autograd.grad(sum((p**2).sum() for p in group), args, allow_unused=True, materialize_grads=True)
        for group in grads
    ]
    for p, q in zip(*second, strict=True):
        assert_close(p, q, 1e-11)
    # e3nn's own right() knows neither uvu<v nor u<vw.
    assert_close(torch.einsum("zi,zio->zo", args[0], ours.right(*args[1:])), b)


@pytest.mark.parametrize("layouts", list(itertools.product(("mul_ir", "ir_mul"), repeat=3))[1:])
def test_layouts(layouts):
    def permutation(irreps, layout):
        index = torch.arange(o3.Irreps(irreps).dim)
        parts = [
            index[s].reshape(mul, ir.dim).T.flatten() if layout == "ir_mul" else index[s]
            for s, (mul, ir) in zip(o3.Irreps(irreps).slices(), o3.Irreps(irreps), strict=True)
        ]
        return torch.cat(parts) if parts else index

    ours, _ = random_product(shared_weights=False)
    names = ("irreps_in1", "irreps_in2", "irreps_out")
    columns = [permutation(getattr(ours, n), layout) for n, layout in zip(names, layouts, strict=True)]
    paths = [(*ins[:5], ins.path_weight**2) for ins in ours.instructions]
    other = o3.TensorProduct(
        *(getattr(ours, n) for n in names),
        paths,
        irrep_normalization="none",
        path_normalization="none",
        shared_weights=False,
        layout_in1=layouts[0],
        layout_in2=layouts[1],
        layout_out=layouts[2],
    )
    x, y, w = operands(ours)
    assert_close(other(x[:, columns[0]], y[:, columns[1]], w), ours(x, y, w)[:, columns[2]])


SUBCLASSES = {
    "FullyConnectedTensorProduct": [("3x0e+2x1o", "1x0e+2x1o+1x2e", "4x0e+3x1o+2x1e"), ("0e+1e", "", "0e+1e")],
    "FullTensorProduct": [("2x1o+1x0e+2x0e", "1x1e+2x2o"), ("2x1o+3x2e", "1x1e", ["1o", "2e"])],
    "ElementwiseTensorProduct": [("5x1o+5x1e", "10x1e", ["0e", "0o"]), ("3x2e+4x1o", "2x1o+5x0e"), ("", "")],
    "TensorSquare": [("2x0e+3x1o+1x2e",), ("3x1o+2x2e", "4x0e+3x2e+2x1e"), ("3x1o", None, ["2e"])],
}


@pytest.mark.parametrize(("name", "args"), [(name, args) for name, cases in SUBCLASSES.items() for args in cases])
@pytest.mark.parametrize("normalization", ["component", "norm", "none"])
def test_subclasses_equal_e3nn(name, args, normalization):
    if not hasattr(theirs, name):
        pytest.skip(f"this e3nn has no {name}")
    torch.manual_seed(7)
    ours = getattr(o3, name)(*args, irrep_normalization=normalization)
    torch.manual_seed(7)
    other = getattr(theirs, name)(*args, irrep_normalization=normalization)
    assert repr(ours) == repr(other)
    assert [tuple(i)[:5] for i in ours.instructions] == [tuple(i)[:5] for i in other.instructions]
    assert torch.equal(ours.weight, other.weight), "the same seed must give the same weights"
    count = 1 if name == "TensorSquare" else 2
    inputs = [torch.randn(5, irreps.dim) for irreps in (ours.irreps_in1, ours.irreps_in2)[:count]]
    assert_close(ours(*inputs), other(*inputs))
    ours.load_state_dict(other.state_dict())


def test_weights_shared_unshared_lists_and_views():
    ours, other = random_product()
    while ours.weight_numel == 0:
        ours, other = random_product()
    x, y = torch.randn(3, ours.irreps_in1.dim), torch.randn(3, ours.irreps_in2.dim)
    views = list(ours.weight_views(yield_instruction=True))
    assert [n for n, _, _ in views] == [n for n, ins in enumerate(ours.instructions) if ins.has_weight]
    for n, ins, view in views:
        assert view.shape == ins.path_shape
        assert view.untyped_storage().data_ptr() == ours.weight.untyped_storage().data_ptr()
        assert torch.equal(view, ours.weight_view_for_instruction(n))
    assert_close(ours(x, y, [v.detach() for *_, v in views]), other(x, y))
    with pytest.raises(RuntimeError, match="weight: expected shape"):
        ours(x, y, torch.randn(ours.weight_numel + 1))
    with pytest.raises(RuntimeError, match="weight: expected shape"):
        ours(x, y, torch.randn(3, ours.weight_numel))
    paths = [(*ins[:5], 1.0) for ins in ours.instructions]
    outside = o3.TensorProduct(ours.irreps_in1, ours.irreps_in2, ours.irreps_out, paths, shared_weights=False)
    with pytest.raises(RuntimeError, match="weight: expected a tensor"):
        outside(x, y)
    with pytest.raises(RuntimeError, match="weight: expected shape"):
        outside(x, y, torch.randn(outside.weight_numel))
    pieces = [torch.randn(3, *ins.path_shape) for ins in outside.instructions if ins.has_weight]
    assert_close(outside(x, y, pieces), outside(x, y, torch.cat([p.flatten(1) for p in pieces], 1)))
    with pytest.raises(RuntimeError, match="compile_right"):
        outside.right(y, torch.randn(3, outside.weight_numel))


@pytest.mark.parametrize("kwargs", [{"irrep_normalization": "x"}, {"in1_var": [1.0]}, {"internal_weights": True}])
def test_bad_arguments_are_value_and_assertion_errors(kwargs):
    for kind in (ValueError, AssertionError):
        with pytest.raises(kind):
            o3.TensorProduct("1o+0e", "1o", "0e", [(0, 0, 0, "uvw", True)], shared_weights=False, **kwargs)
    with pytest.raises(AssertionError, match="instruction 0"):
        o3.TensorProduct("1o", "1o", "1o", [(0, 0, 0, "uvw", True)])
    with pytest.warns(DeprecationWarning, match="irrep_normalization"):
        o3.TensorProduct("1o", "1o", "0e", [(0, 0, 0, "uvw", True)], normalization="norm")


def test_constructors_name_the_argument():
    tp = lambda *args, **kwargs: o3.TensorProduct(*args, **kwargs)  # noqa: E731
    path = [(0, 0, 0, "uvw", True)]
    calls = {
        "irreps_in1: expected irreps such as '16x0e . 1o', got 5": lambda: tp(5, "1o", "0e", path),
        "irreps_in2: expected irreps such as '16x0e . 1o', got '1q'": lambda: o3.FullyConnectedTensorProduct(
            "1o", "1q", "1o"
        ),
        "irreps_in2: expected irreps": lambda: o3.FullTensorProduct("1o", "x"),
        "irreps_in: expected irreps": lambda: o3.TensorSquare("x"),
        "irreps_out: expected irreps": lambda: o3.Linear("1o", "x"),
        "irreps_out: expected irreps such": lambda: o3.SphericalHarmonics("1q", True),
        "l: expected at least one degree": lambda: o3.SphericalHarmonics(None, True),
        "irreps_in: expected irreps such": lambda: o3.SphericalHarmonics(1, True, irreps_in="x"),
        "in1_var: expected 1 numbers, one for each irrep, got 2.0": lambda: tp("1o", "1o", "0e", path, in1_var=2.0),
        "out_var: expected 1 numbers": lambda: tp("1o", "1o", "0e", path, out_var=["a"]),
        "instructions: expected tuples .* got None": lambda: tp("1o", "1o", "0e", None),
        "instruction 0: expected .* got 5": lambda: tp("1o", "1o", "0e", [5]),
        "instruction 1: expected a number as path_weight, got 'x'": lambda: tp(
            "1o", "1o", "0e", [*path, (*path[0], "x")]
        ),
        "instructions: expected pairs .* got 3": lambda: o3.Linear("1o", "1o", instructions=3),
        "biases: expected a bool": lambda: o3.Linear("1o", "1o", biases=3),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=f"^{message}"):
            call()
    for bad in ("x", None, torch.nn.Linear(1, 1)):
        with pytest.raises(TypeError, match=r"tp: expected an e3nn\.o3\.TensorProduct"):
            Plan.from_e3nn(bad)


@pytest.mark.parametrize(
    "shapes",
    [((), (), ()), ((2, 1), (3,), (1, 3)), ((0,), (1,), (0,)), ((2, 0, 3), (1, 1, 3), (3,)), ((4,), (1,), (4,))],
)
def test_broadcast_and_script(shapes):
    ours, other = random_product(compile_right=True, shared_weights=False)
    dims = (ours.irreps_in1.dim, ours.irreps_in2.dim, ours.weight_numel)
    # e3nn asks for a batch dimension on weights that are not shared.
    shapes = (*shapes[:2], shapes[2] or (1,))
    args = [torch.randn(*s, d) for s, d in zip(shapes, dims, strict=True)]
    expected = other(*args)
    scripted = torch.jit.script(ours)
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    for m in (ours, scripted, loaded):
        assert_close(m(*args), expected)
        assert_close(torch.einsum("...i,...io->...o", args[0], m.right(*args[1:])), expected)
    exported = torch.export.export(ours, tuple(args)).module()
    assert_close(exported(*args), expected)


def test_script_gradients_of_second_order():
    ours, other = random_product(shared_weights=False)
    scripted = torch.jit.script(ours)
    for _ in range(3):
        args = operands(ours)
        results = []
        for m in (scripted, other):
            (g,) = torch.autograd.grad(m(*args).pow(2).sum(), args[:1], create_graph=True)
            results.append(torch.autograd.grad(g.pow(2).sum(), args, allow_unused=True, materialize_grads=True))
        for a, b in zip(*results, strict=True):
            assert_close(a, b, 1e-10)


def test_compile_fullgraph():
    ours, _ = random_product(shared_weights=False)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    args = operands(ours)
    for a, b in zip(
        torch.autograd.grad(compiled(*args).pow(2).sum(), args),
        torch.autograd.grad(ours(*args).pow(2).sum(), args),
        strict=True,
    ):
        assert_close(a, b)
    square = o3.TensorSquare("2x0e+3x1o")
    x = torch.randn(4, square.irreps_in.dim)
    assert_close(torch.compile(square, fullgraph=True, backend="aot_eager")(x), square(x))
    assert_close(torch.jit.script(square)(x), square(x))


def test_copies_and_checkpoints():
    ours, other = random_product()
    x, y = operands(ours, weights=False)
    expected = ours(x, y)
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(buffer, weights_only=False)):
        assert_close(twin(x, y), expected, 0)
        assert twin.plan == ours.plan
        assert repr(twin) == repr(ours)
    assert set(ours.state_dict()) == {"weight", "output_mask"}
    assert any(key.startswith("_compiled_main") for key in other.state_dict()), "e3nn keeps its constants no more"
    nested = torch.nn.Sequential(copy.deepcopy(ours))
    nested.load_state_dict({f"0.{key}": value for key, value in other.state_dict().items()}, strict=True)
    with pytest.raises(RuntimeError, match="unknown"):
        ours.load_state_dict({**ours.state_dict(), "unknown": x})
    with pytest.raises(RuntimeError, match="output_mask"):
        ours.load_state_dict({"weight": ours.weight})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_autocast(dtype):
    ours, _ = random_product()
    x, y = (t.detach() for t in operands(ours, weights=False))
    expected = ours(x, y)
    low = copy.deepcopy(ours).to(dtype)
    assert_close(low(x.to(dtype), y.to(dtype)).double(), expected, {torch.float32: 1e-5}.get(dtype, 0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = copy.deepcopy(ours).float()(x.bfloat16(), y.float())
    assert_close(mixed.double(), expected, 0.1)


LINEAR = [
    ("4x0e+3x1o", "2x0e+5x1o", {}),
    ("4x0e+3x1o+2x0e", "2x0e+5x1o+1x2e", {"path_normalization": "path"}),
    ("4x0e+2x0e+3x1o", "3x1o+2x0e+3x0e", {"biases": True}),
    ("4x0e+3x0e", "4x0e+3x0e", {"instructions": [(0, 0), (1, 1)], "biases": [False, True]}),
    ("4x0e+3x1o", "2x0e+5x1o", {"f_in": 3, "f_out": 2, "biases": True}),
    ("3x1o", "2x2e", {}),
    ("0x0e+3x1o", "2x0e+2x1o", {}),
]


@pytest.mark.parametrize(("irreps_in", "irreps_out", "kwargs"), LINEAR)
@pytest.mark.parametrize("shared", [True, False])
def test_linear_equals_e3nn(irreps_in, irreps_out, kwargs, shared):
    if not shared:
        # e3nn cannot build biases with weights that are not shared.
        kwargs = {k: v for k, v in kwargs.items() if k != "biases"}
    torch.manual_seed(3)
    ours = o3.Linear(irreps_in, irreps_out, shared_weights=shared, **kwargs)
    torch.manual_seed(3)
    other = theirs.Linear(irreps_in, irreps_out, shared_weights=shared, **kwargs)
    assert repr(ours) == repr(other)
    assert torch.equal(ours.output_mask, other.output_mask)
    assert (ours.weight_numel, ours.bias_numel) == (other.weight_numel, other.bias_numel)
    assert [tuple(i) for i in ours.instructions] == [tuple(i) for i in other.instructions]
    features = [kwargs[k] for k in ("f_in", "f_out") if k in kwargs]
    rows = (2, 3)
    x = torch.randn(*rows, *features[:1], ours.irreps_in.dim, requires_grad=True)
    args = [x]
    if shared:
        assert torch.equal(ours.weight, other.weight)
        if ours.bias_numel:
            torch.nn.init.normal_(other.bias)
        ours.load_state_dict(other.state_dict(), strict=True)
    else:
        args += [torch.randn(*rows, *features, ours.weight_numel), torch.zeros(0)]
    expected = other(*args)
    for m in (ours, torch.jit.script(ours), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        out = m(*args)
        assert_close(out, expected)
        if expected.requires_grad:
            assert_close(*(torch.autograd.grad(t.pow(2).sum(), x)[0] for t in (out, other(*args))))
    if hasattr(other, "weight_index_slices"):
        assert [tuple(s) for s in ours.weight_index_slices] == [tuple(s) for s in other.weight_index_slices]
    if shared and ours.weight_numel:
        assert [tuple(v.shape) for v in ours.weight_views()] == [
            (*features, *ins.path_shape) for ins in ours.instructions if ins.i_in >= 0
        ]
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*args), expected)


@pytest.mark.parametrize("layouts", [("ir_mul", "mul_ir"), ("mul_ir", "ir_mul"), ("ir_mul", "ir_mul")])
def test_linear_layouts(layouts):
    plain = o3.Linear("4x0e+3x1o+2x1o", "2x1o+3x0e")
    ours = o3.Linear("4x0e+3x1o+2x1o", "2x1o+3x0e", layout_in=layouts[0], layout_out=layouts[1])
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(3, plain.irreps_in.dim)

    def as_ir_mul(t, irreps):
        parts = [
            t[:, s].reshape(3, mul, ir.dim).mT.flatten(1) for s, (mul, ir) in zip(irreps.slices(), irreps, strict=True)
        ]
        return torch.cat(parts, 1)

    given = as_ir_mul(x, plain.irreps_in) if layouts[0] == "ir_mul" else x
    expected = as_ir_mul(plain(x), plain.irreps_out) if layouts[1] == "ir_mul" else plain(x)
    assert_close(ours(given), expected)


def test_linear_biases_of_each_row():
    ours = o3.Linear("2x0e+1x1o", "3x0e+1x1o", shared_weights=False, biases=True)
    shared = o3.Linear("2x0e+1x1o", "3x0e+1x1o", internal_weights=False, biases=True)
    x, w, b = torch.randn(4, 5), torch.randn(4, ours.weight_numel), torch.randn(4, 3)
    assert_close(ours(x, w, b), torch.stack([shared(*row) for row in zip(x, w, b, strict=True)]))


def test_linear_names_what_is_wrong():
    with pytest.raises(IndexError, match="instructions"):
        o3.Linear("1o", "1o", instructions=[(0, 1)])
    with pytest.raises(ValueError, match="equal irreps"):
        o3.Linear("1o", "1e", instructions=[(0, 0)])
    with pytest.raises(AssertionError, match="biases"):
        o3.Linear("1o", "1o", biases=[True])
    with pytest.raises(RuntimeError, match="features"):
        o3.Linear("1o", "1o")(torch.randn(2, 4))
    with pytest.raises(RuntimeError, match="weight: expected a tensor"):
        o3.Linear("1o", "1o", shared_weights=False)(torch.randn(2, 3))


def test_lists_of_weights_as_e3nn_takes_them():
    # batch == mul1 == 1, one row for all, flat or shaped, several leading dimensions that e3nn makes one.
    for mul1, mul2 in ((1, 4), (2, 3), (1, 1)):
        paths = [(0, 0, 0, "uvu", True), (0, 0, 1, "uvw", True), (0, 0, 0, "uvu", False)]
        args = (f"{mul1}x1o", f"{mul2}x1o", f"{mul1}x0e+2x0e", paths)
        ours, other = (m.TensorProduct(*args, shared_weights=False) for m in (o3, theirs))
        shapes = [(mul1, mul2), (mul1, mul2, 2)]
        for rows, leading in itertools.product((1, 2, 6), ((), (1,), (2,), (6,), (2, 3), (1, 1))):
            for flat in itertools.product((True, False), repeat=2):
                x, y = torch.randn(rows, 3 * mul1), torch.randn(rows, 3 * mul2)
                weights = [
                    torch.randn(*leading, *((math.prod(shape),) if f else shape))
                    for f, shape in zip(flat, shapes, strict=True)
                ]
                try:
                    expected = other(x, y, weights)
                except RuntimeError:
                    with pytest.raises(RuntimeError):
                        ours(x, y, weights)
                else:
                    assert_close(ours(x, y, weights), expected)
        # Where x and y have several leading dimensions, weights may too.
        x, y = torch.randn(2, 3, 3 * mul1), torch.randn(2, 3, 3 * mul2)
        pieces = [torch.randn(2, 3, *shape) for shape in shapes]
        expected = other(x, y, torch.cat([p.flatten(2) for p in pieces], -1))
        assert_close(ours(x, y, pieces), expected)
        assert_close(ours(x, y, [pieces[0], pieces[1].flatten(2)]), expected)
        shared = [m.TensorProduct(*args, internal_weights=False) for m in (o3, theirs)]
        weights = [torch.randn(mul1 * mul2), torch.randn(2 * mul2, mul1)]
        assert_close(*(m(x, y, weights) for m in shared))


@pytest.mark.parametrize("shared", [True, False])
def test_lists_of_weights_of_wrong_sizes_are_named(shared):
    paths = [(0, 0, 0, "uvu", True), (0, 0, 1, "uvu", True)]
    m = o3.TensorProduct("2x1o", "4x1o", "2x0e+2x0e", paths, internal_weights=False, shared_weights=shared)
    x, y = torch.randn(3, 6), torch.randn(3, 12)
    rows = () if shared else (3,)
    expected = r"\[2, 4\] or \[8\]" if shared else r"\[\.\.\., 2, 4\] or \[\.\.\., 8\]"
    with pytest.raises(
        RuntimeError, match=rf"weight\[0\]: expected shape {expected}, got \[{'' if shared else '3, '}4\]"
    ):
        m(x, y, [torch.ones(*rows, 4), torch.ones(*rows, 12)])
    with pytest.raises(RuntimeError, match=r"weight\[1\]: expected shape"):
        m(x, y, [torch.ones(*rows, 8), torch.ones(*rows, 7)])
    with pytest.raises(TypeError, match=r"weight\[1\]: expected a tensor, got None"):
        m(x, y, [torch.ones(*rows, 8), None])
    with pytest.raises(ValueError, match="weight: expected 2 tensors"):
        m(x, y, [torch.ones(*rows, 8)])


def traced_cases():
    vectors, mixed = "2x0e+3x1o", "1x0e+1x1o"
    yield "FullyConnectedTensorProduct", (vectors, mixed, vectors), {}, [11, 4]
    yield "FullyConnectedTensorProduct", (vectors, mixed, vectors), {"shared_weights": False}, [11, 4]
    yield "FullTensorProduct", (vectors, mixed), {}, [11, 4]
    yield "TensorSquare", (vectors, "0e+1o+2e"), {}, [11]
    yield "Linear", (vectors, "4x0e+2x1o"), {"biases": True}, [11]
    yield "Linear", (vectors, "4x0e+2x1o"), {"f_in": 2, "f_out": 3}, [11]
    yield "SphericalHarmonics", ([0, 1, 2], True), {}, [3]


@pytest.mark.parametrize(("name", "args", "kwargs", "dims"), list(traced_cases()))
def test_symbolic_trace(name, args, kwargs, dims):
    if not hasattr(theirs, name):
        pytest.skip(f"this e3nn has no {name}")

    ours, other = getattr(o3, name)(*args, **kwargs), getattr(theirs, name)(*args, **kwargs)
    ours.load_state_dict(other.state_dict())
    operands = [torch.randn(5, *([2] if "f_in" in kwargs else []), n) for n in dims]
    if kwargs.get("shared_weights") is False:
        operands.append(torch.randn(5, ours.weight_numel))
    expected = other(*operands)
    traced = torch.fx.symbolic_trace(ours)
    assert_close(traced(*operands), expected)
    assert sum(node.op == "call_function" for node in traced.graph.nodes) == 1
    for copied in (copy.deepcopy(traced), pickle.loads(pickle.dumps(traced)), torch.jit.script(traced)):
        assert_close(copied(*operands), expected)


def test_e3nn_knows_how_to_compile_each():
    from e3nn.util.jit import compile, get_compile_mode

    modules = [o3.FullTensorProduct("1o", "1o"), o3.Linear("1o", "1o"), o3.SphericalHarmonics([0, 1], True)]
    for m in modules:
        assert get_compile_mode(m) == "script"
        operands = [torch.randn(2, 3)] * (2 if m is modules[0] else 1)
        scripted = compile(copy.deepcopy(m))
        assert isinstance(scripted, torch.jit.ScriptModule)
        assert_close(scripted(*operands), m(*operands))


def test_symbolic_trace_of_a_model():
    class Model(torch.nn.Module):
        def __init__(self, o3):
            super().__init__()
            self.harmonics = o3.SphericalHarmonics([0, 1], True)
            self.product = o3.TensorProduct(
                "2x1o", "0e+1o", "2x1o+2x0e", [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)], shared_weights=False
            )
            self.linear = o3.Linear("2x1o+2x0e", "3x1o")

        def forward(self, x, r, a, b):
            return self.linear(self.product(x, self.harmonics(r), [a, b])) * 2

    ours, other = Model(o3), Model(theirs)
    ours.load_state_dict(other.state_dict())
    operands = [torch.randn(4, n) for n in (6, 3, 2, 2)]
    traced = torch.fx.symbolic_trace(ours)
    assert_close(traced(*operands), other(*operands))
    assert_close(traced(*[t[:1] for t in operands]), other(*[t[:1] for t in operands]))


def test_operands_that_are_none_are_named():
    product = o3.FullyConnectedTensorProduct("2x1o", "1x1o", "1x0e", compile_right=True)
    good = (torch.randn(2, 6), torch.randn(2, 3))
    calls = {
        "x": lambda bad: product(bad, good[1]),
        "y": lambda bad: product(good[0], bad),
        "y of right": lambda bad: product.right(bad),
        "x of square": lambda bad: o3.TensorSquare("2x1o")(bad),
        "features": lambda bad: o3.Linear("1o", "1o")(bad),
        "x of harmonics": lambda bad: o3.SphericalHarmonics(1, True)(bad),
    }
    for name, call in calls.items():
        for bad in (torch.tensor(1.0), torch.randn(2, 5)):
            with pytest.raises(RuntimeError, match=f"^{name.split()[0]}: expected"):
                call(bad)
        for bad in (None, 3.0, [1.0]):
            with pytest.raises(TypeError, match=f"^{name.split()[0]}: expected a tensor"):
                call(bad)
    with pytest.raises(TypeError, match="^weight: expected a tensor"):
        product(*good, 3.0)


def test_needs_no_e3nn():
    code = "import sys; sys.modules['e3nn'] = None\nimport torch, eqk\n"
    code += "m = eqk.o3.FullTensorProduct('1o', '1o'); m(torch.randn(2, 3), torch.randn(2, 3)); print(eqk.convert(m))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert result.returncode == 0, result.stderr
    assert "swapped 0" in result.stdout
