"""Autograd, forward mode, vmap, autocast and fake kernels of multilinear ops and of polynomials, written once.

An op ``name(v_1, ..., v_n, *rest)`` that is linear in each v comes as a family of four (v may be None where the plan
has no such operand; ``rest``: the plan, and what else has no gradient, such as the indices of a graph):

    name(*v, *rest) -> out
    name_jvp(*v, *t, *rest) -> derivative of out along t
    name_backward(*v, g, *rest, wanted) -> d<g, out>/dv, for the wanted v
    name_double_backward(*v, g, *t, tg, *rest, wanted) -> derivative along (t, tg) of d<g, out>/d(v, g)

With Q(v, g) = <g, out>, name_backward is grad Q and name_double_backward is grad D_t Q. Since Q is linear in each slot,
D_c D_t Q = sum_s (D_t Q with slot s filled by c_s and t_s = 0), so the derivative of each member of the family is a sum
of members: differentiable to every order, with no further kernel.

A polynomial in its operands, such as the symmetric contraction, has a family of two (:class:`Polynomial`): the second
op is every gradient of D_t1 ... D_tk Q, and its derivatives are itself, with one tangent more or another one.

The formulas are registered to the Autograd dispatch key as a torch.autograd.Function. torch.library.register_autograd
would do for reverse mode alone: on its ops torch.func.jvp and forward_ad return zero silently and torch.func.grad
raises (torch 2.13). Called below the Python wrapper of ``apply``, the same Function serves torch.func at any nesting,
because functorch peels its levels through the dispatcher. ``apply`` switches gradient recording off while a forward
runs; the levels beneath need it as it was, on or off (each level's interpreter takes care of its own transform).
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

MaybeTensor = Tensor | None
_INDICES = object()  # stands for a tensor of ``rest``

_apply_function = torch._C._FunctionBase.__dict__["apply"]


def _apply(function: type[torch.autograd.Function], *args):
    with enable_single_level_autograd_function():
        return _apply_function.__get__(None, function)(*args)


class _State(threading.local):
    in_jvp_rule = False


_state = _State()


def jvp_rule(rule):
    """Marks the jvp of an autograd function: it runs where forward mode is on, which torch switches off within."""

    @functools.wraps(rule)
    def marked(*args):
        before, _state.in_jvp_rule = _state.in_jvp_rule, True
        try:
            return rule(*args)
        finally:
            _state.in_jvp_rule = before

    return marked


def _forward_mode() -> bool:
    """Whether the levels beneath are to see forward mode on."""
    return _state.in_jvp_rule or torch._C._is_fwd_grad_enabled()


def _differentiates(args: Sequence) -> bool:
    """Whether anybody may ask for a derivative of what is made of these, or maps over them."""
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)


def _redispatch(op, keyset, grad_mode, forward_mode, *args):
    below = keyset & torch._C._after_autograd_keyset
    before, _state.in_jvp_rule = _state.in_jvp_rule, False
    try:
        with (
            torch.set_grad_enabled(grad_mode),
            forward_ad._set_fwd_grad_enabled(forward_mode),
            torch._C._AutoDispatchBelowAutograd(),
        ):
            return op.redispatch(below, *args)
    finally:
        _state.in_jvp_rule = before


def _sum(terms: Sequence[MaybeTensor]) -> MaybeTensor:
    present = [term for term in terms if term is not None]
    if len(present) < 2:
        return present[0] if present else None
    # Off, as torch has it within a jvp rule, forward mode would cut the sum off from the functorch levels beneath.
    with forward_ad._set_fwd_grad_enabled(_forward_mode()):
        return sum(present[1:], present[0])


def _add(totals: list[MaybeTensor], terms: Sequence[MaybeTensor]) -> None:
    for n, term in enumerate(terms):
        totals[n] = _sum((totals[n], term))


def _will_execute(node) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # raised outside the engine, and for a leaf that autograd.grad was asked for
        return True


def _first(tensors: Sequence[MaybeTensor]) -> MaybeTensor:
    return next((t for t in tensors if t is not None), None)


def _but(count: int, *without: int) -> list[int]:
    return [n for n in range(count) if n not in without]


def _save(ctx, tensors: Sequence[MaybeTensor], rest: Sequence, products: Iterable[Iterable[int]]) -> None:
    """Saves ``rest`` and the tensor arguments that the gradients which some of them require are made of.

    The op is a sum of ``products`` of tensors, given by their indices: the gradient of a factor needs the others. One
    that occurs more than once, which its own gradient needs too, is given twice.
    """
    indices = [r for r in rest if isinstance(r, Tensor)]
    ctx.rest = [_INDICES if isinstance(r, Tensor) else r for r in rest]
    ctx.shapes = [None if t is None else t.shape for t in tensors]
    needs = ctx.needs_input_grad[1 : len(tensors) + 1]
    kept = set()
    if any(needs):
        for factors in products:
            for n, q in enumerate(factors):
                if needs[q]:
                    kept.update(p for m, p in enumerate(factors) if m != n)
    ctx.save_for_backward(*[t if n in kept else None for n, t in enumerate(tensors)], *indices)
    ctx.save_for_forward(*tensors, *indices)


def _restored(ctx) -> tuple[list[MaybeTensor], list]:
    """The tensor arguments, None for those that were not saved, and ``rest``."""
    count, saved = len(ctx.shapes), ctx.saved_tensors  # each access unpacks, which checkpointing allows once
    indices = iter(saved[count:])
    return list(saved[:count]), [next(indices) if r is _INDICES else r for r in ctx.rest]


def _saved(ctx, like: Tensor) -> tuple[list[MaybeTensor], list]:
    """The same in backward, with zeros, of which no wanted gradient is made, for tensors that were not saved."""
    tensors, rest = _restored(ctx)
    return [
        like.new_zeros((1,) * (len(shape) - 1) + shape[-1:]).expand(shape) if t is None and shape is not None else t
        for t, shape in zip(tensors, ctx.shapes, strict=True)
    ], rest


def _needed(ctx) -> list[bool]:
    """Which of the tensor arguments this backward pass needs gradients of.

    ctx.needs_input_grad says which of them require any: autograd.grad(energy, positions) wants none of parameters.
    """
    nodes = iter(ctx.next_functions)  # one for each tensor
    needs = ctx.needs_input_grad[1 : len(ctx.shapes) + 1]
    nodes = [None if shape is None else next(nodes)[0] for shape in ctx.shapes]
    return [need and node is not None and _will_execute(node) for need, node in zip(needs, nodes, strict=True)]


def merged_rows(tensors: Sequence[MaybeTensor], in_dims: Sequence[int | None], size: int) -> list[MaybeTensor]:
    """[rows, columns], one for each or the same for all of ``size`` samples of vmap -> [size * rows, columns]."""
    rows = []
    for tensor, dim in zip(tensors, in_dims, strict=False):
        if tensor is None or tensor.dim() - (dim is not None) != 2:
            rows.append(tensor)
            continue
        tensor = tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        rows.append(tensor.flatten(0, 1))
    return rows


def register(library: torch.library.Library, op, function: type[torch.autograd.Function], fake, vmap) -> None:
    """Gives ``op``, whose kernels exist, its autograd ``function``, fake kernel, vmap rule and autocast.

    The first argument of ``function`` is the op itself below this level of autograd, to be called in its forward.
    """
    name = op.name()
    defaults = [a.default_value for a in op._schema.arguments]
    required = [(n, a.name) for n, a in enumerate(op._schema.arguments) if isinstance(a.type, torch._C.TensorType)]

    # The dispatcher leaves out arguments at the end that have their default.
    def autograd(keyset, *args):
        args = (*args, *defaults[len(args) :])
        for n, argument in required:  # the dispatcher takes None for a tensor that is not optional
            if args[n] is None:
                raise RuntimeError(f"{name}: {argument}: expected a tensor, got None")
        below = functools.partial(_redispatch, op, keyset, torch.is_grad_enabled(), _forward_mode())
        return _apply(function, below, *args) if _differentiates(args) else below(*args)

    def promote(*args):
        # The kernels accumulate in at least float32, so autocast has nothing to lower: it only makes mixed operands
        # agree, on the widest dtype among them.
        dtypes = [a.dtype for a in args if isinstance(a, Tensor) and a.is_floating_point()]
        widest = dtypes[0]
        for dtype in dtypes[1:]:
            widest = torch.promote_types(widest, dtype)
        with torch.amp.autocast("cpu", enabled=False), torch.amp.autocast("cuda", enabled=False):
            return op(*[a.to(widest) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args])

    def checked_fake(*args):
        # torch.onnx traces with fake tensors first; what it says later of an op that it has no function of is no help.
        if "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export():
            raise RuntimeError(
                f"{name} has no form in ONNX, whose operators do not make it up: export with torch.export or "
                "AOTInductor instead"
            )
        return fake(*args, *defaults[len(args) :])

    torch.library.register_fake(name, checked_fake, lib=library)
    library.impl(op, autograd, "Autograd", with_keyset=True)
    for key in ("AutocastCPU", "AutocastCUDA"):
        library.impl(op, promote, key)

    def batched(info, in_dims, *args):
        missing = defaults[len(args) :]
        return vmap(info, (*in_dims, *[None] * len(missing)), *args, *missing)

    torch.library.register_vmap(name, batched, lib=library)


def _sample(args: Sequence, in_dims: Sequence[int | None], index: int) -> list:
    """The arguments, what vmap maps over at ``index``; of no samples, one of zeros, for the shapes of the results."""

    def at(t, dim):
        if dim is None or not isinstance(t, Tensor):
            return t
        return t.select(dim, index) if t.shape[dim] else t.new_zeros((*t.shape[:dim], *t.shape[dim + 1 :]))

    return [at(t, dim) for t, dim in zip(args, in_dims, strict=True)]


def loop_over_samples(op):
    """The rule of vmap for ``op``, whose results are tensors, where only a loop over samples is right."""

    def rule(info, in_dims, *args):
        samples = [op(*_sample(args, in_dims, b)) for b in range(max(1, info.batch_size))]
        if isinstance(samples[0], Tensor):
            return torch.stack(samples)[: info.batch_size], 0
        stacked = tuple(torch.stack(parts)[: info.batch_size] for parts in zip(*samples, strict=True))
        return stacked, (0,) * len(stacked)

    return rule


def forward_function(n: int, product: Iterable[int], gradients: Callable, along: Callable):
    """The autograd function of ``name(v_1, ..., v_n, *rest)``; its first argument is the op below this level.

    ``product``: as for :func:`_save`. ``gradients(v, g, rest, needed)`` and ``along(v, t, rest)`` are its derivatives.
    """

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, below, *args):
            ctx.set_materialize_grads(False)
            _save(ctx, args[:n], args[n:], [list(product)])
            return below(*args)

        @staticmethod
        def backward(ctx, g):
            without = (None,) * len(ctx.rest)
            if g is None:
                return (None,) * (n + 1) + without
            v, rest = _saved(ctx, g)
            return None, *gradients(v, g, rest, _needed(ctx)), *without

        @staticmethod
        @jvp_rule
        def jvp(ctx, _, *tangents):
            v, rest = _restored(ctx)
            return along(v, tangents[:n], rest)

    return Forward


class Multilinear:
    """Registers the family of ``namespace::name``, whose schemas and kernels exist already.

    Args:
        namespace, name: of the op.
        operands: number n of operands.
        affine: the operand, if any, in which the op is affine rather than linear (weights, where some paths have none).
        check: ``check(v, g, t, rest)`` raises where operands or tangents do not fit the plan; for the fake kernels.
        shapes: ``shapes(v, rest)`` gives the shapes of (*v, out); None for an operand that the plan does not have.
        batch: ``batch(tensors, rest, in_dims, size)`` for vmap: the operands (*v, g) or tangents, and ``rest``, with
            the mapped dimension merged into the rows, or None where only a loop over the mapped dimension is right.
    """

    def __init__(
        self,
        namespace: str,
        name: str,
        operands: int,
        affine: int | None,
        check: Callable[[Sequence[MaybeTensor], MaybeTensor, Sequence[MaybeTensor], Sequence], None],
        shapes: Callable[[Sequence[MaybeTensor], Sequence], Sequence[tuple | None]],
        batch: Callable[
            [Sequence[MaybeTensor], Sequence, Sequence[int | None], int], tuple[Sequence[MaybeTensor], Sequence] | None
        ],
    ) -> None:
        self.n, self.affine = operands, affine
        self.check, self.shapes, self.batch = check, shapes, batch
        ops = getattr(torch.ops, namespace)
        self.forward = getattr(ops, name).default
        self.jvp = getattr(ops, f"{name}_jvp").default
        self.backward = getattr(ops, f"{name}_backward").default
        self.double_backward = getattr(ops, f"{name}_double_backward").default
        self.library = torch.library.Library(namespace, "IMPL")
        for op, function, fake in (
            (self.forward, self._forward_function(), self._fake_forward),
            (self.jvp, self._jvp_function(), self._fake_jvp),
            (self.backward, self._backward_function(), self._fake_backward),
            (self.double_backward, self._double_backward_function(), self._fake_double_backward),
        ):
            register(self.library, op, function, fake, self._vmap_rule(op))

    def on_other_devices(self, *members: Callable) -> None:
        """:meth:`compose` for devices without a kernel; a kernel of a device's own goes before them.

        ``self.composites`` then holds them by op.
        """
        self.compose(self.forward.name(), *members)
        self.composites = dict(zip(self._ops(), members, strict=True))

    def compose(
        self, name: str, forward: Callable, jvp: Callable, backward: Callable, double_backward: Callable
    ) -> None:
        """Registers functions as the ops NAME, NAME_jvp and so on: the family's, or what kernels may leave to them."""
        for op, composite in zip(self._ops(), (forward, jvp, backward, double_backward), strict=True):
            suffix = op.name().removeprefix(self.forward.name())
            self.library.impl(name + suffix, composite, "CompositeExplicitAutograd")

    def _ops(self) -> tuple[torch._ops.OpOverload, ...]:
        return self.forward, self.jvp, self.backward, self.double_backward

    # Results of the family with None for what was not computed.

    def _backward(self, v, g, rest, wanted) -> list[MaybeTensor]:
        wanted = [w and t is not None for w, t in zip(wanted, v, strict=True)]
        if g is None or not any(wanted):
            return [None] * self.n
        return [r if w else None for r, w in zip(self.backward(*v, g, *rest, wanted), wanted, strict=True)]

    def _double_backward(self, v, g, t, rest, wanted) -> list[MaybeTensor]:
        wanted = [w and s is not None for w, s in zip(wanted, (*v, g), strict=True)]
        if all(s is None for s in t) or not any(wanted):
            return [None] * (self.n + 1)
        results = self.double_backward(*v, g, *t, *rest, wanted)
        return [r if w else None for r, w in zip(results, wanted, strict=True)]

    def _jvp(self, v, t, rest) -> MaybeTensor:
        return None if all(s is None for s in t) else self.jvp(*v, *t, *rest)

    def _second_order(self, slots, c, t):
        """Pairs (slots, tangents) over which D of the family sums to D_c D_t: each pair of slots once, with c_s, t_r.

        Slot s is filled by c_s and r varies along t_r. The affine slot is never filled, since its constant part would
        be taken for one of c_s: there the two exchange roles.
        """
        for s, cs in enumerate(c):
            if cs is not None and s != self.affine:
                yield (
                    [cs if r == s else slot for r, slot in enumerate(slots)],
                    [None if r == s else tangent for r, tangent in enumerate(t)],
                )
        if self.affine is not None and c[self.affine] is not None:
            along = [c[self.affine] if r == self.affine else None for r in range(len(t))]
            for r, tr in enumerate(t):
                if tr is not None and r != self.affine:
                    yield [tr if q == r else slot for q, slot in enumerate(slots)], along

    def _mixed(self, slots, c, t, rest, wanted) -> list[MaybeTensor]:
        """grad of D_c D_t Q at ``slots`` = (*v, g)."""
        total: list[MaybeTensor] = [None] * (self.n + 1)
        for at, along in self._second_order(slots, c, t):
            # The slot that was filled is no argument of this term.
            want = [w and here is there for w, here, there in zip(wanted, at, slots, strict=True)]
            _add(total, self._double_backward(at[:-1], at[-1], along, rest, want))
        return total

    def _tangents(self, v, rest, terms, wanted) -> tuple[Tensor, ...]:
        """Forward mode accepts no None: zeros for what does not vary, and the empty tangent of what is not wanted."""
        shapes = self.shapes(v, rest)[-1:] if len(terms) == 1 else self.shapes(v, rest)
        return tuple(
            v[0].new_zeros(shape if want else (0,)) if term is None else term
            for term, shape, want in zip(terms, shapes, wanted, strict=False)
        )

    # The four autograd functions. Their first argument is the op below this level.

    def _forward_function(self):
        def along(v, t, rest):
            return self._tangents(v, rest, [self._jvp(v, t, rest)], [True])[0]

        return forward_function(self.n, range(self.n), self._backward, along)

    def _jvp_function(self):
        n, family = self.n, self

        class Jvp(torch.autograd.Function):
            @staticmethod
            def forward(ctx, below, *args):
                tensors, rest = args[: 2 * n], args[2 * n :]
                ctx.set_materialize_grads(False)
                _save(ctx, tensors, rest, [[*_but(n, s), n + s] for s in range(n) if tensors[n + s] is not None])
                return below(*args)

            @staticmethod
            def backward(ctx, g):
                without = (None,) * len(ctx.rest)
                if g is None:
                    return (None,) * (2 * n + 1) + without
                saved, rest = _saved(ctx, g)
                v, t = saved[:n], saved[n:]
                need = _needed(ctx)
                dv = family._double_backward(v, g, (*t, None), rest, (*need[:n], False))[:n]
                dt = family._backward(v, g, rest, need[n : 2 * n])
                return None, *dv, *dt, *without

            @staticmethod
            @jvp_rule
            def jvp(ctx, _, *tangents):
                saved, rest = _restored(ctx)
                v, t = saved[:n], saved[n:]
                terms = [family._jvp(v, tangents[n : 2 * n], rest)]
                for at, along in family._second_order(v, tangents[:n], t):
                    terms.append(family._jvp(at, along, rest))
                return family._tangents(v, rest, [_sum(terms)], [True])[0]

        return Jvp

    def _backward_function(self):
        n, family = self.n, self

        class Backward(torch.autograd.Function):
            @staticmethod
            def forward(ctx, below, *args):
                slots, (*rest, wanted) = args[: n + 1], args[n + 1 :]
                ctx.wanted = [w and v is not None for w, v in zip(wanted, slots, strict=False)]
                ctx.set_materialize_grads(False)
                _save(ctx, slots, rest, [_but(n + 1, s) for s, w in enumerate(ctx.wanted[:n]) if w])
                return below(*args)

            @staticmethod
            def backward(ctx, *cotangents):
                without = (None,) * (len(ctx.rest) + 1)
                t = [c if w else None for c, w in zip(cotangents, ctx.wanted, strict=True)]
                like = _first(t)
                if like is None:
                    return (None,) * (n + 2) + without
                (*v, g), rest = _saved(ctx, like)
                return None, *family._double_backward(v, g, (*t, None), rest, _needed(ctx)), *without

            @staticmethod
            @jvp_rule
            def jvp(ctx, _, *tangents):
                (*v, g), rest = _restored(ctx)
                terms = family._double_backward(v, g, tangents[: n + 1], rest, (*ctx.wanted, False))[:n]
                return family._tangents(v, rest, terms, ctx.wanted)

        return Backward

    def _double_backward_function(self):
        n, family = self.n, self

        class DoubleBackward(torch.autograd.Function):
            @staticmethod
            def forward(ctx, below, *args):
                operands, (*rest, wanted) = args[: 2 * n + 2], args[2 * n + 2 :]
                ctx.wanted = [w and s is not None for w, s in zip(wanted, operands, strict=False)]
                ctx.set_materialize_grads(False)
                t = operands[n + 1 :]
                wanted = [s for s, w in enumerate(ctx.wanted[: n + 1]) if w]
                pairs = [(s, r) for s in wanted for r in _but(n + 1, s) if t[r] is not None]
                _save(ctx, operands, rest, [[*_but(n + 1, s, r), n + 1 + r] for s, r in pairs])
                return below(*args)

            @staticmethod
            def backward(ctx, *cotangents):
                without = (None,) * (len(ctx.rest) + 1)
                c = [a if w else None for a, w in zip(cotangents, ctx.wanted, strict=True)]
                like = _first(c)
                if like is None:
                    return (None,) * (2 * n + 3) + without
                saved, rest = _saved(ctx, like)
                slots, t = saved[: n + 1], saved[n + 1 :]
                need = _needed(ctx)
                d_slots = family._mixed(slots, c, t, rest, need[: n + 1])
                d_t = family._double_backward(slots[:-1], slots[-1], c, rest, need[n + 1 : 2 * n + 2])
                return None, *d_slots, *d_t, *without

            @staticmethod
            @jvp_rule
            def jvp(ctx, _, *tangents):
                saved, rest = _restored(ctx)
                slots, t = saved[: n + 1], saved[n + 1 :]
                total = family._mixed(slots, tangents[: n + 1], t, rest, ctx.wanted)
                along = tangents[n + 1 : 2 * n + 2]
                _add(total, family._double_backward(slots[:-1], slots[-1], along, rest, ctx.wanted))
                return family._tangents(slots[:-1], rest, total, ctx.wanted)

        return DoubleBackward

    # Fake kernels.

    def _empty(self, like: Tensor, shape, wanted: bool = True) -> Tensor:
        return like.new_empty(shape if wanted and shape is not None else (0,))

    def _check_wanted(self, wanted: Sequence[bool], count: int) -> None:
        torch._check(
            len(wanted) == count, lambda: f"{self.forward.name()}: wanted: expected {count} flags, got {len(wanted)}"
        )

    def _fake_forward(self, *args):
        return self._fake_jvp(*args[: self.n], *[None] * self.n, *args[self.n :])

    def _fake_jvp(self, *args):
        n = self.n
        v, t, rest = args[:n], args[n : 2 * n], args[2 * n :]
        self.check(v, None, t, rest)
        return self._empty(v[0], self.shapes(v, rest)[-1])

    def _fake_backward(self, *args):
        v, g, (*rest, wanted) = args[: self.n], args[self.n], args[self.n + 1 :]
        self._check_wanted(wanted, self.n)
        self.check(v, g, (), rest)
        shapes = self.shapes(v, rest)[: self.n]
        return tuple(self._empty(v[0], s, w) for s, w in zip(shapes, wanted, strict=True))

    def _fake_double_backward(self, *args):
        n = self.n
        v, g, t, (*rest, wanted) = args[:n], args[n], args[n + 1 : 2 * n + 2], args[2 * n + 2 :]
        self._check_wanted(wanted, n + 1)
        self.check(v, g, t, rest)
        return tuple(self._empty(v[0], s, w) for s, w in zip(self.shapes(v, rest), wanted, strict=True))

    # vmap.

    def _vmap_rule(self, op):
        n = self.n
        groups = {self.forward: 1, self.jvp: 1, self.backward: 1, self.double_backward: 2}[op]
        with_g, loop = op in (self.backward, self.double_backward), loop_over_samples(op)

        def rule(info, in_dims, *args):
            count, size = (n + with_g) * groups if op is not self.jvp else 2 * n, info.batch_size
            end = len(args) - with_g  # without `wanted`
            merged = self.batch(args[:count], args[count:end], in_dims, size)
            if merged is not None:
                tensors, rest = merged
                result = op(*tensors, *rest, *args[end:])
                single = isinstance(result, Tensor)
                one = _sample(args, in_dims, 0)
                shapes = self.shapes(one[:n], one[count:end])
                results, shapes = ((result,), shapes[-1:]) if single else (result, shapes)
                parts = [
                    r.unflatten(0, (size, shape[0])) if r.dim() > 1 else r
                    for r, shape in zip(results, shapes, strict=False)
                ]
                dims = [0 if r.dim() > 2 else None for r in parts]
                return (parts[0], dims[0]) if single else (tuple(parts), tuple(dims))
            return loop(info, in_dims, *args)

        return rule


