"""What functions of edges and of the nodes that they lead to share: the checks of their operands."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from eqk import graph
from eqk._signals import check_dense


def check_rows(op: str, name: str, t: Tensor, shape: Sequence[int | str], device: torch.device | None = None) -> None:
    """Raises where t is no dense floating-point tensor of ``shape``, in which a name stands for any number."""
    check_dense(op, name, t, 0)
    if t.dim() != len(shape) or any(n != m for n, m in zip(shape, t.shape, strict=True) if not isinstance(n, str)):
        expected = ", ".join(map(str, shape))
        raise RuntimeError(f"eqk.{op}: {name}: expected shape [{expected}], got {list(t.shape)}")
    if not t.is_floating_point():
        raise RuntimeError(f"eqk.{op}: {name}: expected a floating-point dtype, got {t.dtype}")
    if device is not None and t.device != device:
        raise RuntimeError(f"eqk.{op}: {name}: expected device {device}, got {t.device}")


def check_index(op: str, name: str, index: Tensor, edges: int, nodes: int, device: torch.device) -> None:
    """Raises where ``index`` is no node for each edge; its values are looked at where those of a Graph are."""
    if not isinstance(nodes, torch.SymInt) and operator.index(nodes) < 0:
        raise ValueError(f"eqk.{op}: expected at least 0 nodes, got {nodes}")
    graph._check(f"eqk.{op}: {name}", index, None, nodes)
    if index.shape[0] != edges:
        raise ValueError(f"eqk.{op}: {name}: expected shape [{edges}], got {list(index.shape)}")
    if index.device != device:
        raise ValueError(f"eqk.{op}: {name}: expected device {device}, got {index.device}")
