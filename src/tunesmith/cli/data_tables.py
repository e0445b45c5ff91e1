"""A survey of a data set as tables on a terminal. Texts of rows are shown as text: no control character and no markup of
theirs has any effect."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tunesmith.data.statistics.counts import Count
from tunesmith.data.statistics.lengths import Bin, Distribution
from tunesmith.data.statistics.survey import Survey
from tunesmith.data.statistics.texts import one_line
from tunesmith.data.statistics.verbs import QUESTION

_LEVELS = "▁▂▃▄▅▆▇█"
_EIGHTHS = "▏▎▍▌▋▊▉"
_BAR = 12
_NAME = 28
_LEAST = 12  # cells for a name, and for a remark
_WIDE_ENOUGH_FOR_PICTURES = 72


def show_survey(console: Console, survey: Survey, counts: dict[str, int]) -> None:
    """Print everything. counts: those of the stage that made the rows."""
    console.print(_heading(survey, counts))
    _section(console, "Lengths", _lengths(survey, console.width))
    _section(console, "Where the rows come from", _tables(survey))
    if survey.verbs:
        _section(console, "Verbs and their nouns", _verbs(survey, console.width))
    if survey.clusters:
        _section(console, f"Clusters of {survey.num_sampled:,} prompts", _clusters(survey, console.width))
    _section(console, "Duplicates", _duplicates(survey))
    if survey.taken:
        _section(console, "Left out", _taken(survey, console.width))
    for missing in survey.missing:
        console.print(Text(f"no {missing.part}: ", style="yellow").append(missing.why, style="default"))
        console.print(Text(f"  {missing.what_to_do}", style="dim"))


def _section(console: Console, title: str, content: RenderableType) -> None:
    console.print(Text(f"\n{title}", style="bold cyan"))
    console.print(Padding(content, (0, 0, 0, 2)))


def _heading(survey: Survey, counts: dict[str, int]) -> Text:
    text = Text(one_line(survey.name, 200), style="bold")
    kinds = ", ".join(f"{count.num:,} {plural(count.name, count.num)}" for count in survey.kinds) or "no row"
    text.append(f"\n{kinds}", style="not bold")
    parts = [
        (survey.num_excluded, "left out"),
        (survey.num_without_reply, "without a reply"),
        (survey.num_with_system, "with a system message"),
    ]
    text.append("".join(f" · {num:,} {what}" for num, what in parts if num), style="not bold")
    if counts:
        shown = "  ".join(f"{name.replace('_', ' ')} {num:,}" for name, num in counts.items())
        text.append(f"\n{shown}", style="not bold dim")
    return text


def plural(name: str, num: int) -> str:
    """One conversation, two conversations; what is labelled has no plural."""
    return name if num == 1 or name.endswith("ed") else f"{name}s"


def sparkline(bins: Sequence[Bin]) -> str:
    """A histogram in one line."""
    most = max((each.num for each in bins), default=0)
    return "".join(_LEVELS[-(-8 * each.num // most) - 1] if each.num else " " for each in bins)


def distributions(survey: Survey) -> list[tuple[str, str, Distribution]]:
    """(part, unit, lengths) of all that was measured."""
    found = [(part, unit, each) for part, units in survey.lengths.items() for unit, each in units.items()]
    return [*found, *([("turns", "messages", survey.turns)] if survey.turns else [])]


def _lengths(survey: Survey, width: int) -> RenderableType:
    if not survey.lengths:
        return Text("nothing to measure", style="dim")
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name in ("min", "median", "mean", "90 %", "99 %", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    # Where a terminal is narrow the numbers are worth more than their picture.
    pictured = width >= _WIDE_ENOUGH_FOR_PICTURES
    if pictured:
        table.add_column("min to 99 %", no_wrap=True, style="cyan")
    before = ""
    for part, unit, each in distributions(survey):
        numbers = (each.min, each.median, each.mean, each.p90, each.p99, each.max)
        cells = [f"{number:,.1f}" if isinstance(number, float) else f"{number:,}" for number in numbers]
        table.add_row("" if part == before else part, unit, *cells, *([sparkline(each.bins)] if pictured else []))
        before = part
    return table


def _tables(survey: Survey) -> RenderableType:
    grid = Table.grid(padding=(0, 3))
    plain: list[str] = []
    for title, counts in survey.tables.items():
        if len(counts) == 1:
            plain.append(f"{title}: {one_line(counts[0].name, _NAME)}")
            continue
        for index, count in enumerate(counts):
            total = sum(each.num for each in counts)
            grid.add_row(Text(title if index == 0 else "", style="bold"), *_bar(count, total))
    notes = [Text(line) for line in plain]
    if survey.num_language_changes:
        notes.append(Text(f"{survey.num_language_changes:,} replies are in another language than their prompt"))
    return Group(*([grid] if grid.row_count else []), *notes)


def _bar(count: Count, total: int) -> tuple[Text, Text, Text, Text]:
    share = count.num / total if total else 0.0
    return (
        Text(one_line(count.name, _NAME)),
        Text(f"{count.num:,}", justify="right"),
        Text(f"{100 * share:.1f} %", justify="right", style="dim"),
        Text(_bar_of(share), style="cyan", no_wrap=True),
    )


def _bar_of(share: float) -> str:
    whole, eighths = divmod(round(8 * _BAR * share), 8)
    return "█" * whole + ("" if not eighths else _EIGHTHS[eighths - 1]) or _EIGHTHS[0]


Line = tuple[str, int, str]
"""Name, number, remark."""


def _lines(lines: Sequence[Line], total: int, width: int) -> Table:
    """Name, number, share of the total, bar, and the remark cut to what is left of the width; no bar in a narrow terminal."""
    pictured = width >= _WIDE_ENOUGH_FOR_PICTURES
    grid = Table.grid(padding=(0, 2))
    longest = max(cell_len(one_line(name, _NAME)) for name, _, _ in lines)
    taken = 2 + max(len(f"{num:,}") for _, num, _ in lines) + len("100.0 %") + (_BAR + 8 if pictured else 6)
    names = min(_NAME, longest, max(width - taken - _LEAST, _LEAST))
    grid.add_column(no_wrap=True, width=names)
    for _ in range(2):
        grid.add_column(no_wrap=True, justify="right")
    for _ in range(2 if pictured else 1):
        grid.add_column(no_wrap=True)
    room = width - taken - names
    for name, num, remark in lines:
        label = Text(one_line(name, _NAME))
        label.truncate(names, overflow="ellipsis")
        _, number, share, bar = _bar(Count(name, num), total)
        bar.pad_right(_BAR - bar.cell_len)
        said = Text(one_line(remark, 200) if room > 0 else "", style="dim")
        said.truncate(max(room, 0), overflow="ellipsis")
        grid.add_row(label, number, share, *([bar] if pictured else []), said)
    return grid


def _verbs(survey: Survey, width: int) -> RenderableType:
    lines = [
        (
            "(question)" if verb.verb == QUESTION else verb.verb,
            verb.num,
            ", ".join(f"{noun.name} {noun.num:,}" for noun in verb.nouns),
        )
        for verb in survey.verbs
    ]
    note = (
        f"{survey.num_verbs:,} {plural('verb', survey.num_verbs)} in {survey.num_instructions:,} instructions, found by rules "
        "for English and Chinese; "
        f"in {survey.num_rootless:,} none was found"
    )
    return Group(_lines(lines, survey.num_instructions, width), Text(note, style="dim"))


def _clusters(survey: Survey, width: int) -> RenderableType:
    lines = [(", ".join(cluster.words), cluster.num, cluster.example) for cluster in survey.clusters]
    return _lines(lines, survey.num_sampled, width)


def _duplicates(survey: Survey) -> RenderableType:
    lines = [
        Text(f"{survey.equal_rows.num_repeats:,} of {survey.equal_rows.num_rows:,} rows repeat an earlier row"),
        Text(
            f"{survey.equal_prompts.num_repeats:,} of {survey.equal_prompts.num_rows:,} prompts repeat an earlier prompt"
        ),
        Text(
            f"{survey.near.num_near:,} of {survey.near.num_rows:,} rows looked at are near copies "
            f"(Jaccard from {survey.near.min_jaccard:g} on, equal rows aside)"
        ),
    ]
    for repeated in survey.equal_prompts.most:
        lines.append(Text(f"  {repeated.num:,} × ", style="cyan").append(one_line(repeated.text, 90), style="dim"))
    for pair in survey.near.pairs:
        lines.append(Text(f"  {pair.jaccard:.2f} ", style="cyan").append(one_line(pair.first, 90), style="dim"))
        lines.append(Text("       ").append(one_line(pair.second, 90), style="dim"))
    return Group(*lines)


def _taken(survey: Survey, width: int) -> RenderableType:
    lines = [
        (taken.reason, taken.num, f"{taken.where}: {taken.detail}" if taken.where else taken.detail)
        for taken in survey.taken
    ]
    note = "shares are of all rows, kept and left out; look at them: tunesmith data sample IN --where reason=REASON"
    return Group(_lines(lines, survey.num_rows + survey.num_excluded, width), Text(note, style="dim"))
