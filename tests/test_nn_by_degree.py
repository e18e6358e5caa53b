"""Norms and linear layers of node features against their formulas, component by component."""

import pytest
import torch
from test_nn import check

import eqk
from eqk import nn
from eqk.testing import TOLERANCES, relative_error, rotate

DEGREES = [0, 1, 3]
C = 5


def degrees(lmax):
    return [l for l in range(lmax + 1) for _ in range(2 * l + 1)]


def normed(module, x, lmax):
    """out_ic = (x_ic - [l = 0] mean) s_i w_lc + [l = 0] b_c, s_i = (sum_jc b_ij x_jc^2 / C + eps)^-1/2"""
    of = degrees(lmax)
    n = len(of)
    kind, p = type(module), dict(module.named_parameters())
    centred = not (kind is nn.EquivariantRMSNorm and not module.centering)
    rows = [x[:, i] - x[:, i].mean(1, keepdim=True) if i == 0 and centred else x[:, i] for i in range(n)]

    def b(i, j):
        if kind is nn.EquivariantLayerNorm:
            return (of[i] == of[j]) / (2 * of[j] + 1)
        if kind is nn.EquivariantRMSNorm:
            return 1 / ((2 * of[j] + 1) * (lmax + 1)) if module.std_balance_degrees else 1 / n
        if of[i] == 0 or of[j] == 0:
            return float(of[i] == of[j])
        return 1 / ((2 * of[j] + 1) * lmax) if module.std_balance_degrees else 1 / (n - 1)

    out = []
    for i, l in enumerate(of):
        square = sum(b(i, j) * (rows[j] ** 2).sum(1, keepdim=True) / C for j in range(n))
        row = rows[i] / torch.sqrt(square + module.eps)
        if kind is nn.EquivariantSeparableLayerNorm:
            if l:
                row = row * p["affine_weight"][l - 1] if "affine_weight" in p else row
            elif "norm_l0.weight" in p:
                row = row * p["norm_l0.weight"] + p["norm_l0.bias"]
        else:
            row = row * p["affine_weight"][l] if "affine_weight" in p else row
            row = row + p["affine_bias"] if "affine_bias" in p and not l else row
        out.append(row)
    return torch.stack(out, 1)


def mixed(module, x, lmax):
    rows = []
    for i, l in enumerate(degrees(lmax)):
        row = torch.stack([sum(module.weight[l, o, c] * x[:, i, c] for c in range(C)) for o in range(3)], 1)
        rows.append(row if l else row + module.bias)
    return torch.stack(rows, 1)


NORMS = {
    "rms": (nn.EquivariantRMSNorm, {}),
    "rms-components": (nn.EquivariantRMSNorm, {"std_balance_degrees": False, "eps": 0.1}),
    "rms-uncentred": (nn.EquivariantRMSNorm, {"centering": False}),
    "rms-plain": (nn.EquivariantRMSNorm, {"affine": False}),
    "layer": (nn.EquivariantLayerNorm, {}),
    "layer-plain": (nn.EquivariantLayerNorm, {"affine": False, "eps": 0.1}),
    "separable": (nn.EquivariantSeparableLayerNorm, {}),
    "separable-components": (nn.EquivariantSeparableLayerNorm, {"std_balance_degrees": False, "eps": 0.1}),
    "separable-plain": (nn.EquivariantSeparableLayerNorm, {"affine": False}),
}
MODULES = ["linear", *NORMS]


def make(name, lmax, generator, dtype=torch.float64):
    """A module with random parameters, and its formula."""
    module = nn.SO3Linear(C, 3, lmax) if name == "linear" else NORMS[name][0](lmax, C, **NORMS[name][1])
    module.to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module, mixed if name == "linear" else normed


def features(lmax, generator, nodes=6):
    """Nodes of different sizes, small ones for which eps counts; a mean in degree 0."""
    x = torch.randn(nodes, (lmax + 1) ** 2, C, generator=generator, dtype=torch.float64)
    x[:, 0] += 1
    return x * 10 ** torch.linspace(-3, 2, nodes, dtype=torch.float64)[:, None, None]


