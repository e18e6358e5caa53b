"""What the documentation says is there: reference entries, targets of make, paths, links. It is built by `make docs`."""

import importlib.util
import re
from pathlib import Path

import pytest

import eqk

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(page for name in ("docs", "examples") for page in (ROOT / name).rglob("*.md"))]
FOLDERS = "bench|csrc|docs|examples|python|tests|triton_kernels|wheels"
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check_links():
    spec = importlib.util.spec_from_file_location("check_links", ROOT / "docs" / "check_links.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("module", [eqk, eqk.nn, eqk.o3, eqk.analysis], ids=lambda module: module.__name__)
def test_every_public_name_has_an_entry(module):
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    entries = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    assert len(entries) == len(set(entries))
    # An entry of a module is one of all that it has, but of those that are packages of modules.
    names = [name for name in module.__all__ if getattr(module, name) not in (eqk.nn, eqk.o3)]
    missing = [name for name in names if f"{module.__name__}.{name}" not in entries]
    assert module.__name__ in entries or not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_paths_are_there(page):
    text = page.read_text()
    assert set(re.findall(r"(?:`|^ {4})make ([a-z][a-z-]*)", text, re.MULTILINE)) <= TARGETS
    paths = re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./*-]*\w)(?![\w<{{(*])", text)
    # The op of the five steps is none.
    assert [path for path in paths if "foo" not in path and not list(ROOT.glob(path))] == []


def test_options_of_programs_are_theirs():
    """Each --option of a program of this repository on a line of a page is in the program's source."""
    shared = {path.name: path.read_text() for path in (ROOT / "bench").glob("*.py")}
    wrong = []
    for page in PAGES:
        for program, options in re.findall(r"((?:bench|examples)/[\w/]+\.py)((?: [\w/.-]+)+)", page.read_text()):
            source = (ROOT / program).read_text() + shared["tensor_product.py"]
            wrong += [
                f"{page.name}: {program} {o}" for o in re.findall(r"--[a-z-]+", options) if f'"{o}"' not in source
            ]
    assert wrong == []


def test_links_that_are_broken_are_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "index.html").write_text('<h1 id="here">A</h1><a href="../b.html#there">b</a><img src="c.png">')
    (tmp_path / "b.html").write_text(
        '<a href="a/#here">a</a><a href="a/#gone">a</a><a href="http://example.org/">plain</a>'
        '<a href="https://example.org/x?y#z">well</a><a href="/a/">root</a><a href="">empty</a><a href="#">top</a>'
    )
    assert sorted(check_links().problems(tmp_path)) == [
        "a/index.html: ../b.html#there",
        "a/index.html: c.png",
        "b.html: a/#gone",
        "b.html: http://example.org/",
    ]
