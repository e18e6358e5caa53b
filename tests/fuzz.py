"""Random mutations of valid calls: each must raise an error that names the argument, or give the right numbers.

python fuzz.py [COUNT]; the seed is EQK_SEED. Runs under AddressSanitizer too, hence in a process of its own.
"""

import collections
import re
import sys

import torch

import eqk
from eqk import reference, testing
from eqk._signals import count
from eqk.reference.s2_activation import FUNCTIONS, dense, merge, split
from eqk.so2_edge_message import ACTIVATIONS
from eqk.so2_edge_message import Plan as MessagePlan
from eqk.wigner import columns as wigner_columns

OPS = torch.ops.eqk
NAMES = ("x", "y", "w", "g", "tangent of x", "tangent of y", "tangent of w", "tangent of g")
NAMED = re.compile(
    r"\b[ha]: |\b(x|y|w|g|tangent (\d )?of [xywhag]|t[xywhag]|plan|species|path \d+|wanted|weights|layout_\w+|irreps_\w+|instruction \d+|src|dst|by_dst|by_src|num_dst|[abc]|tangent of [abc]|v\d|kinds)\b['`]?[:,]?|argument '\w+'|^Could not run 'eqk::"
)
NAMED_OF_ROTATION = re.compile(
    r"^eqk::(rotate|wigner(_backward)?): (x|D|weights|z|[qg]|index(\[\d\])?|num_nodes|groups, columns|[lm]max|missing): "
    r"|argument '\w+'|^Could not run 'eqk::|out of memory: could not allocate a result of shape"
)
MESSAGE_NAMES = ("x", "q", "h", "a", "w", "conv1", "conv2", "g", "y", "s", "message", "index")
NAMED_OF_MESSAGE = re.compile(
    rf"^eqk::so2_edge_message(_backward)?: ({'|'.join(MESSAGE_NAMES)}|wanted)(\[\d\])?: "
    r"|plan: expected|argument '\w+'|^Could not run 'eqk::|out of memory: could not allocate a result of shape"
)
DTYPES = (
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
)
FLOATS = torch.float32, torch.float32, torch.float64, torch.bfloat16  # the commonest twice
_ALPHABET = "0123456789 xeo+-*>[],;{}.uvw<_mulirshadnpeclf\x00\n\té"


def mutate_plan(text, rng):
    if not text:
        return "*"
    kind = rng.randrange(8)
    at = rng.randrange(len(text) + 1)
    if kind == 0:
        return text[:at]
    if kind == 1:
        return text[:at] + text[at + 1 + rng.randrange(4) :]
    if kind == 2:
        return text[:at] + rng.choice(_ALPHABET) + text[at:]
    if kind == 3:
        return text[:at] + rng.choice(_ALPHABET) + text[at + 1 :]
    if kind == 4:
        other = rng.randrange(len(text))
        return text[:at] + text[min(at, other) : max(at, other)] + text[at:]
    if kind == 5:
        numbers = list(re.finditer(r"\d+", text))
        if not numbers:
            return text
        number = rng.choice(numbers)
        value = rng.choice(
            ("0", "1", "2", "7", "21", "4294967296", "9223372036854775807", "99999999999999999999999", "1e999", "nan")
        )
        return text[: number.start()] + value + text[number.end() :]
    if kind == 6:
        old = rng.choice(("mul_ir", "shared", "per_sample", " w ", " - ", "uvu", "uvw", "e", "o", "+"))
        new = rng.choice(("ir_mul", "none", "shared", "per_sample", " - ", " w ", "uuu", "uvv", "u<vw", "o", "e", ""))
        return text.replace(old, new, rng.choice((1, -1)))
    return rng.choice(
        (
            "",
            " ",
            "{}",
            "->",
            text * 2,
            text + " ",
            " " + text,
            text + "x",
            text.upper(),
            "\x00",
            "- * - -> - [mul_ir,mul_ir,mul_ir] none {}",
        )
    )


def mutate_wanted(wanted, rng):
    return rng.choice(([], wanted[:-1], [*wanted, True], [True] * 9))


