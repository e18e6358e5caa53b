"""What ``test_wheels.py`` runs where a wheel is installed: no checkout is in sight, nor a compiler."""

import argparse
import ctypes
import importlib
import importlib.util
import sys
from pathlib import Path

import torch


def use() -> None:
    """A product, a convolution and their gradients against the reference, and the words of an error from C++."""
    import eqk
    from eqk import testing

    assert Path(eqk.__file__).is_relative_to(sys.prefix), eqk.__file__
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, requires_grad=True)

    plan = testing.CASES["mace-medium"].plan
    x, y, w = normal(9, plan.irreps_in1.dim), normal(9, plan.irreps_in2.dim), normal(9, plan.weight_numel)
    nodes, edges = normal(5, plan.irreps_in1.dim), torch.randint(5, (2, 9), generator=generator)
    for name, operands, arguments in (
        ("tensor_product", (x, y, w), (plan,)),
        ("tensor_product_conv", (nodes, y, w), (*edges, 5, plan)),
    ):
        exact = [o.detach().double().requires_grad_() for o in operands]
        out = getattr(eqk, name)(*operands, *arguments)
        truth = getattr(importlib.import_module(f"eqk.reference.{name}"), name)(*exact, *arguments)
        cotangent = torch.randn(out.shape, generator=generator)
        testing.assert_close(out.detach(), truth.detach(), 0, what=name)
        gradients = torch.autograd.grad(out, operands, cotangent)
        for got, right in zip(gradients, torch.autograd.grad(truth, exact, cotangent.double()), strict=True):
            testing.assert_close(got, right, 1, what=f"gradient of {name}")
    said = None
    try:
        eqk.tensor_product(x, y[:, :3], w, plan)
    except RuntimeError as error:
        said = str(error)
    assert said == "eqk::tensor_product: y: expected shape [9, 16], got [9, 3]", said


def cuda(major: int, runtime: str) -> None:
    """Loads the CUDA library beside this torch, with NVIDIA's runtime library loaded before it, after it or not at all.

    The library has a runtime of its own, so what the other one is must not matter, in either order.
    """
    import eqk

    steps = {"before": ("theirs", "ours"), "after": ("ours", "theirs"), "none": ("ours",)}[runtime]
    for step in steps:
        if step == "theirs":
            (path,) = (path for part in runtime_parts(major) for path in [Path(nvidia(), part)] if path.exists())
            version = ctypes.c_int()
            assert ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL).cudaRuntimeGetVersion(ctypes.byref(version)) == 0
            assert version.value // 1000 == major, (path, version.value)
        else:
            torch.ops.load_library(str(eqk._library.cuda_libraries()[f"eqk-cuda{major}"]))
    for op in ("tensor_product", "tensor_product_backward", "tensor_product_conv", "gaunt_product", "wigner"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"eqk::{op}", "CUDA"), op
    use()


def runtime_parts(major: int) -> tuple[str, ...]:
    """Where a wheel of nvidia-cuda-runtime may have put its library."""
    return f"cuda_runtime/lib/libcudart.so.{major}", f"cu{major}/lib/libcudart.so.{major}"


def nvidia() -> str:
    """The folder of NVIDIA's wheels."""
    return next(iter(importlib.util.find_spec("nvidia").submodule_search_locations))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuda", type=int, choices=(12, 13))
    parser.add_argument("--runtime", choices=("before", "after", "none"), default="none")
    args = parser.parse_args()
    if args.cuda is None:
        use()
    else:
        cuda(args.cuda, args.runtime)
