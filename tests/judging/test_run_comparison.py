"""Runs side by side: what is read of them, what stands in a table, what never does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tunesmith.cli.main import app
from tunesmith.errors import RecipeError, StoreError
from tunesmith.judging.run_comparison import group_by_test_set, read_contestants
from tunesmith.judging.run_table import table_rows
from tunesmith.judging.scores import compute_scores
from tunesmith.store import Identity, Run, Store, open_run
from tunesmith.text.jsonl import write_records
from tunesmith.types import Completion, Message, Outcome, Sample, Score

MakeRun = Callable[..., Run]
BASE = [0, 0, 0, 0, 0, 0, 1, 1, 0, 0]


def tunesmith(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.stdout


def samples_of(base: Sequence[int], tuned: Sequence[int], prompt: str) -> list[Sample]:
    samples = []
    for number, (before, after) in enumerate(zip(base, tuned, strict=True)):
        scores = {
            name: {"exact_match": Score(value=float(right)), "loss": Score(value=2.0 - right)}
            for name, right in (("base", before), ("tuned", after))
        }
        answers = {name: Completion(text="x") for name in scores}
        messages = [Message(role="user", content=f"{prompt} {number}")]
        samples.append(Sample(id=f"{number}", messages=messages, reference="x", completions=answers, scores=scores))
    return samples


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    store = Store(tmp_path)
    store.create()

    def commit(run: Run, stage: str, section: dict[str, Any], facts: dict[str, Any], write: Any = None) -> None:
        identity = Identity(stage, 1, {**section, "of": run.name}, {})
        folder = store.partial_dir(identity)
        folder.mkdir(parents=True)
        if write:
            write(folder)
        run.link(stage, store.commit(identity, Outcome(stage, {}, facts), 1.0))

    def make(
        tuned: Sequence[int],
        *,
        base: Sequence[int] = BASE,
        prompt: str = "row",
        trainable: int = 460_800,
        method: str = "lora",
        speeds: Sequence[float] = (400.0, 200.0),
        until: str = "evaluate",
        align: str | None = None,
    ) -> Run:
        run = open_run(store, "desk", f"{len(list(tmp_path.iterdir()))}")
        run.update(status="finished")
        commit(run, "base_model", {}, {"name": "smollm2-135m", "num_parameters": 134_515_008})
        commit(run, "tokenize", {}, {"num_tokens": 1_200_000})

        def metrics(folder: Path) -> None:
            (folder / "logs").mkdir()
            lines = [{"step": step, "loss": 1.0, "tokens_per_second": speed} for step, speed in enumerate(speeds, 1)]
            torn = '{"step": 9, "tokens_per'
            text = "".join(json.dumps(line) + "\n" for line in lines) + torn
            (folder / "logs" / "metrics.jsonl").write_text(text)

        commit(run, "train", {"lora_rank": 16}, {"method": method, "num_trainable": trainable}, metrics)
        if align:
            commit(run, "align", {}, {"loss": align})
        if until == "evaluate":
            samples = samples_of(base, tuned, prompt)

            def evaluation(folder: Path) -> None:
                write_records(folder / "samples.jsonl", samples)
                scores = compute_scores(samples, ["base", "tuned"], {s.id: 10 for s in samples}, rng_seed=1)
                (folder / "scores.json").write_text(json.dumps(scores))

            commit(run, "evaluate", {}, {}, evaluation)
        return run

    return make


def rows_of(*runs: Run) -> list[list[str]]:
    (group,) = group_by_test_set(each for run in runs for each in read_contestants(run))
    return table_rows(group, [group.metric(None)])


def test_the_table_is_that_of_the_paper_with_errors(make_run: MakeRun) -> None:
    one = make_run([1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    two = make_run([1] * 9 + [0], method="full", trainable=134_515_008, speeds=[100.0, 100.0])
    heading, base, lora, full = rows_of(one, two)
    assert heading == ["run", "model", "trained", "exact match", "difference", "trainable", "h / epoch"]
    # 2 of 10: 20 %, sqrt(0.2 * 0.8 / 9) = 13.3 points; 8 of 10 the same
    assert base == ["desk-001", "smollm2-135m", "base", "20.0 ± 13.3 %", "", "-", "-"]
    assert lora[2:4] == ["lora r=16", "80.0 ± 13.3 %"] and lora[5] == "461K (0.34%)"
    # a token took (1/400 + 1/200) / 2 s, an epoch has 1.2 million
    assert float(lora[6]) == round(1_200_000 * (1 / 400 + 1 / 200) / 2 / 3600, 2)
    assert full[0] == "desk-002" and full[2] == "full" and full[5] == "135M (100.00%)" and full[6] == "3.33"


def test_the_difference_is_paired_by_row(make_run: MakeRun) -> None:
    _, base, tuned = rows_of(make_run([1, 1, 1, 1, 1, 1, 1, 1, 0, 0]))
    # 0.6 points a row gained on 6 of 10 rows: sqrt(0.6 * 0.4 / 9) = 0.163
    assert (base[4], tuned[4]) == ("", "+60.0 ± 16.3 pts")


def test_order_of_the_test_rows_does_not_matter(make_run: MakeRun) -> None:
    first, second = make_run([1, 0] * 5), make_run([1, 0] * 5)
    artifact = second.artifact("evaluate")
    assert artifact is not None
    path = artifact.file("samples.jsonl")
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    (group,) = group_by_test_set([*read_contestants(first), *read_contestants(second)])
    assert [each.run for each in group.contestants] == ["desk-001", "desk-001", "desk-002"]
    assert group.contestants[1].values == group.contestants[2].values


def test_runs_of_other_test_rows_stand_in_a_table_of_their_own_and_it_is_said(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run([1] * 10)
    make_run([1] * 10, prompt="another row")
    said = " ".join(tunesmith("desk-001", "desk-002", "--root", tmp_path).split())
    assert said.count("10 test rows, ") == 2
    assert "evaluated on 2 different sets of test rows: scores of different tables do not compare" in said
    data = json.loads(tunesmith("desk-001", "desk-002", "--json", "--root", tmp_path))
    assert len({each["test_set"]["digest"] for each in data}) == 2


def test_one_reference_changed_is_another_test_set(make_run: MakeRun) -> None:
    first, second = make_run([1] * 10), make_run([1] * 10)
    artifact = second.artifact("evaluate")
    assert artifact is not None
    path = artifact.file("samples.jsonl")
    path.write_text(path.read_text().replace('"reference":"x"', '"reference":"y"', 1))
    assert len(group_by_test_set([*read_contestants(first), *read_contestants(second)])) == 2


def test_a_base_that_answered_otherwise_stays_a_line_of_its_own(make_run: MakeRun) -> None:
    rows = rows_of(make_run([1] * 10), make_run([1] * 10, base=[0] * 10))
    assert [(row[0], row[2]) for row in rows[1:]] == [
        ("desk-001", "base"),
        ("desk-002", "base"),
        ("desk-001", "lora r=16"),
        ("desk-002", "lora r=16"),
    ]


def test_json_has_every_metric_with_its_error(make_run: MakeRun, tmp_path: Path) -> None:
    make_run([1] * 5 + [0] * 5, align="dpo")
    (found,) = json.loads(tunesmith("latest", "--json", "--root", tmp_path))
    base, tuned = found["models"]
    assert found["metrics"] == ["exact_match"] and found["test_set"]["rows"] == 10
    assert tuned["method"] == "lora r=16, then dpo" and tuned["total_parameters"] == 134_515_008
    assert tuned["scores"]["exact_match"]["mean"] == 0.5
    assert math.isclose(tuned["scores"]["exact_match"]["stderr"], math.sqrt(0.25 / 9), rel_tol=1e-4)
    assert set(tuned["scores"]) == {"exact_match", "loss", "perplexity"} and base["hours_per_epoch"] is None
    assert tuned["difference_to_first"]["difference"] == pytest.approx(0.3)


def test_markdown_is_a_table_and_metrics_can_be_named(make_run: MakeRun, tmp_path: Path) -> None:
    make_run([1] * 10)
    lines = tunesmith("latest", "--markdown", "--metric", "loss", "--metric", "exact_match", "--root", tmp_path).split(
        "\n"
    )
    assert lines[2] == "| run | model | trained | loss per token | exact match | difference | trainable | h / epoch |"
    assert lines[3] == "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"
    # a loss per token weighs rows by their tokens, so it has no paired difference here
    assert lines[5].startswith("| desk-001 | smollm2-135m | lora r=16 | 1.000 ± 0.000 | 100.0 ± 0.0 % |  | 461K")


def test_the_table_fits_its_terminal_and_no_cell_is_cut(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run([1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    make_run([1] * 9 + [0], method="full", trainable=134_515_008)
    make_run([1] * 10, align="dpo")
    runs = ("desk-001", "desk-002", "desk-003", "--root", tmp_path)
    scores = ("--metric", "exact_match", "--metric", "loss", "--metric", "perplexity")

    def printed(width: int, *more: object) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        lines = tunesmith(*runs, *more).rstrip().split("\n")
        assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
        return [" ".join(line.split()) for line in lines]

    wide, narrow, tall = printed(120), printed(80), printed(80, *scores)
    assert wide[-2] == "desk-002 smollm2-135m full 90.0 ± 10.0 % +70.0 ± 15.3 pts 135M (100.00%) 1.25"
    assert narrow[0].endswith("· model smollm2-135m") and narrow[1:3] == [
        "exact difference, h /",
        "run trained match, % pts trainable epoch",
    ]
    assert narrow[-1] == "desk-003 lora r=16, then dpo 100.0 ± 0.0 +80.0 ± 13.3 461K 1.25"
    assert tall[2:6] == ["desk-001 smollm2-135m base", "exact match 20.0 ± 13.3 %", "loss per token 1.800 ± 0.133",
                         "perplexity 6.050 ± 0.807"]  # fmt: skip
    assert tall[-6:-4] == ["exact match 100.0 ± 0.0 %", "loss per token 1.000 ± 0.000"]
    assert len(printed(120, *scores)) == 7
    assert printed(44)[3] == "exact match 20.0 ± 13.3 %"
    monkeypatch.delenv("COLUMNS")
    assert max(map(len, tunesmith(*runs, *scores).split("\n"))) > 120, "a file has any width"


def test_hours_are_the_seconds_that_the_steps_took(make_run: MakeRun) -> None:
    run = make_run([1] * 10)
    trained = run.artifact("train")
    assert trained is not None
    lines = [
        {"step": 1, "tokens_per_second": 400.0, "seconds": 3.0},
        {"step": 2, "tokens_per_second": 100.0, "seconds": 1.0},
    ]
    trained.file("logs/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # 1,300 tokens in 4 seconds, and an epoch has 1.2 million
    assert rows_of(run)[2][6] == f"{1_200_000 * 4 / 1300 / 3600:.2f}" == "1.03"


@pytest.mark.parametrize(
    ("number", "written"),
    [(999, "999"), (999_400, "999K"), (999_700, "1M"), (460_800, "461K"), (1_540_000_000, "1.54B")],
)
def test_counts_are_written_with_three_digits(make_run: MakeRun, number: int, written: str) -> None:
    assert rows_of(make_run([1] * 10, trainable=number))[2][5].split(" ")[0] == written


def test_what_cannot_be_compared_is_said(make_run: MakeRun, tmp_path: Path) -> None:
    make_run([1] * 10)
    make_run([1] * 10, until="train")
    with pytest.raises(StoreError, match="desk-002: the run has not finished its stage evaluate"):
        tunesmith("desk-001", "desk-002", "--root", tmp_path)
    with pytest.raises(RecipeError, match=r"no run .* has the metric 'exact_mach'") as error:
        tunesmith("desk-001", "--metric", "exact_mach", "--root", tmp_path)
    assert error.value.hint == "did you mean 'exact_match'?"
    with pytest.raises(RecipeError, match="cannot both be printed"):
        tunesmith("desk-001", "--json", "--markdown", "--root", tmp_path)


@pytest.mark.parametrize(
    "text", [None, "{", "[1]", '{"tuned": {"exact_match": 3}}', '{"tuned": {"exact_match": {"n": 1}}}']
)
def test_scores_that_were_damaged_are_named_by_their_file(make_run: MakeRun, text: str | None) -> None:
    run = make_run([1] * 10)
    artifact = run.artifact("evaluate")
    assert artifact is not None
    path = artifact.file("scores.json")
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(StoreError, match="the scores of this evaluation cannot be read") as caught:
        read_contestants(run)
    assert str(path) in str(caught.value)


def test_a_run_that_logged_no_speed_has_no_hours(make_run: MakeRun) -> None:
    assert rows_of(make_run([1] * 10, speeds=[]))[2][6] == "-"
