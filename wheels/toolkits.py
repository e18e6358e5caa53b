"""The compilers of the wheels, put together from packages of PyPI and Debian; nothing is installed on the machine.

``build.py`` asks for them; ``python wheels/toolkits.py FOLDER`` makes them alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
# glibc of manylinux_2_28, which torch's own wheels ask for.
GLIBC = "2.28"

# The whole of CUDA 13's compiler is on PyPI.
CUDA13 = {
    "nvidia-cuda-nvcc": "13.0.88",
    "nvidia-cuda-crt": "13.0.88",
    "nvidia-nvvm": "13.0.88",
    "nvidia-cuda-runtime": "13.0.96",
    "nvidia-cuda-cccl": "13.0.85",
}
# Of CUDA 12's, PyPI has no nvcc. Debian has one, of 12.4; PyPI has the headers of 12.4, and of 12.9 ptxas, which makes
# machine code of Blackwell GPUs, and the runtime to link with.
SUITE = "trixie"
DEBIAN12 = {"nvidia-cuda-toolkit": "12.4.131~12.4.1-2"}
HEADERS12 = {
    "nvidia-cuda-nvcc-cu12": "12.4.131",
    "nvidia-cuda-runtime-cu12": "12.4.127",
    "nvidia-cuda-cccl-cu12": "12.9.27",  # that of 12.4 is empty
}
NEWEST12 = {"nvidia-cuda-nvcc-cu12": "12.9.86", "nvidia-cuda-runtime-cu12": "12.9.79"}


def run(*command: object, **options) -> subprocess.CompletedProcess:
    """A program that has to succeed; what it prints is shown if it does not."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise SystemExit(f"wheels: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}wheels: this has failed")
    return done


def kept(directory: Path, pins: object) -> bool:
    """Whether ``directory`` was finished, with these pins; what was not is removed."""
    stamp = directory / "pins.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == pins:
        return True
    shutil.rmtree(directory, ignore_errors=True)
    return False


def finish(directory: Path, pins: object) -> None:
    (directory / "pins.json").write_text(json.dumps(pins))


def from_pypi(packages: dict[str, str], directory: Path) -> Path:
    """The files of these wheels, unpacked over each other."""
    shutil.rmtree(directory, ignore_errors=True)
    for name, version in packages.items():
        downloads = directory.parent / "downloads" / f"{name}-{version}"
        if not any(downloads.glob("*.whl")):
            print(f"wheels: {name}=={version} from PyPI", flush=True)
            run(sys.executable, "-m", "pip", "download", "--no-deps", f"{name}=={version}", "--dest", downloads)
        for wheel in downloads.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(directory)
    return directory


