"""Allegro's tensor product (``allegro.nn._strided._contract.Contracter``, nequip-allegro 0.8)."""

from __future__ import annotations

import torch
from allegro.nn._strided._contract import Contracter
from torch import Tensor, nn

from eqk._library import wigner_3j
from eqk.adapters import become
from eqk.plan import Plan
from eqk.tensor_product_conv import tensor_product_conv


class FusedContracter(Contracter):
    """Contracter as one op, from the gather of x2: no outer product [edges, mul, dim1, dim2] is made.

    Same state dict, operands and result; all derivatives, those of the weights too.
    """

    # What a process must import before it loads a model that nequip-compile has made.
    _nequip_custom_ops_libs = ("eqk",)
    _plan_text: str

    def _contract_conv(self, x1: Tensor, x2: Tensor, idxs: Tensor) -> Tensor:
        edges = x1.size(0)
        # [rows, mul, dim] is the transpose of what ir_mul calls rows. So is the result, which makes the one of the
        # next layer a view.
        x1, x2 = (x.transpose(1, 2).reshape(x.size(0), x.size(1) * x.size(2)) for x in (x1, x2))
        weights = self.weights.reshape(-1, self.num_paths).expand(self.mul, self.num_paths).t().reshape(-1)
        each = torch.arange(edges, device=idxs.device, dtype=idxs.dtype)
        out = tensor_product_conv(x2, x1, weights, idxs, each, edges, self._plan_text)
        return out.view(edges, self.base_dim_out, self.mul).transpose(1, 2)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        try:
            self._plan_text = str(plan_of(self))
        except ValueError as error:
            errors.append(f"{prefix}{error}")


def plan_of(module: Contracter) -> Plan:
    """T(x2, x1, weights) in the layout ir_mul, with the coefficients and signs of the module's buffer ``w3j``.

    Raises ValueError where that has anything else than multiples of Wigner 3j symbols.
    """
    w3j = module.w3j.detach().to("cpu", torch.float64)
    if w3j.dim() < (3 if module.w3j_is_ij_diagonal else 4):
        w3j = w3j.unsqueeze(0)
    if module.w3j_is_ij_diagonal:
        w3j = torch.diag_embed(w3j.transpose(1, 2)).permute(0, 2, 3, 1)
    operands = (module.irreps_in1, module.irreps_in2, module.irreps_out)
    instructions = []
    for number, path in enumerate(w3j):
        first = path.nonzero()[0].tolist() if path.any() else [0, 0, 0]
        i, j, k = (_segment(irreps, at) for irreps, at in zip(operands, first, strict=True))
        degrees = (module.irreps_in2[j].ir.l, module.irreps_in1[i].ir.l, module.irreps_out[k].ir.l)
        symbol = torch.zeros_like(path)
        at = tuple(irreps.slices()[n] for irreps, n in zip(operands, (i, j, k), strict=True))
        symbol[at] = wigner_3j(*degrees, dtype=torch.float64).transpose(0, 1)
        coefficient = float((path * symbol).sum())
        if (path - coefficient * symbol).abs().max() > max(1e-5, torch.finfo(module.w3j.dtype).eps) * path.abs().max():
            raise ValueError(f"w3j: expected a multiple of the Wigner 3j symbol {degrees} in path {number}")
        instructions.append((j, i, k, "uuu", True, coefficient))
    in1, in2, out = ([(module.mul, (ir.l, ir.p)) for _, ir in irreps] for irreps in operands)
    return Plan(in2, in1, out, instructions, *["ir_mul"] * 3, weights="shared")


def _segment(irreps, column: int) -> int:
    return next(n for n, columns in enumerate(irreps.slices()) if column in range(columns.start, columns.stop))


def fuse(module: nn.Module) -> str | None:
    if type(module) is not Contracter:
        return None
    if vars(module).keys() & {"forward", "_contract_conv"}:
        raise ValueError("a forward of its own")
    module._plan_text = str(plan_of(module))
    return become(module, FusedContracter)
