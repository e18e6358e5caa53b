"""e3nn's tensor product modules on ``torch.ops.eqk.tensor_product``."""

import dataclasses
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eqk._library import wigner_3j
from eqk._symbols import GENERATED, generated_buffers, reads_symbol, relative_signs
from eqk.irreps import Irrep, Irreps, IrrepsLike, irreps_argument
from eqk.o3._module import ArgumentError, E3nnModule, check_operand, output_mask, weight_slices
from eqk.plan import Plan
from eqk.tensor_product import broadcast_product
from eqk.tensor_product_conv import tensor_product_conv


class Instruction(NamedTuple):
    """One path, in e3nn's fields: ``path_weight`` is the normalised coefficient, ``path_shape`` its weights' shape."""

    i_in1: int
    i_in2: int
    i_out: int
    connection_mode: str
    has_weight: bool
    path_weight: float
    path_shape: tuple


def _flat_weights(
    weights: Sequence, shapes: Sequence[tuple], shared: bool, operands: Sequence[Tensor]
) -> Tensor | None:
    """The list of weights that e3nn accepts as one tensor: each entry [*path_shape] or flat, of any number of rows.

    The rows become one dimension, as in e3nn; where an operand has several, so may an entry.
    """
    if len(weights) != len(shapes):
        raise ArgumentError(
            f"weight: expected {len(shapes)} tensors, one for each weighted instruction, got {len(weights)}"
        )
    several = any(operand.dim() > 2 for operand in operands)
    flat = []
    for n, (w, shape) in enumerate(zip(weights, shapes, strict=True)):
        numel, rank = math.prod(shape), len(shape)
        if not isinstance(w, Tensor):
            raise TypeError(f"weight[{n}]: expected a tensor, got {w!r}")
        if w.numel() != numel if shared else w.numel() % max(numel, 1):
            expected = f"{list(shape)} or [{numel}]" if shared else f"[..., {str(list(shape))[1:]} or [..., {numel}]"
            raise RuntimeError(f"weight[{n}]: expected shape {expected}, got {list(w.shape)}")
        if numel == 0:
            continue
        if shared:
            w = w.reshape(numel)
        elif several and w.dim() > rank and tuple(w.shape[-rank:]) == tuple(shape):
            w = w.flatten(-rank)
        elif not several or w.dim() < 2 or w.shape[-1] != numel:
            w = w.reshape(-1, numel)
        flat.append(w)
    return torch.cat(flat, -1) if flat else None


def _checked_weights(weight: Tensor | None, own: Tensor, numel: int, internal: bool, shared: bool) -> Tensor:
    if weight is None:
        if numel > 0 and not internal:
            raise RuntimeError("weight: expected a tensor, since internal_weights is False, got None")
        return own
    if not torch.jit.is_scripting() and not isinstance(weight, Tensor):
        raise TypeError(f"weight: expected a tensor, or a list of them, got {weight}")
    if shared:
        if weight.dim() != 1 or weight.shape[0] != numel:
            raise RuntimeError(f"weight: expected shape [{numel}], got {list(weight.shape)}")
    elif weight.dim() < 2 or weight.shape[-1] != numel:
        raise RuntimeError(f"weight: expected shape [..., {numel}], got {list(weight.shape)}")
    return weight


def _op_weights(
    weight: Tensor | None,
    own: Tensor,
    numel: int,
    internal: bool,
    shared: bool,
    weighted: bool,
    x: Tensor,
    rows: int,
) -> Tensor | None:
    """The weights as the op takes them."""
    weight = _checked_weights(weight, own, numel, internal, shared)
    if not weighted:
        return None
    # A module without weights of its own keeps an empty buffer, of no leading dimension and of any dtype.
    return weight if numel > 0 else x.new_empty([0] if shared else [rows, 0])


