"""The evaluate stage on small random models: what it writes, that a kill changes nothing, and what it says when things
are wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from made_artifact import artifact
from tunesmith.chat.templates import load_template
from tunesmith.errors import RecipeError, TeacherError, TemplateMismatch
from tunesmith.events import Note, Progress
from tunesmith.hashing import digest_text
from tunesmith.protocols import Context
from tunesmith.recipe import Evaluate, Runtime, TeacherSection
from tunesmith.stages import evaluate
from tunesmith.text.jsonl import read_log, read_records, write_records
from tunesmith.types import Conversation, Inputs, Message, Outcome, Sample, Task

pytestmark = pytest.mark.slow

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["x", "y"]}, "text": {"type": "string"}},
    "required": ["kind", "text"],
}
NUM_ROWS = 9


def build_model(folder: Path, seed: int) -> Path:
    """A byte-level tokenizer with a ChatML template, and random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = load_template("chatml")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    build_model(folder / "base", seed=1)
    build_model(folder / "tuned", seed=2)
    return folder


def rows(count: int = NUM_ROWS) -> list[Conversation]:
    system = Message(role="system", content="Be brief.")
    return [
        Conversation(
            messages=[
                system,
                Message(role="user", content=f"Question {n}: " + "word " * (n % 4)),
                Message(role="assistant", content=json.dumps({"kind": "xy"[n % 2], "text": f"answer {n}"})),
            ]
        )
        for n in range(count)
    ]


@pytest.fixture
def inputs(tmp_path: Path, models: Path, monkeypatch) -> Inputs:
    monkeypatch.setattr(evaluate, "base_model_path", lambda artifact: artifact.path)
    curated, checkpoint = tmp_path / "curate", tmp_path / "train"
    write_records(curated / "test.jsonl", rows())
    write_records(curated / "task.json", [Task(output_schema=SCHEMA)])
    shutil.copytree(models / "tuned", checkpoint / "model")
    template = load_template("chatml")
    (checkpoint / "chat_template.jinja").write_text(template, encoding="utf-8")
    shutil.copy(curated / "task.json", checkpoint / "task.json")
    facts = {
        "method": "full",
        "base_weights_digest": "w",
        "template_digest": digest_text(template),
        "stop_ids": [257],
        "max_length": 128,
    }
    base_facts = {"name": "tiny", "weights_digest": "w", "context_length": 512}
    return Inputs(
        {
            "train": artifact(checkpoint, "checkpoint", facts),
            "curate": artifact(curated, "curated", {"num_test": NUM_ROWS}),
            "base_model": artifact(models / "base", "base_model", base_facts),
        },
        {},
    )


@pytest.fixture
def quick(sink) -> Context:
    return Context(events=sink, runtime=Runtime(device="cpu", precision="fp32", num_threads=1, eval_batch_size=4))


SECTION = Evaluate(max_tokens=12)


def run(inputs: Inputs, out_dir: Path, ctx: Context, section: Evaluate = SECTION) -> Outcome:
    out_dir.mkdir(parents=True, exist_ok=True)
    return evaluate.run(section, inputs, out_dir, ctx)


