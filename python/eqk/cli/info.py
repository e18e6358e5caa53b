"""``python -m eqk info``: what runs here, and why the rest does not."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

import torch

import eqk
from eqk import _library, adapters, dispatch
from eqk.cli.fatbin import architectures
from eqk.cli.tables import markdown, threads

VARIABLES = ("EQK_BACKEND", "EQK_CPU_ISA", "EQK_SEED", "TRITON_INTERPRET", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
ABSENT_GPU = torch.device("cuda", 0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def gpu_reason() -> str | None:
    """Why there is no GPU; None if there is one."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return "torch is not built for CUDA"
    return "torch finds no GPU"


def devices() -> list[torch.device]:
    """The CPU, and the GPUs that torch finds."""
    return [torch.device("cpu"), *(torch.device("cuda", n) for n in range(torch.cuda.device_count()))]


def cpu_model() -> str:
    """As the system names it, or the machine's architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model", "cpu model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def instruction_set() -> str:
    """What the CPU kernels run on; or why they refuse to."""
    try:
        return torch.ops.eqk.cpu_isa()
    except RuntimeError as error:
        return f"none: {str(error).splitlines()[0]}"


def version_of(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def libraries() -> dict[str, str]:
    """The compiled libraries: size, the architectures of those for CUDA, and why none of these is loaded."""
    size = "{:.1f} MB".format
    there = _library.cuda_libraries()
    others = sorted(set(_library._DIRECTORY.glob("libeqk_*")) - set(there.values()))
    result = {path.name: size(path.stat().st_size / 1e6) for path in others}
    for name, path in there.items():
        code, ptx = architectures(path)
        what = f"code for {' '.join(code)}, PTX {' '.join(ptx)}" if code or ptx else "architectures unknown"
        how = "loaded" if name == _library.cuda_loaded else "not loaded"
        label = path.name if name == "eqk" else f"{path.name} of {name}"
        result[label] = f"{size(path.stat().st_size / 1e6)}, {what}, {how}"
    if _library.cuda_loaded is None:
        result["libeqk_cuda"] = f"none: {_library.cuda_reason}"
    return result


def gpus() -> list[str]:
    """Name, compute capability and memory of each."""
    result = []
    for n in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(n)
        result.append(f"{p.name}, compute capability {p.major}.{p.minor}, {p.total_memory / 2**30:.0f} GiB")
    return result


def triton() -> str:
    """Its version, or why its kernels cannot run."""
    reason = dispatch._triton_reason()
    version = version_of("triton") or version_of("pytorch-triton") or "of an unknown version"
    return f"none: {reason}" if reason else version + (", interpreted" if dispatch._triton_interpreted() else "")


def why_not(op: str, device: torch.device) -> dict[str, str]:
    """The reasons why other backends do not run ``op`` on ``device``, but those for which it is the wrong device.

    Torch's operations are no backend of an op that has a kernel there.
    """
    elsewhere = {"torch", "cuda" if device.type == "cpu" else "cpu"}
    reasons = dispatch.reasons(op, device)
    return {name: reason for name, reason in reasons.items() if reason is not None and name not in elsewhere}


def backends(device: torch.device) -> dict[str, dict]:
    """For each op the backend that runs it on ``device``, or None, and the reasons why others do not."""
    result = {}
    for op in dispatch.OPS:
        reasons = why_not(op, device)
        try:
            result[op] = {"runs": dispatch.choose(op, device), "not": reasons}
        except RuntimeError as error:
            result[op] = {"runs": None, "not": reasons, "error": str(error)}
    return result


def machine() -> dict[str, str]:
    """The facts that an issue needs first."""
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"HIP {torch.version.hip}"
    built = "no CUDA" if torch.version.cuda is None and torch.version.hip is None else built
    facts = {
        "eqk": f"{eqk.__version__}, {Path(eqk.__file__).parent}",
        "torch": f"{torch.__version__}, {built}",
        "Python": f"{platform.python_version()}, {platform.platform()}",
        "CPU": f"{cpu_model()}, {threads(torch.get_num_threads())} on {os.cpu_count()} cores",
        "instruction set": instruction_set(),
        **libraries(),
        "Triton": triton(),
        "e3nn": version_of("e3nn") or "none",
        "GPU": gpu_reason() or "; ".join(gpus()),
    }
    variables = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    return facts | ({"environment": ", ".join(variables)} if variables else {})


def frameworks() -> dict[str, dict[str, str | None]]:
    """Of those that :func:`eqk.convert` knows layers of: the version that is installed, and the one that is tested."""
    return {
        name: {"package": package, "installed": version_of(package), "tested": tested}
        for name, (package, tested) in adapters.TESTED.items()
    }


def collect() -> dict:
    """All that ``info`` prints, as JSON has it."""
    return {
        "machine": machine(),
        "backends": {str(device): backends(device) for device in devices()},
        "without a GPU": None if gpu_reason() is None else backends(ABSENT_GPU),
        "frameworks": frameworks(),
    }


def _backend_rows(device: str, ops: dict[str, dict]) -> list[tuple[str, str, str, str]]:
    rows = []
    for op, found in ops.items():
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found["not"].items())
        rows.append((op, device, found["runs"] or "none", reasons))
    return rows


def main(args: argparse.Namespace) -> int:
    facts = collect()
    if args.json:
        json.dump(facts, sys.stdout, indent=2)
        print()
        return 0
    print(markdown(("what", "here"), facts["machine"].items()))
    rows = [row for device, ops in facts["backends"].items() for row in _backend_rows(device, ops)]
    print("\n" + markdown(("op", "device", "backend", "why not the others"), rows))
    if facts["without a GPU"] is not None:
        print(f"\nOn a GPU, of which there is none here ({facts['machine']['GPU']}):\n")
        missing: dict[str, list[str]] = {}
        for op, found in facts["without a GPU"].items():
            for name, reason in found["not"].items():
                missing.setdefault(f"{name}: {reason}", []).append(op)
        for reason, ops in missing.items():
            print(f"- {reason} ({', '.join(ops)})")
    rows = [(f["package"], f["installed"] or "-", f["tested"]) for f in facts["frameworks"].values()]
    print("\n" + markdown(("layers that eqk.convert knows of", "installed", "tested"), rows))
    return 0
