"""Signals on grids of the sphere against their harmonics, integrals and e3nn."""

import math

import e3nn.o3
import pytest
import torch

import eqk
from eqk.testing import assert_close

QUADRATURES = ("gausslegendre", "soft")


@pytest.mark.parametrize("quadrature", QUADRATURES)
@pytest.mark.parametrize("res", [1, 2, (4, 7), (6, 3), (14, 20), (40, 41)])
def test_grid(quadrature, res):
    """Sums over the grid are integrals of harmonics up to exact_degree, and not beyond."""
    if quadrature == "soft" and (res if isinstance(res, int) else res[0]) % 2:
        return
    grid, degree = eqk.s2_grid(res, quadrature, torch.float64), eqk.exact_degree(res, quadrature)
    assert grid.positions.norm(dim=-1).sub(1).abs().max() < 1e-14
    above = min(degree + 1, 20)
    y = eqk.spherical_harmonics(list(range(above + 1)), grid.positions, False)
    sums = torch.einsum("b,bai->i", grid.weights, y)
    expected = torch.zeros_like(sums)
    expected[0] = math.sqrt(4 * math.pi)
    exact = (min(degree, 20) + 1) ** 2
    assert (sums - expected)[:exact].abs().max() < 1e-13
    assert degree >= 20 or (sums - expected)[exact:].abs().max() > 1e-3


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_exact_resolution(quadrature):
    for degree in range(30):
        res_beta, res_alpha = eqk.exact_resolution(degree, quadrature)
        assert eqk.exact_degree((res_beta, res_alpha), quadrature) >= degree
        less = res_beta - (1 if quadrature == "gausslegendre" else 2)
        assert less < 1 or eqk.exact_degree((less, res_alpha), quadrature) < degree
        assert res_alpha < 2 or eqk.exact_degree((res_beta, res_alpha - 1), quadrature) < degree


