"""e3nn's linear maps between irreps, as matrix products of torch."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eqk.irreps import IrrepsLike, irreps_argument
from eqk.o3._module import ArgumentError, E3nnModule, output_mask, weight_slices
from eqk.plan import LAYOUTS


class LinearSlices(NamedTuple):
    slice_1D: slice
    shape_2D: tuple


class LinearInstruction(NamedTuple):
    """``x[i_in] -> out[i_out]``, times ``path_weight``; ``i_in`` is -1 for a bias."""

    i_in: int
    i_out: int
    path_shape: tuple
    path_weight: float


def _linear(
    features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    own_weight: Tensor,
    own_bias: Tensor,
    internal: bool,
    shared: bool,
    numels: tuple[int, int],
    f: tuple[int, int],
    has_features: bool,
    sizes: tuple[list[int], list[int]],
    channels_last: tuple[bool, bool],
    segments: list[tuple[int, int]],
    all_paths: list[list[tuple[tuple[int, int, int], float]]],
    biases: list[tuple[int, int, int]],
) -> Tensor:
    """What the module computes, as a function that torch.fx keeps whole and TorchScript compiles."""
    numel, bias_numel = numels
    if weight is None:
        if numel > 0 and not internal:
            raise RuntimeError("weight: expected a tensor, since internal_weights is False, got None")
        weight = own_weight
    if bias is None:
        if bias_numel > 0 and not internal:
            raise RuntimeError("bias: expected a tensor, since internal_weights is False, got None")
        bias = own_bias
    f_in, f_out = f
    if not torch.jit.is_scripting() and not isinstance(features, Tensor):
        raise TypeError(f"features: expected a tensor, got {features}")
    dim_in = sum(sizes[0])
    wrong = features.dim() < (2 if has_features else 1) or features.shape[-1] != dim_in
    if wrong or (has_features and features.shape[-2] != f_in):
        raise RuntimeError(
            f"features: expected last dimensions {[f_in, dim_in] if has_features else [dim_in]}, "
            f"got shape {list(features.shape)}"
        )
    outer = list(features.shape[: -2 if has_features else -1])
    rows = 1
    for n in outer:
        rows *= n
    x = features.reshape(rows, f_in, dim_in)
    if shared:
        w = weight.reshape(f_in, f_out, numel)
    else:
        w = weight.reshape(weight.numel() // (f_in * f_out * max(numel, 1)), f_in, f_out, numel)

    # Cut once: the gradient of a cut is a copy, of one narrowed part a whole tensor of zeros around it.
    xs = torch.split_with_sizes(x, sizes[0], -1)
    ws = torch.split_with_sizes(w, sizes[1], -1)
    parts: list[Tensor] = []
    for paths, (mul_out, dim) in zip(all_paths, segments):  # noqa: B905 TorchScript
        total: Tensor | None = None
        for (i, mul, n), path_weight in paths:
            part = xs[i]
            if channels_last[0]:
                part = part.reshape(rows, f_in, dim, mul).transpose(1, 2)
            else:
                part = part.reshape(rows, f_in, mul, dim).permute(0, 3, 1, 2)
            matrix = ws[n] * path_weight
            matrix = matrix.reshape(-1, f_in, f_out, mul, mul_out).transpose(2, 3)
            matrix = matrix.reshape(-1, f_in * mul, f_out * mul_out)
            if shared:
                term = torch.mm(part.reshape(rows * dim, f_in * mul), matrix[0])
            else:
                term = torch.matmul(part.reshape(rows, dim, f_in * mul), matrix)
            total = term if total is None else total + term
        if total is None:
            parts.append(x.new_zeros([rows, f_out, mul_out * dim]))
        elif channels_last[1]:
            total = total.reshape(rows, dim, f_out, mul_out).transpose(1, 2)
            parts.append(total.reshape(rows, f_out, dim * mul_out))
        else:
            total = total.reshape(rows, dim, f_out, mul_out).permute(0, 2, 3, 1)
            parts.append(total.reshape(rows, f_out, mul_out * dim))
    out = torch.cat(parts, -1) if len(parts) > 0 else x.new_zeros([rows, f_out, 0])
    if bias_numel > 0:
        b = bias.reshape(-1, f_out, bias_numel)
        shift: list[Tensor] = []
        end = 0
        for start, at, mul in biases:
            shift.append(b.new_zeros([b.shape[0], f_out, start - end]))
            shift.append(b.narrow(-1, at, mul))
            end = start + mul
        shift.append(b.new_zeros([b.shape[0], f_out, out.shape[-1] - end]))
        out = out + torch.cat(shift, -1)
    if has_features:
        return out.reshape(outer + [f_out, out.shape[-1]])  # noqa: RUF005 TorchScript
    return out.reshape(outer + [out.shape[-1]])  # noqa: RUF005


torch.fx.wrap("_linear")


class Linear(E3nnModule):
    """``e3nn.o3.Linear``: out_o[w, k] = bias_o[w] + sum over paths i of path_weight sum_u W[u, w] x_i[u, k].

    Args:
        irreps_in, irreps_out: the columns of x and out.
        f_in, f_out: number of features that the map mixes besides (both or none): x [..., f_in, dim_in], weights
            [f_in, f_out, weight_numel].
        internal_weights: whether weights and biases are Parameters of the module. None: as ``shared_weights``.
        shared_weights: one set of weights for all rows (True, None) or one for each row (False).
        instructions: pairs ``(i_in, i_out)``; None for all of equal irreps.
        biases: True for all scalars (0e) of the output, or one bool for each of its irreps.
        path_normalization: ``"element"`` or ``"path"``: path_weight^-2 is the number of terms that one output sums, or
            that of the path times the number of paths.
        _optimize_einsums: e3nn's, ignored.
        layout_in, layout_out: ``"mul_ir"`` (e3nn's) or ``"ir_mul"``, which saves a transposed copy.

    Attributes:
        weight_index_slices: ``(slice_1D, shape_2D)`` of each instruction in the flat weights, as in e3nn.

    Raises:
        ValueError (an AssertionError too, as in e3nn), IndexError: naming the argument that does not fit.
    """

    instructions: list[Any]
    internal_weights: bool
    shared_weights: bool
    weight_numel: int
    bias_numel: int
    _f_in: int
    _f_out: int
    _features: bool
    _sizes: tuple[list[int], list[int]]
    _channels_last_in: bool
    _channels_last_out: bool
    _segments: list[tuple[int, int]]
    _paths: list[list[tuple[tuple[int, int, int], float]]]
    _biases: list[tuple[int, int, int]]

    def __init__(
        self,
        irreps_in: IrrepsLike,
        irreps_out: IrrepsLike,
        *,
        f_in: int | None = None,
        f_out: int | None = None,
        internal_weights: bool | None = None,
        shared_weights: bool | None = None,
        instructions: Iterable[tuple] | None = None,
        biases: bool | Sequence[bool] | None = False,
        path_normalization: str = "element",
        _optimize_einsums: bool | None = None,
        layout_in: str = "mul_ir",
        layout_out: str = "mul_ir",
    ) -> None:
        super().__init__()
        irreps_in, irreps_out = irreps_argument("irreps_in", irreps_in), irreps_argument("irreps_out", irreps_out)
        if path_normalization not in ("element", "path"):
            raise ArgumentError(f"path_normalization: expected element or path, got {path_normalization!r}")
        if (f_in is None) != (f_out is None):
            raise ArgumentError(f"f_out: expected both f_in and f_out or none, got {f_in} and {f_out}")
        for name, layout in (("layout_in", layout_in), ("layout_out", layout_out)):
            if layout not in LAYOUTS:
                raise ArgumentError(f"{name}: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
        if internal_weights and shared_weights is False:
            raise ArgumentError("internal_weights: expected False or None with shared_weights=False, got True")
        if instructions is None:
            instructions = [
                (i, o)
                for i, (_, ir) in enumerate(irreps_in)
                for o, (_, ir_out) in enumerate(irreps_out)
                if ir == ir_out
            ]
        try:
            paths = [(i, o) for i, o in instructions]
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"instructions: expected pairs (i_in, i_out), got {instructions!r}") from error
        for i, o in paths:
            if not 0 <= i < len(irreps_in) or not 0 <= o < len(irreps_out):
                raise IndexError(
                    f"instructions: expected indices below {len(irreps_in)}, {len(irreps_out)}, got {(i, o)}"
                )
            if irreps_in[i].ir != irreps_out[o].ir:
                raise ArgumentError(
                    f"instructions: expected equal irreps, got {irreps_in[i]} and {irreps_out[o]} in {(i, o)}"
                )

        def path_weight(i: int, o: int) -> float:
            terms = sum(irreps_in[a if path_normalization == "element" else i].mul for a, b in paths if b == o)
            return (terms * (f_in or 1) or 1.0) ** -0.5

        if biases is None or isinstance(biases, bool):
            biases = [bool(biases) and ir.is_scalar() for _, ir in irreps_out]
        if not isinstance(biases, Sequence):
            raise ArgumentError(f"biases: expected a bool, or one for each output irrep, got {biases!r}")
        if len(biases) != len(irreps_out):
            raise ArgumentError(
                f"biases: expected {len(irreps_out)} values, one for each output irrep, got {len(biases)}"
            )
        for bias, (_, ir) in zip(biases, irreps_out, strict=True):
            if bias and not ir.is_scalar():
                raise ArgumentError(f"biases: expected False for {ir}, since only 0e is invariant, got True")

        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        self.instructions = [
            LinearInstruction(i, o, (irreps_in[i].mul, irreps_out[o].mul), path_weight(i, o)) for i, o in paths
        ]
        numels = [numel for _, numel in weight_slices(self.instructions, [True] * len(paths))]
        starts_out = [s.start for s in irreps_out.slices()]
        self._segments = [(mul, ir.dim) for mul, ir in irreps_out]
        self._paths = [[] for _ in irreps_out]
        self._sizes = ([mul * ir.dim for mul, ir in irreps_in], numels)
        self.weight_numel = sum(self._sizes[1])
        for n, (ins, numel) in enumerate(zip(self.instructions, numels, strict=True)):
            if numel:
                self._paths[ins.i_out].append(((ins.i_in, irreps_in[ins.i_in].mul, n), ins.path_weight))
        self._biases = []
        self.bias_numel = 0
        for o, (bias, (mul, _)) in enumerate(zip(biases, irreps_out, strict=True)):
            if bias:
                self.instructions.append(LinearInstruction(-1, o, (mul,), 1.0))
                self._biases.append((starts_out[o], self.bias_numel, mul))
                self.bias_numel += mul
        every = weight_slices(self.instructions, [True] * len(self.instructions))
        self.weight_index_slices = [
            LinearSlices(slice(start, start + numel), ins.path_shape)
            for ins, (start, numel) in zip(self.instructions, every, strict=True)
        ]
        self._features = f_in is not None
        self._f_in, self._f_out = f_in or 1, f_out or 1
        self._channels_last_in, self._channels_last_out = layout_in == "ir_mul", layout_out == "ir_mul"
        self.shared_weights = shared_weights is not False
        self.internal_weights = self.shared_weights if internal_weights is None else internal_weights
        self._optimize_einsums = bool(_optimize_einsums)

        leading = (f_in, f_out) if self._features else ()
        if self.internal_weights and self.weight_numel > 0:
            self.weight = nn.Parameter(torch.randn(*leading, self.weight_numel))
        else:
            self.register_buffer("weight", torch.empty(0))
        if self.internal_weights and self.bias_numel > 0:
            self.bias = nn.Parameter(torch.zeros(*leading[1:], self.bias_numel))
        else:
            self.register_buffer("bias", torch.empty(0))
        written = {ins.i_out for ins in self.instructions if 0 not in ins.path_shape}
        self.register_buffer("output_mask", output_mask(irreps_out, written))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.irreps_in} -> {self.irreps_out} | {self.weight_numel} weights)"

    def forward(self, features: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """features [..., dim_in] ([..., f_in, dim_in]) -> [..., dim_out] ([..., f_out, dim_out]).

        Where the module has none of its own: ``weight`` [weight_numel] ([f_in, f_out, weight_numel]), with leading
        dimensions if not shared, and ``bias`` [..., bias_numel] ([..., f_out, bias_numel]). Raises RuntimeError where a
        shape does not fit.
        """
        return _linear(
            features,
            weight,
            bias,
            self.weight,
            self.bias,
            self.internal_weights,
            self.shared_weights,
            (self.weight_numel, self.bias_numel),
            (self._f_in, self._f_out),
            self._features,
            self._sizes,
            (self._channels_last_in, self._channels_last_out),
            self._segments,
            self._paths,
            self._biases,
        )

    @torch.jit.unused
    def _weight(self, weight: Tensor | None) -> Tensor:
        if weight is None:
            if not self.internal_weights:
                raise RuntimeError("weight: expected a tensor, since internal_weights is False, got None")
            return self.weight
        return weight

    def weight_view_for_instruction(self, instruction: int, weight: Tensor | None = None) -> Tensor:
        """View [..., mul_in, mul_out] of the weights of one instruction. Raises ValueError if it is a bias."""
        ins = self.instructions[instruction]
        if ins.i_in < 0:
            raise ValueError(f"instruction: expected one with weights, got the bias {instruction}: {tuple(ins)}")
        weight = self._weight(weight)
        start, numel = list(weight_slices(self.instructions, [i.i_in >= 0 for i in self.instructions]))[instruction]
        return weight.narrow(-1, start, numel).view(weight.shape[:-1] + ins.path_shape)

    def weight_views(self, weight: Tensor | None = None, yield_instruction: bool = False) -> Iterator:
        """Views [..., mul_in, mul_out] of all but biases; (index, instruction, view) if ``yield_instruction``."""
        for n, ins in enumerate(self.instructions):
            if ins.i_in >= 0:
                view = self.weight_view_for_instruction(n, weight)
                yield (n, ins, view) if yield_instruction else view
