"""Tables of the committed counts: {{ csv bench/gpu_gaunt.csv; kind=even; lmax as L; phase; compulsory as bytes }}.

A column is shown under its name or the one after `as`; `name=value` leaves the rows that have that value.
"""

import csv
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def _number(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        return text
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}".replace(",", " ")


def _table(match: re.Match) -> str:
    path, *fields = (field.strip() for field in match[1].split(";"))
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
    lines = ["| " + " | ".join(title for _, title in columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_number(row[name]) for name, _ in columns) + " |" for row in rows]
    return "\n".join(lines)


def on_page_markdown(markdown: str, **_) -> str:
    return re.sub(r"\{\{ csv (.+?) \}\}", _table, markdown)
