"""``python -m eqk``: what runs on this machine, what a plan is, whether the kernels are right here, and how fast."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from eqk.cli import bench, check, explain, info

_COMMANDS = {
    "info": (info, "versions, backends, instruction set and architectures, and why a backend is not available"),
    "explain": (explain, "paths, costs and floors of a plan, and which kernels run it and why"),
    "bench": (bench, "times of the ops beside e3nn's, or beside those of eqk.reference"),
    "check": (check, "a self-test, two minutes at most: every op on every backend against the float64 reference"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; its exit status. ``argv``: that of the process by default."""
    parser = argparse.ArgumentParser(prog="python -m eqk", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in _COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=text, description=text))
    args = parser.parse_args(argv)
    args.own_process = argv is None
    return _COMMANDS[args.command][0].main(args)


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # of `| head`: what is left to print goes nowhere, at exit too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