class Polynomial:
    """Registers ``namespace::name`` and ``name_derivative``, whose schemas and kernels exist already.

    An op ``name(v_1, ..., v_n, *rest)`` that is a polynomial in its operands, Q(v, g) = <g, out>, comes with

        name_derivative(*v, g, *t_1, ..., *t_m, *rest, wanted) -> grad of D_t_1 ... D_t_k Q, for the wanted of (*v, g)

    where each t_i is a tangent of (*v, g), None where it is zero; those behind the k-th are all None. The gradient of
    <c, this> to (*v, g) is the same with c as one tangent more, and to t_i the same with c in its place: closed, with
    no other op.

    Args:
        namespace, name: of the op.
        operands: number n of operands; the op is linear in the last one.
        most: number m of tangents; Q is of degree m + 1 in (*v, g), so that more of them give zero.
        check: ``check(v, g, tangents, rest)`` raises where operands or tangents do not fit; for the fake kernels.
        shapes: ``shapes(v, rest)`` gives the shapes of (*v, out).
        batch: ``batch(tensors, rest, in_dims, size, wanted)`` for vmap: (*v, g) and all tangents, and ``rest``, with
            the mapped dimension merged into the first one of each; ``in_dims`` are those of both.
    """

    def __init__(
        self,
        namespace: str,
        name: str,
        operands: int,
        most: int,
        check: Callable[[Sequence[MaybeTensor], MaybeTensor, Sequence[MaybeTensor], Sequence], None],
        shapes: Callable[[Sequence[MaybeTensor], Sequence], Sequence[tuple]],
        batch: Callable[
            [Sequence[MaybeTensor], Sequence, Sequence[int | None], int, Sequence[bool]],
            tuple[Sequence[MaybeTensor], Sequence],
        ],
    ) -> None:
        self.n, self.most, self.check, self.shapes, self.batch = operands, most, check, shapes, batch
        self.count = (operands + 1) * (most + 1)  # of the derivative's tensors
        ops = getattr(torch.ops, namespace)
        self.forward = getattr(ops, name).default
        self.derivative = getattr(ops, f"{name}_derivative").default
        self.library = torch.library.Library(namespace, "IMPL")
        for op, function, fake in (
            (self.forward, self._forward_function(), self._fake_forward),
            (self.derivative, self._derivative_function(), self._fake_derivative),
        ):
            register(self.library, op, function, fake, self._vmap_rule(op))

    def _gradients(self, slots, tangents, rest, wanted) -> list[MaybeTensor]:
        """name_derivative, None for what is not wanted or is zero. ``slots``: (*v, g), g None for zero."""
        n = self.n
        with_g = any(s[n] is not None for s in (slots, *tangents))
        wanted = [w and (s is not None and with_g) for w, s in zip(wanted[:n], slots, strict=False)] + [wanted[n]]
        if not any(wanted) or len(tangents) > self.most or any(_first(t) is None for t in tangents):
            return [None] * (n + 1)
        flat = [t for group in (slots, *tangents) for t in group]
        results = self.derivative(*flat, *[None] * (self.count - len(flat)), *rest, wanted)
        return [r if w else None for r, w in zip(results, wanted, strict=True)]

    def _groups(self, tensors) -> list:
        """(*v, g) and each tangent."""
        return [tensors[s : s + self.n + 1] for s in range(0, self.count, self.n + 1)]

    @staticmethod
    def _with(tangents: Sequence, i: int, c) -> list:
        """c in the place of tangent i from 1, or, i = 0, as one more."""
        return [*tangents[: i - 1], c, *tangents[i:]] if i else [*tangents, c]

    def _restored(self, restored) -> tuple:
        """(*v, g), the tangents that are there, and ``rest``."""
        tensors, rest = restored
        slots, *tangents = self._groups(tensors)
        while tangents and _first(tangents[-1]) is None:
            tangents.pop()
        return slots, tangents, rest

    def _forward_function(self):
        n = self.n

        def gradients(v, g, rest, needed):
            return self._gradients((*v, g), (), rest, (*needed, False))[:n]

        def along(v, t, rest):
            tangent = self._gradients((*v, None), [(*t, None)], rest, (False,) * n + (True,))[n]
            return v[0].new_zeros(self.shapes(v, rest)[n]) if tangent is None else tangent

        return forward_function(n, [*range(n), *range(n - 1)], gradients, along)

    def _derivative_function(self):
        n, count, family = self.n, self.count, self

        class Derivative(torch.autograd.Function):
            @staticmethod
            def forward(ctx, below, *args):
                tensors, (*rest, wanted) = args[:count], args[count:]
                ctx.wanted = list(wanted)
                ctx.set_materialize_grads(False)
                there = [s for s, t in enumerate(tensors) if t is not None]
                _save(ctx, tensors, rest, [[*there, *range(n - 1)]])
                return below(*args)

            @staticmethod
            def backward(ctx, *cotangents):
                c = [a if w else None for a, w in zip(cotangents, ctx.wanted, strict=True)]
                like, results = _first(c), [None] * count
                if like is not None:
                    slots, tangents, rest = family._restored(_saved(ctx, like))
                    need = family._groups(_needed(ctx))
                    for i in range(len(tangents) + 1):
                        along = family._with(tangents, i, c)
                        first = i * (n + 1)
                        results[first : first + n + 1] = family._gradients(slots, along, rest, need[i])
                return None, *results, *(None,) * (len(ctx.rest) + 1)

            @staticmethod
            @jvp_rule
            def jvp(ctx, _, *moving):
                slots, tangents, rest = family._restored(_restored(ctx))
                total: list[MaybeTensor] = [None] * (n + 1)
                for i, c in enumerate(family._groups(moving)[: len(tangents) + 1]):
                    _add(total, family._gradients(slots, family._with(tangents, i, c), rest, ctx.wanted))
                shapes = family.shapes(slots[:n], rest)
                return tuple(
                    slots[0].new_zeros(shape if w else (0,)) if term is None else term
                    for term, shape, w in zip(total, shapes, ctx.wanted, strict=True)
                )

        return Derivative

    # Fake kernels.

    def _fake_forward(self, *args):
        v, rest = args[: self.n], args[self.n :]
        self.check(v, None, (), rest)
        return v[0].new_empty(self.shapes(v, rest)[-1])

    def _fake_derivative(self, *args):
        (*v, g), *tangents = self._groups(args[: self.count])
        *rest, wanted = args[self.count :]
        torch._check(
            len(wanted) == self.n + 1,
            lambda: f"{self.derivative.name()}: wanted: expected {self.n + 1} flags, got {len(wanted)}",
        )
        self.check(v, g, tangents, rest)
        return tuple(v[0].new_empty(s if w else (0,)) for s, w in zip(self.shapes(v, rest), wanted, strict=True))

    # vmap.

    def _vmap_rule(self, op):
        of_forward = op is self.forward

        def rule(info, in_dims, *args):
            size, count = info.batch_size, self.n if of_forward else self.count
            end = len(args) if of_forward else -1
            wanted = (False,) * self.n + (True,) if of_forward else args[-1]
            one = _sample(args, in_dims, 0)
            shapes = self.shapes(one[: self.n], one[count:end])
            tensors, rest = self.batch(args[:count], args[count:end], in_dims, size, wanted)
            results = op(*tensors, *rest, *args[count:][len(rest) :])
            results = (*[None] * self.n, results) if of_forward else results
            parts = [
                r.unflatten(0, (size, shape[0])) if w else r
                for r, shape, w in zip(results, shapes, wanted, strict=True)
            ]
            dims = [0 if w else None for w in wanted]
            return (parts[-1], dims[-1]) if of_forward else (tuple(parts), tuple(dims))

        return rule
