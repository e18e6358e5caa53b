import json
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

import eqk
from eqk.testing import CASES

PLAN = CASES["mace-medium"].plan
BLOCK = 10_000_000  # bytes of the smallest result that kept(500) makes, 500 rows of 5120 float32 being 10 240 000


@pytest.fixture
def keep():
    yield eqk.keep_memory
    assert eqk.keep_memory(0) == 0


def product(rows, generator, dtype=torch.float32):
    return eqk.tensor_product(*CASES["mace-medium"].operands(rows, dtype, generator), PLAN)


def test_a_freed_result_is_the_next_ones_memory(keep, generator):
    operands = [t.requires_grad_() for t in CASES["mace-medium"].operands(500, torch.float32, generator)]

    def results():
        out = eqk.tensor_product(*operands, PLAN)
        return out, *torch.autograd.grad(out, operands, torch.cos(out.detach()))

    expected = [t.detach().clone() for t in results()]
    assert keep() == 0
    addresses = []
    for _ in range(3):
        kept = results()
        torch.testing.assert_close(kept, expected, rtol=0, atol=0, check_stride=True)
        addresses.append(sorted(t.data_ptr() for t in kept if t.nbytes >= 2**20))
        for t in kept:
            t.detach().fill_(float("nan"))
        del kept, t
    assert len(addresses[0]) > 1
    assert all(a == b for a, b in pairwise(addresses))
    # Two results that live together are two blocks.
    one, two = product(500, generator), product(500, generator)
    assert one.data_ptr() != two.data_ptr()


def test_no_more_than_asked_for_is_kept(keep, generator):
    limit = 3 * BLOCK
    assert keep(limit) == 0
    alive = [product(500, generator) for _ in range(4)]
    assert keep(limit) == 0
    latest = [t.data_ptr() for t in alive[2:]]
    while alive:
        alive.pop(0)
    held = keep(limit)
    assert 2 * BLOCK < held <= limit
    again = [product(500, generator) for _ in range(2)]
    assert sorted(t.data_ptr() for t in again) == sorted(latest)
    assert keep(limit) == 0
    # Larger than all that may be kept; too small to be worth it; a little more rows, the same block.
    del again
    held = keep(limit)
    product(2000, generator), product(3, generator)
    assert keep(limit) == held
    alive = product(510, generator)
    assert alive.data_ptr() in latest
    assert keep(0) == 0
    torch.testing.assert_close(alive, alive.clone())
    del alive
    assert keep(limit) == 0


CODE = """
import json, resource, sys, torch, eqk
from eqk.testing import CASES
if sys.argv[1] == "keep": eqk.keep_memory()
plan = CASES["mace-medium"].plan
x, y, w = (torch.ones(2000, n) for n in (plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel))
faults = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    eqk.tensor_product(x, y, w, plan)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps([faults, 2000 * plan.irreps_out.dim * 4 // resource.getpagesize()]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults are counted on Linux")
def test_kept_memory_is_not_faulted_in_again():
    def page_faults(setting):
        result = subprocess.run([sys.executable, "-c", CODE, setting], capture_output=True, text=True, check=True)
        return json.loads(result.stdout)

    kept, pages = page_faults("keep")
    # Without, every call faults its whole result in; were huge pages on, some tens of times.
    assert max(kept[1:]) < min(pages / 100, *page_faults("default")[0][1:])


HUGE = """
import sys, torch, eqk
eqk.keep_memory(1 << 30)
x = torch.zeros(1, 0).expand(int(sys.argv[1]), 0)
try:
    torch.ops.eqk.tensor_product(x, x, None, "- * - -> 16x0e [mul_ir,mul_ir,mul_ir] none {}")
except RuntimeError:
    print("refused")
