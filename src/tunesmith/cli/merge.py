"""`tunesmith merge`: several adapters become one, or are folded into their base model; what was lost is said."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from tunesmith.cli.terminal import TerminalSink
from tunesmith.errors import ModelError, RecipeError
from tunesmith.store import MANIFEST, load_artifact

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunesmith.model.merging import SavedAdapter

Method = Literal["cat", "ties"]
EXAMPLES = (
    "Examples: `tunesmith merge smollm2-135m runs/tone-001 runs/facts-001 --weights 0.4,0.6 --out both` · "
    "`tunesmith merge smollm2-135m a b --rank 16 --out small` · `tunesmith merge smollm2-135m a b --into-model --out model`"
)


def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model the adapters were trained on.")],
    adapters: Annotated[
        list[Path], typer.Argument(metavar="ADAPTER...", help="Adapter folders, ours or PEFT's, or runs.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to make; it must not exist.")],
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="What each adapter counts; none = equal shares of 1.")
    ] = None,
    method: Annotated[
        Method,
        typer.Option(help="cat = the weighted sum, exact; ties = trim, take the stronger sign, average what agrees."),
    ] = "cat",
    density: Annotated[
        float | None, typer.Option(min=1e-6, max=1, help="Share of its numbers each adapter keeps in ties; none = 0.2.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Cut the result to this rank, and say what that lost.")
    ] = None,
    into_model: Annotated[
        bool, typer.Option("--into-model", help="Write a whole model instead of an adapter.")
    ] = False,
) -> None:
    """Make one adapter, or one model, of several adapters."""
    merge_adapters(
        base, adapters, out, weights=weights, method=method, density=density, rank=rank, into_model=into_model
    )


def merge_adapters(
    base: str,
    folders: Sequence[Path],
    out: Path,
    *,
    weights: str | None,
    method: Method,
    density: float | None,
    rank: int | None,
    into_model: bool,
) -> None:
    """Check everything first, then combine under another name and rename."""
    from tunesmith.model import merging
    from tunesmith.model.catalog import fetch_model

    _check_options(method, density, rank, into_model)
    if out.exists():
        raise RecipeError("the folder to write is there already", where=str(out), hint="choose another with --out")
    found = [find_adapter(folder) for folder in folders]
    adapters = [merging.read_adapter(place) for place, _ in found]
    shares = parse_weights(weights) if weights is not None else merging.equal_shares(len(adapters))
    merging.check_together(adapters, shares)
    console = Console(highlight=False, soft_wrap=True)
    with TerminalSink(console) as sink:
        model = fetch_model(base, events=sink)
        for place, facts in found:
            if facts.get("base_weights_digest") not in (None, model.weights_digest):
                raise ModelError(f"this adapter was trained on another model than {base}", where=str(place))
        merging.check_base(model.path, adapters)
        making = out.with_name(f".{out.name}.tmp")
        shutil.rmtree(making, ignore_errors=True)
        making.parent.mkdir(parents=True, exist_ok=True)
        kept = merging.TIES_DENSITY if density is None else density
        job = _Job(adapters, shares, method, kept, model.path, making)
        if into_model:
            said = job.fold(quantised=any(facts.get("method") == "qlora" for _, facts in found))
        else:
            said = job.combine(rank, Path(base).name if Path(base).exists() else base)
        making.rename(out)
    terms = " + ".join(f"{share:g} x {folder}" for share, folder in zip(shares, folders, strict=True))
    console.print(f"{escape(terms)}\n{said} → [bold]{escape(str(out))}[/]")


def find_adapter(folder: Path) -> tuple[Path, dict[str, Any]]:
    """(folder of the two files, facts of the checkpoint it lies in). Takes that folder, a checkpoint, or a run."""
    for place in (folder, folder / "adapter", folder / "align" / "adapter", folder / "train" / "adapter"):
        if (place / "adapter_config.json").is_file():
            manifest = place.parent / MANIFEST
            return place, load_artifact(place.parent).facts if manifest.is_file() else {}
    raise ModelError(
        "there is no adapter here: no adapter_config.json",
        where=str(folder),
        hint="name a folder with adapter_config.json, a run, or its folder `train`",
    )


def parse_weights(text: str) -> tuple[float, ...]:
    """ "0.5,0.25" as numbers. RecipeError for anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(
            f"expected numbers with commas between, found {text!r}", where="--weights", hint="such as --weights 0.5,0.5"
        ) from None


def _check_options(method: Method, density: float | None, rank: int | None, into_model: bool) -> None:
    if into_model and rank is not None:
        raise RecipeError("a whole model has no rank", where="--rank", hint="leave out --rank or --into-model")
    if density is not None and method != "ties":
        raise RecipeError("only ties trims", where="--density", hint="add --method ties")
    if method == "ties" and rank is None and not into_model:
        raise RecipeError(
            "what TIES keeps has no low rank, so it is no adapter",
            where="--method",
            hint="add --into-model, or the --rank of the adapter that comes nearest",
        )


class _Job:
    """One merge, its inputs checked."""

    def __init__(
        self,
        adapters: Sequence[SavedAdapter],
        shares: Sequence[float],
        method: Method,
        density: float,
        model_dir: Path,
        out: Path,
    ) -> None:
        self.adapters, self.shares, self.density = adapters, shares, density
        self.method: Method = method
        self.model_dir, self.out = model_dir, out

    def combine(self, rank: int | None, base_name: str) -> str:
        """Write one adapter; returns what is to be said about it."""
        from tunesmith.model import merging

        dora = any(adapter.config.use_dora for adapter in self.adapters)
        if rank is None or (self.method == "cat" and not dora):
            combined = merging.concatenate(self.adapters, self.shares)
            if rank is not None and rank < combined.config.rank:
                combined = merging.compress(combined, rank)
        else:
            model = self._load() if dora else None
            deltas = merging.combined_deltas(
                self.adapters, self.shares, method=self.method, density=self.density, model=model
            )
            combined = merging.compress_deltas(self.adapters, deltas, rank)
        merging.save_combined(self.out, combined, base_name)
        what = f"one adapter of rank {combined.config.rank} on {len(combined.config.targets)} maps"
        exact = (
            "exact" if combined.error == 0 else f"{combined.error:.2%} of what the adapters add was lost (Frobenius)"
        )
        return f"{what}, {exact}"

    def fold(self, *, quantised: bool) -> str:
        """Write a whole model; returns what is to be said about it."""
        from tunesmith.model import merging
        from tunesmith.model.adapters import linear_paths
        from tunesmith.model.quantised import round_like_4_bits
        from tunesmith.model.whole import load_stored_dtype, save_whole

        model = self._load()
        if quantised:
            round_like_4_bits(model, linear_paths(model))
        deltas = merging.combined_deltas(
            self.adapters, self.shares, method=self.method, density=self.density, model=model
        )
        number = merging.add_to_model(model, deltas)
        save_whole(model, self.model_dir, self.out)
        dtype = str(load_stored_dtype(self.model_dir)).removeprefix("torch.")
        beside = ", from the 4-bit values the adapter was trained beside" if quantised else ""
        return f"a whole model in {dtype}, {number} maps changed{beside}"

    def _load(self) -> PreTrainedModel:
        import torch

        from tunesmith.model.load import load_model

        return load_model(self.model_dir, device="cpu", dtype=torch.float32)
