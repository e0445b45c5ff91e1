"""`tunesmith data`: commands on example files. Each imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    name="data",
    help="Look at, convert and check example files.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(
    epilog="Examples: `tunesmith data convert pages/ talk.jsonl --to sharegpt` · "
    "`tunesmith data convert alpaca.json#500 sample.csv --to csv`"
)
def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A file, a folder or a .zip; `IN#500` draws 500 examples.")
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The file to write: OUT.json is one list; OUT.csv and OUT.parquet are tables."
        ),
    ],
    to: Annotated[str, typer.Option("--to", help="alpaca, sharegpt, messages, csv or parquet.")],
    form: Annotated[str, typer.Option("--from", help="The form of IN; auto looks at the rows.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace OUT where it exists.")] = False,
) -> None:
    """Read examples in any known form and write them in another. Every row is accounted for."""
    from tunesmith.cli.data_convert import convert_examples

    convert_examples(source, target, to, form=form, force=force)


RowsIn = Annotated[
    str,
    typer.Argument(
        metavar="IN", help="A file, a folder, a .zip, `FILE#500`, or what a run made: RUN, `latest`, RUN/STAGE."
    ),
]
Form = Annotated[str, typer.Option("--from", help="The form of a file; auto looks at the rows.")]
Root = Annotated[
    Path | None, typer.Option("--root", metavar="DIR", help="Where runs are kept ($TUNESMITH_ROOT, else ./runs).")
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where", metavar="FIELD=VALUE", help="Only such rows: source, split, model, licence, reason, metadata."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write it as one HTML page too.")]
Model = Annotated[str | None, typer.Option("--model", metavar="NAME", help="Count tokens as this model does.")]
NumRows = Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows to show.")]
Seed = Annotated[int, typer.Option("--seed", help="Other seeds draw other rows.")]
Chars = Annotated[int, typer.Option("--chars", min=1, help="Characters shown of a message.")]


@app.command(
    epilog="Examples: `tunesmith data stats alpaca.json` · `tunesmith data stats latest --html stats.html` · "
    "`tunesmith data stats latest/generate --model smollm2-135m`"
)
def stats(
    source: RowsIn,
    html: Html = None,
    model: Model = None,
    num_rows: Annotated[
        int,
        typer.Option("-n", "--rows", min=10, help="Rows looked at for clusters and near copies, drawn at random."),
    ] = 20_000,
    clusters: Annotated[int, typer.Option("--clusters", min=1, help="Clusters at most.")] = 12,
    seed: Seed = 17,
    form: Form = "auto",
    as_json: AsJson = False,
    root: Root = None,
) -> None:
    """What a data set is like: lengths, languages, sources, verbs, clusters, duplicates, what each filter took."""
    from tunesmith.cli.data_stats import show_stats

    show_stats(
        source,
        root=root,
        form=form,
        model=model,
        max_rows=num_rows,
        num_clusters=clusters,
        rng_seed=seed,
        html=html,
        as_json=as_json,
    )


@app.command(epilog="Examples: `tunesmith data head talks.zip` · `tunesmith data head latest -n 3 --where split=test`")
def head(
    source: RowsIn,
    num_rows: NumRows = 5,
    where: Where = None,
    chars: Chars = 1000,
    form: Form = "auto",
    as_json: AsJson = False,
    root: Root = None,
) -> None:
    """The first rows, to read."""
    from tunesmith.cli.data_rows import show_head

    show_head(source, root=root, form=form, num_rows=num_rows, where=where or [], width=chars, as_json=as_json)


@app.command(
    epilog="Examples: `tunesmith data sample alpaca.json -n 3 --seed 2` · "
    "`tunesmith data sample latest/curate --where reason=rouge_l`"
)
def sample(
    source: RowsIn,
    num_rows: NumRows = 5,
    seed: Seed = 17,
    where: Where = None,
    chars: Chars = 1000,
    form: Form = "auto",
    as_json: AsJson = False,
    root: Root = None,
) -> None:
    """Rows drawn at random, to read."""
    from tunesmith.cli.data_rows import show_sample

    show_sample(
        source,
        root=root,
        form=form,
        num_rows=num_rows,
        rng_seed=seed,
        where=where or [],
        width=chars,
        as_json=as_json,
    )


@app.command(
    epilog="Examples: `tunesmith data diff old.jsonl new.jsonl` · `tunesmith data diff desk-001 desk-002 --html diff.html`"
)
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="What was: a file, or what a run made, as in `stats`.")],
    second: Annotated[str, typer.Argument(metavar="B", help="What is.")],
    html: Html = None,
    model: Model = None,
    num_rows: Annotated[int, typer.Option("-n", "--rows", min=0, help="How many rows to show of each kind.")] = 5,
    form: Form = "auto",
    as_json: AsJson = False,
    root: Root = None,
) -> None:
    """Two data sets: rows of one alone, changed replies, rows that moved between train, test and left out."""
    from tunesmith.cli.data_diff import show_diff

    show_diff(first, second, root=root, form=form, model=model, num_examples=num_rows, html=html, as_json=as_json)


@app.command(
    epilog="Examples: `tunesmith data review latest -n 50` · `tunesmith data review talks.jsonl --overlay review.jsonl` · "
    "`tunesmith data review --list`"
)
def review(
    source: Annotated[
        str | None, typer.Argument(metavar="IN", help="As for `head`; with --list it may be left out.")
    ] = None,
    overlay: Annotated[Path, typer.Option("--overlay", metavar="FILE", help="Where decisions are kept.")] = Path(
        "review.jsonl"
    ),
    everything: Annotated[bool, typer.Option("--all", help="Show decided rows too.")] = False,
    of_source: Annotated[
        str | None, typer.Option("--source", metavar="PATTERN", help="Only rows of this source, with * for anything.")
    ] = None,
    where: Where = None,
    num_rows: Annotated[
        int | None, typer.Option("-n", "--rows", min=1, help="So many rows, drawn at random; none shows all.")
    ] = None,
    seed: Seed = 17,
    chars: Chars = 4000,
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="Whose decisions these are.")] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="List the decisions there are, and how they meet the rows of IN.")
    ] = False,
    form: Form = "auto",
    root: Root = None,
) -> None:
    """Keep, edit or reject rows by hand. Decisions go to a file that a recipe names as `curate.review`."""
    from tunesmith.cli.data_review import list_decisions, review_rows

    if listed:
        list_decisions(overlay, source, root=root, form=form)
        return
    if source is None:
        raise typer.BadParameter("name what to review, or add --list to see the decisions there are", param_hint="IN")
    review_rows(
        source,
        overlay,
        root=root,
        form=form,
        where=[*(where or []), *([f"source={of_source}"] if of_source else [])],
        num_rows=num_rows,
        rng_seed=seed,
        everything=everything,
        width=chars,
        by=by,
    )


@app.command(epilog="Example: `tunesmith data unique lamini_dataset.jsonl filtered.jsonl --field question`")
def unique(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A file of JSON lines, of any form.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    field: Annotated[
        str, typer.Option("--field", help="Of rows with the same value of this field the first stays.")
    ] = "question",
    force: Annotated[bool, typer.Option("--force", help="Replace OUT where it exists.")] = False,
) -> None:
    """Keep the first row of each question, as Lamini's filter does. Removed rows go to a file beside OUT."""
    from tunesmith.cli.data_unique import write_unique

    write_unique(source, target, field, force=force)