def _module_product(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    own: Tensor,
    dims: tuple[int, int],
    numel: int,
    internal: bool,
    shared: bool,
    weighted: bool,
    plan: str,
) -> Tensor:
    """What a module computes, as a function that torch.fx keeps whole and TorchScript compiles."""
    check_operand("x", x, dims[0])
    check_operand("y", y, dims[1])
    w = _op_weights(weight, own, numel, internal, shared, weighted, x, 1)
    return broadcast_product(x, y, w, shared, plan)


def _module_convolution(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    own: Tensor,
    edges: tuple[Tensor, Tensor],
    orders: tuple[Tensor | None, Tensor | None],
    num_dst: int,
    numel: int,
    internal: bool,
    shared: bool,
    weighted: bool,
    plan: str,
) -> Tensor:
    """As :func:`_module_product`, summed over edges."""
    w = _op_weights(weight, own, numel, internal, shared, weighted, x, y.shape[0])
    if torch.jit.is_scripting():
        if not x.is_cpu:  # elsewhere the op needs Python for what has no kernel, and here none need be
            messages = torch.ops.eqk.tensor_product(x[edges[0].long()], y, w, plan)
            out = messages.new_zeros([num_dst, messages.shape[1]])
            return torch.index_put(out, [edges[1].long()], messages, True)
        return torch.ops.eqk.tensor_product_conv(x, y, w, edges[0], edges[1], num_dst, plan, orders[0], orders[1])
    return tensor_product_conv(x, y, w, edges[0], edges[1], num_dst, plan, orders[0], orders[1])


torch.fx.wrap("_flat_weights")
torch.fx.wrap("_module_product")
torch.fx.wrap("_module_convolution")


