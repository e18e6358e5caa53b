import sys

import pytest
import torch

from eqk import testing


def pytest_report_header():
    return f"EQK_SEED={testing.seed()}"


@pytest.fixture
def rng(request):
    return testing.generators(request.node.nodeid)[0]


@pytest.fixture
def generator(request):
    return testing.generators(request.node.nodeid)[1]


@pytest.fixture(autouse=True)
def nan_filled_outputs():
    """torch.empty gives NaN, so that an output that a kernel forgot to write shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture
def float64_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
