"""Tables of the committed counts: {{ csv bench/gpu_gaunt.csv; kind=even; lmax as L; phase; compulsory as bytes }}.

A column is shown under its name or the one after `as`; `name=value` leaves the rows that have that value. Of what
bench/gpu_model.py makes of a row `time @ CHIP` is the time in nanoseconds, `floors @ CHIP` that over the time of its
compulsory bytes, `bound @ CHIP` what bounds it.
"""

import csv
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))
from gpu_model import CHIPS, model  # noqa: E402


def _shown(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        return text
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}".replace(",", " ")


def _cell(row: dict[str, str], column: str) -> str:
    name, at, chip = column.partition(" @ ")
    if not at:
        return _shown(row[column])
    terms = model({k: float(v) for k, v in row.items() if re.fullmatch(r"[-+.e\d]+", v)}, CHIPS[chip])
    bound = max(terms, key=terms.get)
    return {"time": f"{terms[bound]:.3g}", "floors": f"{terms[bound] / terms['dram']:.2f}", "bound": bound}[name]


def _table(match: re.Match) -> str:
    path, *fields = (field.strip() for field in match["fields"].split(";"))
    with (ROOT / path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = []
    for field in fields:
        name, equals, value = field.partition("=")
        if equals:
            rows = [row for row in rows if row[name] == value]
        else:
            name, _, title = field.partition(" as ")
            columns.append((name, title or name))
    if not rows or not columns:
        raise ValueError(f"{match[0]}: expected rows and columns, got {len(rows)} and {len(columns)}")
    table = [[title for _, title in columns], []]
    table += [[_cell(row, name) for name, _ in columns] for row in rows]
    table[1] = ["---:" if cell[0].isdigit() else "---" for cell in table[2]]
    return "\n".join(f"{match['indent']}| {' | '.join(cells)} |" for cells in table)


def on_page_markdown(markdown: str, **_) -> str:
    return re.sub(r"^(?P<indent> *)\{\{ csv (?P<fields>.+?) \}\}", _table, markdown, flags=re.MULTILINE)
