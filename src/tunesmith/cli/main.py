"""The commands and their options. Each one imports what it needs when it runs, so `--help` answers at once.

One of the three places that turn errors into text: `error:` and `hint:`, exit status 2 for a wrong recipe or command
line, 1 for a failure, 130 for Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from tunesmith import __version__
from tunesmith.cli import compare, data, merge, watch, weights
from tunesmith.errors import EXTRAS, RecipeError, TunesmithError

_INTERRUPTED = 130

app = typer.Typer(
    name="tunesmith",
    help="Turn an open base model into your own assistant: one recipe, from examples to a served and measured model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start here: `tunesmith new my-desk --data my-examples.jsonl`, then `tunesmith run my-desk`.",
)

app.add_typer(data.app)
app.add_typer(weights.app)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, or the folder it is in.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: `--set train.num_epochs=3`.")
]
Root = Annotated[
    Path | None, typer.Option("--root", metavar="DIR", help="Where runs are kept ($TUNESMITH_ROOT, else ./runs).")
]
RunOrModel = Annotated[
    str, typer.Argument(metavar="RUN|MODEL", help="A run (name, folder, `latest`), a model name, or a .gguf file.")
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tunesmith {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


@app.command(
    epilog="Examples: `tunesmith run examples/support-desk --set train.num_epochs=3` · "
    "`tunesmith run examples/sharegpt-pages --until tokenize`"
)
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    pilot: Annotated[
        int | None,
        typer.Option(min=1, metavar="ROWS", help="Generate this many rows, show them and the full cost, stop."),
    ] = None,
    root: Root = None,
) -> None:
    """Run a recipe. Finished stages are reused, an interrupted one continues where it stopped."""
    if pilot is not None:
        from tunesmith.cli.piloting import run_pilot

        run_pilot(recipe, overrides or [], root, pilot)
        return
    from tunesmith.cli.running import run_recipe

    run_recipe(recipe, overrides or [], root, until)


@app.command(epilog="Example: `tunesmith plan examples/support-desk`")
def plan(recipe: RecipePath, overrides: Overrides = None, root: Root = None) -> None:
    """Show what a recipe would run and what is cached, with tokens, memory, time and cost. Changes nothing."""
    from tunesmith.cli.planning import show_plan

    show_plan(recipe, overrides or [], root)


@app.command(
    epilog="Examples: `tunesmith show` · `tunesmith show latest` · `tunesmith show latest train` · "
    "`tunesmith show latest --sample 3 --tokens`"
)
def show(
    run_name: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; none lists them all.")] = None,
    stage: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="An artifact of the run.")] = None,
    sample: Annotated[str | None, typer.Option(help="A training row: its number or id.")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="With --sample: every token, loss mask in colour.")] = False,
    root: Root = None,
) -> None:
    """Look at runs, artifacts, and single samples with their tokens and loss mask."""
    from tunesmith.cli import showing

    showing.show(run_name, stage, sample, tokens=tokens, root=root)


@app.command(epilog="Examples: `tunesmith models` · `tunesmith models --fetch qwen2.5-coder-1.5b`")
def models(
    fetch: Annotated[
        str | None, typer.Option(metavar="NAME", help="Fetch a model now instead of at first use.")
    ] = None,
) -> None:
    """List the models at hand, with size and licence."""
    from tunesmith.cli.listing import list_models

    list_models(fetch)


app.command(epilog="Examples: `tunesmith watch` · `tunesmith watch desk-001 desk-002 --out curves.html`")(watch.watch)
app.command(epilog="Example: `tunesmith compare desk-001 desk-002 --markdown`")(compare.compare)
app.command(epilog=merge.EXAMPLES)(merge.merge)


@app.command(epilog="Examples: `tunesmith serve latest` · `tunesmith serve smollm2-135m --port 9000`")
def serve(
    model: RunOrModel,
    host: Annotated[str | None, typer.Option(help="Address to bind; one beyond this machine needs a key.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    api_key_env: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Environment variable that holds an accepted API key.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of accepted API keys, one a line.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A web origin that may call, such as https://app.example."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A host name clients may call this server by.")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(metavar="N", help="Requests of one key (or address) a minute; the next one gets 429.")
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(metavar="N", help="Answers that may wait for a slot; the next one gets 503.")
    ] = None,
    slots: Annotated[int | None, typer.Option(metavar="N", help="Requests answered side by side.")] = None,
    context_length: Annotated[int | None, typer.Option(metavar="N", help="Tokens one request may use.")] = None,
    engine: Annotated[str | None, typer.Option(help="llama_cpp (CPU) or vllm (GPU).")] = None,
    vllm_python: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Python interpreter of the environment that has vLLM.")
    ] = None,
    engine_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="ARG", help="An argument for vLLM's own server: `--engine-arg=--enforce-eager`."),
    ] = None,
    root: Root = None,
) -> None:
    """Answer on an OpenAI-compatible port, with a chat page at /."""
    from tunesmith.cli.serving import serve_model

    given = {
        "host": host,
        "port": port,
        "api_key_envs": api_key_env,
        "api_key_file": api_key_file,
        "cors_origins": cors_origin,
        "allowed_hosts": allowed_host,
        "requests_per_minute": requests_per_minute,
        "max_queue": max_queue,
    }
    serve_model(
        model,
        root,
        settings=given,
        slots=slots,
        context_length=context_length,
        engine_name=engine,
        vllm_python=vllm_python,
        engine_args=engine_arg,
    )


@app.command(epilog="Examples: `tunesmith chat latest` · `tunesmith chat latest -m 'Hello' --max-tokens 100`")
def chat(
    model: RunOrModel,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask this and print the answer.")] = None,
    system: Annotated[str | None, typer.Option(help="System message instead of the run's own.")] = None,
    condition: Annotated[
        str | None, typer.Option(help="Source class to answer like (C-RLFT); none = the template's own.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Sampling temperature; none = greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, metavar="N", help="Longest answer; none = 1,024.")] = None,
    root: Root = None,
) -> None:
    """Talk to a model in the terminal."""
    from tunesmith.cli.chatting import chat_with

    chat_with(
        model,
        root,
        message=message,
        system=system,
        condition=condition,
        temperature=temperature,
        max_tokens=max_tokens,
    )


@app.command(epilog="Example: `tunesmith new my-desk --data my-examples.jsonl`")
def new(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to make.")],
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="Your examples, in any known format.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model.")] = None,
    task: Annotated[str | None, typer.Option(help="One sentence that says what the model should do.")] = None,
) -> None:
    """Write a recipe to start from."""
    from tunesmith.cli.starting import new_recipe

    new_recipe(folder, data=data, model=model, task=task)


@app.command(epilog="Examples: `tunesmith reference` · `tunesmith reference train`")
def reference(
    section: Annotated[str | None, typer.Argument(metavar="[SECTION]", help="A section; none shows all.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a recipe.")] = False,
) -> None:
    """Every parameter of a recipe: type, default, meaning."""
    from tunesmith.cli.listing import show_reference

    show_reference(section, schema=schema)


@app.command()
def doctor() -> None:
    """Check this installation: packages, processor, embedded model."""
    from tunesmith.cli.listing import run_doctor

    run_doctor()


def main() -> None:
    """Entry point of the `tunesmith` command."""
    try:
        status = app(standalone_mode=False)  # typer turns an interrupt into a returned 130
        if status == _INTERRUPTED:
            _interrupted()
        sys.exit(status if isinstance(status, int) else 0)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _interrupted()
    except TunesmithError as error:
        _say(str(error), hint=error.hint)
        sys.exit(2 if isinstance(error, RecipeError) else 1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        _say(f"{error.filename or 'the file system'}: {error.strerror or error}", hint="nothing finished was lost")
        sys.exit(1)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            _usage_or_crash(error)
        _say(f"this needs the package {error.name!r}, which is not installed", f"pip install 'tunesmith[{extra}]'")
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the last translator: a fault of ours must not look like theirs
        _usage_or_crash(error)


def _interrupted() -> NoReturn:
    _say("interrupted", hint="the same command continues where it stopped" if sys.argv[1:2] == ["run"] else None)
    sys.exit(_INTERRUPTED)


def _usage_or_crash(error: Exception) -> NoReturn:
    show_usage = getattr(error, "show", None)  # click's own usage errors
    if show_usage is not None and hasattr(error, "exit_code"):
        show_usage()
        sys.exit(2)
    if os.environ.get("TUNESMITH_DEBUG"):
        raise error
    crash = Path("tunesmith-crash.txt")
    details = "".join(traceback.format_exception(error))
    try:
        crash.write_text(details, encoding="utf-8")
        place = f"details are in {crash}"
    except OSError:  # a full or read-only folder: then the screen has to hold them
        print(details, file=sys.stderr)
        place = "details are above"
    _say(
        f"this is a fault of tunesmith: {type(error).__name__}: {error}",
        hint=f"{place}; the same command continues where it stopped",
    )
    sys.exit(1)


def _say(message: str, hint: str | None) -> None:
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    red, cyan, plain = ("\033[31m", "\033[36m", "\033[0m") if colour else ("", "", "")
    print(f"{red}error:{plain} {message}", file=sys.stderr)
    if hint:
        print(f"{cyan}hint:{plain} {hint}", file=sys.stderr)


if __name__ == "__main__":
    main()
