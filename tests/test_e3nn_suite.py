"""e3nn's own tests of its tensor products and Linear, on eqk's classes.

e3nn's wheel has no tests; its source distribution does. The test environment fetches that one:

    pip download e3nn==0.6.0 --no-binary :all: --no-deps --no-build-isolation --dest build/e3nn

or names its folder in EQK_E3NN_SDIST. The test itself fetches nothing.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("EQK_E3NN_SDIST", HERE.parent / "build" / "e3nn"))

# (file, selection, least number that must pass). test_normalized and test_square_normalization check the statistics of
# e3nn's normalisation, for minutes; EQK_E3NN_ALL=1 runs them too.
FILES = [
    ("tensor_product_test.py", "not test_normalized", 180),
    ("tensor_product_sub_test.py", "not test_square_normalization", 12),
    ("linear_test.py", "", 100),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    archives = sorted(FOLDER.glob("e3nn-*.tar.gz"))
    assert archives, f"no e3nn-*.tar.gz in {FOLDER}; the head of {Path(__file__).name} says how to fetch it"
    folder = tmp_path_factory.mktemp("e3nn")
    shutil.unpack_archive(archives[-1], folder)
    return next(folder.iterdir()) / "tests"


@pytest.mark.parametrize(("name", "select", "least"), FILES)
def test_e3nn(sources, name, select, least):
    if os.environ.get("EQK_E3NN_ALL"):
        select = ""
    # From the tests' own folder, so that the installed e3nn is imported and not the one of the archive.
    command = [sys.executable, "-m", "pytest", f"o3/{name}", "-q", "-W", "ignore", "-p", "eqk_in_e3nn"]
    command += ["-p", "no:cacheprovider", "--rootdir", str(sources), *(["-k", select] if select else [])]
    path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    result = subprocess.run(
        command, cwd=sources, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) >= least, result.stdout[-500:]
