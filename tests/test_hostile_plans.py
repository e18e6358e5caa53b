"""Plans of unknown origin: what the fuzzer has found, and short texts that ask for much."""

import subprocess
import sys
import time

import plan_texts
import pytest
import torch

import eqk
from eqk.so2_edge_message import Plan as MessagePlan
from eqk.spherical_harmonics import _parse as parse_harmonics

OPS = torch.ops.eqk
LINE, ROWS = torch.empty(0), torch.empty(0, 1)
# Of each op that takes a plan: Python's parser and a call that no plan makes right.
READERS = {
    "tensor_product": (eqk.Plan.parse, lambda text: OPS.tensor_product(LINE, LINE, None, text)),
    "gaunt_product": (eqk.GauntPlan.parse, lambda text: OPS.gaunt_product(LINE, LINE, None, None, None, text)),
    "s2_activation": (eqk.S2ActivationPlan.parse, lambda text: OPS.s2_activation(LINE, text)),
    "symmetric_contraction": (
        eqk.SymmetricContractionPlan.parse,
        lambda text: OPS.symmetric_contraction(LINE, ROWS, None, text),
    ),
    "so2_edge_message": (MessagePlan.parse, lambda text: OPS.so2_edge_message(*[LINE] * 7, LINE.long(), text, False)),
    "spherical_harmonics": (parse_harmonics, lambda text: OPS.spherical_harmonics(LINE, text)),
}


def refused_by_op(op: str, text: str) -> bool:
    with pytest.raises((RuntimeError, ValueError)) as error:
        READERS[op][1](text)
    message = str(error.value)
    of_plan = "plan: expected" in message
    assert of_plan or "x: expected" in message, message
    return of_plan


def refused_by_python(op: str, text: str) -> bool:
    try:
        READERS[op][0](text)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("op", READERS)
def test_texts_of_the_fuzzer(op):
    """Each is taken or refused with a reason, by the op and by Python alike."""
    texts = [*plan_texts.of_fuzzer(), *plan_texts.of_registry()]
    refused = {text: refused_by_op(op, text) for text in texts}
    assert 0 < sum(refused.values()) < len(texts)
    differently = [text for text in texts if refused_by_python(op, text) != refused[text]]
    assert not differently, (len(differently), differently[:20])


MESSAGES = {
    "2, 1 ,008,4,8,gate,0,01, ": True,
    "2,1,8,4,8,gate,00,2,": True,
    "2,1,8,4,8, gate,0,0,": False,
    "2,1,8,4,8,gate ,0,0,": False,
    "2,1,8,4,8,gate,0,0,x": False,
    "2,1,8,4,8,gate,0,0": False,
    "\u0662,1,8,4,8,gate,0,0,": False,
}


@pytest.mark.parametrize("text", MESSAGES)
def test_spellings_of_messages(text):
    assert refused_by_op("so2_edge_message", text) is not MESSAGES[text]
    assert refused_by_python("so2_edge_message", text) is not MESSAGES[text]