def mutate_tensor(t, rng, generator):
    """The mutated tensor; its numbers are still right to compute with wherever its form is."""
    if t is None:
        return rng.choice((torch.ones(3, 4), torch.ones(0), torch.ones(0, 3), torch.tensor(1.0)))
    if t.device.type == "meta" or t.layout != torch.strided or t.dim() == 0:
        return t
    kind = rng.randrange(16)
    if kind == 0:
        return None
    if kind == 1:
        return t[1:]
    if kind == 2:
        return torch.cat([t, t[:1]])
    if kind == 3:
        return t[..., :-1]
    if kind == 4:
        return torch.cat([t, t[..., :1]], -1) if t.shape[-1] else t.new_ones(*t.shape[:-1], 1)
    if kind == 5:
        return t.unsqueeze(rng.randrange(t.dim() + 1))
    if kind == 6:
        return t.flatten()
    if kind == 7:
        return t.T if t.dim() == 2 else t[:0]
    if kind == 8:
        return t.to(rng.choice(DTYPES))
    if kind == 9:
        return t.to("meta")
    if kind == 10 and t.numel():
        t = t.clone()
        index = rng.randrange(t.numel())
        t.view(-1)[index] = rng.choice((float("nan"), float("inf"), -float("inf"), 1e38, 0.0))
        return t
    if kind == 11:
        wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1] + 3), 7.0)
        wide[..., 2 : 2 * t.shape[-1] + 2 : 2] = t
        return wide[..., 2 : 2 * t.shape[-1] + 2 : 2]
    if kind == 12:
        wide = t.new_full((*t.shape[:-1], t.shape[-1] + 5), 7.0)
        wide[..., 3 : t.shape[-1] + 3] = t
        return wide[..., 3 : t.shape[-1] + 3]
    if kind == 13 and t.dim() == 2:
        return t[:1].expand(t.shape)
    if kind == 14 and t.dim() == 2 and t.numel():
        return t.as_strided(t.shape, (rng.randrange(2), rng.randrange(2)))
    return rng.choice(
        (torch.tensor(1.0), t.tolist(), 3.0, "x", t.to_sparse(), torch.ones(0), t.new_empty(0, 0), t.requires_grad_())
    )


def with_another(index, size, rng):
    """One of the indices is another below ``size``, or none."""
    index = index.contiguous().clone()
    index.view(-1)[rng.randrange(index.numel())] = rng.choice((-1, size, 2**31 - 1, -(2**31), 2**40, 0))
    return index


def mutate_index(t, rng, generator, size):
    """Of a tensor of indices below ``size``."""
    kind = rng.randrange(6)
    if kind == 0 and t.numel():
        return with_another(t, size, rng)
    if kind == 1:
        return t[torch.randperm(t.numel(), generator=generator)]
    if kind == 2:
        return t.int()
    if kind == 3:
        return torch.stack([t, t], 1)[:, 0]
    return mutate_tensor(t, rng, generator)


def gradient(scalar, slots, create_graph=False):
    """To each slot, of shape (0,) where there is none."""
    present = [s for s in slots if s is not None]
    if not scalar.requires_grad:
        found = iter([torch.zeros_like(s) for s in present])
    else:
        found = iter(torch.autograd.grad(scalar, present, create_graph=create_graph, materialize_grads=True))
    return [torch.zeros(0) if s is None else next(found) for s in slots]


def truth(op, v, t, text, wanted, graph=None, radial=False):
    """The results of the op by autograd through the dense reference, in float64; of the convolution on a ``graph``,
    with weights h a where ``v`` has h and a in place of w.

    A tangent of None is one of zeros, by which an infinite operand gives NaN.
    """
    plan = eqk.Plan.parse(text)
    weighted = plan.weights != "none"
    v = [
        None if a is None or (n == 2 and not weighted) else a.detach().double().requires_grad_()
        for n, a in enumerate(v)
    ]
    t = [
        None if b is None else torch.zeros_like(b) if a is None else a.detach().double()
        for a, b in zip(t, v, strict=False)
    ]

    operands = 3 + radial
    if graph is None:
        out = reference.tensor_product(*v[:3], plan)
    else:
        w = v[2] @ v[3] if radial else v[2]
        out = reference.tensor_product_conv(*v[:2], w, *graph, plan)
    if op == "":
        return [out.detach()]
    if op == "_jvp":
        c = torch.zeros_like(out, requires_grad=True)
        first = gradient((out * c).sum(), v[:operands], True)
        return gradient(sum((a * b).sum() for a, b in zip(first, t, strict=False) if b is not None) + 0 * c.sum(), [c])
    scalar = (out * v[operands]).sum()
    if op == "_backward":
        results = gradient(scalar, v[:operands])
    else:
        first = gradient(scalar, v, True)
        terms = [(a * b).sum() for a, b in zip(first, t, strict=True) if b is not None]
        results = gradient(sum(terms, scalar * 0), v)
    return [r if w else torch.zeros(0) for r, w in zip(results, wanted, strict=True)]


