"""A graph with what its convolutions share: its edges, checked once, and their two orders."""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch
from torch import Tensor

from eqk.o3 import TensorProduct
from eqk.plan import Plan
from eqk.tensor_product_conv import tensor_product_conv
from eqk.tensor_product_conv_radial import tensor_product_conv_radial


class Graph(NamedTuple):
    """Edges between nodes, and the orders in which convolutions and their gradients sum over them.

    Make one with :meth:`from_edges` or :meth:`from_edge_index`, which check, once for each list of neighbours; every
    layer and every derivative then takes it. It is a tuple, so that ``torch.compile``, ``torch.export``, ``torch.func``
    and data loaders handle it as they do any tuple of tensors. It holds ``src`` and ``dst`` themselves, not copies:
    after writing to them make a new one (the CPU kernel refuses an order of destinations that does not fit).

    Attributes:
        src, dst: [edges], int32 or int64: the node that an edge comes from and the one that it leads to.
        num_src, num_dst: number of nodes that edges come from, and lead to.
        by_dst, by_src: [edges], the edges in the stable order of ``dst`` and of ``src``, in the dtype of those.
    """

    src: Tensor
    dst: Tensor
    num_src: int
    num_dst: int
    by_dst: Tensor
    by_src: Tensor

    @classmethod
    def from_edges(cls, src: Tensor, dst: Tensor, num_dst: int, num_src: int | None = None) -> Graph:
        """The graph with edges from ``src[e]`` to ``dst[e]``, in any order.

        The values of indices are looked at on the CPU alone, and not where torch traces: a GPU would have to be waited
        for. There, the op that takes the graph refuses what is out of range.

        Args:
            src, dst: [edges], int32 or int64, on one device.
            num_dst: number of nodes that edges lead to.
            num_src: number of nodes that edges come from. None: the same nodes as those they lead to.

        Raises:
            TypeError: naming the argument that is no tensor or no int.
            ValueError: naming the one whose shape, dtype, device or values do not fit.
        """
        num_src = num_dst if num_src is None else num_src
        counts = {"num_dst": num_dst, "num_src": num_src}
        for name, count in counts.items():
            if not isinstance(count, torch.SymInt):
                try:
                    counts[name] = operator.index(count)
                except TypeError:
                    raise TypeError(f"{name}: expected an int, got {count!r}") from None
            if count < 0:
                raise ValueError(f"{name}: expected at least 0, got {count}")
        _check("src", src, None, counts["num_src"])
        _check("dst", dst, src, counts["num_dst"])
        orders = [torch.argsort(index, stable=True).to(index.dtype) for index in (dst, src)]
        return cls(src, dst, counts["num_src"], counts["num_dst"], *orders)

    @classmethod
    def from_edge_index(cls, edge_index: Tensor, num_nodes: int, *, dst_row: int = 1) -> Graph:
        """The graph of a tensor [2, edges] on one set of nodes.

        Args:
            edge_index: [2, edges], int32 or int64.
            num_nodes: number of nodes.
            dst_row: the row of ``edge_index`` with the nodes that edges lead to: 1 as in PyTorch Geometric, MACE and
                e3nn's examples, 0 as in NequIP and SevenNet.

        Raises:
            TypeError, ValueError: as :meth:`from_edges`.
        """
        if not isinstance(edge_index, Tensor):
            raise TypeError(f"edge_index: expected a tensor, got {type(edge_index).__name__}")
        if edge_index.dim() != 2 or edge_index.shape[0] != 2:
            raise ValueError(f"edge_index: expected shape [2, edges], got {list(edge_index.shape)}")
        if dst_row not in (0, 1):
            raise ValueError(f"dst_row: expected 0 or 1, got {dst_row!r}")
        return cls.from_edges(edge_index[1 - dst_row], edge_index[dst_row], num_nodes)

    def conv(self, x: Tensor, y: Tensor, w: Tensor | None, plan: Plan | str | TensorProduct) -> Tensor:
        """:func:`eqk.tensor_product_conv` over this graph: out[dst[e]] += T(x[src[e]], y[e], w[e]).

        Args:
            x: [num_src, dim1].
            y: [edges, dim2], its rows in the order of ``src`` and ``dst`` as they were given.
            w: [edges, weight_numel] for per-sample weights, [weight_numel] for shared ones, None for none.
            plan: an :class:`eqk.Plan`, its string, or a module :class:`eqk.o3.TensorProduct`, whose internal weights
                are meant by None.

        Returns:
            [num_dst, dim_out]. The same bits as without the graph.

        Raises:
            RuntimeError, TypeError: as :func:`eqk.tensor_product_conv`.
        """
        self._check_rows(x)
        if isinstance(plan, TensorProduct):
            return plan.convolution(x, y, w, self.src, self.dst, self.num_dst, self.by_dst, self.by_src)
        return tensor_product_conv(x, y, w, self.src, self.dst, self.num_dst, plan, self.by_dst, self.by_src)

    def conv_radial(
        self, x: Tensor, y: Tensor, h: Tensor, a: Tensor, plan: Plan | str | TensorProduct, bias: Tensor | None = None
    ) -> Tensor:
        """:func:`eqk.tensor_product_conv_radial` over this graph: out[dst[e]] += T(x[src[e]], y[e], h[e] a + bias).

        Args:
            x: [num_src, dim1].
            y: [edges, dim2], its rows in the order of ``src`` and ``dst`` as they were given.
            h: [edges, hidden]: the radial network up to its last layer.
            a: [hidden, weight_numel]: the last layer's matrix.
            plan: an :class:`eqk.Plan` with per-sample weights, its string, or a module :class:`eqk.o3.TensorProduct`
                that has such a plan.
            bias: [weight_numel], or None.

        Returns:
            [num_dst, dim_out]. The same bits as without the graph.

        Raises:
            RuntimeError, TypeError: as :func:`eqk.tensor_product_conv_radial`.
        """
        self._check_rows(x)
        plan = plan.plan if isinstance(plan, TensorProduct) else plan
        orders = self.by_dst, self.by_src
        return tensor_product_conv_radial(x, y, h, a, self.src, self.dst, self.num_dst, plan, bias, *orders)

    def _check_rows(self, x: Tensor) -> None:
        if isinstance(x, Tensor) and x.dim() == 2 and x.shape[0] != self.num_src:
            raise RuntimeError(f"x: expected {self.num_src} rows, num_src of the graph, got {x.shape[0]}")

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Graph:
        """The graph with its tensors on ``device``; they are the same ones where they are there already."""
        return Graph(*(t.to(device, non_blocking=non_blocking) if isinstance(t, Tensor) else t for t in self))


def _check(name: str, index: Tensor, src: Tensor | None, nodes: int) -> None:
    if not isinstance(index, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(index).__name__}")
    if index.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name}: expected dtype int32 or int64, got {index.dtype}")
    if index.dim() != 1:
        raise ValueError(f"{name}: expected shape [edges], got {list(index.shape)}")
    if src is not None and index.shape[0] != src.shape[0]:
        raise ValueError(f"{name}: expected shape [{src.shape[0]}] as src has, got {list(index.shape)}")
    if src is not None and index.device != src.device:
        raise ValueError(f"{name}: expected device {src.device} as src has, got {index.device}")
    if torch.compiler.is_compiling() or not index.is_cpu or _is_transformed(index) or not index.shape[0]:
        return
    low, high = (int(value) for value in torch.aminmax(index))
    if low < 0 or high >= nodes:
        at = int(((index < 0) | (index >= nodes)).nonzero()[0])
        raise ValueError(f"{name}: expected indices from 0 to {nodes - 1}, got {int(index[at])} at position {at}")


def _is_transformed(t: Tensor) -> bool:
    """Whether the values are not to be had: within vmap, or of a fake tensor."""
    return type(t) is not Tensor or torch._C._functorch.is_functorch_wrapped_tensor(t)
