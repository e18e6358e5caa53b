"""Files of tests in processes of their own, since what they need is decided when torch or Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

from eqk import testing

HERE = Path(__file__).parent


def run_tests(name, *, plugin=None, timeout=1500, **environment):
    """Those of NAME.py, beside this file, with a plugin of pytest's from here: all have to pass, and none be skipped."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(["-p", plugin] if plugin else [])]
    process = subprocess.run(
        [*command, str(HERE / f"{name}.py")],
        env={**os.environ, "PYTHONPATH": path, "EQK_SEED": str(testing.seed()), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert " passed" in process.stdout
    assert "skipped" not in process.stdout
