"""Swaps e3nn's tensor products and spherical harmonics in an existing model for eqk's."""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from eqk import adapters, o3
from eqk._symbols import GENERATED
from eqk.o3._module import constants_of
from eqk.plan import LAYOUTS, Plan

_CLASSES = (
    "FullyConnectedTensorProduct",
    "FullTensorProduct",
    "ElementwiseTensorProduct",
    "TensorSquare",
    "TensorProduct",
    "SphericalHarmonics",
)
_EXPERIMENTAL = ("FullTensorProductv2", "ElementwiseTensorProductv2")
# What a subclass may define and still compute what its base does.
_HARMLESS = {
    "__module__",
    "__qualname__",
    "__doc__",
    "__init__",
    "__repr__",
    "__annotations__",
    "__e3nn_compile_mode__",
}
_HARMLESS |= {"__firstlineno__", "__static_attributes__"}


class Swapped(NamedTuple):
    name: str
    before: str
    after: str


class Left(NamedTuple):
    name: str
    module: str
    reason: str


@dataclass
class ConversionReport:
    """What :func:`convert` did; ``str`` is a table.

    Attributes:
        model: the converted model: the one that was given, or its replacement where that itself was swapped.
        swapped: ``(name, before, after)`` for each name of a swapped module.
            ``after`` also says what did not move along.
        left: ``(name, module, reason)`` for each module of e3nn's that eqk has a counterpart of and that stayed.
    """

    model: nn.Module
    swapped: list[Swapped] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)} modules, left {len(self.left)} modules"]
        for title, rows in (("swapped", self.swapped), ("left", self.left)):
            if not rows:
                continue
            widths = [max(len(row[n]) for row in rows) for n in range(2)]
            lines += ["", f"{title}:"]
            lines += [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows]
        return "\n".join(lines)


def convert(model: nn.Module, *, layout: str | tuple[str, str, str] = "mul_ir") -> ConversionReport:
    """Replaces, in place, every tensor product and ``SphericalHarmonics`` of ``e3nn.o3`` in ``model`` by eqk's.

    The new modules hold the very same Parameters and buffers under the same state-dict keys (those of e3nn's generated
    code too), hooks, training flag and attributes, so that optimisers go on working and checkpoints load either way. A
    module that is registered under several names is replaced by one module.

    Some Wigner 3j symbols of e3nn 0.4 have the opposite sign of e3nn 0.6's. The new module has the signs of the buffers
    in which the old one keeps its symbols (:meth:`eqk.Plan.from_e3nn`), and takes over those of a checkpoint that it
    loads later, as the old one would; one that is no Wigner 3j symbol is an error that names its key. TorchScript
    freezes the signs: load before scripting.

    Layers of :mod:`eqk.adapters` (the convolutions of SevenNet, NequIP, MACE, Nequix and e3tools, Allegro's contracter,
    MACE's symmetric contraction, the messages of UMA and eSEN, EquiformerV2's and V3's attention and activations on the
    sphere, V3's feed-forward layers) then become fused ops, in place: the module stays, of another class.

    What is not the model's own structure stays with the old module: a reference from elsewhere (a list, a bound method)
    still calls it, and ``isinstance(new, e3nn.o3.TensorProduct)`` is False. A child that is ``torch.compile(tp)`` is
    compiled anew, with its options; what ``tp.compile()`` compiled is dropped, as by ``copy.deepcopy``, and the report
    says so: call it again.

    Left as they are, with the reason in the report: TorchScript modules (convert before scripting), subclasses that
    define methods of their own, ``e3nn.o3.experimental``, and ``o3.Linear``, whose time is in matrix products already.

    Args:
        model: any torch module; a tensor product itself is not changed: its replacement is ``report.model``. The two
            share their hooks; those that load_state_dict calls with the module are called with the new one.
        layout: of the operands of the new modules, ``"mul_ir"`` or ``"ir_mul"``, or one for each of x, y, out. Anything
            but ``"mul_ir"`` asks that the rest of the model work in that layout.

    Returns:
        A :class:`ConversionReport`.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if ``layout`` is not one of the above.

    e3nn is not imported: where nobody has imported it, a model holds none of its modules.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    layouts = (layout,) * 3 if isinstance(layout, str) else layout
    if not isinstance(layouts, (tuple, list)) or len(layouts) != 3 or any(one not in LAYOUTS for one in layouts):
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, or one for each of x, y, out, got {layout!r}")
    report = ConversionReport(model)
    new: dict[int, nn.Module] = {}
    # Names are listed before anything is replaced; a parent that is swapped itself has no children left to visit.
    for name, module in list(model.named_modules(remove_duplicate=False)):
        reason = _reason_to_leave(module)
        if reason:
            report.left.append(Left(name or "(root)", _describe(module), reason))
        if reason is not None:
            continue
        if id(module) not in new:
            try:
                new[id(module)] = _replacement(module, layouts)
            except ValueError as error:
                report.left.append(Left(name or "(root)", _describe(module), str(error)))
                continue
        if name:
            parent, _, leaf = name.rpartition(".")
            holder = model.get_submodule(parent)
            holder._modules[leaf] = new[id(module)]
            if isinstance(holder, _optimized_module()):
                holder._initialize()  # it holds the old module's compiled call
        else:
            report.model = new[id(module)]
        after = f"eqk.o3.{type(new[id(module)]).__name__}"
        if module._compiled_call_impl is not None:
            after += ", not compiled: call compile() again"
        report.swapped.append(Swapped(name or "(root)", _describe(module), after))
    fused: dict[int, tuple[str, str | None]] = {}
    for name, module in list(report.model.named_modules(remove_duplicate=False)):
        if id(module) not in fused:
            before = type(module).__name__
            try:
                fused[id(module)] = before, adapters.fuse(module)
            except ValueError as error:
                report.left.append(Left(name or "(root)", before, str(error)))
                fused[id(module)] = before, None
        before, after = fused[id(module)]
        if after is not None:
            report.swapped.append(Swapped(name or "(root)", before, after))
    return report


def _optimized_module() -> type | tuple:
    """The class of ``torch.compile(module)``, where anything has been compiled."""
    return getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())


def _describe(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return f"{module.original_name} (TorchScript)"
    return repr(module).split("\n")[0]


def _reason_to_leave(module: nn.Module) -> str | None:
    """None if the module is to be swapped, "" if it is none of e3nn's that eqk has a counterpart of."""
    if isinstance(module, torch.jit.ScriptModule):
        # A subclass is scripted under its own name.
        kind = module.original_name in _CLASSES or hasattr(module, "_compiled_main_left_right")
        own = hasattr(module, "_plan_text")
        return "TorchScript module: convert the model before scripting it" if kind and not own else ""
    e3nn_o3 = sys.modules.get("e3nn.o3")
    if e3nn_o3 is None:
        return ""
    if isinstance(module, e3nn_o3.Linear):
        return "o3.Linear is matrix products already"
    if not isinstance(module, (e3nn_o3.TensorProduct, e3nn_o3.SphericalHarmonics)):
        experimental = sys.modules.get("e3nn.o3.experimental")
        kinds = tuple(getattr(experimental, name) for name in _EXPERIMENTAL if hasattr(experimental, name))
        return "e3nn.o3.experimental has no counterpart in eqk" if kinds and isinstance(module, kinds) else ""
    theirs = {getattr(e3nn_o3, name) for name in _CLASSES if hasattr(e3nn_o3, name)}
    for cls in type(module).__mro__:
        if cls in theirs:
            break
        own = sorted(set(vars(cls)) - _HARMLESS)
        if own:
            return f"subclass {cls.__name__} defines {', '.join(own)}"
    overridden = sorted({"forward", "right"} & set(vars(module)))
    return f"{', '.join(overridden)} replaced on the instance" if overridden else None


