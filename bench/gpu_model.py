"""The time that counts of bench/gpu_*.csv allow on a chip of bench/gpu_chips.json: what bench/gpu_report.py prints.

Needs no torch, so that the documentation's tables are made with it too.
"""

import json
from collections.abc import Mapping
from pathlib import Path

DATA = json.loads((Path(__file__).parent / "gpu_chips.json").read_text())
ARCHITECTURES, CHIPS = DATA["architecture"], DATA["chip"]
SCHEDULERS = 4  # of a multiprocessor: each issues an instruction a cycle


def model(row: Mapping, chip: Mapping) -> dict[str, float]:
    """Nanoseconds an edge, by term."""
    per_cycle = chip["multiprocessors"] * chip["clock"] / 1e9
    sectors = row["read"] + row["written"]
    terms = {
        "dram": row["compulsory"] / chip["dram"] * 1e9,
        "arithmetic": 32 * row["arithmetic"] / chip["lanes"] / per_cycle,
        "issue": row[f"sass_{ARCHITECTURES[chip['architecture']]['machine_code']}"] / SCHEDULERS / per_cycle,
        "l1": (row["wavefronts"] + row["shuffles"] + sectors / 4) / per_cycle,
    }
    if "tensor" in row:
        terms["tensor"] = row["tensor"] / chip["tensor"] * 1e9
    if "l2" in chip:
        terms["l2"] = 32 * sectors / chip["l2"] * 1e9
    return terms