def right(got, expected):
    """Whether the numbers agree where the dense reference, which multiplies NaN and infinity by zeros too, is finite."""
    if got.device.type == "meta":
        return got.shape == expected.shape
    if got.shape != expected.shape:
        return False
    finite = expected.isfinite()
    if expected.dtype != got.dtype:
        finite &= expected.abs() < torch.finfo(got.dtype).max / 1e3
    if not finite.any():
        return True
    got, expected = got[finite].double(), expected[finite].double()
    largest = expected.abs().max()
    return bool(((got - expected).abs() <= 1e-2 * largest).all()) or largest > 1e30


def forms(arguments):
    return [tuple(a.shape) if isinstance(a, torch.Tensor) else a for a in arguments]


ERRORS = RuntimeError, ValueError, TypeError


def refused(error, what, names=NAMED):
    named = names.search(str(error))
    return "refused", None if named else f"{what}: the error names no argument: {type(error).__name__}: {error}"


MEMBERS = ("", "_jvp", "_backward", "_double_backward", "public")


def one_call(cases, rng, generator):
    """How a mutated call went, and None or a description of what is wrong."""
    case = rng.choice(cases)
    plan, edges = case.plan, rng.choice((0, 1, 2, 5, 33))
    convolution = rng.random() < 0.4
    radial = convolution and plan.weights == "per_sample" and all(i.has_weight for i in plan.instructions)
    radial = radial and rng.random() < 0.5
    operands = 3 + radial
    num_src, num_dst = (rng.randint(1, 5), rng.randint(1, 5)) if convolution else (edges, edges)
    dtype = rng.choice(FLOATS)

    def slots():
        x, y, w = testing.random_operands(plan, edges, dtype, generator)
        if convolution:
            x = testing.random_operands(plan, num_src, dtype, generator)[0]
        weights = [w]
        if radial:
            shapes = (edges, hidden), (hidden, plan.weight_numel)
            weights = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        return [x, y, *weights, torch.randn(num_dst, plan.irreps_out.dim, generator=generator).to(dtype)]

    hidden = rng.randint(1, 4)
    v, t, text, member = slots(), slots(), str(plan), rng.choice(MEMBERS)
    wanted = [rng.random() < 0.7 for _ in range(operands + (member == "_double_backward"))]
    values = v[:operands]
    tensors = {"": values, "public": values, "_jvp": values + t[:operands], "_backward": v}.get(member, v + t)
    tensors, graph, orders = list(tensors), [], []
    if convolution:
        graph = [torch.randint(n, (edges,), generator=generator) for n in (num_src, num_dst)]
        orders = [i.argsort(stable=True) if rng.random() < 0.5 else None for i in reversed(graph)]
        graph.append(num_dst)
    mutation = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        if rng.random() < 0.3:
            text = mutate_plan(text, rng)
            mutation.append("plan")
        elif rng.random() < 0.1 and "backward" in member:
            wanted = mutate_wanted(wanted, rng)
            mutation.append("wanted")
        else:
            if convolution and rng.random() < 0.4:
                which, n = rng.choice((("graph", 0), ("graph", 1), ("graph", 2), ("orders", 0), ("orders", 1)))
            else:
                which, n = "tensors", rng.randrange(len(tensors))
            group = {"tensors": tensors, "graph": graph, "orders": orders}[which]
            try:
                if group is tensors:
                    given = isinstance(tensors[n], torch.Tensor) or tensors[n] is None
                    tensors[n] = mutate_tensor(tensors[n], rng, generator) if given else None
                elif isinstance(group[n], int):
                    group[n] = rng.choice((0, -1, group[n] + 1, 2**62))
                elif isinstance(group[n], torch.Tensor) and group[n].dtype == torch.int64:
                    below = (num_src, num_dst)[n] if group is graph else edges
                    group[n] = mutate_index(group[n], rng, generator, below)
            except (
                RuntimeError,
                ValueError,
            ):  # no such mutation: a huge value in an integer tensor, a range of nothing
                continue
            mutation.append((which, n))
    bias = [None] if radial and member == "public" else []
    args = [*tensors, *graph, text, *bias, *orders, *([wanted] if "backward" in member else [])]
    name = "tensor_product" + "_conv" * convolution + "_radial" * radial
    what = f"{name}{member} {mutation} {forms(args)}"
    try:
        result = (getattr(eqk, name) if member == "public" else getattr(OPS, name + member))(*args)
    except ERRORS as error:
        return refused(error, what)
    results = [result] if isinstance(result, torch.Tensor) else list(result)
    if member == "public" and not convolution:
        leading = torch.broadcast_shapes(
            *[a.shape[:-1] for a in tensors[: 3 if eqk.Plan.parse(text).weights == "per_sample" else 2]]
        )
        tensors[:2] = [a.expand(*leading, a.shape[-1]).reshape(leading.numel(), a.shape[-1]) for a in tensors[:2]]
        if eqk.Plan.parse(text).weights == "per_sample":
            tensors[2] = (
                tensors[2].expand(*leading, tensors[2].shape[-1]).reshape(leading.numel(), tensors[2].shape[-1])
            )
        results = [r.reshape(leading.numel(), r.shape[-1]) for r in results]
    member = "" if member == "public" else member
    if all(r.device.type == "meta" for r in results):
        return "accepted", None
    values = tensors[: operands + ("backward" in member)]
    expected = truth(member, values, tensors[len(values) :], text, wanted, graph or None, radial)
    ok = all(right(a, b) for a, b in zip(results, expected, strict=True))
    return "accepted", None if ok else f"{what}: wrong numbers"


