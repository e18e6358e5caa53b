"""Every Python block of README.md and docs/ runs, each alone, as a reader would paste it.

A block with a title, as in ```python title="nequip", needs the framework of that name: `make test-model-nequip` runs it.
Those without one run in `make test`.
"""

import os
import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r'^```python(?: title="(?P<title>[^"]*)")?\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL)
FRAMEWORKS = re.search(r"^FRAMEWORKS \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()


if os.environ.get("EQK_TEST_MODEL") in ("equiformer_v2", "equiformer_v3", "esen"):
    sys.path.insert(0, str(ROOT / "bench"))
    from frameworks import stand_in_for_torch_scatter

    stand_in_for_torch_scatter()


def blocks():
    """Of this environment: what to compile, with the lines that it has in its file, and a name."""
    for page in PAGES:
        text = page.read_text()
        for match in FENCE.finditer(text):
            if match["title"] == os.environ.get("EQK_TEST_MODEL"):
                line = text[: match.start("code")].count("\n")
                yield pytest.param(page, "\n" * line + match["code"], id=f"{page.relative_to(ROOT)}:{line}")


@pytest.mark.parametrize(("page", "code"), list(blocks()))
def test_block(page, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("code_block")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # torch.compile looks up globals there
    exec(compile(code, str(page), "exec"), vars(module))


def test_every_block_is_run():
    """By some environment: no fence escapes the expression above, no title is of none, no framework has no block."""
    titles = [match["title"] for page in PAGES for match in FENCE.finditer(page.read_text())]
    fences = sum(len(re.findall(r"^ *(?:```|~~~)+ *\{?\.?py", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert len(titles) == fences
    assert {title for title in titles if title is not None} == set(FRAMEWORKS)
