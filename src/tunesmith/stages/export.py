"""Stage export: the trained model as files other programs load, checked against the model that was trained.

Everything is made under scratch/ and gets its final name after its checks have passed, so a file that is there is
whole, and an interrupted run continues with the first that is not.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import torch

from tunesmith.chat.renderer import Renderer, check_template
from tunesmith.errors import DataError, ExportError
from tunesmith.events import Note, Progress
from tunesmith.exporting.agreement import collect_answers, compare_answers, compare_logits, compute_logits
from tunesmith.exporting.card import CardFacts, write_card, write_modelfile
from tunesmith.exporting.checks import check_answers, check_cast, check_merge, check_read_back, check_tokens
from tunesmith.exporting.formats import export_name, gguf_name, parse_formats
from tunesmith.exporting.gguf_file import Labels, check_exportable, plan_gguf, write_gguf
from tunesmith.exporting.native_tokens import tokenize_natively
from tunesmith.inference.llama_cpp import LlamaCppEngine
from tunesmith.model.adapters import adapter_layers, merge_adapter
from tunesmith.model.catalog import base_model_path
from tunesmith.model.load import load_checkpoint, load_model
from tunesmith.model.whole import save_whole, set_template
from tunesmith.protocols import Context, Prompt
from tunesmith.recipe import Export
from tunesmith.stages.train import threads
from tunesmith.store import write_atomic
from tunesmith.text.jsonl import read_records
from tunesmith.types import Conversation, Inputs, Outcome, Task

_LOGIT_ROWS, _LOGIT_TOKENS = 8, 192  # conversations, and tokens of each at most, on which weights are compared
_LOGIT_POSITIONS = 64  # of each, its last: where the answer is
_ANSWER_TOKENS = 32  # length of the greedy answers that are compared
_LONGEST_PROMPT = 1024  # tokens; longer prompts are not used for checking


@dataclass(frozen=True)
class _Job:
    """What every step needs to know."""

    section: Export
    inputs: Inputs
    out_dir: Path
    ctx: Context
    base_dir: Path
    renderer: Renderer
    template: str
    stop_ids: tuple[int, ...]
    name: str
    rows: list[Conversation]  # for checking: test rows, or training rows where there are none
    num_threads: int

    @property
    def scratch(self) -> Path:
        return self.out_dir / "scratch"

    def progress(self, task: str, done: float, total: float, unit: str) -> None:
        self.ctx.events.emit(Progress(task=task, done=done, total=total, unit=unit))


def run(section: Export, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
    """Merge, save, convert, check, describe. ExportError where a check fails or the model cannot be written."""
    wanted = parse_formats(section.formats)
    job = _open(section, inputs, out_dir, ctx)
    if wanted.quantisations:
        check_exportable(job.base_dir, job.stop_ids)
    _check_room(job, len(wanted.quantisations))
    merged_dir = (out_dir if wanted.safetensors else job.scratch) / "safetensors"
    with threads(ctx.runtime):
        checks: dict[str, Any] = _merge(job, merged_dir)
        checks["gguf"] = _write_ggufs(job, merged_dir, wanted.quantisations)
    _describe(job, checks)
    files = {
        path.relative_to(out_dir).as_posix(): path.stat().st_size
        for path in sorted(out_dir.rglob("*"))
        if path.is_file() and path.suffix in (".safetensors", ".gguf") and job.scratch not in path.parents
    }
    facts = {
        "name": job.name,
        "template_digest": job.renderer.template_digest,
        "stop_ids": list(job.stop_ids),
        "context_length": inputs["base_model"].facts["context_length"],
        "files": sorted(files),
    }
    return Outcome("exported", {"files": len(files), "bytes": sum(files.values())}, facts)


def _open(section: Export, inputs: Inputs, out_dir: Path, ctx: Context) -> _Job:
    checkpoint, curated, base = inputs["train"], inputs["curate"], inputs["base_model"]
    base_dir = base_model_path(base)
    template_path = checkpoint.file("chat_template.jinja")
    template = template_path.read_text(encoding="utf-8")
    renderer = Renderer.for_model(base_dir, template)
    check_template(checkpoint.facts["template_digest"], renderer, where=str(template_path))
    rows = read_records(curated.file("test.jsonl"), Conversation)
    (out_dir / "scratch").mkdir(exist_ok=True)
    return _Job(
        section=section,
        inputs=inputs,
        out_dir=out_dir,
        ctx=ctx,
        base_dir=base_dir,
        renderer=renderer,
        template=template,
        stop_ids=tuple(checkpoint.facts["stop_ids"]),
        name=export_name(base.facts["name"]),
        rows=rows or read_records(curated.file("train.jsonl"), Conversation),
        num_threads=ctx.runtime.usable_threads,
    )


def _check_room(job: _Job, num_ggufs: int) -> None:
    """2 bytes a weight for the folder (twice while it is being made), and as much at most for each GGUF file."""
    needed = 2 * job.inputs["base_model"].facts["num_parameters"] * (2 + num_ggufs)
    free = shutil.disk_usage(job.out_dir).free
    if free < needed:
        raise ExportError(
            f"the export needs up to {needed:,} bytes, and {free:,} are free",
            where=str(job.out_dir),
            hint="free some space, or export fewer formats; finished stages are kept",
        )


def _merge(job: _Job, merged_dir: Path) -> dict[str, Any]:
    """The merged folder and what its checks found."""
    record = job.scratch / "merge.json"
    if merged_dir.is_dir() and record.is_file():
        return orjson.loads(record.read_bytes())
    shutil.rmtree(merged_dir, ignore_errors=True)  # there without its record: not known to be right
    job.progress("merge", 0, 4, "steps")
    rows = _logit_rows(job)
    model = load_checkpoint(job.inputs["train"], job.base_dir, device="cpu", dtype=torch.float32)
    logits = partial(compute_logits, rows=rows, last=_LOGIT_POSITIONS)
    trained = logits(model)
    job.progress("merge", 1, 4, "steps")
    if adapter_layers(model):
        model = merge_adapter(model)
    merged = check_merge(compare_logits(trained, logits(model)), job.section.max_logit_difference)
    job.progress("merge", 2, 4, "steps")
    making = job.scratch / "merging"
    shutil.rmtree(making, ignore_errors=True)
    dtype = save_whole(model, job.base_dir, making)
    set_template(making, job.template, job.stop_ids)
    del model
    gc.collect()
    job.progress("merge", 3, 4, "steps")
    check_template(job.renderer.template_digest, Renderer.for_model(making), where=str(making))
    saved = load_model(making, device="cpu", dtype=torch.float32)
    found = {
        "merge": merged,
        "cast": check_cast(compare_logits(trained, logits(saved)), str(dtype).removeprefix("torch.")),
    }
    write_atomic(record, orjson.dumps(found))
    making.rename(merged_dir)
    job.progress("merge", 4, 4, "steps")
    return found


def _logit_rows(job: _Job) -> list[list[int]]:
    rows: list[list[int]] = []
    for row in job.rows:
        (sample,) = job.renderer.render_batch([row.messages], "everything")
        if not isinstance(sample, DataError):  # a row the template refuses was not trained on either
            rows.append(sample.input_ids[-_LOGIT_TOKENS:].tolist())
        if len(rows) == _LOGIT_ROWS:
            break
    if not rows:
        raise ExportError(
            "the chat template refuses every row of the curated data, so the merge cannot be checked",
            hint="look at the test rows: `tunesmith show`",
        )
    return rows


def _write_ggufs(job: _Job, merged_dir: Path, quantisations: tuple[str, ...]) -> dict[str, Any]:
    """Every GGUF file, and what its checks found, by file name."""
    prompts = _check_prompts(job) if quantisations else []
    (job.out_dir / "gguf").mkdir(exist_ok=True) if quantisations else None
    found: dict[str, Any] = {}
    reference: Any = None
    for quantisation in quantisations:
        name = gguf_name(job.name, quantisation)
        final, record = job.out_dir / "gguf" / name, job.scratch / f"{name}.json"
        if not (final.is_file() and record.is_file()):
            if reference is None and prompts:
                reference = load_model(merged_dir, device="cpu", dtype=torch.float32)
            making = job.scratch / name
            checks = _write_gguf(job, merged_dir, quantisation, making, prompts, reference)
            write_atomic(record, orjson.dumps(checks))
            making.rename(final)
        found[name] = orjson.loads(record.read_bytes())
    return found


def _write_gguf(
    job: _Job, merged_dir: Path, quantisation: str, path: Path, prompts: list[Prompt], reference: Any
) -> dict[str, Any]:
    labels = Labels(job.name, job.inputs["base_model"].facts["licence"], job.inputs["base_model"].facts["name"])
    plan = plan_gguf(
        merged_dir, quantisation=quantisation, chat_template=job.template, stop_ids=job.stop_ids, labels=labels
    )
    write = f"write {path.name}"
    write_gguf(
        plan,
        path,
        num_threads=job.num_threads,
        on_done=lambda done: job.progress(write, done, plan.size_bytes, "bytes"),
    )
    found: dict[str, Any] = {"read_back": check_read_back(plan, path)}
    tokenize = partial(tokenize_natively, path, parse_special=True)
    found["tokens"] = check_tokens(merged_dir / "tokenizer.json", tokenize, path)
    found["answers"] = None
    if prompts:
        longest = max(len(prompt.input_ids) for prompt in prompts)
        context = min(longest + _ANSWER_TOKENS + 1, job.inputs["base_model"].facts["context_length"])
        engine = LlamaCppEngine(path, context_length=context, num_slots=1, num_threads=job.num_threads, exact=True)
        with engine:
            check = f"check {path.name}"
            answers = asyncio.run(
                collect_answers(
                    engine,
                    prompts,
                    _ANSWER_TOKENS,
                    lambda done: job.progress(check, done, len(prompts), "prompts"),
                )
            )
        found["answers"] = check_answers(compare_answers(reference, prompts, answers), quantisation, path)
    return found


def _check_prompts(job: _Job) -> list[Prompt]:
    wanted = job.section.num_check_prompts
    limit = min(_LONGEST_PROMPT, job.inputs["base_model"].facts["context_length"] - _ANSWER_TOKENS - 1)
    prompts: list[Prompt] = []
    for row in job.rows:
        if len(prompts) == wanted:
            break
        with suppress(DataError):  # a row the template refuses: evaluate reports it
            prompt = job.renderer.prompt(row.prompt)
            prompts += [prompt] if len(prompt.input_ids) <= limit else []
    if len(prompts) < wanted:
        message = f"greedy answers are compared on {len(prompts)} prompts, not {wanted}: there are no more usable rows"
        job.ctx.events.emit(Note(level="warning", message=message))
    return prompts


def _describe(job: _Job, checks: dict[str, Any]) -> None:
    """Model card, Modelfile, checks.json; the task and the template that go with the model."""
    inputs, out_dir = job.inputs, job.out_dir
    task = read_records(inputs["train"].file("task.json"), Task)[0]
    train_rows = read_records(inputs["curate"].file("train.jsonl"), Conversation)
    ggufs = sorted(checks["gguf"])
    sizes = {f"gguf/{name}": (out_dir / "gguf" / name).stat().st_size for name in ggufs}
    for path in sorted((out_dir / "safetensors").glob("*.safetensors")):
        sizes[f"safetensors/{path.name}"] = path.stat().st_size
    stop_texts = tuple(job.renderer.tokenizer.convert_ids_to_tokens(list(job.stop_ids)))
    card = CardFacts(
        name=job.name,
        base=inputs["base_model"].facts,
        train=inputs["train"].facts,
        train_section=inputs["train"].manifest.section,
        data_counts=inputs["curate"].manifest.counts,
        data_licences=Counter(row.licence or "not stated" for row in train_rows),
        digests={stage: artifact.manifest.digest for stage, artifact in sorted(inputs.artifacts.items())},
        task=task,
        files=sizes,
        checks=checks,
        stop_texts=stop_texts,
        scores=inputs["evaluate"].facts if "evaluate" in inputs else {},
    )
    write_atomic(out_dir / "README.md", write_card(card).encode())
    if ggufs:
        preferred = next((name for name in ggufs if name.endswith("q8_0.gguf")), ggufs[0])
        write_atomic(out_dir / "Modelfile", write_modelfile(f"gguf/{preferred}", task, stop_texts).encode())
    pretty = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    write_atomic(out_dir / "checks.json", orjson.dumps(checks, option=pretty))
    shutil.copyfile(inputs["train"].file("task.json"), out_dir / "task.json")
    write_atomic(out_dir / "chat_template.jinja", job.template.encode())
