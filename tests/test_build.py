import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Stands for CMake: writes down its arguments, and installs what a build without CUDA does.
CMAKE = """#!{python}
import pathlib, sys
pathlib.Path({log!r}).open("a").write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "--install":
    directory = pathlib.Path(sys.argv[-1])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "libeqk_cpu.so").touch()
"""


@pytest.fixture
def build(tmp_path):
    """Runs setup.py's in-place build of a bare copy of the tree with stand-ins for the programs named."""
    source, programs = tmp_path / "source", tmp_path / "programs"
    (source / "python" / "eqk").mkdir(parents=True)
    programs.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # A Python whose directory has neither program in it.
    (programs / "python").symlink_to(sys.executable)
    environment = {**os.environ, "PATH": str(programs), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def run(*names, cuda="0"):
        for name in names:
            text = CMAKE.format(python=sys.executable, log=str(tmp_path / "log"))
            (programs / name).write_text(text if name == "cmake" else "")
            (programs / name).chmod(0o755)
        command = [str(programs / "python"), "setup.py", "build_ext", "--inplace"]
        return subprocess.run(
            command, cwd=source, env={**environment, "EQK_CUDA": cuda}, capture_output=True, text=True, check=False
        )

    run.library, run.log = source / "python" / "eqk" / "lib", tmp_path / "log"
    return run


@pytest.mark.parametrize("missing, there", [("ninja", "cmake"), ("cmake", "ninja")])
def test_a_missing_program_is_named(build, missing, there):
    result = build(there)
    assert result.returncode != 0
    assert f"eqk: expected {missing} on PATH" in result.stderr
    assert not build.log.exists()


def test_an_earlier_build_leaves_no_library(build):
    build.library.mkdir()
    (build.library / "libeqk_cuda.so").touch()
    result = build("cmake", "ninja")
    assert result.returncode == 0, result.stderr
    assert "-G Ninja" in build.log.read_text()
    assert [path.name for path in build.library.iterdir()] == ["libeqk_cpu.so"]


def test_a_compiler_that_is_too_old_is_named(tmp_path):
    """A stand-in for GCC 11, which lacks __builtin_shufflevector."""
    compiler = tmp_path / "g++-11"
    compiler.write_text('#!/bin/sh\nexec g++ -D__builtin_shufflevector=none "$@"\n')
    compiler.chmod(0o755)
    result = subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), "-G", "Ninja", f"-DCMAKE_CXX_COMPILER={compiler}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    message = " ".join(result.stderr.split())
    assert "eqk: expected GCC 12 or newer, or clang" in message
    assert f"got {compiler}" in message


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the flags are those of ELF")
def test_libraries_are_hardened():
    """Offsets of functions are read-only once the library is loaded, no stack is executable, frames have canaries."""
    import eqk

    for library in (Path(eqk.__file__).parent / "lib").glob("libeqk_*.so"):
        read = ["readelf", "--wide", "--segments", "--dynamic", "--dyn-syms", library]
        found = subprocess.run(read, capture_output=True, text=True, check=True).stdout
        assert "GNU_RELRO" in found, library
        assert "BIND_NOW" in found, library
        [flags] = re.findall(r"GNU_STACK(?: +0x\w+){5} +([RWE ]+) 0x", found)
        assert flags.strip() == "RW", library
        assert "__stack_chk_fail" in found, library
