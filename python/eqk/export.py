"""Programs of torch.export with gradients in them, which run from eqk's shared library without Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from eqk.so2_edge_scalars import OP, written_out

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def export(model: nn.Module, args: Sequence[Tensor], dynamic_shapes: Sequence[dict | None]) -> ExportedProgram:
    """``torch.export.export`` of a model that differentiates within, to be run from the shared library alone.

    torch.export traces what happens above autograd, where ``torch.autograd.grad`` cannot be followed (torch 2.13).
    Here the model is traced beneath it first, so that forces are ops like others. Ops that Python alone implements are
    written out.

    Args:
        model: whose ``forward`` takes tensors and returns tensors. What it differentiates with respect to it makes
            itself: ``positions = positions.detach().requires_grad_()``. Its parameters lose their names.
        args: example tensors on the CPU, each another one; of each size that varies at least 2.
        dynamic_shapes: for each of ``args`` the sizes that vary, such as ``{0: torch.export.Dim("edges")}``; None or
            ``{}`` for none.

    Returns:
        The program, for ``torch._inductor.aoti_compile_and_package`` or ``torch.export.save``.

    Raises:
        TypeError: if one of ``args`` is no tensor.
        ValueError: if ``dynamic_shapes`` are not as many as ``args``, or naming a size that is to vary and is 0 or 1.
        RuntimeError: if one is not on the CPU; naming a size that the model fixes though it is to vary, or an op that
            has no kernel in the shared library: second derivatives of :func:`eqk.so2_edge_message`.
    """
    from torch.fx.experimental import _config
    from torch.fx.experimental.proxy_tensor import make_fx

    for n, arg in enumerate(args):
        if not isinstance(arg, Tensor):
            raise TypeError(f"eqk.export: args[{n}]: expected a tensor, got {type(arg).__name__}")
        if not arg.is_cpu:
            raise RuntimeError(
                f"eqk.export: args[{n}]: expected a tensor on the CPU, got {arg.device}, where some ops run from Python"
            )
    if len(dynamic_shapes) != len(args):
        raise ValueError(
            f"eqk.export: dynamic_shapes: expected {len(args)}, as many as args, got {len(dynamic_shapes)}"
        )
    varying = [(n, dim) for n, shape in enumerate(dynamic_shapes) for dim in shape or ()]
    for n, dim in varying:
        if args[n].shape[dim] < 2:
            raise ValueError(
                f"eqk.export: args[{n}]: expected at least 2 in dimension {dim}, which is to vary, "
                f"got {args[n].shape[dim]}"
            )
    # Sizes that are equal in the example are not the same for that.
    with _config.patch(use_duck_shape=False):
        traced = make_fx(model, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*args)
    inputs = [node.meta["val"] for node in traced.graph.nodes if node.op == "placeholder"]
    for n, dim in varying:
        size = inputs[n].shape[dim]
        if not isinstance(size, torch.SymInt) or size.node.maybe_as_int() is not None:
            raise RuntimeError(
                f"eqk.export: args[{n}]: dimension {dim} is to vary, and the model fixes it at {size}; "
                "TORCH_LOGS=dynamic prints where"
            )
    program = torch.export.export(traced, tuple(args), dynamic_shapes=tuple(dynamic_shapes))
    if any(node.target is OP for node in program.graph.nodes):  # which traces all once more
        program = program.run_decompositions({OP: written_out})
    _check_kernels(program)
    return program


def _check_kernels(program: ExportedProgram) -> None:
    """A kernel for the CPU alone is one of the shared library; what Python registers is for any device."""
    for node in program.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or not node.target.namespace.startswith("eqk"):
            continue
        name = node.target.name()
        if name.startswith("eqk_") or not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"):
            raise RuntimeError(
                f"eqk.export: {name} has no kernel in eqk's shared library and runs in Python alone; "
                "torch.export.export takes it, for processes that import eqk"
            )