def _replacement(old: nn.Module, layouts: tuple[str, ...]) -> nn.Module:
    """eqk's module with all that ``old`` holds. Raises ValueError where eqk has no such plan."""
    e3nn_o3 = sys.modules["e3nn.o3"]
    name = next(n for n in _CLASSES if isinstance(old, getattr(e3nn_o3, n, ())))
    cls = getattr(o3, name)
    plan = None
    if name != "SphericalHarmonics":
        weights = "shared" if old.shared_weights else "per_sample"
        plan = Plan.from_e3nn(old, layout_in1=layouts[0], layout_in2=layouts[1], layout_out=layouts[2], weights=weights)
    new = cls.__new__(cls)
    nn.Module.__init__(new)
    # All of the old module's state, whatever it is: hooks (by reference, so that their handles still remove them), the
    # training flag, parameters, buffers and what users have put on it.
    code = {"__codegen__", "_modules", "_did_compile_right", "_profiling_str", "_prof_str", "sph_func"}
    code.add("_compiled_call_impl")
    new.__dict__.update({name: value for name, value in old.__dict__.items() if name not in code})
    new._parameters, new._buffers = dict(old._parameters), dict(old._buffers)
    for child, module in old._modules.items():
        new.add_module(child, constants_of(module) if child in GENERATED else module)
    for hook in new._load_state_dict_pre_hooks.values():
        if hook.with_module:
            hook.module = weakref.ref(new)
    if plan is None:
        new._set(old._ls_list, old.normalize, old.normalization)
        return new
    # eqk generates no code: right() may be called whatever e3nn compiled.
    new._set_plan(plan, bool(old.shared_weights), bool(old.internal_weights), True, True)
    # e3nn's own Irreps and instructions: code around the module may ask for their methods.
    new.irreps_in1, new.irreps_in2, new.irreps_out = old.irreps_in1, old.irreps_in2, old.irreps_out
    new.instructions = old.instructions
    return new
