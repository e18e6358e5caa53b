import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import eqk
from eqk import _library

ROOT = Path(__file__).parent.parent

# Stands for CMake: writes down its arguments, and installs what a build without CUDA does.
CMAKE = """#!{python}
import pathlib, sys
pathlib.Path({log!r}).open("a").write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "--install":
    directory = pathlib.Path(sys.argv[-1])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ("libeqk_cuda.so" if "cuda" in sys.argv else "libeqk_cpu.so")).touch()
"""


@pytest.fixture
def build(tmp_path):
    """Runs setup.py's in-place build of a bare copy of the tree with stand-ins for the programs named."""
    source, programs = tmp_path / "source", tmp_path / "programs"
    (source / "python" / "eqk").mkdir(parents=True)
    shutil.copytree(ROOT / "wheels" / "cuda", source / "wheels" / "cuda")
    programs.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # A Python whose directory has neither program in it.
    (programs / "python").symlink_to(sys.executable)
    environment = {**os.environ, "PATH": str(programs), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def run(*names, cuda="0", wheel_of=None):
        for name in names:
            text = CMAKE.format(python=sys.executable, log=str(tmp_path / "log"))
            (programs / name).write_text(text if name == "cmake" else "")
            (programs / name).chmod(0o755)
        folder, arguments, variables = source, ["build_ext", "--inplace"], {"EQK_CUDA": cuda}
        if wheel_of is not None:
            folder, arguments = source / "wheels" / "cuda", ["bdist_wheel", "--dist-dir", str(tmp_path)]
            variables = {"EQK_CUDA_MAJOR": wheel_of}
        command = [str(programs / "python"), "setup.py", *arguments]
        variables = {**environment, **variables}
        return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)

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
    for library in (Path(eqk.__file__).parent / "lib").glob("libeqk_*.so"):
        read = ["readelf", "--wide", "--segments", "--dynamic", "--dyn-syms", library]
        found = subprocess.run(read, capture_output=True, text=True, check=True).stdout
        assert "GNU_RELRO" in found, library
        assert "BIND_NOW" in found, library
        [flags] = re.findall(r"GNU_STACK(?: +0x\w+){5} +([RWE ]+) 0x", found)
        assert flags.strip() == "RW", library
        assert "__stack_chk_fail" in found, library


def test_versions_are_one():
    """Those that the packages for CUDA ask of eqk, and eqk's extras of them."""
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.*)"', text, re.MULTILINE)[1] == eqk.__version__
    for major in _library._CUDA_MAJORS:
        assert f'cuda{major} = ["eqk-cuda{major}=={eqk.__version__}"]' in text


def test_package_of_the_cuda_library(build, tmp_path):
    """It builds the CUDA library alone, and its wheel has that for any Python, and asks for the eqk of its version."""
    major = 13
    result = build("cmake", "ninja", wheel_of=str(major))
    assert result.returncode == 0, result.stderr
    log = build.log.read_text()
    assert "-DEQK_CUDA=ON" in log
    assert "--target eqk_cuda" in log
    assert "--component cuda" in log
    (path,) = tmp_path.glob("*.whl")
    name = f"eqk_cuda{major}-{eqk.__version__}"
    assert path.name.startswith(f"{name}-py3-none-linux_")
    with zipfile.ZipFile(path) as wheel:
        files = sorted(f for f in wheel.namelist() if "dist-info" not in f)
        metadata = wheel.read(f"{name}.dist-info/METADATA").decode()
    assert files == [f"eqk_cuda{major}/__init__.py", f"eqk_cuda{major}/lib/libeqk_cuda.so"]
    assert f"Requires-Dist: eqk=={eqk.__version__}" in metadata
    assert "Requires-Python: >=3.10" in metadata


def test_package_of_another_cuda(build):
    result = build("cmake", "ninja", wheel_of="11")
    assert result.returncode != 0
    assert "eqk-cuda: expected EQK_CUDA_MAJOR to be 12 or 13, got 11" in result.stderr


