import json
import subprocess
import sys

import pytest

import eqk

CODE = """
import json, resource, sys, torch, eqk
from eqk.testing import CASES
kept = eqk.keep_memory() if sys.argv[1] == "keep" else None
plan = CASES["mace-medium"].plan
x, y, w = (torch.ones(2000, n) for n in (plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel))
faults = []
for _ in range(30):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    eqk.tensor_product(x, y, w, plan)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps([kept, sum(faults[-10:]), 2000 * plan.irreps_out.dim * 4 // resource.getpagesize()]))
"""


def page_faults(setting):
    result = subprocess.run([sys.executable, "-c", CODE, setting], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults are counted on Linux")
def test_kept_memory_is_not_faulted_in_again():
    _, default, pages = page_faults("default")
    kept, with_hint, _ = page_faults("keep")
    if not kept:
        assert kept is False
        return
    assert default > 9 * pages
    assert with_hint < pages


@pytest.mark.parametrize("top_pad", [-1, 2**31, 1.5, None])
def test_bad_top_pad(top_pad):
    with pytest.raises(ValueError, match="top_pad: expected an int"):
        eqk.keep_memory(top_pad)
