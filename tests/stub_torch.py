"""Two GPUs for a torch that has none: CUDA tensors, as ROCm's are too, in the memory of the host (stub_torch_cuda.cpp)."""

import ctypes
import importlib.util
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def load_stub_torch_cuda() -> None:
    [directory] = importlib.util.find_spec("torch").submodule_search_locations
    libraries = Path(directory) / "lib"
    with tempfile.TemporaryDirectory() as build:
        library = Path(build) / "libtorch_cuda.so"
        command = ["g++", "-std=c++20", "-shared", "-fPIC", "-isystem", f"{directory}/include", "-L", libraries]
        command += [f"-Wl,-rpath,{libraries},-soname,{library.name}", HERE / "stub_torch_cuda.cpp", "-o", library]
        subprocess.run([*command, "-lc10", "-ltorch_cpu"], check=True)
        ctypes.CDLL(str(library))