"""


@pytest.mark.parametrize("rows", [2**60 + 2**20, 2**59, 2**58 + 2**18, 2**57 + 1, 2**50])
def test_results_larger_than_any_memory(rows):
    """Expanded rows of no columns, and a result whose size in elements or bytes overflows, or that no memory holds."""
    result = subprocess.run([sys.executable, "-c", HUGE, str(rows)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "refused\n"), result.stderr


@pytest.mark.parametrize("max_bytes", [-1, 2**63, 1.5, None])
def test_bad_limit(max_bytes):
    with pytest.raises(ValueError, match="max_bytes: expected an int"):
        eqk.keep_memory(max_bytes)
    with pytest.raises(RuntimeError, match="max_bytes|max_bytes: expected"):
        torch.ops.eqk.keep_memory(max_bytes)


MANY_CALLS = """
import json, resource, torch, eqk
from eqk.testing import CASES, CONTRACTIONS, GAUNTS, random_contraction_operands, random_gaunt_operands

case, rows = CASES["depthwise-3"], 8
plan = str(case.plan)
generator = torch.Generator().manual_seed(0)
x, y, w = case.operands(rows, torch.float32, generator)
g = torch.ones(rows, case.plan.irreps_out.dim)
index = torch.zeros(rows, dtype=torch.int64)
edges = (index, index, rows, plan, index.argsort(stable=True), None)
contraction = CONTRACTIONS["quadratic-ir_mul"]
operands = random_contraction_operands(contraction, rows, 4, 2, torch.float32, generator)
gaunt = GAUNTS["all"]
signals = random_gaunt_operands(gaunt, rows, (True,) * 3, torch.float32, generator)
message = (torch.ones(rows, 4, 1), torch.ones(rows, 4), None, None, torch.ones(rows, 1), torch.ones(19), torch.ones(8))
pairs, message_plan = index.expand(2, rows), "1,1,2,1,1,gate,0,0,"
vectors, degrees = torch.ones(rows, 3), "0,1,2,3,4,5,6,7,8 component"
OPS = torch.ops.eqk
calls = {
    "tensor_product": lambda: OPS.tensor_product(x, y, w, plan),
    "jvp": lambda: OPS.tensor_product_jvp(x, y, w, x, y, w, plan),
    "backward": lambda: OPS.tensor_product_backward(x, y, w, g, plan, [True] * 3),
    "double_backward": lambda: OPS.tensor_product_double_backward(x, y, w, g, x, y, w, g, plan, [True] * 4),
    "conv": lambda: OPS.tensor_product_conv(x, y, w, *edges),
    "conv_backward": lambda: OPS.tensor_product_conv_backward(x, y, w, g, *edges, [True] * 3),
    "radial": lambda: OPS.tensor_product_conv_radial(x, y, torch.ones(rows, 2), torch.ones(2, w.shape[1]), *edges),
    "symmetric_contraction": lambda: eqk.symmetric_contraction(*operands, contraction),
    "gaunt_product": lambda: OPS.gaunt_product(*signals, str(gaunt)),
    "rotate": lambda: eqk.rotate(torch.ones(rows, 9, 4), torch.ones(rows, 35), 2, 2, index),
    "so2_edge_message": lambda: OPS.so2_edge_message(*message, pairs, message_plan, True),
    "so2_edge_message_backward": lambda: OPS.so2_edge_message_backward(
        *message, message[0], None, None, None, pairs, message_plan, [True] * 7
    ),
    "s2_activation": lambda: eqk.s2_activation(torch.ones(rows, 9, 4), "silu"),
    "spherical_harmonics": lambda: OPS.spherical_harmonics(vectors, degrees),
    "wigner": lambda: OPS.wigner(torch.ones(rows, 4), 2, 2),
    "wigner_backward": lambda: OPS.wigner_backward(torch.ones(rows, 4), torch.ones(rows, 35), 2, 2),
}

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

grown = {}
for name, call in calls.items():
    for _ in range(300):
        call()
    before = resident()
    for _ in range(2500):
        call()
    grown[name] = (resident() - before) / 2500
print(json.dumps(grown))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read where Linux has it")
def test_calls_keep_nothing():
    """Not even what a call was given by the dispatcher: a plan is some hundred bytes."""
    result = subprocess.run([sys.executable, "-c", MANY_CALLS], capture_output=True, text=True, check=True)
    grown = json.loads(result.stdout)
    assert len(grown) == 16
    assert max(grown.values()) < 40, f"bytes a call: {grown}"