class TensorProduct(E3nnModule):
    """``e3nn.o3.TensorProduct``: same signature, parameters, weight order, state_dict keys and values.

    Args:
        irreps_in1, irreps_in2, irreps_out: the columns of x, y and out.
        instructions: ``(i_in1, i_in2, i_out, mode, has_weight[, path_weight])``, as in :class:`eqk.Plan`.
        in1_var, in2_var, out_var: variance of each irrep; None for ones.
        irrep_normalization: ``"component"`` (None), ``"norm"`` or ``"none"``.
        path_normalization: ``"element"`` (None), ``"path"`` or ``"none"``. The coefficients are in
            :meth:`eqk.Plan.normalized`.
        internal_weights: whether the weights are a Parameter of the module. None: if they are shared and there are any.
        shared_weights: one weight vector for all rows (True, None) or one for each row (False).
        compile_left_right, compile_right: whether ``forward`` and :meth:`right` may be called.
        normalization: deprecated name of ``irrep_normalization``.
        _specialized_code: e3nn's; says only which paths the symbols of a loaded checkpoint are for.
        _optimize_einsums: e3nn's, ignored.
        layout_in1, layout_in2, layout_out: ``"mul_ir"`` (e3nn's) or ``"ir_mul"``.

    Attributes:
        weight: Parameter [weight_numel], or an empty buffer where the weights come from outside.
        output_mask: buffer [dim_out], 1 where some path writes.
        plan: the :class:`eqk.Plan`. Loading a checkpoint with e3nn's Wigner 3j symbols gives its coefficients the
            signs of those (e3nn 0.4 has others), as e3nn does.

    Raises:
        ValueError (which is an AssertionError too, as in e3nn): naming the argument or instruction that does not fit.
    """

    instructions: list[Any]
    internal_weights: bool
    shared_weights: bool
    weight_numel: int
    _plan_text: str
    _weighted: bool
    _compile_left_right: bool
    _compile_right: bool
    _in1_dim: int
    _in2_dim: int
    _out_dim: int

    def __init__(
        self,
        irreps_in1: IrrepsLike,
        irreps_in2: IrrepsLike,
        irreps_out: IrrepsLike,
        instructions: Iterable[tuple],
        in1_var: Sequence[float] | Tensor | None = None,
        in2_var: Sequence[float] | Tensor | None = None,
        out_var: Sequence[float] | Tensor | None = None,
        irrep_normalization: str | None = None,
        path_normalization: str | None = None,
        internal_weights: bool | None = None,
        shared_weights: bool | None = None,
        compile_left_right: bool = True,
        compile_right: bool = False,
        normalization: str | None = None,
        _specialized_code: bool | None = None,
        _optimize_einsums: bool | None = None,
        layout_in1: str = "mul_ir",
        layout_in2: str = "mul_ir",
        layout_out: str = "mul_ir",
    ) -> None:
        super().__init__()
        if normalization is not None:
            warnings.warn("normalization is deprecated: use irrep_normalization", DeprecationWarning, stacklevel=2)
            irrep_normalization = normalization
        if internal_weights and shared_weights is False:
            raise ArgumentError("internal_weights: expected False or None with shared_weights=False, got True")
        shared = shared_weights is not False
        try:
            plan = Plan.normalized(
                irreps_in1,
                irreps_in2,
                irreps_out,
                instructions,
                in1_var,
                in2_var,
                out_var,
                irrep_normalization or "component",
                path_normalization or "element",
                layout_in1=layout_in1,
                layout_in2=layout_in2,
                layout_out=layout_out,
                weights="shared" if shared else "per_sample",
            )
        except ValueError as error:
            raise ArgumentError(str(error)) from error
        if internal_weights is None:
            internal_weights = shared and any(ins.has_weight for ins in plan.instructions)
        self._set_plan(plan, shared, bool(internal_weights), compile_left_right, compile_right)
        self._specialized_code = _specialized_code is not False
        self._optimize_einsums = bool(_optimize_einsums)
        if self.internal_weights and self.weight_numel > 0:
            self.weight = nn.Parameter(torch.randn(self.weight_numel))
        else:
            self.register_buffer("weight", torch.empty(0))
        written = {ins.i_out for ins in self.instructions if ins.path_weight != 0 and 0 not in ins.path_shape}
        self.register_buffer("output_mask", output_mask(plan.irreps_out, written))

    def _set_plan(
        self, plan: Plan, shared: bool, internal: bool, compile_left_right: bool, compile_right: bool
    ) -> None:
        self._use(plan)
        self.irreps_in1, self.irreps_in2, self.irreps_out = plan.irreps_in1, plan.irreps_in2, plan.irreps_out
        self.instructions = [
            Instruction(*ins, shape) for ins, shape in zip(plan.instructions, plan.path_shapes, strict=True)
        ]
        self.shared_weights = shared
        self.internal_weights = internal
        self.weight_numel = plan.weight_numel
        self._weighted = plan.weights != "none"
        self._compile_left_right = bool(compile_left_right)
        self._compile_right = bool(compile_right)
        self._in1_dim = plan.irreps_in1.dim
        self._in2_dim = plan.irreps_in2.dim
        self._out_dim = plan.irreps_out.dim

    def _use(self, plan: Plan) -> None:
        self.plan = plan
        self._plan_text = str(plan)

    def _path_signs(self) -> list[tuple[tuple[int, int, int], bool, int]]:
        """(degrees, whether e3nn's code reads the symbol, sign of the plan's coefficient) of each path."""
        paths = []
        for ins, mine in zip(self.instructions, self.plan.instructions, strict=True):
            i, j, o, mode, weighted = ins[:5]
            degrees = (self.irreps_in1[i].ir.l, self.irreps_in2[j].ir.l, self.irreps_out[o].ir.l)
            reads = reads_symbol(mode, weighted, degrees, self._specialized_code)
            paths.append((degrees, reads, 1 if mine.coefficient == ins.path_weight else -1))
        return paths

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        """A converted module computes with its buffers as they are after the load, as e3nn's does.

        One of eqk's own has none: a symbol that its checkpoint lacks is eqk's.
        """
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        generated = tuple(f"{prefix}{name}." for name in GENERATED)
        given = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(generated)}
        whole = f"{prefix}weight" in state_dict
        if not given and not whole:
            return
        kept = generated_buffers(self)
        try:
            signs = relative_signs({**kept, **given})
        except ValueError as error:
            errors.append(f"{prefix}{error}")
            return
        if whole and strict:
            # Weights of a checkpoint without symbols are for eqk's signs.
            absent = [name for name in kept if name not in given]
            missing += [prefix + name for name in absent if -1 in relative_signs({name: kept[name]}).values()]
        converted = not self._modules.keys().isdisjoint(GENERATED)
        instructions = []
        for ins, mine, (degrees, reads, sign) in zip(
            self.instructions, self.plan.instructions, self._path_signs(), strict=True
        ):
            sign = signs.get(degrees, sign if converted else 1) if reads else 1
            instructions.append(mine._replace(coefficient=sign * float(ins.path_weight)))
        self._use(dataclasses.replace(self.plan, instructions=tuple(instructions)))

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        """The symbols of opposite sign too, under e3nn's names: without them the weights mean something else."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._modules.keys().isdisjoint(GENERATED):
            for degrees in sorted({degrees for degrees, reads, sign in self._path_signs() if reads and sign < 0}):
                symbol = -wigner_3j(*degrees, dtype=self.output_mask.dtype, device=self.output_mask.device)
                destination["{}{}._w3j_{}_{}_{}".format(prefix, GENERATED[0], *degrees)] = symbol

    def __repr__(self) -> str:
        irreps = (Irreps(i).simplify() for i in (self.irreps_in1, self.irreps_in2, self.irreps_out))
        return "{}({} x {} -> {} | {} paths | {} weights)".format(
            type(self).__name__, *irreps, self._path_count(), self.weight_numel
        )

    @torch.jit.unused
    def _path_count(self) -> int:
        return sum(numel for _, numel in weight_slices(self.instructions, [True] * len(self.instructions)))

    @torch.jit.unused
    def _flat(self, weight: list[Tensor] | Tensor | None, operands: list[Tensor]) -> Tensor | None:
        if not isinstance(weight, (list, tuple)):
            return weight
        shapes = [ins.path_shape for ins in self.instructions if ins.has_weight]
        return _flat_weights(weight, shapes, self.shared_weights, operands)

    @torch.jit.unused
    def _weights(self, weight: Tensor | None) -> Tensor:
        weight = self._flat(weight, [])
        return _checked_weights(weight, self.weight, self.weight_numel, self.internal_weights, self.shared_weights)

    def _product(self, x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        if not torch.jit.is_scripting():
            weight = self._flat(weight, [x, y])
        return _module_product(
            x,
            y,
            weight,
            self.weight,
            (self._in1_dim, self._in2_dim),
            self.weight_numel,
            self.internal_weights,
            self.shared_weights,
            self._weighted,
            self._plan_text,
        )

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """x [..., dim1], y [..., dim2] -> [..., dim_out], leading dimensions broadcast.

        ``weight``: None for internal weights; else [weight_numel] (shared), [..., weight_numel] (not shared), or a list
        of tensors [*path_shape] or [..., *path_shape], flat ones too, one for each weighted instruction. Raises
        RuntimeError where a shape does not fit, TypeError where there is no tensor.
        """
        if not self._compile_left_right:
            raise RuntimeError("forward: expected a module built with compile_left_right=True")
        return self._product(x, y, weight)

    def convolution(
        self,
        x: Tensor,
        y: Tensor,
        weight: Tensor | None,
        src: Tensor,
        dst: Tensor,
        num_dst: int,
        by_dst: Tensor | None = None,
        by_src: Tensor | None = None,
    ) -> Tensor:
        """:func:`eqk.tensor_product_conv` with this product: the sum of ``self(x[src], y, weight)`` into each node.

        x [num_src, dim1], y [edges, dim2], src and dst [edges] -> [num_dst, dim_out]. ``weight``: None for internal
        weights; else [weight_numel] (shared) or [edges, weight_numel]. ``by_dst``, ``by_src``: the orders of the edges,
        where they are known (:class:`eqk.Graph`). Raises RuntimeError where a shape does not fit.
        """
        return _module_convolution(
            x,
            y,
            weight,
            self.weight,
            (src, dst),
            (by_dst, by_src),
            num_dst,
            self.weight_numel,
            self.internal_weights,
            self.shared_weights,
            self._weighted,
            self._plan_text,
        )

    @torch.jit.export
    def right(self, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """The matrix that maps x to the product with y: y [..., dim2] -> [..., dim1, dim_out].

        ``weight`` as in :meth:`forward`. Needs ``compile_right=True``, else RuntimeError.
        """
        if not self._compile_right:
            raise RuntimeError("right: expected a module built with compile_right=True")
        check_operand("y", y, self._in2_dim)
        basis = torch.eye(self._in1_dim, dtype=y.dtype, device=y.device)
        if self.shared_weights or self.weight_numel == 0:
            return self._product(basis, y.unsqueeze(-2), weight)
        # One row of weights for each vector of the basis and row of y would be the largest tensor by far.
        if not torch.jit.is_scripting():
            weight = self._flat(weight, [y])
        w = _checked_weights(weight, self.weight, self.weight_numel, self.internal_weights, self.shared_weights)
        rows = [self._product(basis[i : i + 1], y, w) for i in range(self._in1_dim)]
        if len(rows) == 0:
            shape = torch.broadcast_tensors(y.sum(-1), w.sum(-1))[0].shape
            return y.new_zeros(list(shape) + [0, self._out_dim])  # noqa: RUF005 TorchScript
        return torch.stack(rows, -2)

    def weight_view_for_instruction(self, instruction: int, weight: Tensor | None = None) -> Tensor:
        """View [..., *path_shape] of the weights of one instruction. Raises ValueError if it has none."""
        ins = self.instructions[instruction]
        if not ins.has_weight:
            raise ValueError(f"instruction: expected a weighted one, got {instruction}: {tuple(ins)}")
        weight = self._weights(weight)
        start, numel = list(weight_slices(self.instructions, [i.has_weight for i in self.instructions]))[instruction]
        return weight.narrow(-1, start, numel).view(weight.shape[:-1] + tuple(ins.path_shape))

    def weight_views(self, weight: Tensor | None = None, yield_instruction: bool = False) -> Iterator:
        """Views [..., *path_shape] of the weighted paths; (index, instruction, view) if ``yield_instruction``."""
        weight = self._weights(weight)
        slices = weight_slices(self.instructions, [i.has_weight for i in self.instructions])
        for n, (ins, (start, numel)) in enumerate(zip(self.instructions, slices, strict=True)):
            if ins.has_weight:
                view = weight.narrow(-1, start, numel).view(weight.shape[:-1] + tuple(ins.path_shape))
                yield (n, ins, view) if yield_instruction else view


class FullyConnectedTensorProduct(TensorProduct):
    """``e3nn.o3.FullyConnectedTensorProduct``: every path that the selection rules allow, mode uvw, weighted."""

    def __init__(
        self,
        irreps_in1: IrrepsLike,
        irreps_in2: IrrepsLike,
        irreps_out: IrrepsLike,
        irrep_normalization: str | None = None,
        path_normalization: str | None = None,
        **kwargs,
    ) -> None:
        names = ("irreps_in1", "irreps_in2", "irreps_out")
        in1, in2, out = map(irreps_argument, names, (irreps_in1, irreps_in2, irreps_out))
        instructions = [
            (i, j, o, "uvw", True)
            for i, (_, ir1) in enumerate(in1)
            for j, (_, ir2) in enumerate(in2)
            for o, (_, ir) in enumerate(out)
            if ir in ir1 * ir2
        ]
        super().__init__(
            in1,
            in2,
            out,
            instructions,
            irrep_normalization=irrep_normalization,
            path_normalization=path_normalization,
            **kwargs,
        )


def _filter(filter_ir_out: Iterable | None) -> list | None:
    if filter_ir_out is None:
        return None
    try:
        return [Irrep(ir) for ir in filter_ir_out]
    except (TypeError, ValueError) as error:
        raise ValueError(f"filter_ir_out: expected irreps such as ['0e', '1o'], got {filter_ir_out!r}") from error


class ElementwiseTensorProduct(TensorProduct):
    """``e3nn.o3.ElementwiseTensorProduct``: the n-th irrep of x with the n-th of y, mode uuu, without weights.

    ``filter_ir_out`` keeps those output irreps only. Raises ValueError if the inputs differ in their number of irreps.
    """

    def __init__(
        self,
        irreps_in1: IrrepsLike,
        irreps_in2: IrrepsLike,
        filter_ir_out: Iterable | None = None,
        irrep_normalization: str | None = None,
        **kwargs,
    ) -> None:
        keep = _filter(filter_ir_out)
        in1 = irreps_argument("irreps_in1", irreps_in1).simplify()
        in2 = irreps_argument("irreps_in2", irreps_in2).simplify()
        if in1.num_irreps != in2.num_irreps:
            raise ArgumentError(
                f"irreps_in2: expected {in1.num_irreps} irreps as irreps_in1 has, got {in2.num_irreps} in {in2}"
            )
        # Both inputs cut where either changes, so that the pieces pair up.
        pieces = []
        rest1, rest2 = list(in1), list(in2)
        while rest1:
            (mul1, ir1), (mul2, ir2) = rest1.pop(0), rest2.pop(0)
            mul = min(mul1, mul2)
            if mul1 > mul:
                rest1.insert(0, (mul1 - mul, ir1))
            if mul2 > mul:
                rest2.insert(0, (mul2 - mul, ir2))
            pieces.append((mul, ir1, ir2))
        out, instructions = [], []
        for n, (mul, ir1, ir2) in enumerate(pieces):
            for ir in ir1 * ir2:
                if keep is None or ir in keep:
                    instructions.append((n, n, len(out), "uuu", False))
                    out.append((mul, ir))
        super().__init__(
            [(mul, ir) for mul, ir, _ in pieces],
            [(mul, ir) for mul, _, ir in pieces],
            out,
            instructions,
            irrep_normalization=irrep_normalization,
            **kwargs,
        )


class FullTensorProduct(TensorProduct):
    """``e3nn.o3.FullTensorProduct``: every irrep of x with every one of y, mode uvuv, no weights, output sorted."""

    def __init__(
        self,
        irreps_in1: IrrepsLike,
        irreps_in2: IrrepsLike,
        filter_ir_out: Iterable | None = None,
        irrep_normalization: str | None = None,
        **kwargs,
    ) -> None:
        keep = _filter(filter_ir_out)
        in1 = irreps_argument("irreps_in1", irreps_in1).simplify()
        in2 = irreps_argument("irreps_in2", irreps_in2).simplify()
        out, instructions = [], []
        for i, (mul1, ir1) in enumerate(in1):
            for j, (mul2, ir2) in enumerate(in2):
                for ir in ir1 * ir2:
                    if keep is None or ir in keep:
                        instructions.append((i, j, len(out), "uvuv", False))
                        out.append((mul1 * mul2, ir))
        out, instructions = _sorted_output(out, instructions)
        super().__init__(in1, in2, out, instructions, irrep_normalization=irrep_normalization, **kwargs)


def _sorted_output(out: list, instructions: list) -> tuple:
    order = Irreps(out).sort()
    return order.irreps, [(i, j, order.p[o], *rest) for i, j, o, *rest in instructions]


def _square_paths(irreps: Irreps, i: int, j: int, ir_out: Irrep, normalization: str) -> Iterator[tuple]:
    """(kind, path weight) of each path from irreps i <= j of x: "pair" of two irreps, or "u<v" and "same" of one.

    x (x) x of one vector is symmetric: of even l_out alone, with fourth moments in its variance (``"component"``), or
    |x|^4 in place of |x|^2 |y|^2 (``"norm"``).
    """
    (mul, ir1), (_, ir2) = irreps[i], irreps[j]
    alpha = {"component": ir_out.dim, "norm": ir1.dim * ir2.dim, "none": 1}[normalization]
    if i < j:
        yield "pair", alpha
        return
    if mul > 1:
        yield "u<v", alpha
    if ir_out.l % 2 == 0:
        scalar = ir_out.l == 0
        yield (
            "same",
            {
                "component": ir_out.dim / (ir1.dim + 2 if scalar else 2),
                "norm": ir_out.dim * ir1.dim if scalar else ir1.dim * (ir1.dim + 2) / 2,
                "none": 1,
            }[normalization],
        )


class TensorSquare(TensorProduct):
    """``e3nn.o3.TensorSquare``: the product of x with itself, each pair of irreps once.

    With ``irreps_out`` fully connected and weighted, without it full and unweighted (``filter_ir_out`` keeps those
    output irreps only). x has one layout, ``layout_in``.
    """

    def __init__(
        self,
        irreps_in: IrrepsLike,
        irreps_out: IrrepsLike | None = None,
        filter_ir_out: Iterable | None = None,
        irrep_normalization: str | None = None,
        layout_in: str = "mul_ir",
        **kwargs,
    ) -> None:
        normalization = irrep_normalization or "component"
        if normalization not in ("component", "norm", "none"):
            raise ArgumentError(f"irrep_normalization: expected component, norm or none, got {normalization!r}")
        if irreps_out is not None and filter_ir_out is not None:
            raise ValueError("filter_ir_out: expected None with irreps_out, got both")
        keep = _filter(filter_ir_out)
        irreps = irreps_argument("irreps_in", irreps_in).simplify()
        instructions: list = []
        pairs = [(i, j) for i in range(len(irreps)) for j in range(i, len(irreps))]
        if irreps_out is not None:
            out = irreps_argument("irreps_out", irreps_out).simplify()
            modes = {"pair": "uvw", "u<v": "u<vw", "same": "uuw"}
            for i, j in pairs:
                for o, (_, ir) in enumerate(out):
                    if ir in irreps[i].ir * irreps[j].ir:
                        for kind, alpha in _square_paths(irreps, i, j, ir, normalization):
                            instructions.append((i, j, o, modes[kind], True, alpha))
        else:
            segments: list = []
            modes = {"pair": "uvuv", "u<v": "uvu<v", "same": "uuu"}
            for i, j in pairs:
                mul1, mul2 = irreps[i].mul, irreps[j].mul
                muls = {"pair": mul1 * mul2, "u<v": mul1 * (mul1 - 1) // 2, "same": mul1}
                for ir in irreps[i].ir * irreps[j].ir:
                    if keep is None or ir in keep:
                        for kind, alpha in _square_paths(irreps, i, j, ir, normalization):
                            instructions.append((i, j, len(segments), modes[kind], False, alpha))
                            segments.append((muls[kind], ir))
            out, instructions = _sorted_output(segments, instructions)
        super().__init__(
            irreps,
            irreps,
            out,
            instructions,
            irrep_normalization="none",
            layout_in1=layout_in,
            layout_in2=layout_in,
            **kwargs,
        )
        self.irreps_in = irreps

    def __repr__(self) -> str:
        out = Irreps(self.irreps_out).simplify()
        counts = f"{self._path_count()} paths | {self.weight_numel} weights"
        return f"{type(self).__name__}({self.irreps_in} -> {out} | {counts})"

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """x [..., dim] -> [..., dim_out]; ``weight`` as in :meth:`TensorProduct.forward`."""
        if not self._compile_left_right:
            raise RuntimeError("forward: expected a module built with compile_left_right=True")
        return self._product(x, x, weight)