def wheels_module(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "wheels"))
    spec = importlib.util.spec_from_file_location(f"eqk_wheels_{name}", ROOT / "wheels" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_workflow_builds_what_make_wheels_builds(monkeypatch):
    """The same architectures, options and versions: the workflow can take none of them from Python."""
    build = wheels_module("build", monkeypatch)
    workflow, makefile = ((ROOT / name).read_text() for name in (".github/workflows/wheels.yml", "Makefile"))
    codes = ",".join(f"sm_{n}" for n in build.ARCHITECTURES)
    assert f"-DEQK_CUDA_ARCHITECTURES={codes}" in workflow
    assert f"--assemble={':'.join(map(str, build.ARCHITECTURES))}" in workflow
    assert f'"{codes}" CACHE STRING' in (ROOT / "CMakeLists.txt").read_text()
    assert f"--plat {build.PLATFORM} --exclude libtorch_cpu.so" in workflow
    assert f"glibc-{build.toolkits.GLIBC}-x86_64" in workflow
    for package in ("torch", "ziglang"):
        (version,) = set(re.findall(rf"(?<![\w-]){package}==([\d.]+)", makefile))
        assert set(re.findall(rf"(?<![\w-]){package}==([\d.]+)", workflow)) == {version}


def test_wheels_of_another_machine(monkeypatch, tmp_path):
    build = wheels_module("build", monkeypatch)
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(sys, "argv", ["build.py", "--out", str(tmp_path / "dist"), "--work", str(tmp_path / "work")])
    with pytest.raises(
        SystemExit, match=r"expected Linux on x86_64, got \w+ on aarch64: there `pip install \.` builds"
    ):
        build.main()
    assert not list(tmp_path.iterdir())


# Stands for ptxas and for NVIDIA's fatbinary: writes down its arguments, and what the PTX is.
PROGRAM = """#!/bin/sh
echo "${{0##*/}}" "$@" >> {log}
case "$*" in *{fails}*) exit 3;; esac
while [ $# -gt 0 ]; do if [ "$1" = -o ]; then echo code > "$2"; fi; shift; done
"""


@pytest.mark.parametrize("fails", ["nothing", "sm_90", "embedded"])
def test_machine_code_of_newer_architectures(tmp_path, fails):
    """fatbinary.py has the assembler make it of PTX that the architecture runs, and hands all on; or says what failed."""
    program, log, ptx = tmp_path / "fatbinary", tmp_path / "log", tmp_path / "k.ptx"
    program.symlink_to(ROOT / "wheels" / "fatbinary.py")
    for name in ("ptxas", "fatbinary.nvidia"):
        (tmp_path / name).write_text(PROGRAM.format(log=log, fails=fails))
        (tmp_path / name).chmod(0o755)
    arguments = ["-64", f"--image3=kind=ptx,sm=80,file={ptx}", "--assemble=75:80:90:120", "--embedded-fatbin=k.c"]
    result = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == {"nothing": 0, "sm_90": 3, "embedded": 3}[fails], result.stderr
    calls = log.read_text().replace(f"{tmp_path}/", "")
    assembled = "".join(f"ptxas -arch=sm_{n} -m64 k.ptx -o k.ptx.sm_{n}.cubin\n" for n in (80, 90, 120))
    if fails == "sm_90":
        assert calls == "".join(assembled.splitlines(keepends=True)[:2])
    else:
        images = " ".join(f"--image3=kind=elf,sm={n},file=k.ptx.sm_{n}.cubin" for n in (80, 90, 120))
        handed = f"fatbinary.nvidia -64 --image3=kind=ptx,sm=80,file=k.ptx --embedded-fatbin=k.c {images}\n"
        assert calls == assembled + handed
    assert not list(tmp_path.glob("*.cubin"))
