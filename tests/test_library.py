"""Which CUDA library is loaded: that of a build from source, else that of the package for torch's CUDA."""

import sys

import pytest
import torch

import eqk
from eqk import _library
from eqk.cli import info


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts packages with a CUDA library on the path, as pip does, or one into eqk's own folder."""
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr(_library, "_DIRECTORY", own)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def install(name, version=eqk.__version__):
        if name == "eqk":
            (own / "libeqk_cuda.so").touch()
            return
        package = tmp_path / name.replace("-", "_")
        (package / "lib").mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "lib" / "libeqk_cuda.so").touch()
        metadata = tmp_path / f"{package.name}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    return install


@pytest.mark.parametrize(
    ("installed", "cuda", "chosen"),
    [
        (["eqk-cuda12", "eqk-cuda13"], "12.8", "eqk-cuda12"),
        (["eqk-cuda12", "eqk-cuda13"], "13.0", "eqk-cuda13"),
        (["eqk-cuda13", "eqk"], "13.0", "eqk"),
        (["eqk"], "14.1", "eqk"),
    ],
)
def test_chosen(install, installed, cuda, chosen):
    for name in installed:
        install(name)
    assert _library.choose_cuda(cuda, eqk.__version__) == (chosen, None)
    assert set(_library.cuda_libraries()) == set(installed)


@pytest.mark.parametrize(
    ("installed", "cuda", "reason"),
    [
        (["eqk-cuda12"], None, "libeqk_cuda is not loaded: torch is not built for CUDA"),
        ([], "13.0", "libeqk_cuda is not there: torch is built for CUDA 13.0, which needs eqk-cuda13"),
        (
            ["eqk-cuda12"],
            "13.0",
            "libeqk_cuda is not there: torch is built for CUDA 13.0, which needs eqk-cuda13, not eqk-cuda12",
        ),
        (
            ["eqk-cuda12", "eqk-cuda13"],
            "14.1",
            "libeqk_cuda is not there: torch is built for CUDA 14.1, packages of it are for CUDA 12 and 13",
        ),
    ],
)
def test_none_chosen(install, installed, cuda, reason):
    for name in installed:
        install(name)
    assert _library.choose_cuda(cuda, eqk.__version__) == (None, reason)


def test_of_another_version(install):
    install("eqk-cuda12", "0.0.1")
    reason = f"libeqk_cuda is not loaded: eqk-cuda12 is 0.0.1, eqk {eqk.__version__}; they have to be the same"
    assert _library.choose_cuda("12.4", eqk.__version__) == (None, reason)


def test_without_metadata(install, tmp_path):
    """As in a folder that was copied: eqk's import goes on without."""
    install("eqk-cuda12")
    (metadata,) = tmp_path.glob("eqk_cuda12-*.dist-info")
    (metadata / "METADATA").unlink()
    metadata.rmdir()
    chosen, reason = _library.choose_cuda("12.4", eqk.__version__)
    assert chosen is None
    assert reason.startswith("libeqk_cuda is not loaded: eqk-cuda12 was copied without its metadata")


def test_info_where_none_is_loaded(install, monkeypatch):
    """The reason is said once, and not of the package that it does not name."""
    install("eqk-cuda12")
    install("eqk-cuda13", "0.0.1")
    chosen, reason = _library.choose_cuda("13.0", eqk.__version__)
    monkeypatch.setattr(_library, "cuda_loaded", chosen)
    monkeypatch.setattr(_library, "cuda_reason", reason)
    lines = info.libraries()
    assert all(lines[f"libeqk_cuda.so of eqk-cuda{major}"].endswith(", not loaded") for major in (12, 13))
    assert lines["libeqk_cuda"] == f"none: {reason}"


def test_loads_the_chosen_one(install, tmp_path, monkeypatch):
    """And info says which, and why not the other."""
    install("eqk-cuda12")
    install("eqk-cuda13")
    (tmp_path / "own" / "libeqk_cpu.so").touch()
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for name in ("cuda_loaded", "cuda_reason"):
        monkeypatch.setattr(_library, name, None)
    _library.load(eqk.__version__)
    folder = tmp_path / "eqk_cuda12" / "lib"
    assert loaded == [str(tmp_path / "own" / "libeqk_cpu.so"), str(folder / "libeqk_cuda.so")]
    lines = info.libraries()
    assert lines["libeqk_cuda.so of eqk-cuda12"].endswith(", loaded")
    assert lines["libeqk_cuda.so of eqk-cuda13"].endswith(", not loaded")
    assert "libeqk_cuda" not in lines