def contraction_truth(slots, tangents, species, text, wanted):
    """As :func:`truth`, of the symmetric contraction."""
    slots = [s.detach().double().requires_grad_() for s in slots]
    out = reference.symmetric_contraction(*slots[:2], species, text)
    scalar = (out * slots[2]).sum()
    for n in range(len(tangents) + 1):
        found = [torch.zeros_like(s) for s in slots]
        if scalar.requires_grad:
            found = torch.autograd.grad(scalar, slots, create_graph=True, materialize_grads=True)
        if n < len(tangents):
            terms = [(a * b.double()).sum() for a, b in zip(found, tangents[n], strict=True) if b is not None]
            scalar = sum(terms, torch.zeros(()))
    return [r.detach() if w else torch.zeros(0) for r, w in zip(found, wanted, strict=True)]


def one_contraction(rng, generator):
    """As :func:`one_call`, of the symmetric contraction and its derivatives."""
    plan = rng.choice([p for name, p in testing.CONTRACTIONS.items() if not name.startswith("mace")])
    nodes, channels = rng.choice((0, 1, 2, 5, 9)), rng.choice((1, 3, 9))
    num_species, text, species = rng.choice((None, 1, 3)), str(plan), None
    dtype = rng.choice(FLOATS)
    groups, mutation = [], []
    for _ in range(rng.choice((1, 1, 2, 3))):
        x, w, index = testing.random_contraction_operands(plan, nodes, channels, num_species, dtype, generator)
        g = torch.randn(nodes, channels * plan.irreps_out.dim, generator=generator).to(dtype)
        groups.append([t / t.abs().max() if t.numel() else t for t in (x, w, g)])
        species = index if len(groups) == 1 else species
    public, wanted = rng.random() < 0.3, [rng.random() < 0.7 for _ in range(3)]
    groups = groups[:1] if public else groups
    for _ in range(rng.choice((1, 1, 1, 2))):
        kind = rng.random()
        if kind < 0.3:
            text = mutate_plan(text, rng)
            mutation.append("plan")
        elif kind < 0.4:
            wanted = mutate_wanted(wanted, rng)
            mutation.append("wanted")
        else:
            n, slot = rng.randrange(len(groups)), rng.randrange(2 if public else 3)
            try:
                if kind < 0.5 and isinstance(species, torch.Tensor) and species.dtype == torch.int64:
                    species, slot = mutate_index(species, rng, generator, num_species), "species"
                elif isinstance(groups[n][slot], torch.Tensor):
                    groups[n][slot] = mutate_tensor(groups[n][slot], rng, generator)
            except (RuntimeError, ValueError, IndexError):  # no such mutation, as in one_call
                continue
            mutation.append((n, slot))
    flat = [t for group in groups for t in group]
    what = f"symmetric_contraction {mutation} {forms((*flat, species))} {text} {wanted}"
    try:
        if public:
            results, wanted = [eqk.symmetric_contraction(*groups[0][:2], species, text)], [False, False, True]
        else:
            padding = [None] * (18 - len(flat))
            results = OPS.symmetric_contraction_derivative(*flat, *padding, species, text, wanted)
    except ERRORS as error:
        return refused(error, what)
    if any(r.device.type == "meta" for r in results):
        return "accepted", None
    parsed = eqk.SymmetricContractionPlan.parse(text)
    if public or groups[0][2] is None:  # the reference wants a cotangent, of which the value does not depend
        zeros = reference.symmetric_contraction(*[t.detach().double() for t in groups[0][:2]], species, text) * 0
        groups[0][2] = zeros.nan_to_num(0)
    while len(groups) > 1 and all(t is None for t in groups[-1]):
        groups.pop()
    sizes = [float(t.detach().double().abs().max()) for group in groups for t in group if t is not None and t.numel()]
    if not all(size <= 1 for size in sizes):  # duals multiply such numbers by tangents that are zero, too
        return "accepted", None
    expected = contraction_truth(groups[0], groups[1:], species, text, wanted)
    # What antisymmetric couplings of equal arguments leave in the reference, and nowhere else.
    coefficients = [abs(c.coefficient) for path in parsed.paths for c in path.chains]
    noise = 1e-13 * max(coefficients, default=0)
    ok = all(
        right(a, b) or bool(((a.double() - b).abs() <= noise).all())
        for a, b in zip(results[-len(expected) :], expected[-len(results) :], strict=True)
    )
    return "accepted", None if ok else f"{what}: wrong numbers"


