"""`tunesmith serve`: open what was named, choose the engine, hand both to the gateway.

What is wrong on the command line is said under the option's name, before any model is opened.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.markup import escape

from tunesmith.cli.terminal import TerminalSink
from tunesmith.errors import MissingExtra, ModelError, RecipeError, TunesmithError, nearest
from tunesmith.protocols import ServingEngine
from tunesmith.store import default_root

if TYPE_CHECKING:
    from tunesmith.server.opening import OpenedModel
    from tunesmith.server.settings import EngineSettings

ENGINES = ("llama_cpp", "vllm")
LLAMA_CPP_SLOTS = 256
"""llama.cpp is built for this many sequences at once (LLAMA_MAX_SEQ)."""
LLAMA_CPP_CONTEXT_LENGTH = 4096
"""Each slot of llama.cpp sets its whole context aside, so not all that a model was trained for is taken unasked."""

Form = TypeVar("Form", bound=BaseModel)
_REPEATED = {
    "api_key_envs": "--api-key-env",
    "cors_origins": "--cors-origin",
    "allowed_hosts": "--allowed-host",
    "engine_args": "--engine-arg",
}
_OWN_NAMES = ("host", "port", "api_key_file", "vllm_python", "slots", "context_length")


def serve_model(
    reference: str,
    root: Path | None,
    *,
    settings: Mapping[str, Any],
    slots: int | None,
    context_length: int | None,
    engine_name: str | None,
    vllm_python: Path | None,
    engine_args: Sequence[str] | None = None,
) -> None:
    """Serve until a signal. `settings` are fields of ServerSettings; None everywhere means: the field's own default."""
    try:
        from tunesmith.server.auth import load_keys
        from tunesmith.server.opening import open_model
        from tunesmith.server.run import serve
        from tunesmith.server.served import ServedModel
        from tunesmith.server.settings import EngineSettings, ServerSettings
    except ImportError as error:
        raise MissingExtra(error.name or "fastapi", "serve", "`tunesmith serve`") from error

    console = Console()
    chosen = _engine_name(engine_name, vllm_python, engine_args)
    asked = {"slots": slots, "context_length": context_length, "engine_args": tuple(engine_args or ())}
    with naming_options():
        checked = check_options(ServerSettings, settings)
        engine_settings = check_options(EngineSettings, asked)
        keys = load_keys(checked)
        _check_slots(chosen, engine_settings)
        with TerminalSink(console) as sink:
            model = open_model(reference, root or default_root(), sink)
        engine = _build_engine(chosen, model, engine_settings, vllm_python)
    served = ServedModel(
        id=model.name,
        renderer=model.renderer,
        system_prompt=model.task.system_prompt,
        aliases=(model.run.name.rsplit("-", 1)[0],) if model.run else (),
    )

    def ready(url: str) -> None:
        console.print(f"[bold green]ready[/]  {escape(model.name)} on {chosen}", highlight=False)
        if checked.chat_page:
            console.print(f"  chat page     {url}/", highlight=False)
        console.print(f"  OpenAI API    {url}/v1   (model {escape(model.name)!r})", highlight=False)
        console.print("  Ctrl-C ends it after open answers have finished, a second one cuts them", style="dim")

    console.print(f"loading {escape(model.name)} ...", style="dim", highlight=False)
    with naming_options():
        serve(served, engine, checked, keys=keys, on_ready=ready)


def option_name(field: str) -> str:
    """How a field of the settings is called on the command line."""
    return _REPEATED.get(field, "--" + field.replace("_", "-"))


def check_options(form: type[Form], given: Mapping[str, Any]) -> Form:
    """Check values against a form; None means not given. RecipeError names the option, what was expected and found."""
    from tunesmith.server.responses import expectation

    try:
        return form(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        message = f"expected {expectation(first)}, found {first['input']!r}"
        if first["type"] == "value_error":
            message = str(first.get("ctx", {}).get("error"))
        raise RecipeError(message, where=option_name(str(first["loc"][0]))) from None


@contextmanager
def naming_options() -> Generator[None]:
    """Errors that name a field of the settings leave under the name of its option."""
    try:
        yield
    except TunesmithError as error:
        if error.where not in (*_REPEATED, *_OWN_NAMES):
            raise
        raise type(error)(error.message, where=option_name(error.where), hint=error.hint) from error


def _engine_name(asked: str | None, vllm_python: Path | None, engine_args: Sequence[str] | None) -> str:
    name = asked if asked is not None else ("vllm" if vllm_python else "llama_cpp")
    if name not in ENGINES:
        close = nearest(name, ENGINES)
        raise RecipeError(
            f"there is no engine {name!r}",
            where="--engine",
            hint=f"did you mean {close!r}?" if close else "llama_cpp or vllm",
        )
    if name != "vllm" and (vllm_python or engine_args):
        option = "--vllm-python" if vllm_python else "--engine-arg"
        raise RecipeError(f"this is for vLLM, and the engine is {name}", where=option, hint="add --engine vllm")
    return name


def _check_slots(engine: str, settings: EngineSettings) -> None:
    if engine == "llama_cpp" and settings.slots > LLAMA_CPP_SLOTS:
        raise RecipeError(
            f"llama.cpp answers at most {LLAMA_CPP_SLOTS} requests side by side, found {settings.slots}",
            where="slots",
            hint="requests beyond the slots wait in a queue (--max-queue)",
        )


def _build_engine(name: str, model: OpenedModel, settings: EngineSettings, vllm_python: Path | None) -> ServingEngine:
    if name == "llama_cpp":
        from tunesmith.inference.llama_cpp import LlamaCppEngine
        from tunesmith.server.opening import require_gguf

        length = settings.context_length or min(LLAMA_CPP_CONTEXT_LENGTH, model.context_length)
        return LlamaCppEngine(require_gguf(model), context_length=length, num_slots=settings.slots, num_threads=None)
    from tunesmith.inference.vllm import VllmEngine

    if model.folder is None:
        raise ModelError(
            "vLLM needs a transformers folder and this model has none",
            where=model.name,
            hint="add safetensors to `export.formats` and run again",
        )
    engine = VllmEngine(
        model.folder,
        python=vllm_python,
        context_length=settings.context_length,
        num_slots=settings.slots,
        extra_args=settings.engine_args,
    )
    command = engine.command()
    ours = {part for part in command[: len(command) - len(settings.engine_args)] if part.startswith("--")}
    for argument in settings.engine_args:
        if argument.partition("=")[0] in ours:
            raise RecipeError(
                f"{argument.partition('=')[0]} is set by the gateway itself",
                where="engine_args",
                hint="--slots and --context-length set vLLM's figures of the same meaning",
            )
    return engine
