"""The runs that docs/seed-systems shows: every recipe gives the counts of counts.yaml, and the pages hold them."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.data.unique import keep_unique
from tunesmith.events import NullSink
from tunesmith.pipeline import execute
from tunesmith.resolve import resolve_mapping
from tunesmith.store import Run, Store
from tunesmith.text.jsonl import read_records
from tunesmith.types import Conversation, Excluded, Message

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "examples" / "seed-systems"
PAGES = ROOT / "docs" / "seed-systems"
CASES: dict[str, dict[str, Any]] = yaml.safe_load((PAGES / "counts.yaml").read_text(encoding="utf-8"))
LARGE = {"lamini", "gsm8k", "toolformer"}
DATA = "../../../../shared/data"  # as the recipes name it


@cache
def pages() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(PAGES.glob("*.md")))


def execute_case(name: str, shared_data: Path, root: Path, until: str) -> Run:
    """Run it on the data folder of the tests, which may be another one than the recipe's."""
    path = RECIPES / CASES[name]["recipe"]
    data = yaml.safe_load(path.read_text(encoding="utf-8").replace(DATA, str(shared_data)))
    resolved = resolve_mapping(data, folder=path.parent, overrides=CASES[name].get("set", ()))
    return execute(resolved, Store(root), NullSink(), until=until)


def assert_counts(run: Run, name: str) -> None:
    made = {stage: artifact.manifest.counts for stage, artifact in run.artifacts().items() if stage != "base_model"}
    assert made == {stage: CASES[name]["stages"][stage] for stage in made}


def assert_tokens(run: Run, name: str) -> None:
    """Every line of the page's excerpt is what `tunesmith show --tokens` prints of that sample."""
    from tunesmith.chat.tokenizer import load_tokenizer
    from tunesmith.chat.view import tokens_in_plain
    from tunesmith.model.catalog import base_model_path
    from tunesmith.stages.tokenize import ROWS, load_sample

    tokenized, base = run.artifact("tokenize"), run.artifact("base_model")
    assert tokenized is not None and base is not None
    number = CASES[name]["sample"]
    sample = load_sample(tokenized, json.loads(tokenized.file(ROWS).read_text().splitlines()[number])["id"])
    printed = tokens_in_plain(sample, load_tokenizer(base_model_path(base)))
    lines = {line.rstrip() for line in printed.splitlines()}
    page = (PAGES / f"{Path(CASES[name]['recipe']).parent}.md").read_text(encoding="utf-8")
    begin = f"$ tunesmith show latest --sample {number} --tokens\n"
    shown = page[page.index(begin) + len(begin) :].partition("\n```")[0].split("\n")
    assert shown[-1] == f"{len(sample.input_ids)} tokens, {sum(sample.loss_mask)} of them targets"
    assert len(shown) > 10 and {line for line in shown[:-1] if line.strip() != "..."} <= lines


@pytest.mark.parametrize("name", sorted({*CASES} - LARGE))
def test_a_run_reads_writes_and_keeps_the_rows_its_page_says(shared_data: Path, tmp_path: Path, name: str):
    run = execute_case(name, shared_data, tmp_path, "curate")
    assert {"ingest", "curate"} <= {*run.artifacts()}
    assert_counts(run, name)


@pytest.mark.real
@pytest.mark.parametrize("name", CASES)
def test_a_run_ends_in_the_tokens_and_packs_its_page_says(
    shared_data: Path, tmp_path_factory: pytest.TempPathFactory, smollm2: object, name: str
):
    root = tmp_path_factory.getbasetemp() / "seed-systems"  # one store: the base model is made once
    run = execute_case(name, shared_data, root, "tokenize")
    assert_counts(run, name)
    if "sample" in CASES[name]:
        assert_tokens(run, name)


@pytest.mark.parametrize("name", CASES)
def test_a_page_shows_every_count_of_its_run(name: str):
    for stage, counts in CASES[name]["stages"].items():
        shown = "  ".join(f"{count.replace('_', ' ')} {number:,}" for count, number in counts.items())
        line = re.compile(rf"^{stage} +{re.escape(shown)}$", re.MULTILINE)
        assert line.search(pages()), f"no page has the line: {stage}  {shown}"


@pytest.mark.parametrize("name", CASES)
def test_the_counts_of_a_run_add_up(name: str):
    stages = CASES[name]["stages"]
    ingest, curate, tokenize = stages["ingest"], stages["curate"], stages["tokenize"]
    written = stages.get("generate", {})
    assert ingest["rows_read"] == ingest["kept"] + ingest["rejected"] + ingest.get("not_drawn", 0)
    assert ingest["kept"] == ingest["train"] + ingest["test"]
    assert written.get("rows_parsed", 0) == written.get("kept", 0) + total(written, "rejected_")
    assert curate["rows_in"] == ingest["kept"] + written.get("kept", 0)
    assert curate["rows_in"] == curate["train"] + curate["test"] + total(curate, "excluded_")
    assert tokenize["rows"] == curate["train"]
    rows = tokenize["rows"] - tokenize.get("rows_split", 0) + tokenize.get("pieces", 0)
    assert rows == tokenize["samples"] + tokenize["dropped"]