def mutate_one(tensors, rng, generator):
    """Mutates one of them in place; [its index], or none where there is no such mutation, as in one_call."""
    n = rng.randrange(len(tensors))
    try:
        tensors[n] = mutate_tensor(tensors[n], rng, generator) if isinstance(tensors[n], torch.Tensor) else None
    except (RuntimeError, ValueError, IndexError):
        return []
    return [n]


def gaunt_truth(member, v, t, text, wanted):
    """As :func:`truth`, of products of signals."""
    v = [None if a is None else a.detach().double().requires_grad_() for a in v]
    t = [None if a is None or b is None else a.detach().double() for a, b in zip(t, v, strict=False)]
    out = reference.gaunt_product(*v[:5], text)
    if member == "":
        return [out.detach()]

    g = torch.zeros_like(out, requires_grad=True) if member == "_jvp" else v[5]
    slots = [*v[:5], g]
    first = gradient((out * g).sum(), slots, create_graph=True)
    if member == "_backward":
        results = [r.detach() for r in first[:5]]
    else:
        terms = [(a * b).sum() for a, b in zip(first, t, strict=False) if b is not None]
        results = gradient(sum(terms, (out * g).sum() * 0), slots)
    return (
        results[5:] if member == "_jvp" else [r if w else torch.zeros(0) for r, w in zip(results, wanted, strict=False)]
    )


def one_gaunt(rng, generator):
    """As :func:`one_call`, of products of signals."""
    plan, rows, member = testing.random_gaunt_plan(rng, 3), rng.choice((0, 1, 2, 17)), rng.choice(MEMBERS[:-1])
    dtype = rng.choice(FLOATS)
    weighted = [rng.random() < 0.5 for _ in range(3)]

    def slots():
        operands = testing.random_gaunt_operands(plan, rows, weighted, dtype, generator)
        return [*operands, torch.randn(rows, plan.dims[2], generator=generator).to(dtype)]

    v, t, text = slots(), slots(), str(plan)
    wanted = [rng.random() < 0.7 for _ in range(5 + (member == "_double_backward"))]
    tensors = {"": v[:5], "_jvp": v[:5] + t[:5], "_backward": v}.get(member, v + t)
    mutation = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        if rng.random() < 0.3:
            text = mutate_plan(text, rng)
            mutation.append("plan")
        elif rng.random() < 0.1 and "backward" in member:
            wanted = mutate_wanted(wanted, rng)
            mutation.append("wanted")
        else:
            mutation += mutate_one(tensors, rng, generator)
    what = f"gaunt_product{member} {mutation} {forms(tensors)} {text} {wanted}"
    try:
        result = getattr(OPS, f"gaunt_product{member}")(*tensors, text, *([wanted] if "backward" in member else []))
    except ERRORS as error:
        return refused(error, what)
    results = [result] if isinstance(result, torch.Tensor) else list(result)
    if any(r.device.type == "meta" for r in results):
        return "accepted", None
    count = 5 + ("backward" in member)
    sizes = [float(t.detach().double().abs().max()) for t in tensors if t is not None and t.numel()]
    if not all(
        size < 1e3 for size in sizes
    ):  # on the rings all degrees of a signal meet, those that are not finite too
        return "accepted", None
    parsed = eqk.GauntPlan.parse(text)
    factors = [abs(f) for f in (parsed.even, parsed.odd, *parsed.scale1, *parsed.scale2, *parsed.scale_out) if f]
    if factors and max(factors) > 1e3 * min(factors):  # likewise
        return "accepted", None
    expected = gaunt_truth(member, tensors[:count], tensors[count:], text, wanted)
    ok = all(right(a, b) for a, b in zip(results, expected, strict=True))
    return "accepted", None if ok else f"{what}: wrong numbers"


