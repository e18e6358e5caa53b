"""Which backend runs an op and, when one cannot, the reason in words.

Backends: ``"cpu"`` and ``"cuda"`` (the compiled libraries), ``"triton"``, ``"reference"`` (dense einsum) and
``"auto"``, the first of the compiled one and Triton that can run. :func:`use_backend` chooses for a block of code, the
environment variable ``EQK_BACKEND`` for a process; both act on the functions and the modules of eqk. A backend that was
asked for by name and cannot run is an error. An op that does not have it is left to ``"auto"``, so that a model on
Triton has its spherical harmonics, whose op runs torch operations on every device but the CPU (``torch`` in
:func:`explain`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from eqk import _library

BACKENDS = ("auto", "cpu", "cuda", "triton", "reference")


def _constant_when_traced(f: Callable) -> Callable:
    """torch.compiler.assume_constant_result, which would import all of torch._dynamo (and Triton) with eqk."""
    f._dynamo_marked_constant = True
    return f


def _cached_constant(f: Callable) -> Callable:
    """The same with a cache, which torch.compile would trace through."""

    @functools.lru_cache(maxsize=4096)
    def cached(*args):
        with _disable_current_modes():  # what make_fx and torch.export would record has no values
            return f(*args)

    @functools.wraps(f)
    def constant(*args):
        return cached(*args)

    return _constant_when_traced(constant)


def _checked(backend: str, source: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    return backend


_chosen = _checked(os.environ.get("EQK_BACKEND", "auto"), "EQK_BACKEND")


def _choose(backend: str) -> None:
    global _chosen
    _chosen = backend


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Runs the functions of eqk in the block on ``backend``, one of :data:`BACKENDS`. All threads see it.

    It acts on :func:`eqk.tensor_product` and its like, and on the modules of :mod:`eqk.o3`, when they are called (or
    traced). ``torch.ops.eqk.*``, and with them what torch.jit.script compiles, always are the kernels of the tensors'
    device.

    Raises:
        ValueError: if there is no such backend.
    """
    before = _chosen
    _choose(_checked(backend, "backend"))
    try:
        yield
    finally:
        _choose(before)


@functools.cache
def _triton_ops() -> str | None:
    """Registers ``torch.ops.eqk_triton.*``; the reason why it cannot, or None."""
    try:
        for op in ("tensor_product", "tensor_product_conv", "s2_activation", "rotate", "so2_edge_message"):
            importlib.import_module(f"eqk.triton_kernels.{op}")
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    return None


@_constant_when_traced
def _triton_reason() -> str | None:
    return _triton_ops()


@_constant_when_traced
def _triton_interpreted() -> bool:
    return importlib.import_module("eqk.triton_kernels.common").INTERPRETED


@_constant_when_traced
def _has_cuda_kernel(op: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"eqk::{op}", "CUDA")


# The oldest architecture that libeqk_cuda has code for.
_CAPABILITY = (7, 5)


@functools.cache
def _device_reason(index: int | None) -> str | None:
    try:
        capability = torch.cuda.get_device_capability(index)
    except (RuntimeError, AssertionError) as error:
        return f"CUDA does not work here ({error})"
    if capability < _CAPABILITY:
        have, need = (".".join(map(str, c)) for c in (capability, _CAPABILITY))
        return f"the GPU has compute capability {have}, libeqk_cuda needs {need} or newer"
    return None


@_constant_when_traced
def _cuda_reason(op: str, index: int | None) -> str | None:
    if not _has_cuda_kernel(op):
        return _library.cuda_reason or f"eqk has no CUDA kernel of {op}"
    return _device_reason(torch.cuda.current_device() if index is None and torch.cuda.is_initialized() else index)


def can_run_cpu(op: str, device: torch.device) -> str | None:
    """None if the compiled CPU kernel of ``op`` runs on tensors of ``device``, else the reason why not."""
    return None if device.type == "cpu" else f"the tensors are on {device}, not on the CPU"


def can_run_cuda(op: str, device: torch.device) -> str | None:
    """None if the compiled CUDA kernel of ``op`` runs on tensors of ``device``, else the reason why not."""
    if device.type != "cuda":
        return f"the tensors are on {device}, not on a GPU"
    return _cuda_reason(op, device.index)


def can_run_triton(op: str, device: torch.device) -> str | None:
    """None if the Triton kernel of ``op`` runs on tensors of ``device``, else the reason why not."""
    if device.type not in ("cuda", "cpu"):
        return f"the tensors are on {device}, not on a GPU"
    reason = _triton_reason()
    if reason is not None:
        return reason
    if device.type == "cpu" and not _triton_interpreted():
        return "the tensors are on cpu, where Triton runs only with TRITON_INTERPRET=1 set before it is imported"
    return None


