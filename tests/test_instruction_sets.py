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
    return f"EQK_CPU_ISA: expected an instruction set of this machine (avx512, avx2 or baseline), got '{isa}'"


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


def test_unknown():
    assert expected_refusal("mmx") in run_python(CALL, EQK_CPU_ISA="mmx")
