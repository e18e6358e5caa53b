"""What ``check`` and ``bench`` run, of every op: layers of published models, and small odd sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import eqk
from eqk import measure, reference, testing
from eqk.gaunt_product import dispatched_gaunt_product
from eqk.reference.rotate import groups_of_rows, places
from eqk.s2_activation import dispatched_s2_activation
from eqk.so2_edge_message import Plan as MessagePlan
from eqk.spherical_harmonics import spherical_harmonics

Generator = torch.Generator
FLOAT, DOUBLE, HALF, BRAIN = torch.float32, torch.float64, torch.float16, torch.bfloat16
ALL_DTYPES = (DOUBLE, FLOAT, HALF, BRAIN)


@dataclass(frozen=True)
class Problem:
    """One call of an op.

    Attributes:
        operands: float32, on the CPU; None for those that are left out.
        run: the public function of eqk, of operands of any dtype and device.
        truth: the same by :mod:`eqk.reference`.
        peer: name of another implementation and what makes it; raises ImportError or ValueError where it cannot.
    """

    operands: list[Tensor | None]
    run: Callable[..., Tensor]
    truth: Callable[..., Tensor]
    peer: tuple[str, Callable[[], Callable[..., Tensor]]] | None = None


@dataclass(frozen=True)
class Case:
    """One row of the tables.

    Attributes:
        parts: a label and what makes a problem of so many rows, for each problem that the row stands for.
        rows: of a problem in ``check``; each part has its own where it is a tuple.
        bench_rows: in ``bench``; None where the case is none of those.
        orders: of derivatives that are checked.
        needs: a package without which the case is not there.
    """

    op: str
    name: str
    parts: tuple[tuple[str, Callable[[int, Generator], Problem]], ...]
    rows: int | tuple[int, ...] = 3
    bench_rows: int | None = None
    dtypes: tuple[torch.dtype, ...] = (FLOAT,)
    orders: int = 2
    needs: str | None = None

    @property
    def small(self) -> bool:
        return len(self.parts) > 1

    def problems(self) -> list[tuple[str, Callable[[int, Generator], Problem], int]]:
        """Label, maker and rows of each problem."""
        rows = self.rows if isinstance(self.rows, tuple) else (self.rows,) * len(self.parts)
        return [(label, make, n) for (label, make), n in zip(self.parts, rows, strict=True)]


class _Index:
    """A tensor of indices, copied once to each device that asks for it."""

    def __init__(self, index: Tensor) -> None:
        self._on = {index.device: index}

    def like(self, t: Tensor) -> Tensor:
        if t.device not in self._on:
            self._on[t.device] = next(iter(self._on.values())).to(t.device)
        return self._on[t.device]


def _normal(generator: Generator, *shape: int) -> Tensor:
    """Rows have a scale of their own, from 1e-1 to 1e1."""
    scale = 10 ** (2 * torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator) - 1)
    return torch.randn(shape, generator=generator) * scale


def _tensor_product(plan: eqk.Plan, rows: int, generator: Generator) -> Problem:
    return Problem(
        list(testing.random_operands(plan, rows, FLOAT, generator)),
        lambda x, y, w: eqk.tensor_product(x, y, w, plan),
        lambda x, y, w: reference.tensor_product(x, y, w, plan),
        ("e3nn", lambda: measure.e3nn_product(plan, "script")),
    )


def _against_e3nn(plan: eqk.Plan, rows: int, generator: Generator) -> Problem:
    """The truth is e3nn's module in float64, and the plan the one that eqk reads from it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of the constants in its code
    try:
        product = measure.e3nn_product(plan, "eager")
    finally:
        torch.set_default_dtype(before)
    read = eqk.Plan.from_e3nn(product)

    def truth(x: Tensor, y: Tensor, w: Tensor | None) -> Tensor:
        return product(x, y, w) if w is not None else product(x, y)

    operands = list(testing.random_operands(plan, rows, FLOAT, generator))
    return Problem(operands, lambda x, y, w: eqk.tensor_product(x, y, w, read), truth)


def _graph(edges: int, nodes: int, generator: Generator) -> tuple[_Index, _Index]:
    """Sources and destinations in no order; the last node has no edges."""
    return tuple(_Index(torch.randint(max(1, nodes - 1), (edges,), generator=generator)) for _ in range(2))