def s2_activation_truth(x, factors, text, kinds):
    """P[f^(k)(S x) (T_1 v_1) ... (T_n v_n)] by dense matrices."""
    plan = eqk.S2ActivationPlan.parse(text)
    matrices = dict(zip("xz", dense(plan, torch.float64, "cpu"), strict=True))
    sides = {"x": (plan.lmax_in, plan.layout_in), "z": (plan.lmax_out, plan.layout_out)}

    def on_grid(t, kind):
        lmax, layout = sides[kind]
        return torch.einsum(
            "pi,zic->zpc", matrices[kind], split(t.detach().double(), lmax, plan.channels, layout, plan.mmax)
        )

    leaf = on_grid(x, "x").requires_grad_()
    f = FUNCTIONS[plan.function](leaf)
    for _ in range(int(kinds[0])):
        f = torch.autograd.grad(f.sum(), leaf, create_graph=True, materialize_grads=True)[0]
        if not f.requires_grad:
            f = f + 0 * leaf
    f = f.detach()
    for v, kind in zip(factors, kinds[1:], strict=False):
        f = f * on_grid(v, kind)
    lmax, layout = sides[kinds[-1]]
    return merge(torch.einsum("pi,zpc->zic", matrices[kinds[-1]], f), lmax, layout)


def one_s2_activation(rng, generator):
    """As :func:`one_call`, of functions of signals."""
    plan, rows, count = testing.random_s2_activation(rng, 3), rng.choice((0, 1, 2, 17)), rng.randint(0, 4)
    dtype = rng.choice(FLOATS)
    letters = [rng.choice("xz") for _ in range(count + 1)]
    text, kinds = str(plan), f"{rng.randint(0, 4)}{''.join(letters[:-1])}>{letters[-1]}"
    tensors = [
        torch.randn(rows, plan.dims["xz".index(kind)], generator=generator).to(dtype) for kind in ["x", *letters[:-1]]
    ]
    mutation = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        kind = rng.random()
        if kind < 0.3:
            text = mutate_plan(text, rng)
            mutation.append("plan")
        elif kind < 0.4:
            kinds = rng.choice(
                ("", ">", kinds + "x", kinds[1:], kinds.upper(), "0xzxz>x", kinds.replace("x", "z"), "5>z")
            )
            mutation.append("kinds")
        else:
            mutation += mutate_one(tensors, rng, generator)
    padding = [None] * (5 - len(tensors))
    what = f"s2_activation {mutation} {forms(tensors)} {text} {kinds}"
    try:
        if len(tensors) == 1 and rng.random() < 0.5:
            result, kinds = OPS.s2_activation(tensors[0], text), "0>z"
        else:
            result = OPS.s2_activation_product(*tensors, *padding, text, kinds)
    except ERRORS as error:
        return refused(error, what)
    if result.device.type == "meta":
        return "accepted", None
    while tensors[-1] is None:
        tensors.pop()
    sizes = [float(t.detach().double().abs().max()) for t in tensors if t.numel()]
    parsed = eqk.S2ActivationPlan.parse(text)
    factors = [abs(f) for f in (parsed.gain, *parsed.scale_in, *parsed.scale_out)]
    kinked = parsed.function in ("relu", "abs")  # a value of zero on the grid may be one of either side
    if kinked or not all(size < 1e3 for size in (*sizes, *factors)):  # as of products of signals
        return "accepted", None
    expected = s2_activation_truth(tensors[0], tensors[1:], text, kinds)
    # A derivative of a function that tends to a constant is small beside the rounding errors of its argument.
    noise = 1e-2 if result.dtype == torch.bfloat16 else 1e-4
    ok = right(result, expected) or bool(((result.double() - expected).abs() <= noise).all())
    return "accepted", None if ok else f"{what}: wrong numbers"


def holds_numbers(index):
    return isinstance(index, torch.Tensor) and index.dtype == torch.int64 and index.is_cpu and index.numel() > 0


