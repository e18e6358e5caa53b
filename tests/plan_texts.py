"""Plans as texts: those of the registry, and what the fuzzer has made of them (tests/data/plan_texts.jsonl).

python plan_texts.py write FOLDER: both, a file each, for the fuzzer to start from; read FOLDER: keeps its files as the
second kind, but those of more than a kilobyte. Characters stand for bytes.
"""

import json
import sys
from pathlib import Path

import eqk
from eqk import testing
from eqk.so2_edge_message import ACTIVATIONS, Plan

CORPUS = Path(__file__).parent / "data" / "plan_texts.jsonl"
LONGEST = 1024


def of_registry() -> list[str]:
    """Of every op that has plans."""
    rng, _ = testing.generators("plan_texts", 0)
    plans = [case.plan for case in testing.CASES.values()] + [*testing.CONTRACTIONS.values(), *testing.GAUNTS.values()]
    plans += [testing.random_s2_activation(rng) for _ in range(20)]
    for activation in ACTIVATIONS:
        grid = eqk.S2ActivationPlan.normalized(2, 2, 4, "silu", (8, 7), mmax=1, order="m_primary")
        plans.append(Plan(2, 1, 8, 4, 8, activation, True, "second", "" if activation == "gate" else str(grid)))
    return [*map(str, plans), "0,1,2,3 component", "- norm", "4,20,0 integral"]


def of_fuzzer() -> list[str]:
    return [json.loads(line) for line in CORPUS.read_text().splitlines()]


def main(action: str, folder: Path) -> None:
    if action == "write":
        folder.mkdir(parents=True, exist_ok=True)
        for number, text in enumerate([*of_registry(), *(of_fuzzer() if CORPUS.exists() else [])]):
            (folder / f"{number:05}").write_bytes(text.encode("latin-1"))
    else:
        texts = sorted({path.read_bytes().decode("latin-1") for path in folder.iterdir()}, key=lambda t: (len(t), t))
        CORPUS.write_text("".join(json.dumps(text) + "\n" for text in texts if len(text) <= LONGEST))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
