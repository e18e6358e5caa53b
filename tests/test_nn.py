"""Activations of the Equiformers and of e3nn against what they are made of."""

import math
import subprocess
import sys

import e3nn.nn
import e3nn.o3
import pytest
import torch
from torch.nn import functional as F

import eqk
from eqk import nn
from eqk._signals import component_index, count
from eqk.nn._gaunt_symmetric_contraction import variances
from eqk.testing import TOLERANCES, relative_error, rotate

CUTS = [(4, 2, "l_primary"), (6, 2, "m_primary"), (2, 2, "m_primary"), (3, 0, "l_primary"), (0, 0, "l_primary")]


def grid_matrices(lmax, mmax, order, res, rescale, normalization="component"):
    """[b, a, component] to and from e3nn's grid, as fairchem's and EquiformerV3's SO3_Grid make them."""
    to = e3nn.o3.ToS2Grid(lmax, res, normalization=normalization)
    back = e3nn.o3.FromS2Grid(res, lmax, normalization=normalization)
    degrees = torch.tensor([l for l in range(lmax + 1) for _ in range(2 * l + 1)])
    scale = ((2 * degrees + 1) / (2 * degrees.clamp(max=mmax) + 1)).sqrt() if rescale else torch.ones(len(degrees))
    held = component_index(lmax, mmax, order)
    to = torch.einsum("mbi,am->bai", to.shb, to.sha) * scale
    back = torch.einsum("am,mbi->bai", back.sha, back.shb) * scale
    return to[..., held], back[..., held]


def check(module, truth, operands, cancelling=(), condition=1.0):
    """Values and gradients, in both precisions; but in float64 alone those that are small sums of large terms.

    ``condition``: by how much more than the tolerance rounding may move results.
    """
    for dtype in (torch.float64, torch.float32):
        leaves = [[t.to(d).requires_grad_() for t in operands] for d in (dtype, torch.float64)]
        got, want = module(*leaves[0]), truth(*leaves[1])
        assert got.shape == want.shape
        assert got.dtype == dtype
        g = torch.linspace(-1, 1, want.numel(), dtype=torch.float64).view_as(want)
        gradients = torch.autograd.grad(got, leaves[0], g.to(dtype)), torch.autograd.grad(want, leaves[1], g)
        for n, (a, b) in enumerate(zip((got, *gradients[0]), (want, *gradients[1]), strict=True)):
            if dtype == torch.float64 or n - 1 not in cancelling:
                assert relative_error(a, b) < condition * TOLERANCES[dtype][0], (dtype, n)


