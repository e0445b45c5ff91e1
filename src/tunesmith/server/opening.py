"""From what a person names (a run, a model, a file) to what can answer: weights, renderer, task, context length.

The renderer and the system prompt of a run are the ones it was trained with; a template that differs is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tunesmith.chat.renderer import Renderer
from tunesmith.errors import ModelError, StoreError, TemplateMismatch, TunesmithError
from tunesmith.model.catalog import base_model_path, fetch_gguf, fetch_model
from tunesmith.pipeline import artifact_in_force
from tunesmith.protocols import EventSink
from tunesmith.store import Run, find_run
from tunesmith.types import Artifact, Task

GGUF_PREFERENCE = ("q8_0", "q4_k_m", "f16")
"""Which GGUF of a run is served where it has several: the first that is there. 8 bits keep the scores at half the size."""


@dataclass(frozen=True)
class OpenedModel:
    """Everything a server or a chat needs to know of a model. `gguf` for llama.cpp, `folder` for vLLM."""

    name: str
    renderer: Renderer
    task: Task
    context_length: int
    gguf: Path | None
    folder: Path | None
    run: Run | None


def open_model(reference: str, root: Path, events: EventSink) -> OpenedModel:
    """Open a run (`desk-001`, `desk`, `latest`, a folder) or a model (built-in name, hub id, folder, .gguf file)."""
    try:
        run = find_run(reference, root)
    except StoreError as no_run:
        try:
            return _open_plain(reference, events)
        except TunesmithError as no_model:
            if "/" in reference or reference.endswith(".gguf") or not str(no_model.message).startswith("there is no"):
                raise
            raise ModelError(
                f"{reference!r} is neither a run nor a model",
                where=str(root),
                hint=f"{no_run.hint}; models: tunesmith models",
            ) from None
    return _open_run(run)


def _open_run(run: Run) -> OpenedModel:
    exported, base = run.artifact("export"), artifact_in_force(run, "base_model")
    if exported is None or base is None:
        raise StoreError(
            "this run has exported no model yet",
            where=run.name,
            hint="let `tunesmith run` finish; the recipe needs an `export` section",
        )
    folder = exported.file("safetensors")
    folder = folder if folder.is_dir() else None
    template = exported.file("chat_template.jinja").read_text(encoding="utf-8")
    renderer = Renderer.for_model(folder or base_model_path(base), template)
    trained_with = exported.facts["template_digest"]
    if renderer.template_digest != trained_with:
        raise TemplateMismatch(
            f"the chat template differs from the one of the training ({renderer.template_digest[:12]}, {trained_with[:12]})",
            where=str(exported.file("chat_template.jinja")),
            hint="put the file back as it was exported, or run the export stage again",
        )
    task = Task.model_validate(json.loads(exported.file("task.json").read_text(encoding="utf-8")))
    return OpenedModel(
        name=run.name,
        renderer=renderer,
        task=task,
        context_length=exported.facts["context_length"],
        gguf=_best_gguf(exported),
        folder=folder,
        run=run,
    )


def _best_gguf(exported: Artifact) -> Path | None:
    files = sorted(path for path in exported.file("gguf").glob("*.gguf")) if exported.file("gguf").is_dir() else []
    for suffix in GGUF_PREFERENCE:
        for path in files:
            if path.stem.endswith(suffix):
                return path
    return files[0] if files else None


def _open_plain(reference: str, events: EventSink) -> OpenedModel:
    served = fetch_gguf(reference, events=events)
    if served is not None:
        return OpenedModel(
            name=Path(served.name).stem if served.name.endswith(".gguf") else served.name,
            renderer=Renderer.for_model(served.tokenizer_dir),
            task=Task(),
            context_length=served.context_length,
            gguf=served.gguf,
            folder=None,
            run=None,
        )
    fetched = fetch_model(reference, events=events)
    return OpenedModel(
        name=fetched.name,
        renderer=Renderer.for_model(fetched.path),
        task=Task(),
        context_length=fetched.context_length,
        gguf=None,
        folder=fetched.path,
        run=None,
    )


def require_gguf(model: OpenedModel) -> Path:
    """The GGUF file llama.cpp needs; ModelError says how to get one."""
    if model.gguf is None:
        raise ModelError(
            "llama.cpp needs a GGUF file and this model has none",
            where=model.name,
            hint="add gguf-q8_0 to `export.formats` and run again, or serve with --engine vllm on a GPU",
        )
    return model.gguf