def _by_messages(plan: eqk.Plan, src: _Index, dst: _Index, nodes: int) -> Callable[..., Tensor]:
    """Gather, e3nn's product and a sum, as models without a fused convolution have it."""
    product = measure.e3nn_product(plan, "script")

    def f(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        messages = product(x[src.like(x)], y, w)
        return messages.new_zeros(nodes, messages.shape[1]).index_add(0, dst.like(x), messages)

    return f


def _conv(plan: eqk.Plan, edges: int, generator: Generator) -> Problem:
    nodes = max(2, edges // 20)
    src, dst = _graph(edges, nodes, generator)
    x, _, _ = testing.random_operands(plan, nodes, FLOAT, generator)
    _, y, w = testing.random_operands(plan, edges, FLOAT, generator)

    return Problem(
        [x, y, w],
        lambda x, y, w: eqk.tensor_product_conv(x, y, w, src.like(x), dst.like(x), nodes, plan),
        lambda x, y, w: reference.tensor_product_conv(x, y, w, src.like(x), dst.like(x), nodes, plan),
        ("e3nn", lambda: _by_messages(plan, src, dst, nodes)),
    )


def _conv_radial(plan: eqk.Plan, edges: int, generator: Generator, hidden: int = 64) -> Problem:
    nodes = max(2, edges // 20)
    src, dst = _graph(edges, nodes, generator)
    x, _, _ = testing.random_operands(plan, nodes, FLOAT, generator)
    _, y, _ = testing.random_operands(plan, edges, FLOAT, generator)
    h = _normal(generator, edges, hidden)
    a = torch.randn(hidden, plan.weight_numel, generator=generator) / hidden**0.5

    def peer() -> Callable[..., Tensor]:
        by_messages = _by_messages(plan, src, dst, nodes)
        return lambda x, y, h, a: by_messages(x, y, h @ a)

    return Problem(
        [x, y, h, a],
        lambda x, y, h, a: eqk.tensor_product_conv_radial(x, y, h, a, src.like(x), dst.like(x), nodes, plan),
        lambda x, y, h, a: reference.tensor_product_conv(x, y, h @ a, src.like(x), dst.like(x), nodes, plan),
        ("e3nn", peer),
    )


def _spherical_harmonics(ls: Sequence[int], rows: int, generator: Generator) -> Problem:
    def peer() -> Callable[..., Tensor]:
        from e3nn import o3

        module = o3.SphericalHarmonics(list(ls), False, "component")
        return lambda x: module(x)

    return Problem(
        [torch.randn(rows, 3, generator=generator)],
        lambda x: spherical_harmonics(ls, x, False, "component"),
        lambda x: reference.spherical_harmonics(ls, x, "component"),
        ("e3nn", peer),
    )


def _symmetric_contraction(
    plan: eqk.SymmetricContractionPlan, nodes: int, generator: Generator, channels: int = 16
) -> Problem:
    x, w, species = testing.random_contraction_operands(plan, nodes, channels, 4, FLOAT, generator)
    of_node = _Index(species)
    return Problem(
        [x, w],
        lambda x, w: eqk.symmetric_contraction(x, w, of_node.like(x), plan),
        lambda x, w: reference.symmetric_contraction(x, w, of_node.like(x), plan),
    )


def _gaunt_product(plan: eqk.GauntPlan, rows: int, generator: Generator, weighted: bool = False) -> Problem:
    text = str(plan)
    return Problem(
        testing.random_gaunt_operands(plan, rows, (weighted,) * 3, FLOAT, generator),
        lambda *operands: dispatched_gaunt_product(*operands, text),
        lambda *operands: reference.gaunt_product(*operands, plan),
    )


def _rotate(lmax: int, mmax: int, channels: int, back: bool, edges: int, generator: Generator) -> Problem:
    nodes = max(2, edges // 20)
    components, rows = (lmax + 1) ** 2, len(eqk.m_primary(lmax, mmax))
    d = torch.randn(edges, len(places(lmax, mmax)[0]), generator=generator)
    if back:
        index = _Index(torch.randint(max(1, nodes - 1), (1, edges), generator=generator))
        z, w = _normal(generator, edges, rows, channels), _normal(generator, edges, 1, 1)
        return Problem(
            [z, d, w],
            lambda z, d, w: eqk.rotate_back(z, d, lmax, mmax, index.like(z), nodes, w),
            lambda z, d, w: reference.rotate(None, d, w, z, index.like(z), nodes, 0, 0, lmax, mmax, False, 0),
        )
    index = _Index(torch.randint(nodes, (2, edges), generator=generator))
    groups = max(groups_of_rows(lmax, mmax, sum(lmax + 1 - m for m in range(mmax + 1)))) + 1
    x, w = _normal(generator, nodes, components, channels), _normal(generator, edges, groups, 2 * channels)
    return Problem(
        [x, d, w],
        lambda x, d, w: eqk.rotate(x, d, lmax, mmax, index.like(x), w),
        lambda x, d, w: reference.rotate(x, d, w, None, index.like(x), 0, 0, 0, lmax, mmax, False, 3),
    )


def _s2_activation(plan: eqk.S2ActivationPlan, rows: int, generator: Generator, times: int = 0) -> Problem:
    text = str(plan)
    return Problem(
        [_normal(generator, rows, plan.dims[0]) for _ in range(1 + times)],
        lambda x, *factors: dispatched_s2_activation(x, text, factors),
        lambda x, *factors: reference.s2_activation(x, plan, factors),
    )


def _layers(plan: MessagePlan, generator: Generator) -> list[list[Tensor]]:
    return [
        [torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for shape in sizes.shapes()]
        for sizes in plan.convolutions
    ]


def _so2_edge_message(
    degrees: tuple[int, int], channels: int, hidden: int, activation: str, edges: int, generator: Generator
) -> Problem:
    (lmax, mmax), nodes, features = degrees, max(2, edges // 20), 16
    res, text = None, ""
    if activation != "gate":
        res = 3 * lmax // 2 + 1, 3 * mmax + 1
        function = "silu" if activation == "s2" else "identity"
        grid = res, "gausslegendre", "component"
        text = str(eqk.S2ActivationPlan.normalized(lmax, lmax, hidden, function, *grid, mmax=mmax, order="m_primary"))
    plan = MessagePlan(lmax, mmax, 2 * channels, hidden, channels, activation, False, False, text)
    conv1, conv2 = _layers(plan, generator)
    index = _Index(torch.randint(nodes, (2, edges), generator=generator))
    x, q = _normal(generator, nodes, (lmax + 1) ** 2, channels), torch.randn(edges, 4, generator=generator)
    h, w = torch.randn(edges, features, generator=generator), torch.randn(edges, 1, generator=generator)
    a = torch.randn(features, plan.weights[1], generator=generator) / features**0.5
    cut = len(conv1)

    def run(x, q, h, a, w, *layers):
        return eqk.so2_edge_message(
            x, q, index.like(x), layers[:cut], layers[cut:], lmax, mmax, h=h, a=a, w=w, activation=activation, res=res
        )

    def truth(x, q, h, a, w, *layers):
        return reference.so2_edge_message(x, q, h, a, w, layers[:cut], layers[cut:], index.like(x), plan)

    return Problem([x, q, h, a, w, *conv1, *conv2], run, truth)


def _so2_edge_scalars(lmax: int, channels: int, scalars: int, edges: int, generator: Generator) -> Problem:
    nodes, features = max(2, edges // 20), 16
    index = _Index(torch.randint(nodes, (2, edges), generator=generator))
    x, q = _normal(generator, nodes, (lmax + 1) ** 2, channels), torch.randn(edges, 4, generator=generator)
    columns = (lmax + 1) * 2 * channels
    h, a = (torch.randn(n, m, generator=generator) / m**0.5 for n, m in ((edges, features), (features, columns)))
    weight = torch.randn(scalars, columns, generator=generator) / columns**0.5

    def truth(x, q, h, a, weight):
        return reference.so2_edge_scalars(x, reference.wigner(q, lmax, 0), h, a, weight, index.like(x), lmax)

    return Problem(
        [x, q, h, a, weight],
        lambda x, q, h, a, weight: eqk.so2_edge_scalars(x, q, index.like(x), weight, lmax, h=h, a=a),
        truth,
    )


def _wigner(lmax: int, mmax: int, rows: int, generator: Generator) -> Problem:
    return Problem(
        [torch.randn(rows, 4, generator=generator)],
        lambda q: eqk.wigner(q, lmax, mmax),
        lambda q: reference.wigner(q, lmax, mmax),
    )


def _parts(make: Callable, arguments: dict[str, tuple]) -> tuple:
    return tuple((label, functools.partial(make, *args)) for label, args in arguments.items())


def _one(op: str, name: str, make: Callable, *args, **options) -> Case:
    return Case(op, name, ((name, functools.partial(make, *args)),), **options)


# Every mode, each kind of weights, mixed layouts, channels around the lanes of a vector, degrees that are not unrolled.
_SMALL_PLANS = (
    *("uvw-shared", "uvu-per_sample", "uvv-per_sample", "uuw-none", "uuu-shared", "uvuv-per_sample", "uvu<v-shared"),
    *("u<vw-per_sample", "mixed-mul_ir-ir_mul-mul_ir-shared", "mixed-ir_mul-mul_ir-ir_mul-per_sample"),
    *("depthwise-1", "depthwise-7", "depthwise-33", "connected-17", "repeated-unsorted-outputs", "even-parity"),
    *("zero-multiplicity", "matrix-product", "degree-6", "degree-8"),
)
_CONV_PLANS = ("depthwise-7", "depthwise-33", "even-parity", "mixed-mul_ir-ir_mul-mul_ir-shared")


def _cases() -> list[Case]:
    plans = {name: case.plan for name, case in testing.CASES.items()}
    published = [case.name for case in testing.CASES.values() if case.problem]
    timed = {"mace-medium", "mace-large", "nequip-benzene", "sevennet-l3i5"}
    rows_of_plan = (1, 5, 5, 17, 5, 5, 3, 5, 9, 5, 33, 65, 17, 7, 5, 5, 5, 5, 5, 5)
    cases = [
        _one("tensor_product", name, _tensor_product, plans[name], rows=40, bench_rows=500 if name in timed else None)
        for name in published
    ]
    small = {name: (plans[name],) for name in _SMALL_PLANS}
    cases.append(Case("tensor_product", "small plans", _parts(_tensor_product, small), rows_of_plan, dtypes=ALL_DTYPES))
    with_e3nn = {name: (plans[name],) for name in ("mace-medium", "nequip-water", "allegro-l2", "diffdock")}
    cases.append(Case("tensor_product", "e3nn's own", _parts(_against_e3nn, with_e3nn), dtypes=(DOUBLE,), needs="e3nn"))

    for op, make in (("tensor_product_conv", _conv), ("tensor_product_conv_radial", _conv_radial)):
        for name in ("mace-medium", "mace-large", "nequip-benzene", "sevennet-l3i5"):
            rows = 500 if name in ("mace-medium", "mace-large") else None
            cases.append(_one(op, name, make, plans[name], rows=100, bench_rows=rows))
        some = _CONV_PLANS if op == "tensor_product_conv" else _CONV_PLANS[:3]
        parts = _parts(make, {name: (plans[name],) for name in some})
        cases.append(Case(op, "small plans", parts, (300, 70, 41, 33)[: len(parts)], dtypes=ALL_DTYPES))

    harmonics = {"0 to 3": (range(4),), "0 to 6": (range(7),), "12, 1, 1, 5": ((12, 1, 1, 5),)}
    cases += [
        _one("spherical_harmonics", "degrees 0 to 3", _spherical_harmonics, range(4), rows=50, bench_rows=20_000),
        Case(
            "spherical_harmonics",
            "small sizes",
            _parts(_spherical_harmonics, harmonics),
            (1, 17, 33),
            dtypes=ALL_DTYPES,
        ),
    ]

    contractions = testing.CONTRACTIONS
    for name in ("mace-medium", "mace-large"):
        cases.append(
            _one("symmetric_contraction", name, _symmetric_contraction, contractions[name], rows=40, bench_rows=32)
        )
    some = {name: (plan,) for name, plan in contractions.items() if not name.startswith("mace")}
    parts = _parts(functools.partial(_symmetric_contraction, channels=5), some)
    cases.append(Case("symmetric_contraction", "small plans", parts, 7, dtypes=(DOUBLE, FLOAT)))

    for kind in ("even", "all"):
        for lmax in (2, 4, 6):
            plan = eqk.GauntPlan.normalized(lmax, lmax, lmax, 128, 128, kind)
            timed_rows = 40 if lmax == 4 or kind == "even" else None
            cases.append(
                _one("gaunt_product", f"{kind}, degrees to {lmax}", _gaunt_product, plan, bench_rows=timed_rows)
            )
    parts = _parts(
        functools.partial(_gaunt_product, weighted=True), {name: (plan,) for name, plan in testing.GAUNTS.items()}
    )
    cases.append(Case("gaunt_product", "small plans", parts, 7, dtypes=(DOUBLE, FLOAT)))

    for back in (False, True):
        for lmax in (2, 6):
            name, rows = f"{'back' if back else 'to edges'}, {lmax} 2", 500 if lmax == 6 else None
            cases.append(_one("rotate", name, _rotate, lmax, 2, 128, back, rows=24, bench_rows=rows))
    some = {"3 2": (3, 2, 5, False), "3 1 back": (3, 1, 17, True), "0 0": (0, 0, 3, False), "8 4": (8, 4, 2, True)}
    cases.append(Case("rotate", "small sizes", _parts(_rotate, some), 41, dtypes=ALL_DTYPES))

    s2 = eqk.S2ActivationPlan.normalized
    cases += [
        _one("s2_activation", "silu, 6, 18x18", _s2_activation, s2(6, 6, 128, "silu", (18, 18)), bench_rows=100),
        _one("s2_activation", "silu, 4, 7x13", _s2_activation, s2(4, 4, 128, "silu", (7, 13)), bench_rows=100),
        _one("s2_activation", "swiglu, 6 2, 10x7", functools.partial(_s2_activation, times=1),
             s2(6, 6, 64, "silu", (10, 7), mmax=2, order="m_primary")),
    ]  # fmt: skip
    some = {
        "tanh 2 to 3": (s2(2, 3, 5, "tanh", (5, 9), layout_in="mul_ir"),),
        "gelu 1 to 12": (s2(1, 12, 3, "gelu", (8, 14)),),
        "sigmoid 3": (s2(3, 3, 17, "sigmoid", (8, 8), "soft"),),
        "quartic 0": (s2(0, 0, 3, "quartic", (1, 1)),),
        "softplus 4 1": (s2(4, 4, 1, "softplus", (5, 4), mmax=1),),
    }
    cases.append(Case("s2_activation", "small sizes", _parts(_s2_activation, some), 9, dtypes=(DOUBLE, FLOAT)))

    message = _so2_edge_message
    cases += [
        _one("so2_edge_message", "uma-s", message, (2, 2), 128, 128, "gate", rows=24, bench_rows=300),
        _one("so2_edge_message", "esen, 4 2", message, (4, 2), 64, 64, "gate", rows=24),
        _one("so2_edge_message", "equiformer-v3, 6 2", message, (6, 2), 64, 32, "swiglu_s2", rows=24, bench_rows=100),
    ]
    some = {
        "gate 3 2": ((3, 2), 5, 7, "gate"),
        "s2 2 1": ((2, 1), 3, 4, "s2"),
        "swiglu 2 2": ((2, 2), 2, 3, "swiglu_s2"),
        "gate 1 0": ((1, 0), 1, 1, "gate"),
    }
    cases.append(Case("so2_edge_message", "small sizes", _parts(message, some), 41, dtypes=(DOUBLE, FLOAT)))

    scalars = _so2_edge_scalars
    cases += [
        _one("so2_edge_scalars", "equiformer-v2, 6", scalars, 6, 64, 64, rows=24, bench_rows=500),
        Case(
            "so2_edge_scalars",
            "small sizes",
            _parts(scalars, {"3": (3, 5, 2), "0": (0, 1, 1)}),
            41,
            dtypes=(DOUBLE, FLOAT),
        ),
    ]

    cases += [
        _one("wigner", "6 2", _wigner, 6, 2, rows=50, bench_rows=1000),
        Case(
            "wigner",
            "small sizes",
            _parts(_wigner, {"2 2": (2, 2), "4 1": (4, 1), "8 8": (8, 8)}),
            (1, 17, 3),
            dtypes=(DOUBLE, FLOAT),
        ),
    ]
    return cases


@functools.cache
def all_cases() -> tuple[Case, ...]:
    return tuple(_cases())
