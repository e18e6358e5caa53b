"""The symmetric contraction of MACE: polynomials in the features of a node, weighted for each species and channel.

``torch.ops.eqk.symmetric_contraction(x, w, species, plan)`` is the op: x [nodes, channels, dim_in], or
[nodes, dim_in, channels] as the plan's layout says, w [num_species, paths, channels] with species [nodes] of int32 or
int64, or w [nodes, paths, channels] with None. ``symmetric_contraction_derivative`` is every derivative of it
(:class:`eqk.register.Polynomial`), with slots x, w and the cotangent g [nodes, channels * dim_out].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from eqk import dispatch, reference
from eqk.register import MaybeTensor, Polynomial
from eqk.symmetric_contraction_plan import MAX_CORRELATION, SymmetricContractionPlan


def _shapes(v: Sequence[Tensor], rest: Sequence) -> tuple[tuple, ...]:
    x, w = v[:2]
    species, text = rest
    plan = SymmetricContractionPlan.parse(text)
    channels = x.shape[1 if plan.layout_in == "mul_ir" else 2]
    species_count = x.shape[0] if species is None else w.shape[0]
    return (
        tuple(x.shape),
        (species_count, len(plan.paths), channels),
        (x.shape[0], channels * plan.irreps_out.dim),
    )


_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _check(v: Sequence[Tensor], g: MaybeTensor, tangents: Sequence[Sequence[MaybeTensor]], rest: Sequence) -> None:
    """What csrc/symmetric_contraction/op.h checks, for tensors without data."""

    def require(ok, name: str, expected: object, got: object) -> None:
        torch._check(ok, lambda: f"eqk::symmetric_contraction: {name}: expected {expected}, got {got}")

    x, w = v
    species, text = rest
    plan = SymmetricContractionPlan.parse(text)
    require(x.dtype in _DTYPES, "x", "dtype float32, float64, float16 or bfloat16", x.dtype)
    shape = "[nodes, channels, {}]" if plan.layout_in == "mul_ir" else "[nodes, {}, channels]"
    require(x.dim() == 3, "x", f"shape {shape.format(plan.irreps_in.dim)}", tuple(x.shape))
    fits = x.shape[2 if plan.layout_in == "mul_ir" else 1] == plan.irreps_in.dim
    require(fits, "x", f"shape {shape.format(plan.irreps_in.dim)}", tuple(x.shape))
    require(w.dim() == 3, "w", "3 dimensions", tuple(w.shape))
    if species is not None:
        require(species.dim() == 1, "species", "1 dimension", tuple(species.shape))
        require(species.shape[0] == x.shape[0], "species", f"shape ({x.shape[0]},)", tuple(species.shape))
        require(species.dtype in (torch.int32, torch.int64), "species", "dtype int32 or int64", species.dtype)
        require(species.device == x.device, "species", f"device {x.device} as x has", species.device)
    shapes = _shapes(v, rest)
    for n, group in enumerate(((x, w, g), *tangents)):
        for name, t, wanted in zip("xwg", group, shapes, strict=True):
            if t is None:
                continue
            name = f"tangent {n} of {name}" if n else name
            require(t.dim() == len(wanted), name, f"{len(wanted)} dimensions", tuple(t.shape))
            for size, need in zip(t.shape, wanted, strict=True):
                require(size == need, name, f"shape {wanted}", tuple(t.shape))
            require(t.dtype == x.dtype, name, f"dtype {x.dtype} as x has", t.dtype)
            require(t.device == x.device, name, f"device {x.device} as x has", t.device)


def _batch(
    tensors: Sequence[MaybeTensor], rest: Sequence, in_dims: Sequence[int | None], size: int, wanted: Sequence[bool]
) -> tuple[list[MaybeTensor], Sequence]:
    """One call with ``size`` times as many nodes, and species where each sample has weights of its own."""
    species, text = rest
    species_dim = in_dims[len(tensors)]

    def merged(t: Tensor, dim: int | None) -> Tensor:
        t = t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        return t.flatten(0, 1)

    of_w = range(1, len(tensors), 3) if len(tensors) > 2 else range(1, 2)
    shared = species is not None and not wanted[1] and all(tensors[n] is None or in_dims[n] is None for n in of_w)
    result = [t if t is None or (shared and n in of_w) else merged(t, in_dims[n]) for n, t in enumerate(tensors)]
    if species is not None:
        species = species.unsqueeze(0).expand(size, -1) if species_dim is None else species.movedim(species_dim, 0)
        if not shared:
            w = tensors[1]
            count = w.shape[1 if in_dims[1] == 0 else 0]
            first = torch.arange(size, device=species.device) * count
            inside = (species >= 0) & (species < count)  # else it would be a species of another sample
            species = torch.where(inside, species + first[:, None], -1)
        species = species.flatten()
    return result, (species, text)


FAMILY = Polynomial("eqk", "symmetric_contraction", 2, MAX_CORRELATION + 1, _check, _shapes, _batch)


# The index of one-hot rows.


def _fake_one_hot_index(rows: Tensor) -> Tensor:
    torch._check(rows.dim() == 2, lambda: f"eqk::one_hot_index: rows: expected 2 dimensions, got {tuple(rows.shape)}")
    return rows.new_empty(rows.shape[:1], dtype=torch.int64)


def _one_hot_index(keyset, rows: Tensor) -> Tensor:
    """Refuses to be a constant to whoever asks for a derivative along the rows."""
    if rows.requires_grad or forward_ad.unpack_dual(rows).tangent is not None:
        raise RuntimeError("eqk::one_hot_index: rows: expected a tensor of which nobody asks for derivatives")
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.eqk.one_hot_index.default.redispatch(keyset & torch._C._after_autograd_keyset, rows)


torch.library.register_fake("eqk::one_hot_index", _fake_one_hot_index, lib=FAMILY.library)
FAMILY.library.impl("one_hot_index", _one_hot_index, "Autograd", with_keyset=True)


def symmetric_contraction(x: Tensor, w: Tensor, species: Tensor | None, plan: SymmetricContractionPlan | str) -> Tensor:
    """Polynomials of the features of each node, weighted for each species and channel, as in MACE.

    For a path p to the irrep o, a sum of chains of couplings of x with itself, and a channel c

        out_o[n, c] += w[species[n], p, c] p(x[n, c])

    (Batatia et al. 2022, arXiv:2206.07697, eq. 10 and 11, the sum over paths eta.)

    Args:
        x: [nodes, channels, dim_in], or [nodes, dim_in, channels] where ``plan.layout_in`` is ``"ir_mul"``.
        w: [num_species, paths, channels], or [nodes, paths, channels] without ``species``.
        species: [nodes], int32 or int64: the row of w of each node; or None.
        plan: a :class:`SymmetricContractionPlan` or its string.

    x and w of one dtype (float32, float64; float16 and bfloat16 accumulate in float32), all tensors on one device;
    under autocast mixed dtypes are promoted. Differentiable to any order, in reverse and forward mode, under torch.func
    and torch.compile. The same bits in every run and for any number of threads.

    Returns:
        [nodes, channels * dim_out], irreps ``channels x ir`` in ``plan.layout_out``.

    Raises:
        RuntimeError: naming the operand whose shape, dtype or device does not fit, or the species that is out of range;
            or why the backend that was asked for (:mod:`eqk.dispatch`) cannot run.
        TypeError: naming the operand that is no tensor, or a plan that is neither plan nor string.
    """
    for name, operand in (("x", x), ("w", w), ("species", species)):
        if not isinstance(operand, Tensor) and not (operand is None and name == "species"):
            raise TypeError(f"eqk.symmetric_contraction: {name}: expected a tensor, got {operand!r}")
        if operand is not None and operand.layout != torch.strided:
            raise RuntimeError(
                f"eqk.symmetric_contraction: {name}: expected a dense tensor, got layout {operand.layout}"
            )
    if not isinstance(plan, (str, SymmetricContractionPlan)):
        raise TypeError(
            f"eqk.symmetric_contraction: plan: expected an eqk.SymmetricContractionPlan or its string, got {plan!r}"
        )
    text = plan if isinstance(plan, str) else str(plan)
    if dispatch.choose("symmetric_contraction", x.device) in ("reference", "torch"):
        return reference.symmetric_contraction(x, w, species, text)
    return torch.ops.eqk.symmetric_contraction(x, w, species, text)
