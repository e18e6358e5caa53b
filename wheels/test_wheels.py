"""The wheels in dist/: their names, what they ask of a system and of torch, and that each runs alone."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import triton

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DIST = ROOT / "dist"
VERSION = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
TORCH = f"torch=={importlib.metadata.version('torch').partition('+')[0]}"
MEGABYTES = 40
# Of each distribution what its wheel's library is.
LIBRARIES = {
    "eqk": "eqk/lib/libeqk_cpu.so",
    "eqk_cuda12": "eqk_cuda12/lib/libeqk_cuda.so",
    "eqk_cuda13": "eqk_cuda13/lib/libeqk_cuda.so",
}
CUDA = {12: "eqk_cuda12", 13: "eqk_cuda13"}
RUNTIMES = {12: "nvidia-cuda-runtime-cu12", 13: "nvidia-cuda-runtime>=13,<14"}
ARCHITECTURES = {75, 80, 90, 100, 120}
# What systems of manylinux_2_28 have at least, and its systems alone: torch's own wheels need the same.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11), "GCC": (8,)}
SYSTEM = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "ld-linux-x86-64.so.2"}
NEEDED = SYSTEM | {"libstdc++.so.6", "libgcc_s.so.1", "libtorch_cpu.so"}


def run(*command: object, **options) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def wheel(name: str) -> Path:
    """The wheel of a distribution, whose name says that it serves any Python on glibc 2.28 or newer."""
    expected = rf"{name}-{re.escape(VERSION)}-py3-none-(manylinux_\d+_\d+_x86_64\.)*manylinux_2_28_x86_64\.whl"
    (found,) = DIST.glob(f"{name}-*.whl")
    assert re.fullmatch(expected, found.name), found.name
    return found


@pytest.fixture
def unpacked(tmp_path):
    """Gives the library of a distribution's wheel."""

    def unpack(name: str) -> Path:
        with zipfile.ZipFile(wheel(name)) as archive:
            return Path(archive.extract(LIBRARIES[name], tmp_path))

    return unpack


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Makes an environment with torch for CPUs and what is named, and returns its Python; each is made once."""
    made = {}

    def make(*requirements: str) -> Path:
        if requirements not in made:
            folder = tmp_path_factory.mktemp("environment")
            venv.create(folder, with_pip=True)
            pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
            pinned = [f"{r}=={VERSION}" if r.startswith("eqk") else r for r in requirements]
            run(*pip, "--find-links", DIST, "--only-binary", "eqk", TORCH, *pinned)
            made[requirements] = folder / "bin" / "python"
        return made[requirements]

    return make


def test_what_is_there():
    names = {path.name for path in DIST.iterdir()}
    assert names == {f"eqk-{VERSION}.tar.gz", *(wheel(name).name for name in LIBRARIES)}


def test_the_source_distribution_is_what_was_built():
    """The wheels are built of it; here that it has all of the sources and nothing that was built."""
    with tarfile.open(DIST / f"eqk-{VERSION}.tar.gz") as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    tracked = run("git", "ls-files", "csrc", "python", "triton_kernels", "wheels", "CMakeLists.txt", cwd=ROOT).split()
    assert set(tracked) <= packed
    assert not [name for name in packed if name.endswith((".so", ".o", ".pyc"))]


@pytest.mark.parametrize("name", LIBRARIES)
def test_size(name):
    size = wheel(name).stat().st_size
    print(f"{name}: {size / 1e6:.1f} MB")
    assert size <= MEGABYTES * 1e6


@pytest.mark.parametrize("name", LIBRARIES)
def test_pip_takes_it(name, tmp_path):
    """On each Python from 3.10 that has glibc 2.28, and on no older system."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-index", "--no-deps", "--only-binary", ":all:"]
    command = [*pip, "--find-links", DIST, "--dest", tmp_path, name.replace("_", "-")]
    for python in ("3.10", "3.14"):
        run(*command, "--python-version", python, "--platform", "manylinux_2_28_x86_64")
        (found,) = tmp_path.glob("*.whl")
        found.unlink()
    for refused in (["3.9", "manylinux_2_28_x86_64"], ["3.12", "manylinux_2_17_x86_64"], ["3.12", "win_amd64"]):
        with pytest.raises(AssertionError, match=r"No matching distribution|requires a different Python"):
            run(*command, "--python-version", refused[0], "--platform", refused[1])


@pytest.mark.parametrize("name", LIBRARIES)
def test_contents(name):
    with zipfile.ZipFile(wheel(name)) as archive:
        files = [n for n in archive.namelist() if ".dist-info/" not in n and not n.endswith("/")]
        metadata = archive.read(f"{name}-{VERSION}.dist-info/METADATA").decode()
    libraries = [n for n in files if ".so" in n]
    assert libraries == [LIBRARIES[name]]
    assert "Requires-Python: >=3.10" in metadata
    if name == "eqk":
        assert "eqk/triton_kernels/__init__.py" in files
        assert "Requires-Dist: torch>=2.11" in metadata
    else:
        assert sorted(files) == [f"{name}/__init__.py", LIBRARIES[name]]
        assert f"Requires-Dist: eqk=={VERSION}" in metadata


