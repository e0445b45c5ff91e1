"""`tunesmith weights`: model weights in and out of other forms. Each command imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    name="weights",
    help="Convert weights, publish them as a difference, and see how far a model reads.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make; it must not exist.")]
Base = Annotated[str, typer.Argument(metavar="BASE", help="The base model: a name, a hub id, or a folder.")]


@app.command(
    name="from-llama",
    epilog="Examples: `tunesmith weights from-llama LLaMA/7B llama-7b` · "
    "`tunesmith weights from-llama llama-2-7b llama-2 --context 4096`",
)
def from_llama(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A folder with consolidated.NN.pth and params.json, as Meta has it."),
    ],
    out: Out,
    context: Annotated[
        int | None, typer.Option(min=8, help="Tokens it was trained for: 2048 for Llama 1, 4096 for Llama 2.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="tokenizer.model or tokenizer.json; none = in FOLDER or above.")
    ] = None,
) -> None:
    """Original LLaMA weights to a transformers folder. Bit-exact; nothing in the files is executed."""
    from tunesmith.cli.weights_converting import convert_from_llama

    convert_from_llama(folder, out, context_length=context, tokenizer=tokenizer)


@app.command(
    name="to-llama",
    epilog="Examples: `tunesmith weights to-llama llama-7b LLaMA/7B --shards 1` · "
    "`tunesmith weights to-llama runs/desk/export/safetensors tuned-13B --shards 2`",
)
def to_llama(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A LlamaForCausalLM: a name, a hub id, or a folder.")],
    out: Out,
    shards: Annotated[int, typer.Option(help="Files, one for each model-parallel rank; Meta's have 1, 2, 4 or 8.")],
) -> None:
    """A transformers folder to original LLaMA weights. Bit-exact."""
    from tunesmith.cli.weights_converting import convert_to_llama

    convert_to_llama(model, out, num_shards=shards)


@app.command(
    name="from-gguf",
    epilog="Example: `tunesmith weights from-gguf smollm2.Q8_0.gguf smollm2`",
)
def from_gguf(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .gguf file of architecture llama or qwen2.")],
    out: Out,
) -> None:
    """A GGUF file to a transformers folder in bf16; weights stay rounded as the file has them."""
    from tunesmith.cli.weights_converting import convert_from_gguf

    convert_from_gguf(file, out)


@app.command(
    name="make-delta",
    epilog="Example: `tunesmith weights make-delta llama-7b runs/desk/export/safetensors desk-delta`",
)
def make_delta(
    base: Base,
    tuned: Annotated[Path, typer.Argument(metavar="TUNED", help="The tuned model's transformers folder.")],
    out: Out,
) -> None:
    """What tuning changed, to publish without the base: TUNED comes back byte for byte, checked by sha256."""
    from tunesmith.cli.weights_converting import write_delta

    write_delta(base, tuned, out)


@app.command(
    name="apply-delta",
    epilog="Example: `tunesmith weights apply-delta llama-7b desk-delta desk`",
)
def apply_delta(
    base: Base,
    delta: Annotated[
        Path,
        typer.Argument(
            metavar="DELTA", help="A folder that `make-delta` wrote, or floating-point differences (Alpaca, Vicuna)."
        ),
    ],
    out: Out,
) -> None:
    """BASE and DELTA to the tuned model. Another base, a damaged delta or a wrong result is an error."""
    from tunesmith.cli.weights_converting import write_tuned

    write_tuned(base, delta, out)


@app.command(
    name="context-report",
    epilog="Examples: `tunesmith weights context-report smollm2-135m book.txt` · "
    "`tunesmith weights context-report smollm2-135m books/ --rope-scaling yarn --length 16384`",
)
def context_report(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name, a hub id, a folder, or a .gguf file.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Long text: .txt, .md, rows of `text`.")],
    length: Annotated[
        int | None, typer.Option(min=16, help="Tokens of a window; none = as many as the model reads.")
    ] = None,
    rope_scaling: Annotated[
        Literal["none", "linear", "dynamic", "yarn", "extrapolate"],
        typer.Option(help="Measure as if the recipe had this `base_model.rope_scaling`, reaching --length."),
    ] = "none",
    windows: Annotated[int, typer.Option(min=1, help="Windows measured at most, the longest first.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Mean loss by position over long text: does the model use what it read long ago?"""
    from tunesmith.cli.weights_report import show_context_report

    show_context_report(model, files, length=length, rope_scaling=rope_scaling, max_windows=windows, as_json=as_json)