def from_debian(packages: dict[str, str], directory: Path) -> Path:
    """The files of these packages, by an apt with lists of its own: this machine's may be of another release."""
    shutil.rmtree(directory, ignore_errors=True)
    for program in ("apt-get", "dpkg"):
        if shutil.which(program) is None:
            raise SystemExit(f"wheels: expected {program} on PATH: nvcc of CUDA 12 is a package of Debian {SUITE}")
    state = directory.parent / "apt"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (state / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    sites = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian").stdout
    archives = [site for site in sites.split() if not site.rstrip("/").endswith("-security")]
    if not archives:
        raise SystemExit(
            f"wheels: expected apt to know an archive of Debian, whose {SUITE} has nvcc of CUDA 12; got none, either "
            "because apt-get update was not run or because this is no Debian"
        )
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (state / "sources.list").write_text(f"deb [signed-by={keyring}] {archives[0]} {SUITE} main contrib non-free\n")
    options = {
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    for name, version in packages.items():
        downloads = directory.parent / "downloads" / f"{name}-{version}"
        if not any(downloads.glob("*.deb")):
            print(f"wheels: {name} {version} of Debian {SUITE}", flush=True)
            downloads.mkdir(parents=True, exist_ok=True)
            run(*apt, "update")
            run(*apt, "download", f"{name}={version}", cwd=downloads)
        for package in downloads.glob("*.deb"):
            run("dpkg", "-x", package, directory)
    return directory


def executable(*paths: Path) -> None:
    for path in paths:
        if path.is_file():
            path.chmod(0o755)


def cuda13(directory: Path) -> Path:
    """nvcc of CUDA 13.0: the one on PATH, or else PyPI's. A newer one writes PTX that drivers of 13.0 do not read."""
    found = shutil.which("nvcc")
    if found is not None and "release 13.0," in run(found, "--version").stdout:
        return Path(found)
    root = directory / "nvidia" / "cu13"
    if kept(directory, CUDA13):
        return root / "bin" / "nvcc"
    from_pypi(CUDA13, directory)
    executable(*(root / "bin").iterdir(), *(root / "nvvm" / "bin").iterdir())
    # What CMake looks for; libcudart.so is not linked.
    for link, target in ((root / "lib64", "lib"), (root / "lib" / "libcudart.so", "libcudart.so.13")):
        link.symlink_to(target)
    finish(directory, CUDA13)
    return root / "bin" / "nvcc"


def cuda12(directory: Path) -> Path:
    """nvcc of CUDA 12: 12.4's front end and compiler to PTX, with the assembler of 12.9 by ``fatbinary.py``.

    nvcc 12.4 knows no GPU newer than sm_90, so it makes PTX alone, and says so to the program that packs machine code
    and PTX into the object: that is ``fatbinary.py``, which runs the assembler for each architecture first.
    """
    root = directory / "toolkit"
    nvcc = root / "bin" / "nvcc"
    pins = [DEBIAN12, HEADERS12, NEWEST12]
    if kept(root, pins):
        return nvcc
    debian = from_debian(DEBIAN12, directory / "debian") / "usr"
    headers = from_pypi(HEADERS12, directory / "headers") / "nvidia"
    newest = from_pypi(NEWEST12, directory / "newest") / "nvidia"
    (root / "bin").mkdir(parents=True)
    own = debian / "lib" / "nvidia-cuda-toolkit"
    shutil.copytree(own / "bin" / "crt", root / "bin" / "crt")
    shutil.copy(debian / "bin" / "cudafe++", root / "bin")
    shutil.copy(debian / "bin" / "fatbinary", root / "bin" / "fatbinary.nvidia")
    shutil.copy(debian / "bin" / "nvlink", root / "bin")
    shutil.copy(own / "bin" / "nvcc", root / "bin")
    shutil.copy(newest / "cuda_nvcc" / "bin" / "ptxas", root / "bin")
    (root / "nvvm" / "bin").mkdir(parents=True)
    shutil.copy(own / "bin" / "cicc", root / "nvvm" / "bin")
    shutil.copytree(own / "libdevice", root / "nvvm" / "libdevice")
    for part in ("cuda_nvcc", "cuda_runtime", "cuda_cccl"):
        shutil.copytree(headers / part / "include", root / "include", dirs_exist_ok=True)
    (root / "lib64").mkdir()
    for library in ("libcudart_static.a", "libcudart.so.12"):
        shutil.copy(newest / "cuda_runtime" / "lib" / library, root / "lib64")
    (root / "lib64" / "libcudart.so").symlink_to("libcudart.so.12")  # CMake asks for it; it is not linked
    # nvcc links the device runtime whether it is used or not, and this nvlink refuses that of 12.9: an empty archive.
    (root / "lib64" / "libcudadevrt.a").write_bytes(b"!<arch>\n")
    (root / "bin" / "fatbinary").symlink_to(HERE / "fatbinary.py")
    executable(*(root / "bin").iterdir())
    # As NVIDIA's own, whose paths are relative; Debian's says where its packages put things.
    (root / "bin" / "nvcc.profile").write_text(
        "TOP = $(_HERE_)/..\n"
        "NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice\n"
        "PATH += $(TOP)/nvvm/bin:$(_HERE_):\n"
        'INCLUDES += "-I$(TOP)/include" $(_SPACE_)\n'
        'LIBRARIES =+ $(_SPACE_) "-L$(TOP)/lib64"\n'
    )
    finish(root, pins)
    return nvcc


def glibc_stubs(directory: Path, machine: str) -> Path:
    """What the linker needs of an older glibc than this machine's: its symbols and their versions, by Zig's tables.

    Zig writes them where it links a program for that glibc; GCC links with them just as well.
    """
    wanted = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libld.so.2"}
    stubs = directory / f"glibc-{GLIBC}-{machine}"
    pins = {"ziglang": importlib.metadata.version("ziglang")}
    if kept(stubs, pins):
        return stubs
    zig = directory / f"zig-{machine}"
    zig.mkdir(parents=True, exist_ok=True)
    (zig / "empty.c").write_text("")
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(zig), "ZIG_LOCAL_CACHE_DIR": str(zig)}
    target = f"{machine}-linux-gnu.{GLIBC}"
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-shared", "empty.c", "-lm", "-o", "empty.so"]
    run(*command, cwd=zig, env=environment)
    found = {path.name: path for path in zig.glob("o/*/lib*.so.*") if path.name in wanted}
    if found.keys() != wanted:
        missing = ", ".join(sorted(wanted - found.keys()))
        raise SystemExit(f"wheels: expected Zig to write stubs of glibc {GLIBC} into {zig}; there is no {missing}")
    stubs.mkdir()
    for name, path in found.items():
        shutil.copy(path, stubs / name)
        (stubs / f"{name.partition('.')[0]}.so").symlink_to(name)
    # As that of any system: atexit is no symbol of the shared library, and some are the loader's (Zig's libld.so.2).
    (stubs / "libc.so").unlink()
    (stubs / "libc.so").write_text("GROUP ( libc.so.6 libc_nonshared.a AS_NEEDED ( libld.so.2 ) )\n")
    finish(stubs, pins)
    shutil.rmtree(zig)
    return stubs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    for made in (glibc_stubs(folder, "x86_64"), cuda12(folder / "cuda12-parts"), cuda13(folder / "cuda13-parts")):
        print(made)
