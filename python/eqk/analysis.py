"""What an equivariant bilinear product can express: its paths, which irreps interact, and how many dimensions it spans.

A bilinear map that commutes with rotations is, between any copy (l1) of an irrep of x, (l2) of y and (l3) of the
result, a multiple of the Wigner 3j symbol (Schur's lemma). The product is therefore no more than its
:func:`path_coefficients`, which are found by evaluating it. The notions are those of Xie et al. 2025, "The Price of
Freedom: Exploring Expressivity and Runtime Tradeoffs in Equivariant Tensor Products" (arXiv:2506.13523).

Each function takes a product as an :class:`eqk.Plan` or an :class:`eqk.GauntPlan`; as a module with ``irreps_in1``,
``irreps_in2`` and ``irreps_out`` (:class:`eqk.nn.GauntTensorProduct`, ``o3.TensorProduct`` with weights inside, in
float64 by ``.double()``); or as any function f(x [rows, irreps_in1.dim], y [rows, irreps_in2.dim]) ->
[rows, irreps_out.dim] of rows independent of one another, float64, on the CPU, in e3nn's layout, with those irreps. A
product with weights of its own, in which it is linear, is a function f(x, y, w [weight_numel]). Whoever counts with
rotations alone labels all irreps even: ``"0e + 1e + 2e"``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from eqk._library import wigner_3j
from eqk.gaunt_plan import GauntPlan
from eqk.gaunt_product import dispatched_gaunt_product
from eqk.irreps import Irrep, Irreps, IrrepsLike, irreps_argument
from eqk.plan import Plan
from eqk.tensor_product import tensor_product

__all__ = ["expressivity", "interactability", "path_coefficients"]

_NAMES = ("irreps_in1", "irreps_in2", "irreps_out")
_TOLERANCE = 1e-9  # of float64 errors, relative to the largest value, and of singular values that count as zero
_MAX_ELEMENTS = 2**27  # of one tensor: 1 GiB
_PROBES = 2  # rows for each pair of irreps: the second tells a multiple of the symbol from anything else


class _Product(NamedTuple):
    function: Callable
    irreps: tuple[Irreps, Irreps, Irreps]
    weight_numel: int


def _signals(lmax: int, channels: int, pseudo: bool, parity: bool) -> Irreps:
    signs = [((-1) ** l if parity else 1) * (-1 if pseudo else 1) for l in range(lmax + 1)]
    return Irreps([(channels, Irrep(l, p)) for l, p in enumerate(signs)])


def _product(product, irreps: tuple[IrrepsLike | None, ...], weight_numel: int) -> _Product:
    given = [name for name, i in zip(_NAMES, irreps, strict=True) if i is not None]
    if isinstance(product, (Plan, GauntPlan)) or all(hasattr(product, name) for name in _NAMES):
        if given or weight_numel:
            raise ValueError(
                f"{(given or ['weight_numel'])[0]}: expected none, since {type(product).__name__} has its own"
            )
    elif not callable(product):
        raise TypeError(f"product: expected an eqk.Plan, an eqk.GauntPlan, a module or a function, got {product!r}")
    elif len(given) < 3:
        missing = next(name for name in _NAMES if name not in given)
        raise ValueError(f"{missing}: expected irreps, since a function has none, got None")
    if isinstance(weight_numel, bool) or not isinstance(weight_numel, int) or weight_numel < 0:
        raise ValueError(f"weight_numel: expected a number from 0, got {weight_numel!r}")
    if isinstance(product, Plan):
        numel = product.weight_numel
        weights = "shared" if numel else "none"
        plan = dataclasses.replace(
            product, layout_in1="mul_ir", layout_in2="mul_ir", layout_out="mul_ir", weights=weights
        )
        irreps = plan.irreps_in1, plan.irreps_in2, plan.irreps_out
        return _Product(lambda x, y, w=None: tensor_product(x, y, w, plan), irreps, numel)
    if isinstance(product, GauntPlan):
        # The linear layers around it are factorised weights, so that its own are left out.
        plan = dataclasses.replace(product, rank=1, layout1="mul_ir", layout2="mul_ir", layout_out="mul_ir")
        # The bracket of natural signals, of parity (-1)^l, is a pseudo signal; a sum of both has no parity.
        parity, sizes = not (plan.even and plan.odd), (plan.channels1, plan.channels2, plan.channels)
        pseudo = (False, False, parity and bool(plan.odd))
        irreps = tuple(_signals(*s, parity) for s in zip(plan.lmaxes, sizes, pseudo, strict=True))
        return _Product(lambda x, y: dispatched_gaunt_product(x, y, None, None, None, str(plan)), irreps, 0)
    if not given:
        irreps = tuple(getattr(product, name) for name in _NAMES)
    checked = tuple(irreps_argument(name, i) for name, i in zip(_NAMES, irreps, strict=True))
    return _Product(product, checked, weight_numel)


def _copies(irreps: Irreps) -> list[tuple[Irrep, slice]]:
    """Each copy of an irrep and its columns in e3nn's layout."""
    return [
        (ir, slice(s.start + u * ir.dim, s.start + (u + 1) * ir.dim))
        for (mul, ir), s in zip(irreps, irreps.slices(), strict=True)
        for u in range(mul)
    ]


