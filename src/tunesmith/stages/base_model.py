"""Stage base_model: the model that is tuned, found or fetched, and what later stages need to know about it.

Where the recipe asks for longer context or new tokens, the artifact holds the model folder that has them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson

from tunesmith.chat.renderer import Renderer
from tunesmith.errors import ModelError, RecipeError
from tunesmith.events import Note, Progress
from tunesmith.hashing import digest_file
from tunesmith.model.catalog import FetchedModel, fetch_model
from tunesmith.model.context import extend_model
from tunesmith.model.folder import VALUE_HEAD, inspect_folder
from tunesmith.protocols import Context
from tunesmith.recipe import BaseModelSection
from tunesmith.store import write_atomic
from tunesmith.types import Inputs, Outcome

EXTENDED = "model"
"""Folder of the artifact that holds the model with longer context or new tokens."""


def run(section: BaseModelSection, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
    """Fetch the model. The weights stay in the cache: the artifact holds their digest and, in a log, their place."""
    model = fetch_model(section.name, revision=section.revision, events=ctx.events)
    facts: dict[str, Any] = {
        "name": section.name,
        "source": model.source,
        "revision": model.revision,
        "weights_digest": model.weights_digest,
        "licence": model.licence,
        "num_parameters": model.num_parameters,
        "architecture": model.architecture,
        "context_length": model.context_length,
    }
    folder, place = model.path, str(model.path)
    if section.context_length is not None or section.rope_scaling != "none" or section.add_tokens:
        folder, place = out_dir / EXTENDED, EXTENDED
        facts |= _extend(section, model, folder, ctx)
    if (folder / VALUE_HEAD).is_file():
        facts["value_head_digest"] = digest_file(folder / VALUE_HEAD)
    facts["template_digest"] = _template_digest(folder, ctx)
    write_atomic(out_dir / "model.json", orjson.dumps(facts, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    location = {
        "path": place,
        "gguf": str(model.gguf) if model.gguf and folder == model.path else None,
        "name": section.name,
        "revision": model.revision,
    }
    (out_dir / "logs").mkdir(exist_ok=True)
    write_atomic(out_dir / "logs" / "location.json", orjson.dumps(location, option=orjson.OPT_INDENT_2))
    return Outcome("base_model", {"num_parameters": facts["num_parameters"]}, facts)


def _extend(section: BaseModelSection, model: FetchedModel, folder: Path, ctx: Context) -> dict[str, Any]:
    """Write the extended model and return the facts that differ from the fetched one's."""
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
    extended = extend_model(
        model.path,
        folder,
        rope_scaling=section.rope_scaling,
        context_length=section.context_length,
        add_tokens=section.add_tokens,
        on_done=lambda done, total: ctx.events.emit(Progress(task="add tokens", done=done, total=total, unit="bytes")),
    )
    found = inspect_folder(folder)
    said = [f"{text} is token {index}" for text, index in extended.new_tokens]
    if extended.context_length != extended.old_context_length:
        how = "" if section.rope_scaling == "none" else f" ({section.rope_scaling})"
        said.insert(0, f"it reads {extended.context_length:,} tokens, {extended.old_context_length:,} before{how}")
    ctx.events.emit(Note(message=f"extended {section.name}: {', '.join(said) or 'it had all this before'}"))
    return {
        "weights_digest": found.weights_digest,
        "num_parameters": found.num_parameters,
        "context_length": found.context_length,
        "original_context_length": extended.old_context_length,
        "original_weights_digest": model.weights_digest,
        "rope_scaling": section.rope_scaling,
        "new_tokens": [text for text, _ in extended.new_tokens],
    }


def _template_digest(model_dir: Path, ctx: Context) -> str | None:
    """Digest of the model's own chat template; None where it has none that can be trained with. The tokenize stage then
    needs one named in the recipe, and says so."""
    try:
        return Renderer.for_model(model_dir).template_digest
    except (RecipeError, ModelError) as error:
        ctx.events.emit(Note(level="warning", message=f"{error.message}; tokenize.chat_template can name another"))
        return None
