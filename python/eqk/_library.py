"""Loads the compiled libraries: the CPU one always, the CUDA one where torch is built for CUDA."""

import importlib.metadata
import importlib.util
from pathlib import Path

import torch

_DIRECTORY = Path(__file__).parent / "lib"
_CUDA_MAJORS = (12, 13)  # for which there are packages with the CUDA library: eqk-cuda12, eqk-cuda13

cuda_loaded: str | None = None  # the distribution, among those of cuda_libraries, whose CUDA library is loaded
cuda_reason: str | None = None  # why none is


def cuda_libraries() -> dict[str, Path]:
    """The CUDA libraries that are installed, by the distribution: eqk itself, built from source, or one for a CUDA."""
    places = {"eqk": _DIRECTORY}
    for major in _CUDA_MAJORS:
        spec = importlib.util.find_spec(f"eqk_cuda{major}")
        if spec is not None and spec.submodule_search_locations:
            places[f"eqk-cuda{major}"] = Path(spec.submodule_search_locations[0]) / "lib"
    return {name: path for name, place in places.items() for path in place.glob("libeqk_cuda.*")}


def choose_cuda(cuda: str | None, eqk_version: str) -> tuple[str | None, str | None]:
    """The distribution whose CUDA library fits a torch built for CUDA ``cuda``, or None and the reason.

    One built from source goes first: it was built for this torch.
    """
    if cuda is None:
        other = " but for ROCm" if torch.version.hip else ""
        return None, f"libeqk_cuda is not loaded: torch is not built for CUDA{other}"
    there = cuda_libraries()
    if "eqk" in there:
        return "eqk", None
    major = int(cuda.partition(".")[0])
    if major not in _CUDA_MAJORS:
        have = " and ".join(map(str, _CUDA_MAJORS))
        return None, f"libeqk_cuda is not there: torch is built for CUDA {cuda}, packages of it are for CUDA {have}"
    name = f"eqk-cuda{major}"
    if name not in there:
        have = f", not {' or '.join(there)}" if there else ""
        return None, f"libeqk_cuda is not there: torch is built for CUDA {cuda}, which needs {name}{have}"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None, f"libeqk_cuda is not loaded: {name} was copied without its metadata, which say of which eqk it is"
    if version != eqk_version:
        return None, f"libeqk_cuda is not loaded: {name} is {version}, eqk {eqk_version}; they have to be the same"
    return name, None


def load(version: str) -> None:
    """Loads what fits eqk of this version and the torch here.

    Initialises no CUDA, which would fix CUDA_VISIBLE_DEVICES and keep forked children from it; needs no driver.
    """
    global cuda_loaded, cuda_reason
    cpu = next(_DIRECTORY.glob("libeqk_cpu.*"), None)
    if cpu is None:
        raise ImportError(f"eqk was installed without its compiled library: expected libeqk_cpu in {_DIRECTORY}")
    torch.ops.load_library(str(cpu))
    chosen, cuda_reason = choose_cuda(torch.version.cuda, version)
    if chosen is not None:
        try:
            torch.ops.load_library(str(cuda_libraries()[chosen]))
            cuda_loaded = chosen
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
