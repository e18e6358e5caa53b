"""``make wheels``: eqk's wheels and its source distribution, into dist/.

The wheels are built from the source distribution. eqk has the CPU's library and all Python; eqk-cuda12 and eqk-cuda13
have the CUDA library for a torch of that CUDA, and need the eqk of their version. Each serves every Python from 3.10
and every torch from 2.11, on Linux with glibc 2.28 or newer.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import platform
import shlex
import shutil
import sys
import tarfile
from pathlib import Path

import toolkits
from toolkits import run

ROOT = Path(__file__).resolve().parent.parent
PLATFORM = f"manylinux_{toolkits.GLIBC.replace('.', '_')}_x86_64"
# Of a GPU between these the machine code of the one before serves: 8.6 and 8.9 run that of 8.0.
ARCHITECTURES = (75, 80, 90, 100, 120)


def source_distribution(work: Path, out: Path) -> Path:
    """Makes it and unpacks it into ``work``: files that are as they were keep their times, for the compiler's sake."""
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", work / "sdist", ROOT)
    archive = max((work / "sdist").glob("*.tar.gz"), key=lambda path: path.stat().st_mtime)
    fresh, source = work / "fresh", work / "source"
    shutil.rmtree(fresh, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(fresh, filter="data")
    (new,) = fresh.iterdir()
    for old in [path for path in source.rglob("*") if path.is_file()]:
        copy = new / old.relative_to(source)
        if not copy.is_file():
            old.unlink()
        elif filecmp.cmp(old, copy, shallow=False):
            shutil.copystat(old, copy)
    shutil.rmtree(source, ignore_errors=True)
    new.rename(source)
    fresh.rmdir()
    shutil.copy(archive, out)
    return source


def wheel(project: Path, build: Path, work: Path, out: Path, cmake: list[str], environment: dict[str, str]) -> None:
    """Builds the wheel of ``project`` with CMake in ``build``, and has auditwheel check it and name its platform."""
    built = work / "built" / build.name
    # setuptools packs what lies in its build folder, another wheel's library too.
    for old in (built, project / "build"):
        shutil.rmtree(old, ignore_errors=True)
    environment = {
        **os.environ,
        **environment,
        "EQK_AUTOGRAD": "0",  # which is for one torch
        "EQK_BUILD_DIR": str(build),
        "EQK_CMAKE_ARGS": f"{shlex.join(cmake)} {os.environ.get('EQK_CMAKE_ARGS', '')}",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    print(f"wheels: {build.name}", flush=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built, project]
    run(*pip, env=environment)
    (unchecked,) = built.glob("*.whl")
    auditwheel = [sys.executable, "-m", "auditwheel", "repair", "--plat", PLATFORM, "--exclude", "libtorch_cpu.so"]
    # Symbols of an older system alone, or this fails.
    run(*auditwheel, "--wheel-dir", out, unchecked, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make wheels", description=__doc__.partition("\n")[0])
    parser.add_argument("--wheels", nargs="+", choices=("cpu", "cuda12", "cuda13"), default=["cpu", "cuda12", "cuda13"])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "wheels", help="what is kept for the next run")
    args = parser.parse_args()
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        here = f"{platform.system()} on {platform.machine()}"
        raise SystemExit(f"wheels: expected Linux on x86_64, got {here}: there `pip install .` builds eqk for itself")
    out, work = args.out.resolve(), args.work.resolve()
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    source = source_distribution(work, out)
    stubs = [f"-DEQK_GLIBC_STUBS={toolkits.glibc_stubs(work, 'x86_64')}"]
    if "cpu" in args.wheels:
        wheel(source, work / "cpu", work, out, stubs, {"EQK_CUDA": "0"})
    if "cuda12" in args.wheels:
        nvcc = toolkits.cuda12(work / "cuda12-parts")
        flags = ["--fatbin-options=-compress-all", f"--fatbin-options=--assemble={':'.join(map(str, ARCHITECTURES))}"]
        cmake = [*stubs, "-DEQK_CUDA_ARCHITECTURES=", f"-DEQK_CUDA_FLAGS={';'.join(flags)}"]
        environment = {"EQK_CUDA_MAJOR": "12", "CUDACXX": str(nvcc)}
        wheel(source / "wheels" / "cuda", work / "cuda12", work, out, cmake, environment)
    if "cuda13" in args.wheels:
        nvcc = toolkits.cuda13(work / "cuda13-parts")
        # Every driver of CUDA 13 reads this compression.
        flags = "--fatbin-options;-compress-all;--compress-mode=size"
        codes = ",".join(f"sm_{n}" for n in ARCHITECTURES)
        cmake = [*stubs, f"-DEQK_CUDA_ARCHITECTURES={codes}", f"-DEQK_CUDA_FLAGS={flags}"]
        environment = {"EQK_CUDA_MAJOR": "13", "CUDACXX": str(nvcc)}
        wheel(source / "wheels" / "cuda", work / "cuda13", work, out, cmake, environment)
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size / 1e6:6.1f} MB  {path.name}")


if __name__ == "__main__":
    main()