@app.command(
    name="map",
    epilog="Examples: `tunesmith data map alpaca.json --open` · `tunesmith data map latest/curate --of prompt` · "
    "`tunesmith data map chats.zip#2000 --html chats.html --points chats.json` · `tunesmith data map --html empty.html`",
)
def map_rows(
    source: Annotated[
        str | None, typer.Argument(metavar="IN", help="As for `head`; none writes an empty page to drop maps on.")
    ] = None,
    html: Annotated[Path, typer.Option("--html", metavar="FILE", help="The page to write.")] = Path("map.html"),
    points: Annotated[
        Path | None,
        typer.Option("--points", metavar="FILE", help="Write the points as JSON too: it can be dropped on any map."),
    ] = None,
    of: Annotated[
        Literal["prompt", "reply", "conversation"], typer.Option("--of", help="The text that decides where a row lies.")
    ] = "conversation",
    clusters: Annotated[
        int | None, typer.Option("--clusters", min=1, max=200, help="Clusters; none takes sqrt(rows / 2), at most 24.")
    ] = None,
    num_rows: Annotated[
        int, typer.Option("-n", "--rows", min=1, max=200_000, help="Rows shown; beyond, they are drawn evenly.")
    ] = 50_000,
    umap: Annotated[
        bool | None, typer.Option("--umap/--no-umap", help="Whether UMAP follows the PCA; none: where it is installed.")
    ] = None,
    seed: Seed = 17,
    form: Form = "auto",
    open_page: Annotated[bool, typer.Option("--open", help="Open the page as soon as there is one.")] = False,
    root: Root = None,
) -> None:
    """Every row as a point in space, near its like: one HTML page to turn, search and click. PCA at once, then UMAP."""
    from tunesmith.cli.data_map import write_map

    write_map(
        source,
        root=root,
        form=form,
        of=of,
        num_clusters=clusters,
        max_rows=num_rows,
        with_umap=umap,
        rng_seed=seed,
        page_path=html,
        json_path=points,
        open_page=open_page,
    )
