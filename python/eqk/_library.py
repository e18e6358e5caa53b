"""Loads the compiled libraries: the CPU one always, the CUDA one where there is a GPU."""

from pathlib import Path

import torch

_DIRECTORY = Path(__file__).parent / "lib"


def load() -> None:
    cpu = next(_DIRECTORY.glob("libeqk_cpu.*"), None)
    if cpu is None:
        raise ImportError(f"eqk was installed without its compiled library: expected libeqk_cpu in {_DIRECTORY}")
    torch.ops.load_library(str(cpu))
    cuda = next(_DIRECTORY.glob("libeqk_cuda.*"), None)
    if cuda is not None and torch.version.cuda is not None and torch.cuda.is_available():
        torch.ops.load_library(str(cuda))


def wigner_3j(l1: int, l2: int, l3: int, dtype: torch.dtype | None = None, device=None) -> torch.Tensor:
    """Real Wigner 3j symbols of SO(3) in e3nn's basis, sign and normalisation.

    Args:
        l1, l2, l3: degrees, |l1 - l2| <= l3 <= l1 + l2, each at most 20.
        dtype, device: of the result; the default dtype and the CPU if None. Computed in float64.

    Returns:
        Tensor [2 l1 + 1, 2 l2 + 1, 2 l3 + 1] of unit Frobenius norm, invariant under rotation of its three indices.

    Raises:
        RuntimeError: if the degrees are out of range or break the triangle inequality.

    The complex coefficients are Varshalovich, Moskalev & Khersonskii, *Quantum Theory of Angular Momentum*, 8.2.1; the
    real basis is e3nn's (m = -l..l, y the polar axis).
    """
    c = torch.ops.eqk.wigner_3j(l1, l2, l3)
    return c.to(dtype=dtype or torch.get_default_dtype(), device=device)
