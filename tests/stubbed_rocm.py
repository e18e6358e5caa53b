"""Every op where torch is built for ROCm: the backend that it takes, and its numbers to second order on the stub's GPUs.

Run by test_triton.py in a process of its own. By hand:
``TRITON_INTERPRET=1 python -m pytest -p stub_rocm tests/stubbed_rocm.py``.
"""

import pytest
import stub_rocm  # noqa: F401
import torch

import eqk
from eqk import dispatch, testing
from eqk.cli.cases import all_cases

GPU = torch.device("cuda", 0)
BY_TRITON = {"tensor_product", "tensor_product_conv", "rotate", "s2_activation", "so2_edge_message"}
# Of each op a case of a few rows, and of it a part.
SMALL = {case.op: case for case in all_cases() if case.small}


def test_backends():
    assert set(SMALL) == set(dispatch.OPS)
    for op in dispatch.OPS:
        assert dispatch.choose(op, GPU) == ("triton" if op in BY_TRITON else "torch")
    assert "cuda: libeqk_cuda is not loaded: torch is not built for CUDA but for ROCm" in dispatch.explain(
        "tensor_product_conv", torch.empty(0, device=GPU)
    )


@pytest.mark.parametrize("op", dispatch.OPS)
def test_numbers(op, generator):
    case = SMALL[op]
    label, make, _ = case.problems()[0]
    problem = make(3, generator)
    comparison = testing.Comparison(problem.truth, problem.operands, case.orders, generator)
    run = lambda *operands: problem.run(*(t if t is None else t.to(GPU) for t in operands)).cpu()  # noqa: E731
    excess = comparison.excess(comparison.results(run, torch.float32), torch.float32)
    assert max(max(of_order, default=0.0) for of_order in excess) <= 1, (label, excess)


def test_without_triton(monkeypatch):
    """Ops that are made of tensor products say so; others are torch operations."""
    monkeypatch.setattr(dispatch, "_triton_reason", lambda: "Triton cannot be imported (planted)")
    for op in ("tensor_product", "tensor_product_conv", "tensor_product_conv_radial"):
        with pytest.raises(
            RuntimeError, match=rf"eqk::{op}: no backend can run; .*Triton cannot be imported \(planted\)"
        ):
            dispatch.choose(op, GPU)
    x, w = torch.ones(2, 1, device=GPU), torch.ones(2, 1, device=GPU)
    text = "1x0e * 1x0e -> 1x0e [mul_ir,mul_ir,mul_ir] per_sample {0 0 0 uvu w 1.0}"
    with pytest.raises(RuntimeError, match=r"eqk::tensor_product: x: no kernel runs on cuda:0; triton: Triton cannot"):
        torch.ops.eqk.tensor_product(x, x, w, text)
    q = torch.ones(2, 4, device=GPU).requires_grad_()
    d = eqk.wigner(q, 1)
    with pytest.raises(
        RuntimeError, match=r"eqk::tensor_product_backward: x: no kernel runs on cuda:0; triton: Triton"
    ):
        torch.autograd.grad(d.sum(), q)
    torch.testing.assert_close(d.detach().cpu(), eqk.wigner(q.detach().cpu(), 1))
