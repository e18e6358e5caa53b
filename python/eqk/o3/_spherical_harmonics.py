from collections.abc import Sequence

import torch
from torch import Tensor

from eqk.irreps import Irrep, IrrepsLike, irreps_argument
from eqk.o3._module import check_operand
from eqk.spherical_harmonics import check_normalization, evaluate, plan_string, resolve, spherical_harmonics

__all__ = ["SphericalHarmonics", "spherical_harmonics"]


def _harmonics(x: Tensor, normalize: bool, plan: str) -> Tensor:
    """What the module computes, as a function that torch.fx keeps whole and TorchScript compiles."""
    check_operand("x", x, 3)
    return evaluate(x, normalize, plan)


torch.fx.wrap("_harmonics")


class SphericalHarmonics(torch.nn.Module):
    """:func:`eqk.spherical_harmonics` as a module, with the signature of ``e3nn.o3.SphericalHarmonics``.

    Args:
        irreps_out: degree, list of degrees, or irreps.
        normalize, normalization: as for :func:`eqk.spherical_harmonics`.
        irreps_in: ``"1o"`` or ``"1e"``; by default ``"1e"`` where ``irreps_out`` has an even irrep of odd degree.

    Maps x [..., 3] to [..., irreps_out.dim]. Raises what the function raises, and ValueError for other ``irreps_in``.
    torch.jit.script can compile it.
    """

    # What e3nn.util.jit.compile looks for before it scripts a module.
    __e3nn_compile_mode__ = "script"

    def __init__(
        self,
        irreps_out: int | Sequence[int] | IrrepsLike,
        normalize: bool,
        normalization: str = "integral",
        irreps_in: IrrepsLike | None = None,
    ) -> None:
        super().__init__()
        check_normalization(normalization)
        degrees = [irreps_out] if isinstance(irreps_out, (int, str, Irrep)) else irreps_out
        if not isinstance(degrees, Sequence) or not all(isinstance(l, int) for l in degrees):
            irreps_out = irreps_argument("irreps_out", irreps_out)
        if irreps_in is not None:
            irreps_in = irreps_argument("irreps_in", irreps_in)
        ls, self.irreps_in, self.irreps_out = resolve(irreps_out, irreps_in)
        self._set(ls, normalize, normalization)

    def _set(self, ls: list[int], normalize: bool, normalization: str) -> None:
        self.normalize = normalize
        self.normalization = normalization
        self._ls_list = ls
        self._lmax = max(ls)
        self._is_range_lmax = ls == list(range(self._lmax + 1))
        self._plan_text = plan_string(ls, normalization)

    def forward(self, x: Tensor) -> Tensor:
        return _harmonics(x, self.normalize, self._plan_text)
