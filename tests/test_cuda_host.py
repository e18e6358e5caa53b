"""The host side of the CUDA library: dispatcher, checks, launches and errors, on GPUs that are not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cuda import library  # noqa: F401 a fixture

from eqk import testing

TESTS = Path(__file__).parent


@pytest.mark.stub_gpu
def test_host_side(library):  # noqa: F811
    """stubbed_cuda.py in a process of its own, whose torch takes the stub for its CUDA."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "EQK_SEED": str(testing.seed()), "EQK_BACKEND": "auto"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "stub_cuda"]
    process = subprocess.run(
        [*command, str(TESTS / "stubbed_cuda.py")], env=environment, capture_output=True, text=True, timeout=1500
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert " passed" in process.stdout
    assert "skipped" not in process.stdout