def _in_triangle(l1: int, l2: int, l3: int) -> bool:
    return abs(l1 - l2) <= l3 <= l1 + l2


def path_coefficients(
    product,
    irreps_in1: IrrepsLike | None = None,
    irreps_in2: IrrepsLike | None = None,
    irreps_out: IrrepsLike | None = None,
    *,
    weight_numel: int = 0,
) -> Tensor:
    """The coefficients t of a product in Wigner 3j symbols C (:func:`eqk.wigner_3j`), found by evaluating it.

    out_k = sum over q, i, j of w[q] t[q, i, j, k] C(x_i, y_j), for i, j and k over all copies of the irreps of x, y and
    the result in the order of their columns. ``product`` and the irreps are as :mod:`eqk.analysis` says.

    Returns:
        [weight_numel or 1, copies in x, copies in y, copies in the result], float64; errors of rounding, below 1e-9 of
        the largest coefficient, are exact zeros.

    Raises:
        ValueError: naming the argument that does not fit, or the path through which the product is not equivariant
            (under inversion, where the path breaks the parities alone), or that it is not bilinear.
        TypeError: if ``product`` is none.
        RuntimeError: if the product returns no float64 tensor of the shape that it should.
    """
    return _path_coefficients(_product(product, (irreps_in1, irreps_in2, irreps_out), weight_numel))


