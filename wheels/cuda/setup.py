"""eqk-cuda12 or eqk-cuda13, as EQK_CUDA_MAJOR says: the CUDA library, which eqk loads where torch is of that CUDA."""

import importlib.util
import os
import re
from pathlib import Path

from setuptools import Extension, setup

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
spec = importlib.util.spec_from_file_location("eqk_setup", ROOT / "setup.py")
eqk_setup = importlib.util.module_from_spec(spec)
spec.loader.exec_module(eqk_setup)

MAJOR = os.environ.get("EQK_CUDA_MAJOR")
if MAJOR not in ("12", "13"):
    raise SystemExit(f"eqk-cuda: expected EQK_CUDA_MAJOR to be 12 or 13, got {MAJOR}")
VERSION = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
PACKAGE = f"eqk_cuda{MAJOR}"


class CudaBuild(eqk_setup.CMakeBuild):
    library_package = PACKAGE
    target, component = "eqk_cuda", "cuda"

    def cuda(self) -> bool:
        return True


setup(
    name=f"eqk-cuda{MAJOR}",
    version=VERSION,
    description=f"eqk's kernels for a torch of CUDA {MAJOR}",
    long_description=f"`pip install eqk[cuda{MAJOR}]` installs this beside eqk, which loads it.",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    install_requires=[f"eqk=={VERSION}"],
    packages=[PACKAGE],
    package_dir={PACKAGE: "eqk_cuda"},
    ext_modules=[Extension(f"{PACKAGE}.lib", [])],
    cmdclass={"build_ext": CudaBuild, "bdist_wheel": eqk_setup.AnyPythonWheel},
)
