"""e3nn's S2Activation, with channels."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from eqk._signals import merge, split
from eqk.irreps import Irreps, IrrepsLike, irreps_argument
from eqk.plan import LAYOUTS
from eqk.reference.s2_activation import FUNCTIONS, dense
from eqk.s2_activation import dispatched_s2_activation, function_name
from eqk.s2_activation_plan import S2ActivationPlan
from eqk.s2_quadrature import Resolution, exactness
from eqk.tensor_product import rows_of


@functools.lru_cache(maxsize=64)
def second_moment_gain(function: Callable[[Tensor], Tensor]) -> float:
    """e3nn's normalize2mom: what gives f(z) of a normal z a second moment of 1, by a million fixed draws."""
    z = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        gain = float(function(z).square().mean() ** -0.5)
    return 1.0 if abs(gain - 1) < 1e-4 else gain


class S2Activation(nn.Module):
    """``e3nn.nn.S2Activation``: a function of each value of signals on the sphere (:func:`eqk.s2_activation`).

    The signal of irreps (l, p_val p_arg^l), l from 0 to lmax, has values that inversion multiplies by p_val; where that
    is -1 the function must be even or odd, and decides the parity of the result.

    Args:
        irreps: of the input, each degree from 0 to lmax once, of one multiplicity, which e3nn wants to be 1.
        act: the function, or the name of one that eqk has (:func:`eqk.s2_activation`). Those of torch that it knows run
            in one pass; any other one runs on a grid in memory. Normalised to a second moment of 1, as e3nn does.
        res: rings and angles, or (res_beta, res_alpha).
        normalization: ``"component"`` or ``"norm"``, as e3nn's, or ``"integral"``.
        lmax_out: largest degree of the result; lmax if None.
        random_rot: whether each call turns the grid at random.
        quadrature: ``"soft"``, e3nn's, whose number of rings is even and at least 2 (lmax + 1), or ``"gausslegendre"``.
        layout: of input and result, ``"mul_ir"`` (e3nn's) or ``"ir_mul"``.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        irreps: IrrepsLike,
        act: str | Callable[[Tensor], Tensor],
        res: Resolution,
        normalization: str = "component",
        lmax_out: int | None = None,
        random_rot: bool = False,
        quadrature: str = "soft",
        layout: str = "mul_ir",
    ) -> None:
        super().__init__()
        self.irreps_in = irreps = irreps_argument("irreps", irreps)
        degrees, muls = [ir.l for _, ir in irreps], {mul for mul, _ in irreps}
        if not irreps or degrees != list(range(len(degrees))) or len(muls) != 1:
            raise ValueError(f"irreps: expected each degree from 0 once, of one multiplicity, got {irreps}")
        if layout not in LAYOUTS:
            raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
        p_val, lmax, channels = irreps[0].ir.p, degrees[-1], muls.pop()
        for p_arg in (1, -1):
            if all(ir.p == p_val * p_arg**ir.l for _, ir in irreps):
                break
        else:
            raise ValueError(f"irreps: expected parities p or p (-1)^l, got {irreps}")
        name = function_name(act)
        if name is None and not callable(act):
            raise ValueError(f"act: expected a function or one of {', '.join(FUNCTIONS)}, got {act!r}")
        self.act = FUNCTIONS[name] if name else act
        lmax_out = lmax if lmax_out is None else lmax_out
        p_out = p_val if p_val == 1 else self._parity_of_function()
        self._text = str(
            S2ActivationPlan.normalized(
                lmax,
                lmax_out,
                channels,
                name or "identity",
                (res, res - 1 if quadrature == "soft" else res) if isinstance(res, int) else res,
                quadrature,
                normalization,
                gain=second_moment_gain(self.act),
                layout_in=layout,
                layout_out=layout,
            )
        )
        self.irreps_out = Irreps([(channels, (l, p_out * p_arg**l)) for l in range(lmax_out + 1)])
        self.random_rot, self._named = random_rot, name is not None

    def _parity_of_function(self) -> int:
        x = torch.linspace(0, 10, 256)
        a, b = self.act(x), self.act(-x)
        for sign in (1, -1):
            if (a - sign * b).abs().max() < 1e-10 * a.abs().max():
                return sign
        raise ValueError("act: expected an even or odd function for a signal that is odd under inversion")

    def forward(self, features: Tensor) -> Tensor:
        """[..., irreps_in.dim] -> [..., irreps_out.dim]"""
        if features.dim() == 0 or features.shape[-1] != self.irreps_in.dim:
            raise RuntimeError(f"features: expected shape [..., {self.irreps_in.dim}], got {list(features.shape)}")
        leading = list(features.shape[:-1])
        x = rows_of(features, leading) if leading else features[None]
        plan = S2ActivationPlan.parse(self._text)
        turn = None
        if self.random_rot:
            turn = torch.linalg.qr(torch.randn(3, 3, dtype=x.dtype, device=x.device))[0]
            turn = turn * turn.det()
            x = self._turned(x, plan.lmax_in, plan.layout_in, turn)
        if self._named:
            z = dispatched_s2_activation(x, self._text)
        else:
            to, back = dense(plan, x.dtype, x.device)
            f = self.act(torch.einsum("pi,zic->zpc", to, split(x, plan.lmax_in, plan.channels, plan.layout_in)))
            z = merge(torch.einsum("pi,zpc->zic", back, f), plan.lmax_out, plan.layout_out)
        if turn is not None:
            z = self._turned(z, plan.lmax_out, plan.layout_out, turn.mT)
        return z.reshape(*leading, self.irreps_out.dim)

    def _turned(self, x: Tensor, lmax: int, layout: str, turn: Tensor) -> Tensor:
        channels = self.irreps_in[0].mul
        d = Irreps([(1, (l, 1)) for l in range(lmax + 1)]).D_from_matrix(turn)
        return merge(torch.einsum("ij,zjc->zic", d, split(x, lmax, channels, layout)), lmax, layout)

    def extra_repr(self) -> str:
        plan = S2ActivationPlan.parse(self._text)
        grid = f"{plan.res[0]} x {plan.res[1]} {plan.quadrature}"
        return f"{self.irreps_in} -> {self.irreps_out}, {grid}, {exactness(plan.res, plan.quadrature)}"
