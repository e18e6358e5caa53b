"""Kernels for the CPU on the instruction sets that are not the machine's widest, which all other tests are for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_tensor_product import run_python

from eqk import testing

HERE = Path(__file__).parent
# Of each op: values and derivatives against its reference. so2_edge_message has a test of its own.
TESTS = {
    "test_gaunt_product.py": ("test_cases", "test_rows_of_one_channel", "test_16_bit"),
    "test_rotate.py": ("test_values", "test_derivatives", "test_16_bit"),
    "test_s2_activation.py": ("test_functions", "test_values_of_functions", "test_channels", "test_16_bit"),
    "test_spherical_harmonics.py": ("test_e3nn_float64", "test_low_precision"),
    "test_symmetric_contraction.py": ("test_cases", "test_sizes", "test_16_bit"),
    "test_tensor_product.py": ("test_cases", "test_row_counts", "test_16_bit", "test_strided_inputs"),
    "test_tensor_product_conv.py": ("test_cases", "test_graphs", "test_16_bit", "test_long_sums"),
    "test_tensor_product_conv_radial.py": ("test_graphs", "test_problems"),
    "test_wigner.py": ("test_e3nn", "test_gradient"),
}
CALL = """
import eqk, torch
one = torch.ones(1, 1)
try:
    eqk.tensor_product(one, one, None, "1x0e * 1x0e -> 1x0e [mul_ir,mul_ir,mul_ir] none {0 0 0 uuu - 1}")
except RuntimeError as error:
    print(error)
"""


def expected_refusal(isa: str) -> str:
    return f"EQK_CPU_ISA: expected an instruction set of this machine (amx, avx512, avx2 or baseline), got '{isa}'"


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_narrower(isa):
    if refused := run_python(CALL, EQK_CPU_ISA=isa):
        assert expected_refusal(isa) in refused
        return
    selected = [f"{HERE / file}::{name}" for file, names in TESTS.items() for name in names]
    environment = {**os.environ, "EQK_CPU_ISA": isa, "EQK_SEED": str(testing.seed())}
    command = [sys.executable, "-m", "pytest", "-q", "-x", *selected]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stdout[-4000:]


PRODUCTS = """
import sys
import eqk, torch
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(int(sys.argv[1]))
def random(*shape):
    scale = torch.exp2(torch.randint(-12, 13, shape[-1:], generator=generator))
    return torch.randn(*shape, generator=generator) * scale
edges, n = 104, torch.arange(104)
for hidden, columns in ((32, 48), (33, 130), (64, 96), (70, 47), (300, 33), (530, 100), (1, 1), (16, 300)):
    plan = eqk.Plan(f"{columns}x0e", "1x0e", f"{columns}x0e", ((0, 0, 0, "uvu", True, 1.0),))
    h, a, g = random(edges, hidden), random(hidden, columns), random(edges, columns)
    one = torch.ones(edges, columns), torch.ones(edges, 1)
    wanted = [False, False, True, True]
    w = torch.ops.eqk.tensor_product_conv_radial(*one, h, a, n, n, edges, str(plan), n, n)
    _, _, gh, ga = torch.ops.eqk.tensor_product_conv_radial_backward(*one, h, a, g, n, n, edges, str(plan), n, n, wanted)
    h, a, g = h.double(), a.double(), g.double()
    for name, got, p, q in (("w", w, h, a), ("gh", gh, g, a.mT), ("ga", ga, h.mT, g)):
        # In units of rounding of a sum of so many terms in whichever order, so that nothing hangs on cancellation: a
        # random walk, some sqrt(terms) / 5 long. The longest of 100 000 is five times that, whatever the seed.
        error, terms = ((got - p @ q).abs() / (p.abs() @ q.abs())) * 2.0**24, p.shape[1]
        if terms == 1:
            # No walk: tiles leave out products of its parts that are up to 8 units, alike for all rows, and round the
            # others' sum five times.
            assert error.max() < 13, (name, hidden, columns, error.max())
            continue
        assert error.square().mean().sqrt() < 1 + terms**0.5 / 4, (name, hidden, columns, error.square().mean())
        assert error.max() < 4 + 2 * terms**0.5, (name, hidden, columns, error.max())
    h[7, hidden // 2] = float("inf")
    w = torch.ops.eqk.tensor_product_conv_radial(*one, h.float(), a.float(), n, n, edges, str(plan), n, n)
    assert not w[7].isfinite().any()
    assert w[[*range(7), *range(8, edges)]].isfinite().all()
print(torch.ops.eqk.cpu_isa())
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "amx", "amx-emulated"])
def test_products_of_matrices(isa):
    """In float32, of numbers of very different size, in tiles that are not whole: as accurate as float32 is."""
    try:
        assert run_python(PRODUCTS, str(testing.seed()), EQK_CPU_ISA=isa).strip() == isa
    except AssertionError as error:
        if expected_refusal(isa) not in str(error):
            raise


def test_unknown():
    assert expected_refusal("mmx") in run_python(CALL, EQK_CPU_ISA="mmx")
