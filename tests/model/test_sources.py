"""Local folders, .gguf files and the hub: taken where they are, fetched at one commit, refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_registry import NAME, use

from small_models import build_model
from tunesmith.errors import ModelError, StoreError
from tunesmith.events import CallbackSink, Note, NullSink
from tunesmith.model import catalog, hub
from tunesmith.model.catalog import fetch_gguf, fetch_model

# Folders and files

pytestmark = pytest.mark.usefixtures("own_cache")


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
