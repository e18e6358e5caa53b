import itertools

import pytest
import torch

import eqk
from eqk import testing
from eqk.irreps import MAX_DEGREE


def triples(lmax):
    for l1, l2 in itertools.product(range(lmax + 1), repeat=2):
        for l3 in range(abs(l1 - l2), min(l1 + l2, lmax) + 1):
            yield l1, l2, l3


@pytest.mark.parametrize("l1", range(12))
def test_equals_e3nn(l1, rng, float64_default):
    from e3nn import o3

    for triple in triples(11):
        if triple[0] != l1 or (max(triple) > 6 and rng.random() > 0.1):
            continue
        # e3nn above degree 6 solves for the change of basis in float64 and keeps about 11 digits.
        difference = (eqk.wigner_3j(*triple) - o3.wigner_3j(*triple)).abs().max()
        assert difference < 1e-12, triple


@pytest.mark.parametrize("l", [0, 1, 5, 11, 12, 16, MAX_DEGREE])
def test_orthogonality(l):
    for l2 in {0, min(1, l), l // 2, l}:
        rows = [
            eqk.wigner_3j(l, l2, l3, dtype=torch.float64).flatten(0, 1) * (2 * l3 + 1) ** 0.5
            for l3 in range(l - l2, min(l + l2, MAX_DEGREE) + 1)
        ]
        q = torch.cat(rows, 1)
        torch.testing.assert_close(q.T @ q, torch.eye(q.shape[1], dtype=q.dtype), rtol=0, atol=1e-12)


@pytest.mark.parametrize("triple", [(2, 3, 4), (12, 12, 11), (12, 7, 9), (15, 14, 3), (16, 16, 16)])
def test_invariance(triple, generator):
    c = eqk.wigner_3j(*triple, dtype=torch.float64)
    angle = torch.randn(3, generator=generator, dtype=torch.float64)
    moved = c
    for l in reversed(triple):
        moved = testing.rotate(moved, [(1, (l, 1))], angle).movedim(-1, 0)
    assert testing.relative_error(moved, c) < 1e-11


def test_default_dtype_and_errors(float64_default):
    assert eqk.wigner_3j(1, 1, 1).dtype == torch.float64
    assert eqk.wigner_3j(1, 1, 1, dtype=torch.float32).dtype == torch.float32
    for bad in ((1, 1, 3), (-1, 0, 0), (0, 0, MAX_DEGREE + 1), (2**40, 2**40, 0)):
        with pytest.raises(RuntimeError, match="degree|l1|l2|l3"):
            eqk.wigner_3j(*bad)
