"""`tunesmith serve`: open what was named, choose the engine, hand both to the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from tunesmith.cli.terminal import TerminalSink
from tunesmith.errors import MissingExtra, ModelError, RecipeError, nearest
from tunesmith.protocols import ServingEngine
from tunesmith.store import default_root

ENGINES = ("llama_cpp", "vllm")
SERVED_SLOTS = 8
SERVED_CONTEXT_LENGTH = 4096


def serve_model(
    reference: str,
    root: Path | None,
    *,
    settings: dict[str, Any],
    slots: int | None,
    context_length: int | None,
    engine_name: str | None,
    vllm_python: Path | None,
) -> None:
    """Serve until a signal."""
    try:
        from tunesmith.server.opening import OpenedModel, open_model
        from tunesmith.server.run import serve
        from tunesmith.server.served import ServedModel
        from tunesmith.server.settings import ServerSettings
    except ImportError as error:
        raise MissingExtra(error.name or "fastapi", "serve", "`tunesmith serve`") from error

    console = Console()
    try:
        checked = ServerSettings(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(str(first["msg"]), where=f"--{str(first['loc'][0]).replace('_', '-')}") from None
    with TerminalSink(console) as sink:
        model: OpenedModel = open_model(reference, root or default_root(), sink)
    chosen = engine_name or ("vllm" if vllm_python else "llama_cpp")
    engine = _build_engine(chosen, model, slots or SERVED_SLOTS, context_length, vllm_python)
    served = ServedModel(
        id=model.name,
        renderer=model.renderer,
        system_prompt=model.task.system_prompt,
        aliases=(model.run.name.rsplit("-", 1)[0],) if model.run else (),
    )

    def ready(url: str) -> None:
        console.print(f"[bold green]ready[/]  {escape(model.name)} on {chosen}", highlight=False)
        console.print(f"  chat page     {url}/", highlight=False)
        console.print(f"  OpenAI API    {url}/v1   (model {escape(model.name)!r})", highlight=False)
        console.print("  Ctrl-C ends it after open answers have finished", style="dim")

    console.print(f"loading {escape(model.name)} ...", style="dim", highlight=False)
    serve(served, engine, checked, on_ready=ready)


def _build_engine(
    name: str, model: Any, slots: int, context_length: int | None, vllm_python: Path | None
) -> ServingEngine:
    if name == "llama_cpp":
        from tunesmith.inference.llama_cpp import LlamaCppEngine
        from tunesmith.server.opening import require_gguf

        length = context_length or min(SERVED_CONTEXT_LENGTH, model.context_length)
        return LlamaCppEngine(require_gguf(model), context_length=length, num_slots=slots, num_threads=None)
    if name == "vllm":
        from tunesmith.inference.vllm import VllmEngine

        if model.folder is None:
            raise ModelError(
                "vLLM needs a transformers folder and this model has none",
                where=model.name,
                hint="add safetensors to `export.formats` and run again",
            )
        return VllmEngine(model.folder, python=vllm_python, context_length=context_length, num_slots=slots)
    close = nearest(name, ENGINES)
    raise RecipeError(
        f"there is no engine {name!r}",
        where="--engine",
        hint=f"did you mean {close!r}?" if close else "llama_cpp or vllm",
    )
