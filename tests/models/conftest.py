"""Adapters against the packages themselves: `make test-models`, a virtual environment for each framework.

EQK_TEST_MODEL names the framework whose tests are to run and whose packages must be there: a missing one is an error.
Without it, as in `make test`, nothing here is collected.
"""

import os

FRAMEWORK = os.environ.get("EQK_TEST_MODEL")
collect_ignore_glob = [] if FRAMEWORK else ["test_*.py"]
