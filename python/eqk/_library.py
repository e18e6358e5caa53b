"""Loads the compiled libraries: the CPU one always, the CUDA one where torch is built for CUDA."""

from pathlib import Path

import torch

_DIRECTORY = Path(__file__).parent / "lib"

cuda_reason: str | None = None  # why the CUDA library is not loaded


def load() -> None:
    """Initialises no CUDA, which would fix CUDA_VISIBLE_DEVICES and keep forked children from it; needs no driver."""
    global cuda_reason
    cpu = next(_DIRECTORY.glob("libeqk_cpu.*"), None)
    if cpu is None:
        raise ImportError(f"eqk was installed without its compiled library: expected libeqk_cpu in {_DIRECTORY}")
    torch.ops.load_library(str(cpu))
    cuda = next(_DIRECTORY.glob("libeqk_cuda.*"), None)
    if cuda is None:
        cuda_reason = "libeqk_cuda is not there: eqk was built without CUDA"
    elif torch.version.cuda is None:
        cuda_reason = "libeqk_cuda is not loaded: torch is not built for CUDA" + " but for ROCm" * bool(
            torch.version.hip
        )
    else:
        try:
            torch.ops.load_library(str(cuda))
        except OSError as error:
            cuda_reason = f"libeqk_cuda cannot be loaded ({error})"


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
