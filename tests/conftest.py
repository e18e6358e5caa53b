import os
import platform
import random
import sys

import pytest
import torch

from eqk import testing

# What a test marked so needs. Where it is not there, the test is not selected; where it is, no flag is needed.
NEEDS = {
    "gpu": torch.cuda.is_available(),
    "stub_gpu": torch.version.cuda is None and platform.machine() == "x86_64",
}


def pytest_report_header():
    without = [f"no tests of {mark}" for mark, there in NEEDS.items() if not there]
    return ", ".join([f"EQK_SEED={testing.seed()}", *without])


# The files that take longest, which start before the others so that no process ends with one of them alone.
LONG = (
    "test_cuda.py",
    "test_export.py",
    "test_planted_faults.py",
    "test_triton.py",
    "test_emulated_triton.py",
    "test_tensor_product.py",
    "test_symmetric_contraction.py",
    "test_instruction_sets.py",
    "test_cuda_host.py",
    "test_gpu_report.py",
    "test_examples.py",
    "test_distributed.py",
    "test_e3nn_suite.py",
)


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    impossible = [
        item for item in items if any(mark.name in NEEDS and not NEEDS[mark.name] for mark in item.iter_markers())
    ]
    if impossible:
        config.hook.pytest_deselected(items=impossible)
        items[:] = [item for item in items if item not in impossible]


@pytest.fixture(autouse=True)
def seeded(request):
    """The global generators, for tests that draw from them and for modules that initialise their weights."""
    print(f"EQK_SEED={testing.seed()}")
    rng, generator = testing.generators(f"{request.node.nodeid} global")
    random.seed(rng.random())
    torch.manual_seed(generator.initial_seed())


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


@pytest.fixture(scope="session", autouse=True)
def interpreted_language():
    """Triton's interpreter patches its language for each call of a function, in a third of the time of the calls."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        from triton.runtime import interpreter

        patch, patched = interpreter._patch_lang, set()

        def patch_once(function):
            if id(function.__globals__) not in patched:
                patched.add(id(function.__globals__))
                patch(function)
            return interpreter._LangPatchScope()  # restores nothing: all that this process has is interpreted

        interpreter._patch_lang = patch_once


@pytest.fixture
def float64_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
