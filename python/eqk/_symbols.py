"""The Wigner 3j symbols that e3nn's modules keep as buffers of their generated code, and so in checkpoints.

e3nn computes with these buffers, whatever its own version: a checkpoint of e3nn 0.4, whose symbols (1, 2, 2) and others
have the opposite sign, keeps them in e3nn 0.6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from eqk._library import wigner_3j
from eqk.irreps import MAX_DEGREE

# The submodules in which e3nn keeps its generated code.
GENERATED = ("_compiled_main_left_right", "_compiled_main_right", "_compiled_main")
_SYMBOL = re.compile(r"(?:.*\.)?_w3j_(\d+)_(\d+)_(\d+)", re.ASCII)

Degrees = tuple[int, int, int]


def generated_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of e3nn's generated code in ``module``, TorchScript or not, by their names in its state_dict."""
    return {
        f"{child}.{name}": buffer
        for child in GENERATED
        if module._modules.get(child) is not None
        # A ScriptModule's buffers are out of reach of _buffers.
        for name, buffer in module._modules[child].named_buffers(remove_duplicate=False)
    }


def relative_sign(symbol: Tensor, degrees: Degrees, name: str) -> int:
    """1 where ``symbol`` is eqk's Wigner 3j symbol, -1 where it is its negative. Else ValueError, naming ``name``."""
    l1, l2, l3 = degrees
    got = f"shape {tuple(symbol.shape)} and dtype {symbol.dtype}"
    if max(degrees) <= MAX_DEGREE and abs(l1 - l2) <= l3 <= l1 + l2 and symbol.is_floating_point():
        ours = wigner_3j(l1, l2, l3, dtype=torch.float64)
        theirs = symbol.detach().to("cpu", torch.float64)
        # e3nn rounds its constants to the default dtype, and a module may have been converted to any.
        tolerance = max(1e-5, torch.finfo(symbol.dtype).eps)
        if theirs.shape == ours.shape:
            errors = {sign: float((theirs - sign * ours).abs().max()) for sign in (1, -1)}
            for sign, error in errors.items():
                if error <= tolerance:
                    return sign
            got = f"a tensor that is {min(errors.values()):.1e} off"
    raise ValueError(f"{name}: expected the Wigner 3j symbol of degrees {l1}, {l2}, {l3}, up to its sign, got {got}")


def relative_signs(named: Mapping[str, Tensor]) -> dict[Degrees, int]:
    """The sign of each symbol among the tensors ``named`` as in e3nn's state_dict, relative to eqk's."""
    signs: dict[Degrees, int] = {}
    for name, symbol in named.items():
        match = _SYMBOL.fullmatch(name)
        if not match or not isinstance(symbol, Tensor) or symbol.is_meta:
            continue
        degrees = (int(match[1]), int(match[2]), int(match[3]))
        sign = relative_sign(symbol, degrees, name)
        if signs.setdefault(degrees, sign) != sign:
            raise ValueError(f"{name}: expected one sign of the symbol in all of the module's code, got both")
    return signs


def reads_symbol(mode: str, weighted: bool, degrees: Degrees, specialized: bool) -> bool:
    """Whether e3nn's forward code of a path reads the symbol.

    ``specialized`` code (e3nn's default) has a formula in its place where a degree is 0 and for the cross product; its
    sign is eqk's in every version. (e3nn 0.6, ``_codegen.py``.)
    """
    general = mode in ("uvuv", "uvu<v", "u<vw") or (mode in ("uvu", "uuw") and not weighted)
    formula = 0 in degrees or (mode == "uuu" and degrees == (1, 1, 1))
    return general or not (specialized and formula)
