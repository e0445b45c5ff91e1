"""A tuned model as the base of the next training: what a checkpoint of one of our runs is as a whole model folder.

An adapter is merged into its base once and the folder kept in the cache, under the checkpoint's digest. Knows where
artifacts lie beside each other; refuses to know recipes.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import torch

from tunesmith.errors import ModelError, StoreError
from tunesmith.events import Note
from tunesmith.model import cache, catalog
from tunesmith.model.adapters import merge_adapter, read_fields
from tunesmith.model.folder import VALUE_HEAD
from tunesmith.model.load import ADAPTER_DIR, MODEL_DIR, load_checkpoint
from tunesmith.model.whole import TEMPLATE, save_whole, set_template
from tunesmith.protocols import EventSink
from tunesmith.store import MANIFEST, Run, load_artifact
from tunesmith.types import Artifact

CHECKPOINT = "checkpoint"
_RUN_STAGES = ("align", "train")  # of a run folder: the last that made a checkpoint


def whole_folder(path: Path, events: EventSink) -> Path:
    """The transformers folder that `path` stands for: itself, or, for a checkpoint of a run (its folder, or the run's),
    the whole tuned model. ModelError where the base of an adapter cannot be found."""
    checkpoint = _checkpoint_at(path)
    if checkpoint is None:
        return path
    name = f"{checkpoint.manifest.stage}-{checkpoint.manifest.digest[:16]}"
    final = cache.make_dir("tuned") / name
    with cache.lock(name, events):
        if not (final / "config.json").is_file():
            with cache.partial_dir(name) as work_dir:
                making = work_dir / "folder"
                shutil.rmtree(making, ignore_errors=True)
                making.mkdir()
                _make(checkpoint, making, events)
                cache.place(making, final)
    return final


def base_of(checkpoint: Artifact, events: EventSink) -> tuple[Path, str]:
    """(folder of the base model a checkpoint was trained on, its licence).

    It is looked for among the artifacts beside the checkpoint, then by the name that the adapter's files give.
    """
    digest = checkpoint.manifest.inputs.get("base_model")
    for manifest in sorted(checkpoint.path.resolve().parent.glob(f"*/{MANIFEST}")):
        with suppress(StoreError):  # a damaged artifact of another run
            artifact = load_artifact(manifest.parent)
            if artifact.manifest.digest == digest:
                return catalog.base_model_path(artifact), str(artifact.facts.get("licence") or "not stated")
    name = str(read_fields(checkpoint.file(ADAPTER_DIR)).get("base_model_name_or_path") or "")
    try:
        fetched = catalog.fetch_model(name, events=events)
    except ModelError as error:
        raise ModelError(
            f"the base model of this adapter is not beside it, and its name {name!r} leads nowhere: {error.message}",
            where=str(checkpoint.path),
            hint="name the checkpoint where it was made, or merge it there first: `tunesmith merge --into-model`",
        ) from error
    if fetched.weights_digest != checkpoint.facts["base_weights_digest"]:
        raise ModelError(
            f"{name} is not the model this adapter was trained on: its weights differ", where=str(checkpoint.path)
        )
    return fetched.path, fetched.licence


def _checkpoint_at(path: Path) -> Artifact | None:
    if (path / "run.json").is_file():
        run = Run(path)
        found = next((each for stage in _RUN_STAGES if (each := run.artifact(stage)) is not None), None)
        if found is None:
            raise ModelError("this run has no trained model yet", where=str(path), hint="finish it: `tunesmith run`")
        return found
    if not (path / MANIFEST).is_file():
        return None
    artifact = load_artifact(path)
    if artifact.manifest.kind != CHECKPOINT:
        raise ModelError(
            f"expected the folder of a trained model, found an artifact of kind {artifact.manifest.kind!r}",
            where=str(path),
            hint="name the run, or its folder `train`",
        )
    return artifact


def _make(checkpoint: Artifact, folder: Path, events: EventSink) -> None:
    if checkpoint.facts["method"] == "full":
        shutil.copytree(checkpoint.file(MODEL_DIR), folder, copy_function=_link_or_copy, dirs_exist_ok=True)
        licence = "not stated"
        with suppress(ModelError, StoreError, OSError):  # a full model needs no base; only its licence is lost
            licence = base_of(checkpoint, events)[1]
    else:
        events.emit(Note(message="merging the adapter into its base model (once)"))
        base_dir, licence = base_of(checkpoint, events)
        model = load_checkpoint(checkpoint, base_dir, device="cpu", dtype=torch.float32)
        save_whole(merge_adapter(model), base_dir, folder)
    head = checkpoint.path / VALUE_HEAD
    if head.is_file():  # where a later PPO begins
        shutil.copyfile(head, folder / VALUE_HEAD)
    template = checkpoint.file(TEMPLATE)
    if template.is_file():
        set_template(folder, template.read_text(encoding="utf-8"), checkpoint.facts["stop_ids"])
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n", encoding="utf-8")


def _link_or_copy(source: str, target: str) -> None:
    """Weights, which never change, are linked where the file system can; the small files beside them are copied."""
    if source.endswith(".safetensors"):
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
