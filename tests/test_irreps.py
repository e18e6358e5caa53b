"""eqk.Irrep and eqk.Irreps against e3nn's."""

import itertools
import pickle
import random

import pytest
import torch
from e3nn import o3 as theirs

import eqk
from eqk import Irrep, Irreps

if not hasattr(theirs.Irreps, "filter"):
    pytest.skip("this e3nn's Irreps have no filter and no D_from_axis_angle", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("float64_default")

TEXTS = ["", "0e", "3x1o+2x0e+0x2e+1x1o", "2x3e+1x0o+4x2o", "1e+1e+1o+0x0e+2e"]


def rotations(n):
    R = theirs.rand_matrix(n)
    return R * torch.tensor([random.choice((1.0, -1.0)) for _ in range(n)])[:, None, None]


@pytest.mark.parametrize("text", TEXTS)
def test_constructors_and_queries_equal_e3nn(text):
    ours, other = Irreps(text), theirs.Irreps(text)
    for given in (
        text,
        other,
        list(other),
        [[mul, [ir.l, ir.p]] for mul, ir in other],
        [(m, str(i)) for m, i in other],
    ):
        assert Irreps(given) == ours
        assert str(Irreps(given)) == str(other)
    assert Irreps([ir for _, ir in other]) == Irreps([(1, ir) for _, ir in ours])
    for _, ir in other:
        assert Irreps(ir) == Irreps(str(ir)) == Irreps([ir])
        assert Irrep(ir) == Irrep(str(ir))
    # e3nn 0.6 keeps nothing for a string, against its documentation.
    assert ours.filter("1o+3x2e") == ours.filter(Irreps("1o+3x2e")) == ours.filter(["1o", "2e"])
    for criteria in ({"keep": ["1o", "2e"]}, {"drop": ["0e", "1o"]}, {"lmax": 1}, {}, {"keep": ["1o"]}):
        assert str(ours.filter(**criteria)) == str(other.filter(**criteria))
    for mode, ir in itertools.product(("keep", "drop"), ("1o", "0e")):
        assert str(ours.filter(**{mode: Irrep(ir)})) == str(other.filter(**{mode: theirs.Irrep(ir)}))
        large = {mode: lambda mul_ir: mul_ir.mul > 1}
        assert str(ours.filter(**large)) == str(other.filter(**large))
    n = ours.num_irreps
    for start, stop in itertools.product((None, 0, 1, 2, n - 1, n, n + 2, -1, -2), repeat=2):
        if slice(start, stop).indices(n)[0] > slice(start, stop).indices(n)[1]:
            assert ours.slice_by_mul[start:stop] == Irreps()
            continue
        kept = lambda irreps: str(theirs.Irreps(str(irreps)).remove_zero_multiplicities())  # noqa: E731
        assert str(ours.slice_by_mul[start:stop]) == kept(other.slice_by_mul[start:stop])
    assert pickle.loads(pickle.dumps(ours)) == ours


def test_none_is_empty_and_anything_else_is_named():
    assert Irreps(None) == Irreps("") == Irreps()
    assert [str(ir) for ir in Irrep.iterator(3)] == [str(ir) for ir in theirs.Irrep.iterator(3)]
    assert [*itertools.islice(Irrep.iterator(), 5)] == [Irrep(ir) for ir in ("0e", "0o", "1o", "1e", "2e")]
    bad = [
        5,
        [5],
        [(1, 2, 3)],
        [(2.0, "1o")],
        [("1o", 2)],
        torch.zeros(2),
        [(1, (1, -1, 2))],
        b"1o",
        [None],
        [(-1, "0e")],
    ]
    for given in bad:
        with pytest.raises(ValueError, match="expected .* got"):
            Irreps(given)
    for given in (None, "1x1o", (1,), (1, -1, 1), 2.0, [(1, 1)], (1, 3)):
        with pytest.raises(ValueError, match="expected .* got"):
            Irrep(given)
    with pytest.raises(ValueError, match="keep, drop and lmax"):
        Irreps("0e").filter("0e", lmax=2)
    with pytest.raises(IndexError, match="slice"):
        Irreps("0e").slice_by_mul[0]


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (0,)])
@pytest.mark.parametrize("text", TEXTS[1:])
def test_matrices_equal_e3nn(text, leading):
    ours, other = Irreps(text), theirs.Irreps(text)
    count = torch.Size(leading).numel()
    R = rotations(count).reshape(*leading, 3, 3)
    angles = [torch.randn(leading) for _ in range(3)]
    k = torch.randint(0, 2, leading).double()
    q = torch.nn.functional.normalize(torch.randn(*leading, 4), dim=-1)
    axis, angle = torch.randn(*leading, 3), 3 * torch.randn(leading)
    pairs = [(ours, other), *zip((ir for _, ir in ours), (ir for _, ir in other), strict=True)]
    for mine, reference in pairs:
        checks = [
            (mine.D_from_matrix(R), reference.D_from_matrix(R)),
            (mine.D_from_angles(*angles), reference.D_from_angles(*angles)),
            (mine.D_from_angles(*angles, k), reference.D_from_angles(*angles, k)),
            (mine.D_from_quaternion(q), reference.D_from_quaternion(q)),
            (mine.D_from_quaternion(q, k), reference.D_from_quaternion(q, k)),
            (mine.D_from_axis_angle(axis, angle), reference.D_from_axis_angle(axis, angle)),
        ]
        for got, expected in checks:
            assert got.shape == expected.shape
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_matrices_of_all_degrees_rotate_harmonics():
    R = theirs.rand_matrix()
    x = torch.nn.functional.normalize(torch.randn(5, 3), dim=-1)
    y = eqk.spherical_harmonics(list(range(21)), torch.cat([x, x @ R.T]), False, "norm")
    D = Irreps([(1, (l, 1)) for l in range(21)]).D_from_matrix(R)
    torch.testing.assert_close(y[:5] @ D.T, y[5:], rtol=1e-9, atol=1e-9)
    mapped = torch.func.vmap(lambda angle: Irreps("1o+2e").D_from_angles(angle, angle, angle))
    torch.testing.assert_close(mapped(torch.ones(2))[0], Irreps("1o+2e").D_from_angles(*3 * [torch.tensor(1.0)]))
    for bad in (torch.zeros(3, 3), 2 * torch.eye(3), torch.eye(2)):
        with pytest.raises(ValueError, match="R: expected"):
            Irreps("1o").D_from_matrix(bad)


def test_randn():
    ours, other = Irreps("3x1o+2x0e+0x2e+1x3o"), theirs.Irreps("3x1o+2x0e+0x2e+1x3o")
    for normalization in ("component", "norm"):
        torch.manual_seed(5)
        mine = ours.randn(2, -1, 3, normalization=normalization, requires_grad=True)
        torch.manual_seed(5)
        torch.testing.assert_close(mine, other.randn(2, -1, 3, normalization=normalization, requires_grad=True))
        assert mine.is_leaf
        assert mine.requires_grad
        assert ours.randn(-1, dtype=torch.float32, normalization=normalization).dtype == torch.float32
        assert Irreps().randn(4, -1, normalization=normalization).shape == (4, 0)
    with pytest.raises(ValueError, match="normalization"):
        ours.randn(-1, normalization="none")
    with pytest.raises(ValueError, match="size"):
        ours.randn(2, 3)
