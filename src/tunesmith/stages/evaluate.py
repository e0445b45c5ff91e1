"""evaluate: base, tuned and (if there is one) teacher answer the test rows; scores with errors, and a report to read.

Wiring only: checkpoint, renderer, engine, teacher and metrics meet here. Every answer and every loss is written under
scratch/ as it arrives, so a killed evaluation continues with what was not finished; the files of the artifact are
written at the end, in the order of the test rows.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

from tunesmith.chat.conditions import with_condition
from tunesmith.chat.renderer import Renderer, check_template
from tunesmith.errors import DataError, TeacherError
from tunesmith.events import Note, Progress
from tunesmith.inference.transformers_engine import TransformersEngine, common_prefix
from tunesmith.judging.fields import Target, find_target
from tunesmith.judging.metrics import parse_json, score_answer
from tunesmith.judging.report import render_report
from tunesmith.judging.scores import COMPARISONS, LOSS, compute_scores, contestants_of, regressions, verdict
from tunesmith.model.adapters import adapter_layers, merge_adapter
from tunesmith.model.catalog import base_model_path
from tunesmith.model.load import load_checkpoint, load_model
from tunesmith.protocols import Context, Prompt
from tunesmith.recipe import Evaluate, Runtime
from tunesmith.stages.teacher import concurrency_of, open_teacher
from tunesmith.stages.train import threads
from tunesmith.store import write_atomic
from tunesmith.teachers.ledger import Ledger, LedgerClient
from tunesmith.text.jsonl import RecordLog, read_log, read_records, write_records
from tunesmith.training.batches import Samples
from tunesmith.training.measuring import TokenLoss, measure_losses
from tunesmith.types import (
    Completion,
    Conversation,
    Inputs,
    Outcome,
    Record,
    Rendered,
    Sample,
    SamplingParams,
    Score,
    Task,
    TeacherRequest,
)

_BATCHES_PER_GROUP = 4  # more: fewer ends at which a batch runs empty; fewer: less to repeat after a kill
SAMPLES, SCORES, REPORT = "samples.jsonl", "scores.json", "report.html"


class _Answered(Record):
    """A line of scratch/answers-NAME.jsonl. `row` counts the chosen test rows from 0."""

    row: int
    completion: Completion


class _Measured(Record):
    """A line of scratch/losses-NAME.jsonl."""

    row: int
    total: float  # nats
    num_tokens: int


@dataclass(frozen=True)
class _Job:
    """What every step needs to know. prompts, rendered: None where the template refuses the row (refusals says why)."""

    section: Evaluate
    inputs: Inputs
    out_dir: Path
    ctx: Context
    base_dir: Path
    renderer: Renderer
    rows: list[Conversation]
    prompts: list[Prompt | None]
    rendered: list[Rendered | None]
    refusals: dict[int, str]
    sampling: SamplingParams

    def progress(self, task: str, done: int, total: int) -> None:
        self.ctx.events.emit(Progress(task=task, done=done, total=total, unit="rows"))

    def note(self, message: str, *, warning: bool = False) -> None:
        self.ctx.events.emit(Note(level="warning" if warning else "info", message=message))


@dataclass
class _Contestant:
    """What one of them did, by row. losses is empty for a teacher: its weights are not here."""

    answers: dict[int, Completion]
    losses: dict[int, TokenLoss]


def run(section: Evaluate, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
    """See protocols.Stage. Raises TemplateMismatch, RecipeError for a field no answer can have, TeacherError where
    more than max_failures answers of the teacher failed."""
    job = _open(section, inputs, out_dir, ctx)
    task = read_records(inputs["curate"].file("task.json"), Task)[0]
    references = [parse_json(row.reply or "") for row in job.rows]
    target = find_target(task.output_schema, references, section.exact_fields, section.text_field)
    if not job.rows:
        job.note(
            "there are no test rows, so nothing is evaluated: name ingest.test_files or set ingest.test_fraction",
            warning=True,
        )
        return _finish(job, [], target, {})
    contestants: dict[str, _Contestant] = {}
    if section.teacher is not None:  # first: a wrong key should stop the stage before minutes of work
        contestants["teacher"] = _Contestant(asyncio.run(_ask_teacher(job)), {})
    device, dtype = choose_device(ctx.runtime)
    with threads(ctx.runtime):
        contestants["base"] = _measure(job, "base", partial(load_model, job.base_dir, device=device, dtype=dtype))
        contestants["tuned"] = _measure(job, "tuned", partial(_load_tuned, job, device, dtype))
    ordered = {name: contestants[name] for name in ("base", "tuned", "teacher") if name in contestants}
    return _finish(job, _samples(job, target, ordered), target, ordered)


def choose_device(runtime: Runtime) -> tuple[str, torch.dtype]:
    """Where and in what arithmetic to compute. auto precision: bf16 where the processor multiplies it natively."""
    device = runtime.device if runtime.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if runtime.precision != "auto":
        return device, torch.bfloat16 if runtime.precision == "bf16" else torch.float32
    if device.startswith("cuda"):
        return device, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device, torch.bfloat16 if native else torch.float32


def _open(section: Evaluate, inputs: Inputs, out_dir: Path, ctx: Context) -> _Job:
    checkpoint = inputs["train"]
    base_dir = base_model_path(inputs["base_model"])
    template_path = checkpoint.file("chat_template.jinja")
    renderer = Renderer.for_model(base_dir, template_path.read_text(encoding="utf-8"))
    check_template(checkpoint.facts["template_digest"], renderer, where=str(template_path))
    rows = [row for row in read_records(inputs["curate"].file("test.jsonl"), Conversation) if row.reply is not None]
    rows = _choose(rows, section)
    prompts: list[Prompt | None] = []
    rendered: list[Rendered | None] = []
    refusals: dict[int, str] = {}
    for index, row in enumerate(rows):
        asked = with_condition(
            row.messages, section.condition, template=renderer.template, where="recipe.evaluate.condition"
        )
        try:
            prompts.append(renderer.prompt(asked[:-1]))
            rendered.append(renderer.render(asked, "last_turn", where=row.source or row.id))
        except DataError as error:
            del prompts[index:]
            prompts.append(None)
            rendered.append(None)
            refusals[index] = f"the chat template refuses this row: {error.message}"
    sampling = SamplingParams(max_tokens=section.max_tokens, temperature=section.temperature, rng_seed=section.rng_seed)
    job = _Job(section, inputs, out_dir, ctx, base_dir, renderer, rows, prompts, rendered, refusals, sampling)
    if refusals:
        first = min(refusals)
        job.note(
            f"{len(refusals)} test rows are unscored; the first: {rows[first].id}: {refusals[first]}", warning=True
        )
    return job


def _choose(rows: list[Conversation], section: Evaluate) -> list[Conversation]:
    """At most max_samples rows, drawn by seed (files are often sorted by kind), in their order."""
    if section.max_samples is None or section.max_samples >= len(rows):
        return rows
    chosen = random.Random(section.rng_seed).sample(range(len(rows)), section.max_samples)
    return [rows[index] for index in sorted(chosen)]


def _load_tuned(job: _Job, device: str, dtype: torch.dtype) -> Any:
    """The trained model with its adapter folded in: what is exported is what is measured, at the speed of the base."""
    model = load_checkpoint(job.inputs["train"], job.base_dir, device=device, dtype=dtype)
    return merge_adapter(model) if adapter_layers(model) else model


def _measure(job: _Job, name: str, load: Callable[[], Any]) -> _Contestant:
    """Losses and answers of a model, as far as they are not on file. The model is loaded only where one is missing."""
    losses_path, answers_path = (job.out_dir / "scratch" / f"{kind}-{name}.jsonl" for kind in ("losses", "answers"))
    refused = {row: Completion(text="", finish_reason="error", error=why) for row, why in job.refusals.items()}
    done = _Contestant(
        {each.row: each.completion for each in read_log(answers_path, _Answered)} | refused,
        {each.row: TokenLoss(each.total, each.num_tokens) for each in read_log(losses_path, _Measured)},
    )
    unmeasured = [row for row, rendered in enumerate(job.rendered) if rendered is not None and row not in done.losses]
    unanswered = [row for row in range(len(job.rows)) if row not in done.answers]
    if unmeasured or unanswered:
        model = load()
        with RecordLog(losses_path) as log:
            _measure_losses(job, name, model, unmeasured, done, log)
        with RecordLog(answers_path) as log:
            _answer(job, name, model, unanswered, done, log)
        del model
        gc.collect()
    return done


def _measure_losses(job: _Job, name: str, model: Any, rows: list[int], done: _Contestant, log: RecordLog) -> None:
    def note(index: int, loss: TokenLoss) -> None:
        done.losses[rows[index]] = loss
        log.append(_Measured(row=rows[index], total=loss.total, num_tokens=loss.num_tokens))
        job.progress(f"{name}: loss", len(done.losses), len(job.rows) - len(job.refusals))

    rendered = [each for row in rows if (each := job.rendered[row]) is not None]
    if rendered:
        samples = Samples(
            input_ids=np.concatenate([each.input_ids for each in rendered]),
            loss_mask=np.concatenate([each.loss_mask for each in rendered]),
            lengths=np.array([len(each.input_ids) for each in rendered], dtype=np.int64),
            ids=tuple(job.rows[row].id for row in rows),
        )
        measure_losses(model, samples, note)


def _answer(job: _Job, name: str, model: Any, rows: list[int], done: _Contestant, log: RecordLog) -> None:
    engine = TransformersEngine(
        model,
        decode=job.renderer.decode,
        batch_size=job.ctx.runtime.eval_batch_size,
        shared_prefix=_shared_prefix(job),
    )
    missing = set(rows)
    for group in _groups(job):
        if missing.isdisjoint(group):
            continue

        def note(index: int, completion: Completion, group: list[int] = group) -> None:
            if group[index] in missing:
                done.answers[group[index]] = completion
                log.append(_Answered(row=group[index], completion=completion))
                job.progress(f"{name}: answers", len(done.answers), len(job.rows))

        engine.generate([each for row in group if (each := job.prompts[row]) is not None], job.sampling, note)
    engine.close()


def _groups(job: _Job) -> list[list[int]]:
    """Rows that are answered in one go, like lengths together.

    Low-order bits of an answer's numbers can depend on what ran beside it, so a resumed evaluation repeats an unfinished
    group as a whole (and writes down only what is missing): then it ends in the same answers.
    """
    lengths = {row: len(prompt.input_ids) for row, prompt in enumerate(job.prompts) if prompt is not None}
    order = sorted(lengths, key=lambda row: (lengths[row], row))
    size = _BATCHES_PER_GROUP * job.ctx.runtime.eval_batch_size
    return [order[start : start + size] for start in range(0, len(order), size)]


def _shared_prefix(job: _Job) -> tuple[int, ...]:
    """What all prompts start with. Of all rows, so that a resumed evaluation computes with the same one."""
    return common_prefix([prompt.input_ids for prompt in job.prompts if prompt is not None])


async def _ask_teacher(job: _Job) -> dict[int, Completion]:
    """The teacher's answer to every row, from the ledger where it is there."""
    section = job.section.teacher
    assert section is not None
    where = "recipe.evaluate.teacher"
    teacher = open_teacher(section, where=where, files=job.inputs.files, runtime=job.ctx.runtime, events=job.ctx.events)
    answers: dict[int, Completion] = {}
    failures: list[str] = []
    ledger = Ledger(job.out_dir / "answers.jsonl")
    client = LedgerClient(
        teacher,
        ledger,
        concurrency=concurrency_of(section, job.ctx.runtime),
        budget_usd=None,
        max_requests=None,
        where=where,
    )

    async def ask(row: int, conversation: Conversation) -> None:
        request = TeacherRequest(messages=tuple(conversation.prompt), sampling=job.sampling, sample_index=row)
        completion = await client.ask(request)
        if completion.finish_reason == "error":
            failures.append(completion.error or "unknown")
            if len(failures) > job.section.max_failures:
                raise TeacherError(
                    f"{len(failures)} answers failed; the last: {failures[-1]}",
                    where=where,
                    hint="mend the endpoint, or raise evaluate.max_failures; answers that came are kept",
                )
        answers[row] = completion
        job.progress("teacher: answers", len(answers), len(job.rows))

    try:
        async with asyncio.TaskGroup() as group:
            for row, conversation in enumerate(job.rows):
                group.create_task(ask(row, conversation))
        ledger.finish(client.asked_keys)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        await client.aclose()
        ledger.close()
    if failures:
        job.note(f"{len(failures)} answers of the teacher failed and are unscored; one: {failures[-1]}", warning=True)
    return answers


