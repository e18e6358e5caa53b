"""Tables in markdown, which an issue shows as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(headers: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> str:
    """``rows`` under ``headers``, columns padded to one width; ``right``: those that are aligned to the right."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (headers, *rows)]
    widths = [max(3, *(len(row[n]) for row in cells)) for n in range(len(headers))]
    rule = [
        "-" * (width - 1) + ":" if name in right else "-" * width for name, width in zip(headers, widths, strict=True)
    ]
    lines = []
    for row in (cells[0], rule, *cells[1:]):
        padded = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, name, width in zip(row, headers, widths, strict=True)
        ]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def number(value: float, digits: int = 3) -> str:
    """``value`` to so many significant digits, without an exponent below a million."""
    if value == 0 or not abs(value) < 1e6:
        return f"{value:.{digits}g}"
    text = f"{float(f'{value:.{digits}g}'):f}"
    return text.rstrip("0").rstrip(".")
