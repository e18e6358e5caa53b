"""What the modules of :mod:`eqk.o3` share: e3nn's checkpoints, weight views and error classes."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from eqk._symbols import GENERATED


class ArgumentError(ValueError, AssertionError):
    """A constructor's argument does not fit. e3nn raises AssertionError there, which existing code catches."""


class Constants(nn.Module):
    """Buffers under the names that e3nn gives to the constants of its generated code.

    They make a converted model's state_dict that of the original. eqk reads the Wigner 3j symbols among them when a
    checkpoint is loaded, for their signs (TensorProduct._load_from_state_dict); checkpoints that lack some, or hold
    others, load all the same.
    """

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, False, [], [], [])


def constants_of(module: nn.Module) -> Constants:
    """All buffers of ``module`` and its submodules, with the same names, the same tensors and no code."""
    constants = Constants()
    # A ScriptModule's buffers are out of reach of _buffers.
    for name, buffer in module.named_buffers(remove_duplicate=False):
        *path, leaf = name.split(".")
        parent = constants
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, Constants())
            parent = parent._modules[part]
        parent.register_buffer(leaf, buffer)
    return constants


class E3nnModule(nn.Module):
    # What e3nn.util.jit.compile looks for before it scripts a module.
    __e3nn_compile_mode__ = "script"

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        generated = tuple(f"{prefix}{name}." for name in GENERATED)
        unexpected[:] = [key for key in unexpected if not key.startswith(generated)]


def check_operand(name: str, operand: Tensor, columns: int) -> None:
    if not torch.jit.is_scripting() and not isinstance(operand, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {operand}")
    if operand.dim() == 0 or operand.shape[-1] != columns:
        raise RuntimeError(f"{name}: expected shape [..., {columns}], got {list(operand.shape)}")


def output_mask(irreps, written: set[int]) -> Tensor:
    """[dim]: 1 in the columns of the irreps that some path writes, 0 elsewhere."""
    parts = [torch.full((mul_ir.dim,), float(n in written)) for n, mul_ir in enumerate(irreps)]
    return torch.cat(parts) if parts else torch.ones(0)


def weight_slices(instructions: Sequence, weighted: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """(start, numel) of each instruction in the flat weights, in order; numel 0 for the unweighted ones."""
    start = 0
    for ins, has_weight in zip(instructions, weighted, strict=True):
        numel = math.prod(ins.path_shape) if has_weight else 0
        yield start, numel
        start += numel