def files_of(folder: Path) -> dict[str, bytes]:
    """What would be committed."""
    kept = [path for path in folder.rglob("*") if path.is_file() and not {"scratch", "logs"} & set(path.parts)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


def test_base_and_tuned_answer_every_test_row_and_are_scored(inputs: Inputs, tmp_path: Path, quick, sink) -> None:
    outcome = run(inputs, tmp_path / "out", quick)
    samples = read_records(tmp_path / "out" / "samples.jsonl", Sample)
    assert [sample.id for sample in samples] == [row.id for row in rows()]
    assert [sample.reference for sample in samples] == [row.reply for row in rows()]
    assert all(list(sample.completions) == ["base", "tuned"] for sample in samples)
    assert any(sample.completions["base"].text != sample.completions["tuned"].text for sample in samples)
    assert set(samples[0].scores["tuned"]) == {
        "json_valid", "schema_valid", "field.kind", "all_fields", "rouge_l", "loss",
    }  # fmt: skip
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert set(scores) == {"base", "tuned", "comparisons"}
    assert scores["base"]["loss"]["n"] == NUM_ROWS
    assert scores["base"]["loss"]["mean"] != scores["tuned"]["loss"]["mean"]
    assert scores["comparisons"]["tuned_vs_base"]["json_valid"]["ties"] == NUM_ROWS
    assert outcome.kind == "evaluation" and outcome.counts["samples"] == NUM_ROWS
    assert outcome.facts["tuned"]["loss"]["value"] == scores["tuned"]["loss"]["mean"]
    assert samples[3].id in (tmp_path / "out" / "report.html").read_text()
    done = {event.task: event.done for event in sink.events if isinstance(event, Progress)}
    assert done == dict.fromkeys(("base: loss", "base: answers", "tuned: loss", "tuned: answers"), NUM_ROWS)


def test_the_losses_are_those_of_the_reference_under_each_model(inputs: Inputs, tmp_path: Path, quick, models) -> None:
    import torch
    from transformers import LlamaForCausalLM

    from tunesmith.chat.renderer import Renderer

    run(inputs, tmp_path / "out", quick)
    sample = read_records(tmp_path / "out" / "samples.jsonl", Sample)[4]
    rendered = Renderer.for_model(models / "base").render(rows()[4].messages, "last_turn")
    for name in ("base", "tuned"):
        with torch.no_grad():
            logits = LlamaForCausalLM.from_pretrained(models / name)(torch.tensor([rendered.input_ids])).logits[0]
        targets = [place for place, flag in enumerate(rendered.loss_mask) if flag]
        chances = logits.log_softmax(-1)
        expected = -sum(chances[place - 1, rendered.input_ids[place]].item() for place in targets) / len(targets)
        score = sample.scores[name]["loss"]
        assert score.value == pytest.approx(expected, abs=1e-4)
        assert score.explanation == f"{len(targets)} tokens"


def test_the_test_rows_are_asked_under_the_condition_that_the_recipe_names(
    inputs: Inputs, tmp_path: Path, quick
) -> None:
    section = SECTION.model_copy(update={"condition": "GPT3"})
    with pytest.raises(RecipeError, match="writes no condition") as caught:
        run(inputs, tmp_path / "refused", quick, section)
    assert caught.value.where == "recipe.evaluate.condition"

    template = load_template("chatml").replace(
        "message['content']", "(message['condition'] or 'GPT4') + message['content']"
    )
    checkpoint = inputs["train"]
    (checkpoint.path / "chat_template.jinja").write_text(template, encoding="utf-8")
    checkpoint.manifest.facts["template_digest"] = digest_text(template)
    jobs = [evaluate._open(each, inputs, tmp_path / "out", quick) for each in (SECTION, section)]
    texts = [[job.renderer.tokenizer.decode(prompt.input_ids) for prompt in job.prompts if prompt] for job in jobs]
    assert len(texts[0]) == NUM_ROWS and all("GPT4Question" in text for text in texts[0])
    assert texts[1] == [text.replace("GPT4", "GPT3") for text in texts[0]]
    assert all("GPT3{" in each.text for each in jobs[1].rendered if each)


def must_not_load(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a model was loaded")


class _Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    """Files of an evaluation that nobody killed: the first test that needs them fills it in."""
    return {}


@pytest.mark.parametrize("survivors", [1, 8, 10, 14, 20, 29, 35])
def test_a_kill_after_any_record_changes_no_byte_and_writes_nothing_twice(
    inputs: Inputs, tmp_path: Path, quick, monkeypatch, whole: dict[str, bytes], survivors: int
) -> None:
    if not whole:
        run(inputs, tmp_path / "whole", quick)
        whole.update(files_of(tmp_path / "whole"))
    appended: list[str] = []
    real = evaluate.RecordLog.append

    def append(log, record) -> None:
        if len(appended) == survivors:
            with log.path.open("ab") as stream:
                stream.write(b'{"row": 3, "compl')  # torn in the middle of a line
            raise _Killed
        real(log, record)
        appended.append(f"{log.path.name}:{record.row}")

    monkeypatch.setattr(evaluate.RecordLog, "append", append)
    with pytest.raises(_Killed):
        run(inputs, tmp_path / "out", quick)
    before, survivors = list(appended), -1
    run(inputs, tmp_path / "out", quick)
    assert files_of(tmp_path / "out") == whole
    assert sorted(appended) == sorted(set(appended)) and len(appended) == 4 * NUM_ROWS > len(before)


def test_a_finished_log_needs_no_model(inputs: Inputs, tmp_path: Path, quick, monkeypatch) -> None:
    run(inputs, tmp_path / "out", quick)
    first = files_of(tmp_path / "out")
    monkeypatch.setattr(evaluate, "load_model", must_not_load)
    monkeypatch.setattr(evaluate, "load_checkpoint", must_not_load)
    run(inputs, tmp_path / "out", quick)
    assert files_of(tmp_path / "out") == first


def teacher_script(tmp_path: Path, inputs: Inputs, lines: list[dict[str, Any]]) -> tuple[Evaluate, Inputs]:
    script = tmp_path / "script.jsonl"
    script.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    section = SECTION.model_copy(update={"teacher": TeacherSection(kind="scripted", script="script.jsonl")})
    return section, Inputs(inputs.artifacts, {"script.jsonl": script})


def test_a_teacher_answers_beside_them_and_its_failures_are_unscored(
    inputs: Inputs, tmp_path: Path, quick, sink
) -> None:
    lines = [{"match": "Question 5", "error": "HTTP 500"}, {"match": "Question", "text": '{"kind": "x", "text": "hi"}'}]
    section, given = teacher_script(tmp_path, inputs, lines)
    outcome = run(given, tmp_path / "out", quick, section)
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(scores) == ["base", "tuned", "teacher", "comparisons"]
    assert {key: scores["teacher"]["json_valid"][key] for key in ("mean", "n", "n_unscored")} == {
        "mean": 1.0, "n": NUM_ROWS - 1, "n_unscored": 1,
    }  # fmt: skip
    assert scores["teacher"]["field.kind"]["mean"] == 0.625  # rows 0, 2, 4, 6, 8 of the 8 that came
    assert "loss" not in scores["teacher"]
    assert outcome.counts["teacher_failed"] == 1
    assert any("1 answers of the teacher failed" in e.message for e in sink.events if isinstance(e, Note))
    assert len((tmp_path / "out" / "answers.jsonl").read_bytes().splitlines()) == NUM_ROWS


def test_a_teacher_that_fails_too_often_stops_the_stage_before_any_model_is_loaded(
    inputs: Inputs, tmp_path: Path, quick, monkeypatch
) -> None:
    monkeypatch.setattr(evaluate, "load_model", must_not_load)
    section, given = teacher_script(tmp_path, inputs, [{"match": "Question", "error": "HTTP 500"}])
    with pytest.raises(TeacherError, match="3 answers failed; the last: HTTP 500") as caught:
        run(given, tmp_path / "out", quick, section.model_copy(update={"max_failures": 2}))
    assert caught.value.where == "recipe.evaluate.teacher"


def test_no_test_rows_is_a_note_and_an_empty_report(inputs: Inputs, tmp_path: Path, quick, sink) -> None:
    write_records(inputs["curate"].file("test.jsonl"), [])
    outcome = run(inputs, tmp_path / "out", quick)
    assert outcome.counts == {"samples": 0, "unscored_rows": 0} and outcome.facts == {}
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == {"comparisons": {}}
    assert "Nothing was evaluated" in (tmp_path / "out" / "report.html").read_text()
    assert [e.level for e in sink.events if isinstance(e, Note)] == ["warning"]


def test_max_samples_draws_rows_by_seed_and_keeps_their_order(inputs: Inputs, tmp_path: Path, quick) -> None:
    section = SECTION.model_copy(update={"max_samples": 4})
    run(inputs, tmp_path / "a", quick, section)
    run(inputs, tmp_path / "b", quick, section.model_copy(update={"rng_seed": 18}))
    order = [row.id for row in rows()]
    first, other = (
        [order.index(sample.id) for sample in read_records(tmp_path / name / "samples.jsonl", Sample)] for name in "ab"
    )
    assert first == sorted(first) and other == sorted(other) and len(first) == 4 and first != other


def test_another_chat_template_than_the_trained_one_is_refused(inputs: Inputs, tmp_path: Path, quick) -> None:
    inputs["train"].file("chat_template.jinja").write_text(load_template("chatml") + "{# changed #}", encoding="utf-8")
    with pytest.raises(TemplateMismatch, match=r"the chat template is \w{12}, the model was trained with \w{12}"):
        run(inputs, tmp_path / "out", quick)


def test_a_row_the_model_has_no_room_for_is_unscored_and_counted(inputs: Inputs, tmp_path: Path, quick) -> None:
    long = Conversation(messages=[Message(role="user", content="x" * 600), Message(role="assistant", content="{}")])
    write_records(inputs["curate"].file("test.jsonl"), [*rows(3), long])
    outcome = run(inputs, tmp_path / "out", quick)
    last = read_records(tmp_path / "out" / "samples.jsonl", Sample)[-1]
    assert outcome.counts["tuned_failed"] == 1
    assert last.scores["tuned"]["json_valid"].value is None
    assert "no room" in last.scores["tuned"]["json_valid"].explanation


def test_an_unknown_field_is_named_before_any_model_is_loaded(
    inputs: Inputs, tmp_path: Path, quick, monkeypatch
) -> None:
    monkeypatch.setattr(evaluate, "load_model", must_not_load)
    with pytest.raises(RecipeError, match="kinds"):
        run(inputs, tmp_path / "out", quick, SECTION.model_copy(update={"exact_fields": ("kinds",)}))


def test_a_tuned_model_that_is_worse_is_said_aloud(inputs: Inputs, tmp_path: Path, quick, sink, models: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(models / "base")
    with torch.no_grad():
        model.lm_head.weight.mul_(4)  # surer of itself and no wiser: a higher loss on every row
    model.save_pretrained(inputs["train"].file("model"))
    run(inputs, tmp_path / "out", quick)
    notes = [event.message for event in sink.events if isinstance(event, Note) and event.level == "warning"]
    assert len(notes) == 1 and "worse than its base in loss per token" in notes[0]


def test_a_resumed_evaluation_repeats_unfinished_groups_as_they_were_and_no_others(
    inputs: Inputs, tmp_path: Path, quick, monkeypatch
) -> None:
    write_records(inputs["curate"].file("test.jsonl"), rows(20))  # groups of 4 x 4 rows: 16 and 4
    asked: list[tuple[int, ...]] = []
    real = evaluate.TransformersEngine.generate

    def generate(self, prompts, sampling, on_done=None):
        asked.append(tuple(len(prompt.input_ids) for prompt in prompts))
        return real(self, prompts, sampling, on_done)

    monkeypatch.setattr(evaluate.TransformersEngine, "generate", generate)
    run(inputs, tmp_path / "out", quick)
    first = files_of(tmp_path / "out")
    assert [len(group) for group in asked] == [16, 4, 16, 4]
    log = tmp_path / "out" / "scratch" / "answers-tuned.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:16] + lines[17:]))  # one answer of the second group is lost
    before = asked.copy()
    asked.clear()
    run(inputs, tmp_path / "out", quick)
    assert asked == before[3:]
    assert files_of(tmp_path / "out") == first
    assert sorted(log.read_bytes().splitlines(keepends=True)) == sorted(lines)


def test_nothing_of_the_scratch_folder_is_left_half_read(inputs: Inputs, tmp_path: Path, quick) -> None:
    run(inputs, tmp_path / "out", quick)
    answered = read_log(tmp_path / "out" / "scratch" / "answers-tuned.jsonl", evaluate._Answered)
    assert sorted(each.row for each in answered) == list(range(NUM_ROWS))