@pytest.mark.parametrize("name", LIBRARIES)
def test_auditwheel(name):
    """It asks for symbols of glibc 2.28 at most, and for no library beyond a system's but torch's, which eqk shares."""
    found = json.loads(run(sys.executable, "-m", "auditwheel", "show", "--json", wheel(name)))
    print(found)
    assert set(found["external_libs"]) == {"libtorch_cpu.so"}
    glibc = re.fullmatch(r"manylinux_(\d+)_(\d+)_x86_64", found["sym_tag"])
    assert tuple(map(int, glibc.groups())) <= NEWEST["GLIBC"]


@pytest.mark.parametrize("name", LIBRARIES)
def test_symbols(unpacked, name):
    """Of the system what 2.28 has; of torch the C functions of its stable ABI; of nothing else; and it offers none."""
    library = unpacked(name)
    dynamic = run("readelf", "--dynamic", "--wide", library)
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    assert "libtorch_cpu.so" in needed
    assert needed <= NEEDED
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic)
    assert run("nm", "--dynamic", "--defined-only", library) == ""
    of_torch = []
    for line in run("nm", "--dynamic", "--undefined-only", library).splitlines():
        kind, symbol = line.split()
        bare, _, version = symbol.partition("@")
        if version:
            family, _, number = version.partition("_")
            assert tuple(map(int, number.split("."))) <= NEWEST[family], symbol
        elif kind != "w":  # which the loader may leave undefined: hooks of profilers
            of_torch.append(bare)
    assert of_torch
    strange = [s for s in of_torch if not re.fullmatch(r"(aoti_torch|torch)_\w+", s)]
    assert not strange


@pytest.mark.parametrize("major", CUDA)
def test_architectures(unpacked, major):
    """Each kernel has PTX, and machine code of every architecture that runs it: all but sm_75 the convolution's."""
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    library = unpacked(CUDA[major])
    of_ptx: dict[str, int] = {}
    for text in re.split(r"^\.version ", run(cuobjdump, "--dump-ptx", library), flags=re.MULTILINE)[1:]:
        version, target = re.match(r"([\d.]+)\s+\.target sm_(\d+)", text).groups()
        assert float(version) < 9 or major == 13, "PTX that drivers of CUDA 12 do not read"
        of_ptx.update(dict.fromkeys(re.findall(r"\.entry (\w+)", text), int(target)))
    of_code: dict[str, set[int]] = {name: set() for name in of_ptx}
    for text in run(cuobjdump, "--dump-elf-symbols", library).split("Fatbin elf code:")[1:]:
        architecture = int(re.search(r"arch = sm_(\d+)", text)[1])
        for name in re.findall(r"STO_ENTRY\s+(\w+)", text):
            of_code[name].add(architecture)
    assert set(of_ptx.values()) == {75, 80}
    for name, oldest in of_ptx.items():
        assert of_code[name] == {n for n in ARCHITECTURES if n >= oldest}, name
        assert oldest == 75 or "conv" in name


def test_the_cpu_wheel_runs(environment):
    python = environment("eqk")
    run(python, HERE / "installed.py", cwd=python.parent)
    info = run(python, "-m", "eqk", "info", cwd=python.parent)
    assert "none: libeqk_cuda is not loaded: torch is not built for CUDA" in info
    check = run(python, "-m", "eqk", "check", "--quick", "--seed", "0", "--device", "cpu", cwd=python.parent)
    assert "FAIL" not in check


@pytest.mark.parametrize("runtime", ["none", "before", "after"])
@pytest.mark.parametrize("major", CUDA)
def test_the_cuda_wheels_load(environment, major, runtime):
    """In a torch without CUDA, which loads them only when it is told to, whatever else of CUDA is loaded."""
    python = environment(f"eqk[cuda{major}]", RUNTIMES[major])
    run(python, HERE / "installed.py", "--cuda", major, "--runtime", runtime, cwd=python.parent)
    if runtime == "none":
        info = run(python, "-m", "eqk", "info", cwd=python.parent)
        code = " ".join(f"sm_{n}" for n in sorted(ARCHITECTURES))
        (line,) = (line for line in info.splitlines() if f"libeqk_cuda.so of eqk-cuda{major}" in line)
        assert f"code for {code}, PTX compute_75 compute_80, not loaded" in line
        assert "none: libeqk_cuda is not loaded: torch is not built for CUDA" in info


def test_both_cuda_wheels_beside_each_other(environment):
    """And that of torch's CUDA is the one that is loaded."""
    python = environment("eqk[cuda12,cuda13]")
    for major in CUDA:
        program = f"import torch; torch.version.cuda = '{major}.0'; import eqk; print(eqk._library.cuda_loaded)"
        assert run(python, "-c", program, cwd=python.parent).strip() == f"eqk-cuda{major}"
