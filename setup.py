"""Runs CMake for the libraries and finds the packages; all else is in pyproject.toml and CMakeLists.txt."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def cuda_wanted() -> bool:
    """EQK_CUDA=0 or 1 decides; by default the CUDA library is built where torch has CUDA and nvcc is on PATH."""
    asked = os.environ.get("EQK_CUDA")
    if asked is not None:
        return asked not in ("", "0")
    return torch.version.cuda is not None and shutil.which("nvcc") is not None


def packages() -> list[str]:
    """What is under python/, and eqk.triton_kernels from its own directory, linked into python/eqk or not."""
    found = [p for p in find_packages(ROOT / "python") if not p.startswith("eqk.triton_kernels")]
    return found + ["eqk.triton_kernels"] * (ROOT / "triton_kernels" / "__init__.py").is_file()


def tool(name: str) -> str:
    """The path of a program of the build, on PATH or beside this Python, whose environment may not be activated."""
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        raise SystemExit(f"eqk: expected {name} on PATH or in {Path(sys.executable).parent}: pip install {name}")
    return path


class CMakeBuild(build_ext):
    """One CMake build for all libraries, so run() replaces setuptools' loop over extension modules.

    wheels/cuda/setup.py builds the CUDA library alone, for a package of its own.
    """

    library_package = "eqk"
    target, component = "all", None  # what is built and installed: all that there is

    def cuda(self) -> bool:
        return cuda_wanted()

    def run(self) -> None:
        package = ROOT / "python" / "eqk" if self.inplace else Path(self.build_lib).resolve() / self.library_package
        build = Path(os.environ.get("EQK_BUILD_DIR", ROOT / "build" / "cmake"))
        options = {
            "EQK_TORCH_DIR": Path(torch.__file__).parent,
            "EQK_CUDA": "ON" if self.cuda() else "OFF",
            "EQK_AUTOGRAD": "ON" if os.environ.get("EQK_AUTOGRAD", "0") not in ("", "0") else "OFF",
            # A wheel has all; a build for development those that are quick to compile.
            "EQK_CUDA_PLANS": os.environ.get("EQK_CUDA_PLANS", "development" if self.inplace else "all"),
            "EQK_SANITIZE": os.environ.get("EQK_SANITIZE", ""),
            "Python_EXECUTABLE": sys.executable,
            # An isolated build has a ninja of its own; the path in CMake's cache would outlive it.
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
        }
        definitions = [f"-D{key}={value}" for key, value in options.items()]
        definitions += shlex.split(os.environ.get("EQK_CMAKE_ARGS", ""))
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        cmake = tool("cmake")
        subprocess.run([cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *definitions], check=True)
        subprocess.run([cmake, "--build", build, "--target", self.target, "--parallel", jobs], check=True)
        # Nothing of an earlier build, such as its CUDA library, is what this one made.
        shutil.rmtree(package / "lib", ignore_errors=True)
        install = [cmake, "--install", build, *(["--component", self.component] if self.component else [])]
        subprocess.run([*install, "--prefix", package / "lib"], check=True)

    def get_outputs(self) -> list[str]:
        library = Path(self.build_lib) / self.library_package / "lib"
        return [] if self.inplace else [str(path) for path in library.glob("*")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class AnyPythonWheel(bdist_wheel):
    """The libraries use torch's stable ABI and no Python: one wheel per platform serves every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setup(
        packages=packages(),
        py_modules=["eqk_nequip"],
        package_dir={"": "python", "eqk.triton_kernels": "triton_kernels"},
        # A name only: it makes the wheel one for a platform; CMakeBuild knows what is built.
        ext_modules=[Extension("eqk.lib", [])],
        cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel},
    )