def _samples(job: _Job, target: Target, contestants: dict[str, _Contestant]) -> list[Sample]:
    samples: list[Sample] = []
    for row, conversation in enumerate(job.rows):
        sample = Sample(id=conversation.id, messages=conversation.prompt, reference=conversation.reply or "")
        for name, contestant in contestants.items():
            completion = contestant.answers[row]
            sample.completions[name] = completion.model_copy(update={"token_ids": None})
            sample.scores[name] = score_answer(completion, sample.reference, target)
            if contestant.losses:
                sample.scores[name][LOSS] = _loss_score(contestant.losses.get(row))
        samples.append(sample)
    return samples


def _loss_score(loss: TokenLoss | None) -> Score:
    if loss is None or not loss.num_tokens:
        return Score(value=None, explanation="the reference has no tokens to predict")
    return Score(value=round(loss.total / loss.num_tokens, 6), explanation=f"{loss.num_tokens} tokens")


def _finish(job: _Job, samples: list[Sample], target: Target, contestants: dict[str, _Contestant]) -> Outcome:
    """Write the artifact's files, say what they say, and hand the headline on."""
    losses = contestants["base"].losses if "base" in contestants else {}
    num_tokens = {sample.id: losses[row].num_tokens for row, sample in enumerate(samples) if row in losses}
    scores = compute_scores(samples, list(contestants), num_tokens, rng_seed=job.section.rng_seed)
    write_records(job.out_dir / SAMPLES, samples)
    write_atomic(job.out_dir / SCORES, orjson.dumps(scores, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    report = render_report(samples, scores, target, title=_title(job), about=_about(job))
    write_atomic(job.out_dir / REPORT, report.encode())
    for sentence in verdict(scores)[:1]:
        job.note(sentence)
    worse = regressions(scores)
    if worse:
        job.note(
            f"the tuned model is worse than its base in {'; '.join(worse)}: look at report.html, "
            "then at the training rows, or train less (fewer epochs, lower learning rate)",
            warning=True,
        )
    counts = {"samples": len(samples), "unscored_rows": len(job.refusals)}
    for name in contestants_of(scores):
        answers = [sample.completions[name] for sample in samples]
        counts[f"{name}_failed"] = sum(answer.finish_reason == "error" for answer in answers)
        counts[f"{name}_cut_off"] = sum(answer.finish_reason == "length" for answer in answers)
    return Outcome("evaluation", counts, _headline(scores))


def _headline(scores: dict[str, Any]) -> dict[str, Any]:
    """{contestant: {metric: {value, stderr, n}}}: what the model card shows."""
    return {
        name: {
            metric: {"value": summary["mean"], "stderr": summary["stderr"], "n": summary["n"]}
            for metric, summary in metrics.items()
        }
        for name, metrics in scores.items()
        if name != COMPARISONS
    }


def _title(job: _Job) -> str:
    facts = job.inputs["base_model"].facts
    return f"{facts['name']}, tuned ({job.inputs['train'].facts['method']}): {_rows(len(job.rows))}"


def _about(job: _Job) -> str:
    section = job.section
    drawn = "Greedy answers" if section.temperature == 0 else f"Answers at temperature {section.temperature:g}"
    teacher = f" Teacher: {section.teacher.title}." if section.teacher else ""
    return f"{drawn} of at most {section.max_tokens} tokens; every contestant got the same prompt.{teacher}"


def _rows(count: int) -> str:
    return f"{count} held-out row{'' if count == 1 else 's'}"