LAYOUTS = "[mul_ir,mul_ir,mul_ir]"
TOO_MUCH = {
    "tensor_product": [
        f"1x0e * 1x0e -> 1x1000000000e {LAYOUTS} none {{}}",
        f"1x0e * 1x0e -> {10**18}x0e {LAYOUTS} none {{}}",
        f"{2**31}x20e+{2**31}x20e+{2**31}x20e+{2**31}x20e * 1x0e -> 1x0e {LAYOUTS} none {{0 0 0 uvw - 1.0}}",
        f"{2**30}x0e * {2**30}x0e -> {2**30}x0e {LAYOUTS} shared {{0 0 0 uvw w 1.0}}",
        f"{'9' * 5000}x0e * 1x0e -> 1x0e {LAYOUTS} none {{}}",
        f"1x0e * 1x0e -> 1x0e {LAYOUTS} none {{{'0 0 0 uuu - 1.0;' * (1 << 17)}}}",
    ],
    "gaunt_product": [
        f"1x1000000000 * 1x0 -> 1x0 even 1.0 odd 0.0 rank 1 {LAYOUTS} {{1.0; 1.0; 1.0}}",
        f"{10**18}x0 * 1x0 -> {10**18}x0 even 1.0 odd 0.0 rank 1 {LAYOUTS} {{1.0; 1.0; 1.0}}",
        f"1x0 * 1x0 -> 1x0 even 1.0 odd 0.0 rank {10**9} {LAYOUTS} {{1.0; 1.0; 1.0}}",
        f"{'9' * 5000}x0 * 1x0 -> 1x0 even 1.0 odd 0.0 rank 1 {LAYOUTS} {{1.0; 1.0; 1.0}}",
    ],
    "s2_activation": [
        "1x0 -> 0 0 l_primary silu 1.0 1000000000x7 gausslegendre [ir_mul,ir_mul] {1.0; 1.0}",
        f"1x0 -> 0 0 l_primary silu 1.0 {'9' * 5000}x7 gausslegendre [ir_mul,ir_mul] {{1.0; 1.0}}",
        "1x1000000000 -> 0 0 l_primary silu 1.0 4x7 gausslegendre [ir_mul,ir_mul] {1.0; 1.0}",
    ],
    "symmetric_contraction": [
        "1x0e -> 1x0e [mul_ir,mul_ir] {0: 1.0 0" + "*0>0" * 100_000 + "}",
        f"{'9' * 5000}x0e -> 1x0e [mul_ir,mul_ir] {{}}",
        "+".join(["1x20e"] * 10_000) + " -> 1x0e [mul_ir,mul_ir] {}",
    ],
    "so2_edge_message": [f"20,20,{10**9},1,1,gate,0,0,", "20,20,999999999,999999999,999999999,gate,0,0,", "99,0,1,1,1,gate,0,0,"],
    "spherical_harmonics": ["1000000000 norm", "0," * 40_000 + "0 norm"],
}  # fmt: skip


@pytest.mark.parametrize(("op", "text"), [(op, text) for op, texts in TOO_MUCH.items() for text in texts])
def test_texts_that_ask_for_much(op, text):
    """Degrees, multiplicities and numbers of paths beyond their bounds: refused by name before anything is made."""
    begin = time.perf_counter()
    assert refused_by_op(op, text)
    assert refused_by_python(op, text)
    assert time.perf_counter() - begin < 10


POLYNOMIALS = {
    "sums": "1x20e+1x0e -> 1x20e [mul_ir,mul_ir] {"
    + "; ".join(f"0: 1.0 0*0>20*0>20, {n + 2}.0 0*1>20*1>20" for n in range(2000)) + "}",
    "chains": "1x20e+1x0e -> 1x20e [mul_ir,mul_ir] {0: " + ", ".join(["1.0 0*0>20*0>20"] * 5000) + "}",
    "groups": "1x0e+1x0e -> 1x0e [mul_ir,mul_ir] {"
    + "; ".join(f"0: 1.0 0, {n + 2}.0 1" for n in range(4000)) + "}",
}  # fmt: skip
CONTRACT = """
import resource, sys, torch, eqk
text = sys.stdin.read()
plan = eqk.SymmetricContractionPlan.parse(text)
x = torch.ones(1, 1, plan.irreps_in.dim)
w = torch.ones(1, 1, 1).expand(1, len(plan.paths), 1)
call = lambda text, w: torch.ops.eqk.symmetric_contraction(x, w, torch.zeros(1, dtype=torch.int64), text)
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), -1))
try:
    call(text, w)
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_polynomials_of_few_characters(name):
    """That would take minutes, or gigabytes, to make."""
    result = subprocess.run(
        [sys.executable, "-c", CONTRACT], input=POLYNOMIALS[name], capture_output=True, text=True, timeout=120
    )
    assert "plan: expected polynomials of at most 2^22 products and sums" in result.stdout, result.stderr[-2000:]