def total(counts: dict[str, int], prefix: str) -> int:
    return sum(number for name, number in counts.items() if name.startswith(prefix))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_page_shows_the_whole_recipe(path: Path):
    assert path.read_text(encoding="utf-8").strip() in pages()
    assert any(case["recipe"] == f"{path.parent.name}/{path.name}" for case in CASES.values())


def test_alpaca_excludes_the_tasks_its_page_names(shared_data: Path, tmp_path: Path):
    run = execute_case("alpaca", shared_data, tmp_path, "curate")
    excluded = read_records(run.path / "curate" / "excluded.jsonl", Excluded)
    found = [(each.reason, each.where) for each in excluded]
    assert found == [
        ("word_length", "seed_tasks.jsonl:13"), ("word_length", "seed_tasks.jsonl:80"),
        ("program_start", "seed_tasks.jsonl:140"), ("blacklist", "seed_tasks.jsonl:170"),
        ("rouge_l", "seed_tasks.jsonl:75"), ("rouge_l", "seed_tasks.jsonl:114"),
    ]  # fmt: skip
    assert all(where in (PAGES / "alpaca.md").read_text() for _, where in found)


def test_lamini_program_removes_what_its_page_says(shared_data: Path, tmp_path: Path):
    counts = keep_unique(shared_data / "lamini/lamini_dataset.jsonl", "question", tmp_path / "kept.jsonl")
    assert counts == {"rows_in": 5838, "kept": 4103, "excluded_exact": 1735}
    assert "1,735" in (PAGES / "lamini.md").read_text()


@pytest.mark.real
def test_the_alpaca_template_gives_the_prompts_of_alpaca_lora(shared_data: Path, smollm2: Any):
    from tunesmith.chat.renderer import Renderer
    from tunesmith.chat.tokenizer import load_tokenizer
    from tunesmith.data.readers import read_examples

    tokenizer = load_tokenizer(smollm2.path)
    renderer = Renderer(tokenizer, (RECIPES / "alpaca" / "alpaca-lora.jinja").read_text(encoding="utf-8"))
    forms = json.loads((shared_data / "alpaca-lora-templates/alpaca.json").read_text(encoding="utf-8"))
    lines = (shared_data / "alpaca/seed_tasks.jsonl").read_text(encoding="utf-8").splitlines()
    different: list[str] = []
    for row, example in zip(
        map(json.loads, lines), read_examples(shared_data / "alpaca/seed_tasks.jsonl"), strict=True
    ):
        assert isinstance(example, Conversation)
        given = row["instances"][0]["input"]
        form = forms["prompt_input" if given else "prompt_no_input"]
        expected = form.format(instruction=row["instruction"], input=given)
        rendered = renderer.render(example.messages, "all_turns")
        ids = [i for i, target in zip(rendered.input_ids, rendered.loss_mask, strict=True) if not target]
        if tokenizer.decode(ids) != expected:
            different.append(row["id"])
    assert different == ["seed_task_135"]  # its instruction has a blank line of its own


@pytest.mark.parametrize("name", ["alpaca-lora", "alpaca-short", "vigogne"])
def test_the_built_in_forms_give_the_prompts_of_their_originals(shared_data: Path, name: str):
    from tunesmith.chat.template import ChatTemplate
    from tunesmith.chat.templates import load_template
    from tunesmith.data.readers import read_examples

    original = {"alpaca-lora": "alpaca", "alpaca-short": "alpaca_short"}.get(name, name)
    forms = json.loads((shared_data / f"alpaca-lora-templates/{original}.json").read_text(encoding="utf-8"))
    path = shared_data / "alpaca/seed_tasks.jsonl"
    template = ChatTemplate(load_template(name), {"bos_token": "", "eos_token": "</s>"})
    different: list[str] = []
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    for row, example in zip(rows, read_examples(path), strict=True):
        assert isinstance(example, Conversation)
        given = row["instances"][0]["input"]
        expected = forms["prompt_input" if given else "prompt_no_input"].format(
            instruction=row["instruction"], input=given
        )
        if template.render(example.prompt, add_generation_prompt=True) != expected:
            different.append(row["id"])
    assert different == ["seed_task_135"]


@pytest.mark.real
def test_openchat_masks_all_but_what_the_assistant_says(smollm2: Any):
    from tunesmith.chat.renderer import Renderer
    from tunesmith.chat.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(smollm2.path)
    renderer = Renderer(tokenizer, (RECIPES / "openchat-sharegpt" / "openchat-v1.jinja").read_text(encoding="utf-8"))
    said = [("user", "Hi"), ("assistant", "Ho"), ("user", "Bye"), ("assistant", "Till then")]
    rendered = renderer.render([Message(role=role, content=text) for role, text in said], "all_turns")  # pyright: ignore[reportArgumentType]
    end = tokenizer.eos_token
    assert tokenizer.decode(list(rendered.input_ids)) == (
        f"{tokenizer.bos_token}Human: Hi{end}Assistant: Ho{end}Human: Bye{end}Assistant: Till then{end}"
    )
    targets = [i for i, target in zip(rendered.input_ids, rendered.loss_mask, strict=True) if target]
    assert tokenizer.decode(targets) == f"Ho{end}Till then{end}"
