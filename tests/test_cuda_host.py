"""The host side of the CUDA library: dispatcher, checks, launches and errors, on GPUs that are not there."""

import pytest
from own_process import run_tests
from test_cuda import library  # noqa: F401 a fixture


@pytest.mark.stub_gpu
def test_host_side(library):  # noqa: F811
    """stubbed_cuda.py in a process of its own, whose torch takes the stub for its CUDA."""
    run_tests("stubbed_cuda", plugin="stub_cuda", EQK_BACKEND="auto")