@pytest.fixture
def operands(generator):
    return lambda *shapes: [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("lmax, mmax, order", CUTS)
@pytest.mark.parametrize("rescale", [True, False])
def test_separable_s2(lmax, mmax, order, rescale, operands, float64_default):
    to, back = grid_matrices(lmax, mmax, order, (18, 18), rescale)

    def truth(scalars, x):
        y = torch.einsum("bai,zbac->zic", back, F.silu(torch.einsum("bai,zic->zbac", to, x)))
        return torch.cat([F.silu(scalars)[:, None], y[:, 1:]], 1)

    module = nn.SeparableS2Activation(lmax, mmax, order, rescale=rescale)
    check(module, truth, operands((5, 3), (5, count(lmax, mmax), 3)))


@pytest.mark.parametrize("lmax, mmax, order", CUTS)
def test_swiglu_s2(lmax, mmax, order, operands, float64_default):
    """EquiformerV3's form on its grid, twice the smallest one, and on the smallest: the same, since both are exact."""
    rings = 3 * lmax + 1 + (3 * lmax + 1) % 2
    res = max(rings, 2 * (lmax + 1)), max(3 * mmax + 1, 2 * lmax + 1)
    to, back = grid_matrices(lmax, mmax, order, res, False)

    def truth(scalars, x):
        u, v = torch.einsum("bai,zic->zbac", to, x).chunk(2, 3)
        s, t, g = scalars.chunk(3, 1)
        y = torch.einsum("bai,zbac->zic", back, u * v) * g.sigmoid()[:, None]
        y[:, 0] += F.silu(s) * t
        return y

    shapes = (5, 9), (5, count(lmax, mmax), 6)
    check(nn.SwiGLUS2Activation(lmax, mmax, order, res=res, quadrature="soft"), truth, operands(*shapes))
    smallest = nn.SwiGLUS2Activation(lmax, mmax, order)
    assert smallest.res == (3 * lmax // 2 + 1, 3 * mmax + 1)
    assert math.prod(smallest.res) <= math.prod(res) * (0.6 if lmax > 1 else 1)
    check(smallest, truth, operands(*shapes))
    if lmax:
        coarse = nn.SwiGLUS2Activation(lmax, mmax, order, res=(smallest.res[0] - 1, smallest.res[1]))
        scalars, x = operands(*shapes)
        assert relative_error(coarse(scalars, x), truth(scalars, x)) > 1e-3


def test_swiglu_s2_is_equivariant(operands, generator):
    """Under all rotations where no order is left out, and under those about the axis where some are."""
    angles = torch.randn(3, generator=generator, dtype=torch.float64)
    for lmax, mmax, turn in ((4, 4, angles), (5, 2, angles * torch.tensor([0, 1, 0]))):
        module = nn.SwiGLUS2Activation(lmax, mmax)
        scalars, x = operands((4, 6), (4, count(lmax, mmax), 4))
        held = component_index(lmax, mmax, "l_primary")

        def turned(t, lmax=lmax, held=held, turn=turn):
            whole = torch.zeros(len(t), (lmax + 1) ** 2, t.shape[2], dtype=t.dtype)
            whole[:, held] = t
            irreps = eqk.Irreps([(t.shape[2], (l, (-1) ** l)) for l in range(lmax + 1)])
            return rotate(whole.flatten(1), irreps, turn, "ir_mul").view_as(whole)[:, held]

        assert relative_error(module(scalars, turned(x)), turned(module(scalars, x))) < 1e-12


@pytest.mark.parametrize("lmax, mmax, order", CUTS)
def test_gate(lmax, mmax, order, operands):
    def truth(gates, x):
        gates = gates.unflatten(1, (lmax, 3)) if lmax else gates
        parts = []
        for n, place in enumerate(component_index(lmax, mmax, order)):
            l = math.isqrt(place)
            parts.append(x[:, n] * gates[:, l - 1].sigmoid() if l else F.silu(x[:, n]))
        return torch.stack(parts, 1) + 0 * gates.sum()

    module = nn.GateActivation(lmax, mmax, order)

    def with_gates(gates, x):
        return module(gates, x) + 0 * gates.sum()

    check(with_gates, truth, operands((5, 3 * lmax), (5, count(lmax, mmax), 3)))


def test_grid_mlp(operands, float64_default):
    torch.manual_seed(eqk.testing.seed())
    layers = torch.nn.Sequential(torch.nn.Linear(3, 7), torch.nn.SiLU(), torch.nn.Linear(7, 4)).double()
    to, back = grid_matrices(3, 3, "l_primary", (14, 15), False)

    def truth(x):
        return torch.einsum("bai,zbac->zic", back, layers(torch.einsum("bai,zic->zbac", to, x)))

    module = nn.S2GridMLP(layers, 3, (14, 15))
    assert len(list(module.parameters())) == 4
    (x,) = operands((5, 16, 3))
    got, want = module(x), truth(x)
    weights = list(layers.parameters())
    for a, b in zip(
        (got, *torch.autograd.grad(got.square().sum(), weights)),
        (want, *torch.autograd.grad(want.square().sum(), weights)),
        strict=True,
    ):
        assert relative_error(a, b) < 1e-11
    assert nn.S2GridMLP(layers, 3, (14, 15), lmax_out=1)(x).shape == (5, 4, 4)
    gated = nn.S2GridMLP(lambda f, g: f * g[:, None, None], 3)
    (gate,) = operands((5, 3))
    assert relative_error(gated(x, gate), x * gate[:, None]) < 1e-12


@pytest.mark.parametrize("lmax_in, lmax_out, resolution, aspect_ratio", [(2, 2, 4, 2), (1, 3, 5, 1.5), (3, 0, 4, 2)])
@pytest.mark.parametrize("act", [torch.tanh, F.silu, torch.sin])
def test_so3(act, lmax_in, lmax_out, resolution, aspect_ratio, operands, float64_default):
    theirs = e3nn.nn.SO3Activation(lmax_in, lmax_out, act, resolution, aspect_ratio=aspect_ratio)
    ours = nn.SO3Activation(lmax_in, lmax_out, act, resolution, aspect_ratio=aspect_ratio)
    (x,) = operands((2, 3, ours.irreps_in.dim))
    x.requires_grad_()
    results = []
    for module in (ours, theirs):
        out = module(x)
        (gradient,) = torch.autograd.grad(out.sin().sum(), x)
        results.append((out, gradient))
    for got, want in zip(*results, strict=True):
        assert relative_error(got, want) < 1e-6
    ours.load_state_dict(theirs.state_dict())


BASES = [
    ("3x0e + 3x1o + 3x2e", "0e + 1o", 3),
    ("2x0e + 2x1o + 2x2e + 2x3o", "2e + 0e + 5o", 2),
    ("2x0e + 2x1o", "0e + 4e", 4),
    ("4x2e + 4x0e", "0e + 2e", 3),
    ("1x0e", "0e", 4),
]


@pytest.mark.parametrize("irreps_in, irreps_out, correlation", BASES)
def test_gaunt_symmetric_contraction(irreps_in, irreps_out, correlation, operands, generator, float64_default):
    """Products of the signal with itself; equivariant, mirrored too; second moments are 1."""
    torch.manual_seed(eqk.testing.seed())
    module = nn.GauntSymmetricContraction(irreps_in, irreps_out, correlation, 5)
    irreps, channels = module.irreps_in, module.channels
    dim, lmax = irreps.dim // channels, irreps.lmax

    def on_rows(t):
        return torch.cat([p.unflatten(1, (channels, -1)) for p in t.split([m * ir.dim for m, ir in irreps], 1)], 2)

    flat, y = operands((6, irreps.dim), (6, 5))
    angle = torch.randn(3, generator=generator)
    moved = rotate(flat, irreps, angle, inversion=True)
    assert (
        relative_error(
            module(on_rows(moved), y), rotate(module(on_rows(flat), y), module.irreps_out, angle, inversion=True)
        )
        < 1e-12
    )

    # A degree that is a small part of a power is scaled up, with the rounding errors of the large ones.
    condition = 1.0
    for n in range(1, correlation + 1):
        moments = variances(lmax, [ir.l for _, ir in irreps], n, n * lmax)
        parts = [moments[ir.l] for _, ir in module.irreps_out if ir.l <= n * lmax]
        condition = max(condition, *[(max(moments) / part) ** 0.5 for part in parts if part > 1e-9], 1.0)

    def truth(x, y, weights):
        signal = torch.zeros(len(x), (lmax + 1) ** 2, channels)
        at = 0
        for _, ir in irreps:
            signal[:, ir.l**2 : (ir.l + 1) ** 2] = x[:, :, at : at + ir.dim].mT
            at += ir.dim
        degrees = torch.tensor([l for l in range(lmax + 1) for _ in range(2 * l + 1)])
        signal = signal * (4 * math.pi / len(irreps) / (2 * degrees + 1)).sqrt()[:, None]
        power, result = signal, []
        for n in range(1, correlation + 1):
            moments = variances(lmax, [ir.l for _, ir in irreps], n, n * lmax)
            for k, (_, ir) in enumerate(module.irreps_out):
                if ir.l <= n * lmax and moments[ir.l] > 1e-9:
                    part = power[:, ir.l**2 : (ir.l + 1) ** 2] / moments[ir.l] ** 0.5
                    result.append((k, part * (y @ weights[n - 1, :, k])[:, None]))
            power = eqk.gaunt_product(power, signal, (n + 1) * lmax)
        outs = [sum(t for j, t in result if j == k) for k in range(len(module.irreps_out))]
        return torch.cat([t.mT.flatten(1) for t in outs], 1)

    check(
        lambda x, y, w: torch.func.functional_call(module, {"weights": w}, (x, y)),
        truth,
        [*operands((6, channels, dim), (6, 5)), module.weights.detach()],
        cancelling=(1,),  # of y: over all powers, channels and components
        condition=condition,
    )
    (x,) = operands((40_000, channels, dim))
    with torch.no_grad():
        for n in range(1, correlation + 1):
            module.weights.zero_()
            module.weights[n - 1] = 1
            out = module(x, torch.eye(5)[:1].expand(len(x), 5))
            # Of the 2 n-th power of a normal number the standard deviation, over its mean, of so many draws.
            odd = [math.prod(range(1, 2 * k, 2)) for k in (n, 2 * n)]
            deviation = math.sqrt((odd[1] / odd[0] ** 2 - 1) / (len(x) * channels))
            for (_, ir), columns in zip(module.irreps_out, module.irreps_out.slices(), strict=True):
                reached = ir.l <= n * lmax and (n > 1 or ir.l in {i.l for _, i in irreps})
                moment = float(out[:, columns].square().mean())
                assert abs(moment - reached) <= 5 * deviation * reached, (n, ir, moment)


def test_gaunt_symmetric_contraction_is_one_of_mace(operands, float64_default):
    """The contraction with Clebsch-Gordan coefficients has weights with which it is the same."""
    ours = nn.GauntSymmetricContraction("1x0e + 1x1o + 1x2e", "0e + 1o + 2e", 3, 1)
    mace = eqk.o3.SymmetricContraction("1x0e + 1x1o + 1x2e", "0e + 1o + 2e", 3, num_elements=1)
    x, one = operands((60, 1, 9))[0], torch.ones(60, 1)
    names = [name for name, _ in mace.named_parameters()]

    def outputs(*weights):
        return torch.func.functional_call(mace, dict(zip(names, weights, strict=True)), (x, one))

    weights = [p.detach() for p in mace.parameters()]
    jacobian = torch.cat([j.flatten(2) for j in torch.func.jacrev(outputs, tuple(range(len(names))))(*weights)], 2)
    matrix, target = jacobian.flatten(0, 1), ours(x, one).flatten()
    found = torch.linalg.lstsq(matrix, target, driver="gelsd").solution
    assert relative_error(matrix @ found, target) < 1e-10
    assert sum(w.numel() for w in weights) > ours.weights.numel()


def test_compile(operands):
    modules = [
        (nn.SeparableS2Activation(3, 1, "m_primary"), operands((5, 2), (5, count(3, 1), 2))),
        (nn.SwiGLUS2Activation(3, 1), operands((5, 6), (5, count(3, 1), 4))),
        (nn.GateActivation(3, 1), operands((5, 6), (5, count(3, 1), 2))),
        (nn.S2GridMLP(torch.nn.Linear(2, 2).double(), 2), operands((5, 9, 2))),
        (nn.SO3Activation(1, 1, "tanh", 3), operands((5, 10))),
        (nn.GauntSymmetricContraction("2x0e + 2x1o", "0e + 1o", 3, 3).double(), operands((5, 2, 4), (5, 3))),
    ]
    for module, arguments in modules:
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert relative_error(compiled(*arguments), module(*arguments)) < 1e-12


def test_comes_with_eqk():
    """As ``eqk.o3`` does, without an import of its own."""
    code = "import eqk; print(eqk.nn.GateActivation(2, 1))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "GateActivation(lmax=2, mmax=1, l_primary)\n"


def test_bad_input():
    x, scalars = torch.zeros(4, 9, 6), torch.zeros(4, 9)
    for message, error, call in (
        ("lmax: expected a degree", ValueError, lambda: nn.GateActivation(-1)),
        ("mmax: expected an order from 0 to 2, got 3", ValueError, lambda: nn.GateActivation(2, 3)),
        ("order: expected one of", ValueError, lambda: nn.GateActivation(2, 1, "m")),
        ("res: expected a positive", ValueError, lambda: nn.SeparableS2Activation(2, res=0)),
        (r"x: expected shape \[rows, 7, channels\]", RuntimeError, lambda: nn.GateActivation(2, 1)(scalars, x)),
        (
            r"x: expected shape \[rows, 9, a multiple of 2\]",
            RuntimeError,
            lambda: nn.SwiGLUS2Activation(2)(scalars, x[..., 1:]),
        ),
        (
            r"scalars: expected shape \[4, 6\], got \[4, 9\]",
            RuntimeError,
            lambda: nn.SeparableS2Activation(2)(scalars, x),
        ),
        (
            r"scalars: expected shape \[4, 9\], got \[4, 8\]",
            RuntimeError,
            lambda: nn.SwiGLUS2Activation(2)(scalars[:, 1:], x),
        ),
        (
            "function: expected one of",
            ValueError,
            lambda: nn.SeparableS2Activation(2, function="sine")(scalars[:, :6], x),
        ),
        ("layers: expected a module", TypeError, lambda: nn.S2GridMLP(3, 2)),
        ("lmax_out: expected a degree", ValueError, lambda: nn.S2GridMLP(F.silu, 2, lmax_out=-1)),
        ("lmax_out: expected a degree", ValueError, lambda: nn.SO3Activation(1, -1, "tanh", 3)),
        ("resolution: expected a number", ValueError, lambda: nn.SO3Activation(1, 1, "tanh", 0)),
        (
            "normalization: expected component",
            ValueError,
            lambda: nn.SO3Activation(1, 1, "tanh", 3, normalization="norm"),
        ),
        ("act: expected a function or one of", ValueError, lambda: nn.SO3Activation(1, 1, "sine", 3)),
        (
            "irreps_in: expected irreps of parity",
            ValueError,
            lambda: nn.GauntSymmetricContraction("0e + 1e", "0e", 2, 3),
        ),
        (
            "irreps_in: expected one multiplicity",
            ValueError,
            lambda: nn.GauntSymmetricContraction("0e + 2x1o", "0e", 2, 3),
        ),
        ("irreps_out: expected irreps of parity", ValueError, lambda: nn.GauntSymmetricContraction("0e", "", 2, 3)),
        (
            "irreps_out: expected degrees up to 2",
            ValueError,
            lambda: nn.GauntSymmetricContraction("0e + 1o", "3o", 2, 3),
        ),
        ("correlation: expected 1 to 4", ValueError, lambda: nn.GauntSymmetricContraction("0e", "0e", 5, 3)),
        ("num_elements: expected a positive", ValueError, lambda: nn.GauntSymmetricContraction("0e", "0e", 2, 0)),
        (
            r"x: expected shape \[nodes, 1, 1\]",
            RuntimeError,
            lambda: nn.GauntSymmetricContraction("0e", "0e", 2, 3)(x, scalars),
        ),
        (
            r"y: expected shape \[4, 3\], got \[4, 9\]",
            RuntimeError,
            lambda: nn.GauntSymmetricContraction("0e", "0e", 2, 3)(x[:, :1, :1], scalars),
        ),
        (r"features: expected shape \[..., 10\]", RuntimeError, lambda: nn.SO3Activation(1, 1, "tanh", 3)(x)),
    ):
        with pytest.raises(error, match=message):
            call()
