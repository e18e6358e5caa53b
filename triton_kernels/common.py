"""What the kernels of several ops share: constants of kernels, and launching."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from dataclasses import fields

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret
KEYS = ("CUDA", "CPU") if INTERPRETED else ("CUDA",)  # the dispatch keys that kernels are registered to

_COMPUTE = {torch.float64: tl.float64}


class Constant:
    """A constant of kernels that is known by a digest of its content.

    Triton knows constants by their string, in the names of functions and in its cache on disk, which outlives this
    process and this file. Kernels cannot look constants up in a global variable, because Triton refuses to launch a
    kernel after a global that it refers to has changed.
    """

    @functools.cached_property
    def digest(self) -> str:
        content = [getattr(self, f.name) for f in fields(self)]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.digest})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def compute_type(dtype: torch.dtype) -> tl.dtype:
    """The type that kernels compute in."""
    return _COMPUTE.get(dtype, tl.float32)


def power_of_2(n: int, limit: int) -> int:
    return min(limit, 1 << max(0, n - 1).bit_length())


def max_grid(warps: int) -> int:
    """HIP counts threads of a dimension in 32 bits, 64 of them a warp; CUDA allows 2^31 - 1 programs."""
    return (2**32 - 1) // (warps * 64)


def on(device: torch.device) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, whatever that of its arguments."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def with_adjacent_columns(t: Tensor | None) -> Tensor | None:
    return t if t is None or t.shape[-1] <= 1 or t.stride(-1) == 1 else t.contiguous()


def check_range(op: str, name: str, index: Tensor, nodes: int) -> None:
    """An assertion on the device, which nothing waits for."""
    message = f"eqk::{op}: {name}: expected indices from 0 to {nodes - 1}"
    torch._assert_async(((index >= 0) & (index < nodes)).all(), message)


def first_of_each(by_node: Tensor, nodes: int) -> Tensor:
    """Of nodes in order the place of each one's first; behind them, how many places there are."""
    return torch.searchsorted(by_node, torch.arange(nodes + 1, dtype=by_node.dtype, device=by_node.device))


def by_node(index: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Ends of edges in the stable order of their nodes, index [ends], and the first of each node."""
    node, order = index.sort(stable=True)
    return order, first_of_each(node, nodes)


# Of a tuple in a Constant. Functions, because kernels themselves take a tuple of constants apart into tensors.


@triton.constexpr_function
def pick(values, n):
    return values[n]


@triton.constexpr_function
def count_of(values):
    return len(values)


@triton.jit
def lane_sum(a, axis: tl.constexpr, keep_dims: tl.constexpr):
    """The sum over an axis, the same bits in every lane that holds it.

    Lanes exchange halves of a sum. Were ``a`` a product, each would fuse its own into the addition and round the
    other's: they disagree, and which is stored is a race. The zero is what that product is fused with; where ``a`` is
    none, it costs an addition.
    """
    return tl.sum(a + 0.0, axis=axis, keep_dims=keep_dims)