@pytest.mark.parametrize("normalization", ["integral", "component", "norm"])
@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_there_and_back(quadrature, normalization, generator):
    for lmax in (0, 1, 4, 9):
        x = torch.randn(2, 3, (lmax + 1) ** 2, generator=generator, dtype=torch.float64)
        res = eqk.exact_resolution(2 * lmax, quadrature)
        options = dict(quadrature=quadrature, normalization=normalization)
        f = eqk.to_s2grid(x, res, **options)
        if normalization == "integral":
            positions = eqk.s2_grid(res, quadrature, torch.float64).positions
            y = eqk.spherical_harmonics(list(range(lmax + 1)), positions, False)
            assert_close(f, torch.einsum("bai,zci->zcba", y, x))
        assert_close(eqk.from_s2grid(f, lmax, **options), x)
        low = eqk.from_s2grid(f, lmax // 2, lmax_in=lmax, **options)
        assert_close(low, x[..., : (lmax // 2 + 1) ** 2])


@pytest.mark.parametrize("normalization", ["component", "norm", "integral", "tensor"])
@pytest.mark.parametrize(
    ("lmax", "res"), [(2, (10, 9)), (3, 8), (4, (18, 18)), (None, (12, 7)), (5, None), (6, (14, 5))]
)
def test_e3nn(lmax, res, normalization, generator, float64_default):
    """Buffers, values and checkpoints of e3nn's modules."""
    degrees = e3nn.o3.ToS2Grid(lmax, res).lmax
    if normalization == "tensor":
        normalization = torch.rand(degrees + 1, generator=generator, dtype=torch.float64) + 0.5
    pairs = [
        (m.ToS2Grid(lmax, res, normalization), m.FromS2Grid(res, lmax, normalization, lmax_in=degrees + 1))
        for m in (eqk.o3, e3nn.o3)
    ]
    x = torch.randn(3, 2, (degrees + 1) ** 2, generator=generator, dtype=torch.float64)
    for ours, theirs, argument in zip(*pairs, (x, e3nn.o3.ToS2Grid(lmax, res)(x)), strict=True):
        assert repr(ours) == repr(theirs)
        assert_close(ours(argument), theirs(argument))
        assert_close(ours.grid, theirs.grid)
        state = theirs.state_dict()
        assert list(ours.state_dict()) == list(state)
        for name, buffer in ours.state_dict().items():
            assert (buffer - state[name]).abs().max() < 1e-12
        ours.load_state_dict(state)
        scripted = torch.jit.script(ours)
        assert torch.equal(scripted(argument), ours(argument))


def test_derivatives_and_compile(generator):
    x = torch.randn(2, 9, generator=generator, dtype=torch.float64, requires_grad=True)

    def f(x):
        return eqk.from_s2grid(eqk.to_s2grid(x, (5, 9)).tanh(), 2)

    assert torch.autograd.gradcheck(f, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, x)
    assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))
    assert eqk.to_s2grid(x.float(), 3).dtype == torch.float32


def test_plot(tmp_path, generator):
    file = tmp_path / "signals.png"
    x = torch.randn(2, 16, generator=generator)
    figure = eqk.plot_signal(x, file, titles=["a", "b"], res=(20, 41))
    assert len(figure.axes) == 2
    assert file.read_bytes().startswith(b"\x89PNG")
    same = [
        eqk.plot_signal(t, irreps=i, shape="sphere", res=(8, 9))
        for t, i in ((x[0, 1:4], "1o"), (x[0, :4] * torch.tensor([0, 1, 1, 1]), None))
    ]
    colors = [figure.axes[0].collections[0].get_facecolors() for figure in same]
    assert abs(colors[0] - colors[1]).max() < 1e-6


def test_bad_input():
    x, f = torch.zeros(2, 9), torch.zeros(2, 4, 5)
    for message, error, call in (
        (r"x: expected shape \[..., \(lmax \+ 1\)\^2\]", RuntimeError, lambda: eqk.to_s2grid(x[:, :8], 5)),
        ("x: expected shape", RuntimeError, lambda: eqk.to_s2grid(x[:, :0], 5)),
        ("res: expected a positive number or two", ValueError, lambda: eqk.to_s2grid(x, 0)),
        ("res: expected a positive number or two", ValueError, lambda: eqk.to_s2grid(x, (1, 2, 3))),
        ("res: expected an even res_beta", ValueError, lambda: eqk.to_s2grid(x, 5, quadrature="soft")),
        ("quadrature: expected one of", ValueError, lambda: eqk.to_s2grid(x, 5, quadrature="x")),
        ("normalization: expected one of", ValueError, lambda: eqk.to_s2grid(x, 5, normalization="x")),
        (
            r"f: expected at least \(4, 7\) rings and angles for degree 3, got \(4, 5\), which is exact to degree 4",
            ValueError,
            lambda: eqk.from_s2grid(f, 3),
        ),
        ("lmax_in: expected a degree", ValueError, lambda: eqk.from_s2grid(f, 2, lmax_in=-1)),
        ("lmax: expected a degree", ValueError, lambda: eqk.from_s2grid(f, 21)),
        ("lmax: expected a degree", ValueError, lambda: eqk.from_s2grid(f, -1, lmax_in=2)),
        ("f: expected shape", RuntimeError, lambda: eqk.from_s2grid(f[0, 0], 1)),
        ("degree: expected a number from 0, got -1", ValueError, lambda: eqk.exact_resolution(-1)),
        ("lmax, res: expected at least one", ValueError, lambda: eqk.o3.ToS2Grid()),
        ("res: expected an even res_beta of at least 6, got 5", AssertionError, lambda: eqk.o3.ToS2Grid(2, (5, 9))),
        ("normalization: expected one of", ValueError, lambda: eqk.o3.FromS2Grid((6, 9), 2, "x")),
        ("normalization: expected a factor", ValueError, lambda: eqk.o3.ToS2Grid(2, 6, torch.ones(2))),
        (r"x: expected shape \[..., 6, 5\]", RuntimeError, lambda: eqk.o3.FromS2Grid(6, 2)(f)),
        ("irreps: expected each degree once", ValueError, lambda: eqk.plot_signal(x, irreps="2x0e+7x0e")),
        ("titles: expected 2", ValueError, lambda: eqk.plot_signal(x, titles=["a"])),
        ("shape: expected 'radius' or 'sphere'", ValueError, lambda: eqk.plot_signal(x, shape="x")),
    ):
        with pytest.raises(error, match=message):
            call()


def test_writing_to_a_grid_or_a_module_changes_no_other(generator, float64_default):
    """Tables are cached; what callers and checkpoints write to are copies."""
    res, x = (6, 7), torch.randn(9, generator=generator)

    def everything():
        modules = [eqk.o3.ToS2Grid(2, res), eqk.o3.FromS2Grid(res, 2)]
        f = eqk.to_s2grid(x, res, quadrature="soft")
        return [f, eqk.from_s2grid(f, 2, quadrature="soft"), *eqk.s2_grid(res, "soft"), modules[0](x), modules[1](f)]

    expected = everything()
    for module in (eqk.o3.ToS2Grid(2, res), eqk.o3.FromS2Grid(res, 2)):
        module.load_state_dict({name: 2 * t for name, t in module.state_dict().items()})
    for t in eqk.s2_grid(res, "soft"):
        t.mul_(3)
    for before, after in zip(expected, everything(), strict=True):
        assert torch.equal(before, after)