def _path_coefficients(product: _Product) -> Tensor:
    in1, in2, out = (_copies(irreps) for irreps in product.irreps)
    shape = (max(product.weight_numel, 1), len(in1), len(in2), len(out))
    rows = _PROBES * len(in1) * len(in2) + _PROBES
    dims = [irreps.dim for irreps in product.irreps]
    for elements, what in ((math.prod(shape), "coefficients"), (rows * max(dims), "values")):
        if elements > _MAX_ELEMENTS:
            raise ValueError(f"product: expected at most 2^27 {what}, got {elements}: take fewer channels")
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(_PROBES, dim, generator=generator, dtype=torch.float64) for dim in dims[:2])
    # Rows of one irrep in x and one in y each; the last ones of all irreps, which a bilinear map has as their sum.
    x, y = (torch.zeros(rows, dim, dtype=torch.float64) for dim in dims[:2])
    pairs = list(itertools.product(range(len(in1)), range(len(in2))))
    for n, (i, j) in enumerate(pairs):
        x[_PROBES * n : _PROBES * (n + 1), in1[i][1]] = u[:, in1[i][1]]
        y[_PROBES * n : _PROBES * (n + 1), in2[j][1]] = v[:, in2[j][1]]
    x[-_PROBES:], y[-_PROBES:] = 2 * u, -v

    def values(weights: Tensor | None) -> Tensor:
        with torch.no_grad():
            z = product.function(x, y) if weights is None else product.function(x, y, weights)
        expected = (rows, dims[2])
        if not isinstance(z, Tensor) or tuple(z.shape) != expected or z.dtype != torch.float64:
            got = f"{z.dtype} {tuple(z.shape)}" if isinstance(z, Tensor) else repr(z)
            raise RuntimeError(f"product: expected a result of float64 {expected}, got {got}")
        return z

    t = torch.zeros(shape, dtype=torch.float64)
    units = torch.eye(product.weight_numel, dtype=torch.float64) if product.weight_numel else [None]
    chunk = max(1, _MAX_ELEMENTS // max(rows * dims[2], 1))
    for first in range(0, len(units), chunk):
        z = torch.stack([values(w) for w in units[first : first + chunk]])
        scale = z.abs().max().item() if z.numel() else 0.0
        if not math.isfinite(scale):
            raise ValueError("product: expected finite results of finite operands, got NaN or infinity")
        parts, whole = z[:, :-_PROBES].unflatten(1, (len(pairs), _PROBES)), z[:, -_PROBES:]
        if not _is_zero(whole + 2 * parts.sum(1), scale * len(pairs)):
            raise ValueError("product: expected a map that is linear in x and in y, got one that is not")
        for (n, (i, j)), (k, (ir3, columns)) in itertools.product(enumerate(pairs), enumerate(out)):
            (ir1, of_x), (ir2, of_y), z_k = in1[i], in2[j], parts[:, n, :, columns]
            parity_holds = True
            if _in_triangle(ir1.l, ir2.l, ir3.l):
                symbol = wigner_3j(ir1.l, ir2.l, ir3.l, dtype=torch.float64)
                along = torch.einsum("pi,pj,ijk->pk", u[:, of_x], v[:, of_y], symbol)
                found = (z_k * along).sum((1, 2)) / along.square().sum()
                t[first : first + chunk, i, j, k] = found
                z_k = z_k - found[:, None, None] * along
                parity_holds = ir3.p == ir1.p * ir2.p or _is_zero(found, scale)
            if not parity_holds or not _is_zero(z_k, scale):
                raise ValueError(
                    f"product: expected an equivariant map, got one that is not from {ir1} x {ir2} to {ir3}"
                )
    t[t.abs() < _TOLERANCE * (t.abs().max() if t.numel() else 0)] = 0
    return t


def _is_zero(t: Tensor, scale: float) -> bool:
    return t.numel() == 0 or t.abs().max().item() <= _TOLERANCE * scale


def interactability(
    product,
    irreps_in1: IrrepsLike | None = None,
    irreps_in2: IrrepsLike | None = None,
    irreps_out: IrrepsLike | None = None,
    *,
    weight_numel: int = 0,
) -> dict[tuple[Irrep, Irrep, Irrep], float]:
    """Which irreps a product couples: of all triples that the selection rules of O(3) allow, the largest coefficient.

    The maximum of |:func:`path_coefficients`| over weights and copies of the three irreps; 0 where they do not
    interact. Clebsch-Gordan products may couple all, products of signals on the sphere those with an even sum of
    degrees, their Poisson brackets those with an odd one. ``product`` and the irreps are as :mod:`eqk.analysis` says.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`path_coefficients`.
    """
    checked = _product(product, (irreps_in1, irreps_in2, irreps_out), weight_numel)
    largest = _path_coefficients(checked).abs().amax(0) if all(i.dim for i in checked.irreps) else None
    result: dict[tuple[Irrep, Irrep, Irrep], float] = {}
    copies = [[ir for ir, _ in _copies(irreps)] for irreps in checked.irreps]
    for (i, ir1), (j, ir2), (k, ir3) in itertools.product(*map(enumerate, copies)):
        if _in_triangle(ir1.l, ir2.l, ir3.l) and ir3.p == ir1.p * ir2.p:
            key = ir1, ir2, ir3
            result[key] = max(result.get(key, 0.0), largest[i, j, k].item())
    return dict(sorted(result.items()))


def expressivity(
    product,
    irreps_in1: IrrepsLike | None = None,
    irreps_in2: IrrepsLike | None = None,
    irreps_out: IrrepsLike | None = None,
    *,
    weight_numel: int = 0,
    rank: int | None = None,
    channels: int = 1,
) -> int:
    """Dimension of the set of bilinear maps that equivariant linear layers before and after a product make of it.

    The layers A, B and D take ``channels`` copies of each irrep of x and y to the copies in the product, and those in
    its result to ``channels`` again, so that the maps have the path weights

        W[a, b, c] = sum over q, i, j, k of w[q] A[a, i] B[b, j] t[q, i, j, k] D[k, c],

    t the :func:`path_coefficients`; ``rank`` sums so many of these, each with layers and weights of its own. The
    dimension is the rank of the Jacobian of W with respect to all layers and weights, in float64 at a random point.

    For one channel and rank 1 that is, for a Clebsch-Gordan product that keeps or weights each path, the number of
    paths; from degrees 0 to L in x and y to 2 L in the result (L + 1)(L + 2)(2 L + 3) / 6 with those of an even sum
    alone. For a product of signals, whose weights are a[l1] b[l2] c[l3], it is (L1 + 1) + (L2 + 1) + (L3 + 1) - 2,
    since a factor may move from one of them to another, as long as no degree is left without a partner. A product of
    signals on several channels is a sum of as many products of one: its ``rank``. Where layers are per channel instead,
    with no mixing, channels are independent, and the dimension is that of one channel times their number.

    Args:
        product, irreps_in1, irreps_in2, irreps_out, weight_numel: as :mod:`eqk.analysis` says.
        rank: number of terms; by default that of an :class:`eqk.GauntPlan`, else 1.
        channels: copies of each irrep outside of the layers.

    Raises:
        ValueError: naming the argument that does not fit; and TypeError, RuntimeError, as :func:`path_coefficients`.
    """
    if rank is None:
        rank = product.rank if isinstance(product, GauntPlan) else 1
    for name, value in (("rank", rank), ("channels", channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a positive number, got {value!r}")
    checked = _product(product, (irreps_in1, irreps_in2, irreps_out), weight_numel)
    t = _path_coefficients(checked)
    generator = torch.Generator().manual_seed(0)
    masks = []  # [copies outside, copies inside] of each layer: where the irreps are the same
    for irreps in checked.irreps:
        inside = [ir for ir, _ in _copies(irreps)]
        outside = [ir for ir in sorted(set(inside)) for _ in range(channels)]
        masks.append(torch.tensor([[a == i for i in inside] for a in outside]).reshape(len(outside), len(inside)))
    paths = math.prod(len(m) for m in masks)
    numel = rank * (checked.weight_numel + sum(int(m.sum()) for m in masks))
    if paths * numel > _MAX_ELEMENTS:
        raise ValueError(f"channels: expected a Jacobian of at most 2^27 elements, got {paths} x {numel}")
    columns = []
    for _ in range(rank):
        w = torch.randn(len(t), generator=generator, dtype=torch.float64)
        layers = [torch.randn(m.shape, generator=generator, dtype=torch.float64) * m for m in masks]
        if checked.weight_numel:
            columns.append(torch.einsum("qijk,ai,bj,ck->qabc", t, *layers).flatten(1))
        weighted = torch.einsum("q,qijk->ijk", w, t)
        for s, mask in enumerate(masks):
            others = [layer for n, layer in enumerate(layers) if n != s]
            # W is linear in the layer: its row a alone, with the entry to i, gives the paths of a.
            of_rest = torch.einsum("ijk,bj,ck->ibc", weighted.movedim(s, 0), *others)
            where = mask.nonzero()
            column = torch.zeros(len(where), len(mask), *of_rest.shape[1:], dtype=torch.float64)
            column[torch.arange(len(where)), where[:, 0]] = of_rest[where[:, 1]]
            columns.append(column.movedim(1, s + 1).flatten(1))
    jacobian = torch.cat(columns)
    jacobian = jacobian[:, jacobian.any(0)]
    if not jacobian.numel():
        return 0
    # Factors of rows and of columns leave the rank as it is, and bring the singular values together.
    for dim in (0, 1):
        largest = jacobian.abs().amax(dim, keepdim=True)
        jacobian = jacobian / largest.where(largest > 0, 1)
    return int(torch.linalg.matrix_rank(jacobian, rtol=_TOLERANCE))