def one_rotation(rng, generator):
    """As :func:`one_call`, of eqk::rotate with any slot missing, and of eqk::wigner and its gradient."""
    lmax = rng.randint(0, 4)
    mmax, edges, nodes = rng.randint(0, lmax), rng.choice((0, 1, 2, 17)), rng.choice((1, 5))
    fan, c, rescale, missing = rng.choice((0, 1, 2)), rng.choice((1, 3, 8)), rng.random() < 0.5, rng.randrange(4)
    dtype = rng.choice(FLOATS)
    of_edge = max(1, fan) * c
    groups = rng.choice((1, lmax + 1, sum(lmax + 1 - m for m in range(mmax + 1))))
    columns = rng.choice((1, of_edge))
    shapes = [
        (nodes if fan else edges, (lmax + 1) ** 2, c),
        (edges, wigner_columns(lmax, mmax)),
        (edges, groups, columns),
        (edges, count(lmax, mmax), of_edge),
    ]
    operands = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    if missing != 2 and rng.random() < 0.3:
        operands[2] = None
    operands[missing] = None
    index = torch.randint(nodes, (fan, edges), generator=generator) if fan else None
    numbers = [shapes[0][0] if missing == 0 else 0, *((groups, columns) if missing == 2 else (0, 0)), lmax, mmax]
    name, mutation = rng.choices(("rotate", "wigner", "wigner_backward"), (8, 1, 1))[0], []
    if name != "rotate":
        widths = (4, shapes[1][1])[: 2 if name == "wigner_backward" else 1]
        operands = [torch.randn(edges, n, generator=generator).to(dtype) for n in widths]
    for _ in range(rng.choice((1, 1, 1, 2))):
        kind = rng.random()
        if kind < 0.3:
            n = rng.randrange(len(numbers))
            numbers[n] = rng.choice((-1, 0, 1, 2, 3, 21, 2**62, numbers[n] + 1))
            mutation.append(("num_nodes", "groups", "columns", "lmax", "mmax")[n])
        elif kind < 0.5 and index is not None:
            if rng.random() < 0.5 and holds_numbers(index):
                index = with_another(index, nodes, rng)
            else:
                several = [index]
                mutate_one(several, rng, generator)
                (index,) = several
            mutation.append("index")
        elif kind < 0.6:
            missing = rng.choice((-1, 0, 1, 2, 3, 4))
            mutation.append("missing")
        else:
            mutation += mutate_one(operands, rng, generator)
    what = f"{name} {mutation} {forms((*operands, index))} {numbers} {rescale} {missing}"
    try:
        rest = (index, *numbers, rescale, missing) if name == "rotate" else numbers[3:]
        result = getattr(OPS, name)(*operands, *rest)
    except ERRORS as error:
        return refused(error, what, NAMED_OF_ROTATION)
    tensors = [t.detach().double() if isinstance(t, torch.Tensor) else t for t in operands]
    if result.device.type == "meta" or any(not bool(t.abs().lt(1e3).all()) for t in tensors if t is not None):
        return "accepted", None
    if name == "wigner_backward":
        q, g = tensors
        unit = q.requires_grad_() / q.norm(dim=1, keepdim=True)  # without a gradient where q is zero, in degree 0 too
        (expected,) = torch.autograd.grad(reference.wigner(q, *rest) + 0 * unit.sum(1, keepdim=True), q, g)
    else:
        expected = getattr(reference, name)(*tensors, *rest)
    return "accepted", None if right(result, expected) else f"{what}: wrong numbers"


def message_truth(v, g, index, plan, wanted):
    """The message, or with g its gradients, of dense steps in float64."""
    leaves = [None if t is None else t.detach().double().requires_grad_() for t in v]
    layers = [sizes.unpack(flat) for sizes, flat in zip(plan.convolutions, leaves[5:], strict=True)]
    out = reference.so2_edge_message(*leaves[:5], *layers, index.long(), plan)
    if g is None:
        return [out.detach()]
    moving = [t for t, w in zip(leaves, wanted, strict=True) if w and t is not None]
    found = iter(torch.autograd.grad(out, moving, g.double(), materialize_grads=True) if moving else ())
    return [torch.zeros(0) if t is None or not w else next(found) for t, w in zip(leaves, wanted, strict=True)]