def with_parameters(function, module):
    """function(module, x), as a function of x and the parameters, those that it does not use too."""
    names = [name for name, _ in module.named_parameters()]

    def call(x, *parameters):
        with torch.nn.utils.stateless._reparametrize_module(module, dict(zip(names, parameters, strict=True))):
            return function(module, x) + 0 * sum(p.sum() for p in parameters)

    return call


@pytest.mark.parametrize("lmax", DEGREES)
@pytest.mark.parametrize("name", MODULES)
def test_formula(name, lmax, generator):
    """Values and gradients to x and all parameters, in both precisions."""
    module, formula = make(name, lmax, generator)
    fused = with_parameters(lambda module, x: module(x), module)
    truth = with_parameters(lambda module, x: formula(module, x, lmax), module)
    check(fused, truth, [features(lmax, generator), *(p.detach().clone() for p in module.parameters())])


@pytest.mark.parametrize("name", MODULES)
def test_derivatives(name, generator):
    module, _ = make(name, 2, generator)
    fused = with_parameters(lambda module, x: module(x), module)
    x = 0.3 * torch.randn(2, 9, C, generator=generator, dtype=torch.float64)
    leaves = [t.detach().clone().requires_grad_() for t in (x, *module.parameters())]
    assert torch.autograd.gradcheck(fused, leaves, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(fused, leaves)


@pytest.mark.parametrize("name", MODULES)
def test_equivariance(name, generator):
    module, _ = make(name, 4, generator)
    x, angle = features(4, generator), torch.randn(3, generator=generator)

    def turned(t):
        irreps = [(t.shape[2], (l, (-1) ** l)) for l in range(5)]
        return rotate(t.flatten(1), irreps, angle, "ir_mul").view_as(t)

    assert relative_error(module(turned(x)), turned(module(x))) < 1e-12
    assert relative_error(turned(x), x) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_16_bit(name, dtype, generator):
    """Of 16-bit values, and under autocast: norms in float32, exactly as without, linear layers in 16 bits."""
    module, formula = make(name, 3, generator, dtype)
    x = features(3, generator).to(dtype)
    wide, _ = make(name, 3, generator)
    wide.load_state_dict(module.state_dict())
    expected = formula(wide, x.double(), 3)
    got = module(x)
    assert got.dtype == dtype
    for a, b in zip(got, expected, strict=True):  # nodes differ in size
        assert relative_error(a, b) < TOLERANCES[dtype][0]
    module.float()
    x = x.float()
    with torch.autocast("cpu", dtype):
        cast = module(x)
    if name == "linear":
        assert cast.dtype == dtype
        with pytest.raises(RuntimeError, match=r"x: expected dtype torch.float32 as the weights have"):
            module(x.to(dtype))
    else:
        assert torch.equal(cast, module(x))
        if list(module.parameters()):
            assert module(x.to(dtype)).dtype == torch.float32


def test_16_bit_norm_does_not_overflow():
    """The square of a large number of float16 is none."""
    x = torch.full((1, 4, C), 3e4, dtype=torch.float16)
    out = nn.EquivariantRMSNorm(1, C, centering=False).half()(x)
    assert torch.equal(out, torch.ones_like(x))


CHECKPOINTS = {
    "linear": {"weight": (4, 3, C), "bias": (3,)},
    "rms": {"affine_weight": (4, C), "affine_bias": (C,)},
    "rms-uncentred": {"affine_weight": (4, C)},
    "rms-plain": {},
    "layer": {"affine_weight": (4, C), "affine_bias": (C,)},
    "separable": {"affine_weight": (3, C), "norm_l0.weight": (C,), "norm_l0.bias": (C,)},
    "separable-plain": {},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(name, generator):
    """Names and shapes of fairchem-core's, and of its versions that store tables."""
    module, _ = make(name, 3, generator)
    assert {key: tuple(t.shape) for key, t in module.state_dict().items()} == CHECKPOINTS[name]
    stored = {key: torch.randn(shape, dtype=torch.float64) for key, shape in CHECKPOINTS[name].items()}
    tables = {"expand_index": torch.zeros(16, dtype=torch.long), "balance_degree_weight": torch.zeros(16, 1)}
    model = torch.nn.Sequential(module)
    model.load_state_dict({f"0.{key}": t for key, t in {**stored, **tables}.items()})
    for key, t in module.state_dict().items():
        assert torch.equal(t, stored[key])
    with pytest.raises(RuntimeError, match="Unexpected key"):
        module.load_state_dict({**stored, "other": torch.zeros(1)})


def test_initial_parameters():
    linear = nn.SO3Linear(64, 32, 2)
    bound = 64**-0.5
    assert 0.9 * bound < linear.weight.abs().max() <= bound
    assert not linear.bias.any()
    x = torch.randn(3, 9, 64, dtype=torch.float64)
    for cls in (nn.EquivariantRMSNorm, nn.EquivariantLayerNorm, nn.EquivariantSeparableLayerNorm):
        assert relative_error(cls(2, 64).double()(x), cls(2, 64, affine=False)(x)) == 0


@pytest.mark.parametrize("name", MODULES)
def test_no_nodes(name, generator):
    module, _ = make(name, 2, generator)
    x = torch.zeros(0, 9, C, dtype=torch.float64, requires_grad=True)
    out = module(x)
    assert out.shape == (0, 9, 3 if name == "linear" else C)
    out.sum().backward()
    assert x.grad.shape == x.shape


def test_compile(generator):
    for name in ("linear", "rms", "layer", "separable"):
        module, _ = make(name, 3, generator)
        x = features(3, generator).requires_grad_()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
        got, expected = compiled(x), module(x)
        assert relative_error(got, expected) < 1e-12
        gradients = [torch.autograd.grad(out.sin().sum(), x)[0] for out in (got, expected)]
        assert relative_error(*gradients) < 1e-12


def test_bad_input():
    for message, error, call in (
        ("lmax: expected a degree from 0 to 20, got -1", ValueError, lambda: nn.EquivariantRMSNorm(-1, 4)),
        ("lmax: expected a degree", ValueError, lambda: nn.SO3Linear(4, 4, 2.0)),
        ("num_channels: expected a positive number, got 0", ValueError, lambda: nn.EquivariantLayerNorm(2, 0)),
        ("in_features: expected a positive number", ValueError, lambda: nn.SO3Linear(0, 4, 2)),
        ("out_features: expected a positive number", ValueError, lambda: nn.SO3Linear(4, -1, 2)),
        (
            r"x: expected shape \[nodes, 9, 4\], got \[3, 9, 5\]",
            RuntimeError,
            lambda: nn.EquivariantRMSNorm(2, 4)(torch.zeros(3, 9, 5)),
        ),
        (
            r"x: expected shape \[nodes, 9, 4\], got \[9, 4\]",
            RuntimeError,
            lambda: nn.EquivariantSeparableLayerNorm(2, 4)(torch.zeros(9, 4)),
        ),
        (
            r"x: expected shape \[nodes, 9, 4\], got \[3, 8, 4\]",
            RuntimeError,
            lambda: nn.SO3Linear(4, 5, 2)(torch.zeros(3, 8, 4)),
        ),
        (
            "x: expected a floating-point dtype, got torch.int64",
            RuntimeError,
            lambda: nn.EquivariantLayerNorm(2, 4)(torch.zeros(3, 9, 4, dtype=torch.long)),
        ),
        (
            "x: expected dtype torch.float32 as the weights have, got torch.float64",
            RuntimeError,
            lambda: nn.SO3Linear(4, 5, 2)(torch.zeros(3, 9, 4, dtype=torch.float64)),
        ),
    ):
        with pytest.raises(error, match=message):
            call()


def test_names():
    assert str(nn.EquivariantRMSNorm(2, 4)).startswith("EquivariantRMSNorm(lmax=2, num_channels=4, eps=1e-05")
    assert str(nn.SO3Linear(4, 5, 2)) == "SO3Linear(4, 5, lmax=2)"
    assert eqk.nn.SO3Linear is nn.SO3Linear