def can_run_reference(op: str, device: torch.device) -> str | None:
    """None wherever torch runs eagerly, else the reason: torch.compile cannot trace the dense einsum's tables."""
    return "torch.compile cannot trace it" if torch.compiler.is_compiling() else None


def can_run_torch(op: str, device: torch.device) -> str | None:
    """None if ``op`` runs torch operations on tensors of ``device``, else the reason why not."""
    if device.type == "cpu" or (device.type == "cuda" and _has_cuda_kernel(op)):
        return "the op has a kernel there"
    if op == "tensor_product_conv_radial":
        reason = can_run_triton("tensor_product_conv", device)
        return reason and f"it is products of matrices around tensor_product_conv, which cannot run: {reason}"
    return None


_PREDICATES: dict[str, Callable[[str, torch.device], str | None]] = {
    "cuda": can_run_cuda,
    "cpu": can_run_cpu,
    "triton": can_run_triton,
    "torch": can_run_torch,
    "reference": can_run_reference,
}

# The backends of each op, in the order in which auto tries them: all but the reference.
_BACKENDS_OF = {
    "tensor_product": ("cpu", "cuda", "triton", "reference"),
    "tensor_product_conv": ("cpu", "cuda", "triton", "reference"),
    "tensor_product_conv_radial": ("cpu", "cuda", "torch", "reference"),
    "spherical_harmonics": ("cpu", "torch", "reference"),
    "symmetric_contraction": ("cpu", "torch", "reference"),
    "gaunt_product": ("cpu", "cuda", "torch", "reference"),
    "rotate": ("cpu", "triton", "torch", "reference"),
    "s2_activation": ("cpu", "triton", "torch", "reference"),
    "so2_edge_message": ("cpu", "triton", "torch", "reference"),
    "so2_edge_scalars": ("cpu", "torch", "reference"),
    "wigner": ("cpu", "cuda", "torch", "reference"),
}


OPS = tuple(_BACKENDS_OF)


def reasons(op: str, device: torch.device) -> dict[str, str | None]:
    """Of each backend of ``op``, in the order in which auto tries them, why it cannot run on ``device``, or None.

    Raises:
        ValueError: if eqk has no such op.
    """
    return {name: _PREDICATES[name](op, device) for name in _backends_of(op)}


def _backends_of(op: str) -> tuple[str, ...]:
    if op not in _BACKENDS_OF:
        raise ValueError(f"op: expected one of {', '.join(_BACKENDS_OF)}, got {op!r}")
    return _BACKENDS_OF[op]


def choose(op: str, device: torch.device) -> str:
    """The backend of ``op`` for tensors of ``device``; ``"meta"``, the fake kernel, for those without data.

    Raises:
        RuntimeError: with the reason if the backend that was asked for, or under ``auto`` each of them, cannot run.
        ValueError: if eqk has no such op.
    """
    backend, backends = _chosen, _backends_of(op)
    if backend in backends:
        reason = _PREDICATES[backend](op, device)
        if reason is not None:
            raise RuntimeError(f"eqk::{op}: backend {backend} cannot run: {reason}")
        return backend
    if device.type == "meta":
        return "meta"
    why_not = []
    for name in backends:
        if name == "reference":
            continue
        reason = _PREDICATES[name](op, device)
        if reason is None:
            return name
        why_not.append(f"{name}: {reason}")
    raise RuntimeError(f"eqk::{op}: no backend can run; " + "; ".join(why_not))


def explain(op: str, *tensors: Tensor | None) -> str:
    """One line for each backend: runs, or why not, for ``op`` on these tensors; and which one is chosen.

    Raises:
        ValueError: if eqk has no such op, or there is no tensor, whose device decides.
    """
    backends = _backends_of(op)
    devices = [t.device for t in tensors if isinstance(t, Tensor)]
    if not devices:
        raise ValueError(f"tensors: expected those that {op} is to be called with, got none")
    device = devices[0]
    lines = [f"eqk::{op} on {device}, backend {_chosen!r}:"]
    if _chosen != "auto" and _chosen not in backends:
        lines.append(f"  {_chosen}: {op} has no such backend, so that auto chooses")
    lines += [f"  {name}: {'can run' if reason is None else reason}" for name, reason in reasons(op, device).items()]
    try:
        lines.append(f"  -> {choose(op, device)}")
    except RuntimeError as error:
        lines.append(f"  -> none: {error}")
    return "\n".join(lines)