def one_message(rng, generator):
    """As :func:`one_call`, of eqk::so2_edge_message and its gradients."""
    lmax, edges, nodes = rng.randint(0, 3), rng.choice((0, 1, 2, 17, 200)), rng.choice((1, 5))
    mmax, sources, c, hidden, out = rng.randint(0, lmax), rng.randint(1, 2), *(rng.choice((1, 3, 8)) for _ in range(3))
    activation = rng.choice(ACTIVATIONS)
    grid = lmax, lmax, hidden, "silu" if activation == "s2" else "identity", (3 * lmax + 2, 3 * mmax + 1)
    s2 = "" if activation == "gate" else eqk.S2ActivationPlan.normalized(*grid, mmax=mmax, order="m_primary")
    rescale = rng.random() < 0.5
    plan = MessagePlan(lmax, mmax, sources * c, hidden, out, activation, rescale, False, str(s2))
    dtype, (first, second) = rng.choice(FLOATS), plan.convolutions
    weights = rng.choice((lmax + 1, sum(lmax + 1 - m for m in range(mmax + 1)))) * sources * c
    rows, has_last = count(lmax, mmax), rng.random() < 0.5
    shapes = [
        (nodes, (lmax + 1) ** 2, c), (edges, 4), (edges, 3 if has_last else weights), (3, weights), (edges, 1),
        (first.numel(),), (second.numel(),), (nodes, (lmax + 1) ** 2, out),
        (edges, rows, first.channels_out), (edges, first.extra), (edges, rows, out),
    ]  # fmt: skip
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    tensors.append(torch.randint(nodes, (rng.choice((2, 2, 3)), edges), generator=generator))
    if not has_last:
        tensors[3] = None
    for n in [(2, 3), (4,), ()][rng.randrange(3)]:
        tensors[n] = None
    is_backward, keep, text = rng.random() < 0.6, rng.random() < 0.5, str(plan)
    if not is_backward:
        tensors[7] = None
    elif keep:
        tensors[8:11] = OPS.so2_edge_message(*tensors[:7], tensors[11], text, True)[1:]
    if not (is_backward and keep):
        tensors[8:11] = [None] * 3
    wanted, mutation = [rng.random() < 0.7 for _ in range(7)], []
    for _ in range(rng.choice((0, 1, 1, 2))):
        kind = rng.random()
        if kind < 0.2:
            text = mutate_plan(text, rng)
            mutation.append("plan")
        elif kind < 0.3:
            wanted = mutate_wanted(wanted, rng)
            mutation.append("wanted")
        elif kind < 0.5 and holds_numbers(tensors[11]):
            tensors[11] = with_another(tensors[11], nodes, rng)
            mutation.append("index")
        else:
            mutation += [MESSAGE_NAMES[n] for n in mutate_one(tensors, rng, generator)]
    *v, g, y, s, message, index = tensors
    what = f"so2_edge_message {mutation} {forms(tensors)} {text} {keep} {wanted}"
    try:
        if is_backward:
            results = OPS.so2_edge_message_backward(*v, g, y, s, message, index, text, wanted)
        else:
            results = OPS.so2_edge_message(*v, index, text, keep)[:1]
    except ERRORS as error:
        return refused(error, what, NAMED_OF_MESSAGE)
    numbers = [t.detach().double() for t in tensors[:11] if t is not None]
    if results[0].device.type == "meta" or not all(bool(t.abs().lt(1e3).all()) for t in numbers):
        return "accepted", None
    # Kept results that are others' are taken at their word, and of 16 bits gradients may cancel to few digits. Python
    # reads no plan with spaces.
    if dtype == torch.bfloat16 or "plan" in mutation or (is_backward and mutation):
        return "accepted", None
    expected = message_truth(v, g, index, MessagePlan.parse(text), wanted)
    ok = all(right(a, b) for a, b in zip(results, expected, strict=True))
    return "accepted", None if ok else f"{what}: wrong numbers"


def run(calls):
    rng, generator = testing.generators("fuzz")
    cases = [case for case in testing.CASES.values() if not case.problem and not case.name.startswith("degree-")]
    outcomes, failures = collections.Counter(), []
    for _ in range(calls):
        draw = rng.random()
        if draw < 0.2:
            outcome, failure = one_contraction(rng, generator)
        elif draw < 0.4:
            outcome, failure = one_gaunt(rng, generator)
        elif draw < 0.55:
            outcome, failure = one_s2_activation(rng, generator)
        elif draw < 0.65:
            outcome, failure = one_rotation(rng, generator)
        elif draw < 0.75:
            outcome, failure = one_message(rng, generator)
        else:
            outcome, failure = one_call(cases, rng, generator)
        outcomes[outcome] += 1
        if failure:
            failures.append(failure)
    return outcomes, failures


if __name__ == "__main__":
    outcomes, failures = run(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    print(f"EQK_SEED={testing.seed()}", dict(outcomes), f"{len(failures)} failures", *failures[:20], sep="\n")
    sys.exit(bool(failures))
