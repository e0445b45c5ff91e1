"""Stage base_model: the model that is tuned, found or fetched, and what later stages need to know about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from tunesmith.chat.renderer import Renderer
from tunesmith.errors import ModelError, RecipeError
from tunesmith.events import Note
from tunesmith.model.catalog import fetch_model
from tunesmith.protocols import Context
from tunesmith.recipe import BaseModelSection
from tunesmith.store import write_atomic
from tunesmith.types import Inputs, Outcome


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
        "template_digest": _template_digest(model.path, ctx),
    }
    write_atomic(out_dir / "model.json", orjson.dumps(facts, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    location = {
        "path": str(model.path),
        "gguf": str(model.gguf) if model.gguf else None,
        "name": section.name,
        "revision": model.revision,
    }
    (out_dir / "logs").mkdir(exist_ok=True)
    write_atomic(out_dir / "logs" / "location.json", orjson.dumps(location, option=orjson.OPT_INDENT_2))
    return Outcome("base_model", {"num_parameters": model.num_parameters}, facts)


def _template_digest(model_dir: Path, ctx: Context) -> str | None:
    """Digest of the model's own chat template; None where it has none that can be trained with. The tokenize stage then
    needs one named in the recipe, and says so."""
    try:
        return Renderer.for_model(model_dir).template_digest
    except (RecipeError, ModelError) as error:
        ctx.events.emit(Note(level="warning", message=f"{error.message}; tokenize.chat_template can name another"))
        return None
