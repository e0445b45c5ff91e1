"""Stage prefer: the tuned model answers training prompts several times, and a reward or a judge says which answer is best.

No people label anything (RLAIF: Lee et al. 2023, arXiv 2309.00267). Wiring only: sampling is inference/rollouts.py's, verdicts
are judging's. Every candidate stays in candidates.jsonl with its score.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field

from tunesmith.chat.renderer import Renderer
from tunesmith.chat.tokenizer import load_tokenizer
from tunesmith.errors import DataError, RecipeError
from tunesmith.events import Note, Progress
from tunesmith.inference.reward_model import open_reward_model
from tunesmith.inference.rollouts import Rollout, RolloutSampler
from tunesmith.inference.transformers_engine import common_prefix
from tunesmith.judging.fields import Target, find_target
from tunesmith.judging.metrics import parse_json, same
from tunesmith.judging.pairwise import Pair, compare
from tunesmith.judging.rewards.combining import WeightedRewards
from tunesmith.judging.rewards.judge import words
from tunesmith.model.catalog import base_model_path
from tunesmith.model.load import load_checkpoint
from tunesmith.protocols import Attempt, Context, Prompt, RewardContext
from tunesmith.recipe import Runtime
from tunesmith.recipe.align import Prefer
from tunesmith.stages.answers import PREFERENCES
from tunesmith.stages.judge import LazyJudge
from tunesmith.stages.tokenize import TASK, TEMPLATE, length_limit_of
from tunesmith.stages.train import choose_device, precision_of, threads
from tunesmith.store import SCRATCH
from tunesmith.text.jsonl import RecordLog, read_log, read_records, write_records
from tunesmith.types import Conversation, Excluded, Inputs, Outcome, Preference, Record, SamplingParams, Task

CANDIDATES, EXCLUDED = "candidates.jsonl", "excluded.jsonl"
_PROMPTS_AT_ONCE = 16  # between two places where a killed run goes on


class Candidates(Record):
    """The answers to one prompt; scores in their order, None where nobody could say."""

    row: str
    answers: list[str]
    cut_off: list[bool]  # at max_tokens, before the model had ended the answer
    scores: list[float | None] = Field(default_factory=list[float | None])


@dataclass
class _Pairs:
    """What became of the prompts."""

    kept: list[Preference] = field(default_factory=list[Preference])
    excluded: list[Excluded] = field(default_factory=list[Excluded])

    def leave_out(self, row: Conversation, reason: str, detail: str) -> None:
        self.excluded.append(Excluded(reason=reason, detail=detail, where=row.place, conversation=row))


def run(section: Prefer, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
    """Reads the checkpoint and the training split; writes preferences.jsonl, candidates.jsonl and excluded.jsonl."""
    pairs = _Pairs()
    base_dir = base_model_path(inputs["base_model"])
    template = inputs["tokenize"].file(TEMPLATE).read_text(encoding="utf-8")
    renderer = Renderer(load_tokenizer(base_dir), template)
    room = length_limit_of(inputs) - section.max_tokens
    rows, prompts = _prompts(section, inputs, renderer, room, pairs)
    sampled = _sample(section, inputs, base_dir, renderer, rows, prompts, out_dir, ctx)
    with LazyJudge(section, inputs.files, out_dir, ctx, "recipe.prefer") as judge:
        scored = _score(section, inputs, base_dir, rows, sampled, judge, ctx)
        facts = judge.facts()
    target = _target(inputs, rows) if section.same_text else None
    for row, candidates in zip(rows, scored, strict=True):
        _choose(section, row, candidates, target, pairs)
    write_records(out_dir / PREFERENCES, pairs.kept)
    write_records(out_dir / CANDIDATES, scored)
    write_records(out_dir / EXCLUDED, pairs.excluded)
    reasons = Counter(row.reason for row in pairs.excluded)
    message = f"{len(pairs.kept)} pairs from {len(rows)} prompts"
    ctx.events.emit(Note(message=message + "".join(f"; {reason} {count}" for reason, count in reasons.items())))
    margins = [pair.scores["chosen"] - pair.scores["rejected"] for pair in pairs.kept]
    return Outcome(
        "preferences",
        counts={
            "prompts": len(pairs.kept) + len(pairs.excluded),
            "pairs": len(pairs.kept),
            "excluded": len(pairs.excluded),
            **{f"excluded_{reason}": count for reason, count in reasons.items()},
        },
        facts={**facts, "mean_margin": float(np.mean(margins)) if margins else None},
    )


def _prompts(
    section: Prefer, inputs: Inputs, renderer: Renderer, room: int, pairs: _Pairs
) -> tuple[list[Conversation], list[Prompt]]:
    """Training rows that can be asked, drawn by the seed where there are more than wanted; the others are left out."""
    rows = list[Conversation]()
    for row in read_records(inputs["curate"].file("train.jsonl"), Conversation):
        if row.reply is None:
            pairs.leave_out(row, "no_reply", "the conversation does not end in an answer, so nothing is asked")
        else:
            rows.append(row)
    rows = _drawn(section, rows, pairs)
    kept: list[tuple[Conversation, Prompt]] = []
    for row in rows:
        try:
            prompt = renderer.prompt(row.prompt)
        except DataError as error:
            pairs.leave_out(row, "refused_by_template", error.message)
            continue
        if len(prompt.input_ids) >= room:
            detail = f"{len(prompt.input_ids)} tokens, expected less than {room} for room for an answer"
            pairs.leave_out(row, "overlong", detail)
        else:
            kept.append((row, prompt))
    if not kept:
        raise DataError(
            "no training prompt can be asked",
            where="recipe.prefer",
            hint="lower prefer.max_tokens, or raise tokenize.max_length",
        )
    return [row for row, _ in kept], [prompt for _, prompt in kept]


def _drawn(section: Prefer, rows: Sequence[Conversation], pairs: _Pairs) -> list[Conversation]:
    """max_prompts of the rows, in their order; the others are named, and stand whole in the training split."""
    if section.max_prompts is None or section.max_prompts >= len(rows):
        return list(rows)
    order = np.random.default_rng(section.rng_seed).permutation(len(rows)).tolist()
    drawn = frozenset(order[: section.max_prompts])
    detail = f"{section.max_prompts} of {len(rows)} prompts are drawn, and it is none of them"
    pairs.excluded += [
        Excluded(reason="over_max_prompts", detail=detail, where=row.place)
        for index, row in enumerate(rows)
        if index not in drawn
    ]
    return [row for index, row in enumerate(rows) if index in drawn]


def _sample(
    section: Prefer,
    inputs: Inputs,
    base_dir: Path,
    renderer: Renderer,
    rows: Sequence[Conversation],
    prompts: Sequence[Prompt],
    out_dir: Path,
    ctx: Context,
) -> list[Candidates]:
    """Distinct answers to every prompt, what all prompts begin with computed once. What a killed run had drawn is not drawn again."""
    path = out_dir / SCRATCH / CANDIDATES
    done = {line.row: line for line in read_log(path, Candidates)}
    missing = [index for index, row in enumerate(rows) if row.id not in done]
    runtime: Runtime = ctx.runtime
    if missing:
        with threads(runtime), RecordLog(path) as log:
            device = choose_device(runtime.device)
            precision = precision_of(runtime, base_dir, device)
            model = load_checkpoint(inputs["train"], base_dir, device=str(device), dtype=precision.dtype)
            sampler = RolloutSampler(model, batch_size=runtime.eval_batch_size)
            sampling = SamplingParams(
                max_tokens=section.max_tokens, temperature=section.temperature, rng_seed=section.rng_seed
            )
            shared = common_prefix([prompt.input_ids for prompt in prompts])
            for start in range(0, len(missing), _PROMPTS_AT_ONCE):
                chosen = missing[start : start + _PROMPTS_AT_ONCE]
                groups = sampler.sample(
                    [prompts[index] for index in chosen],
                    sampling,
                    group_size=section.num_candidates,
                    shared_prefix=shared,
                )
                for index, group in zip(chosen, groups, strict=True):
                    line = _distinct(rows[index].id, [(renderer.decode(each.token_ids), each) for each in group])
                    log.append(line)
                    done[line.row] = line
                total = len(rows)
                ctx.events.emit(Progress(task="sample", done=len(done), total=total, unit="prompts"))
    return [_with_reference(done[row.id], row) if section.use_reference else done[row.id] for row in rows]


def _distinct(row: str, drawn: Sequence[tuple[str, Rollout]]) -> Candidates:
    """Each text once; it is whole where the model ended it at least once."""
    cut_off: dict[str, bool] = {}
    for text, rollout in drawn:
        text = text.strip()
        cut_off[text] = cut_off.get(text, True) and rollout.finish_reason == "length"
    return Candidates(row=row, answers=list(cut_off), cut_off=list(cut_off.values()))


def _with_reference(candidates: Candidates, row: Conversation) -> Candidates:
    """The row's own answer is whole."""
    cut_off = {**dict(zip(candidates.answers, candidates.cut_off, strict=True)), (row.reply or "").strip(): False}
    return candidates.model_copy(update={"answers": list(cut_off), "cut_off": list(cut_off.values())})


def _score(
    section: Prefer,
    inputs: Inputs,
    base_dir: Path,
    rows: Sequence[Conversation],
    sampled: Sequence[Candidates],
    judge: LazyJudge,
    ctx: Context,
) -> list[Candidates]:
    task = read_records(inputs["curate"].file(TASK), Task)[0]
    if not section.rewards:
        return _compared(section, task, rows, sampled, judge)

    def open_scorer(folder: Path) -> Any:
        device = choose_device(ctx.runtime.device)
        return open_reward_model(folder, base_dir, device=str(device), dtype=torch.float32)

    references = [row.reply for row in rows if row.reply is not None]
    rewards = WeightedRewards(
        section.rewards,
        RewardContext(task, references, inputs.files, judge.ask_all, open_scorer, where="recipe.prefer.rewards"),
    )
    attempts = [
        Attempt(row.prompt, answer, row.reply)
        for row, candidates in zip(rows, sampled, strict=True)
        for answer in candidates.answers
    ]
    totals = iter([rewarded.total for rewarded in rewards(attempts)])
    return [each.model_copy(update={"scores": [next(totals) for _ in each.answers]}) for each in sampled]


def _compared(
    section: Prefer, task: Task, rows: Sequence[Conversation], sampled: Sequence[Candidates], judge: LazyJudge
) -> list[Candidates]:
    """Each two answers of a prompt in both orders; an answer's score is the share of comparisons it wins."""
    criteria = section.criteria or words("criteria", section.language).substitute(task=(task.description or "").strip())
    order = [
        (place, pair)
        for place, each in enumerate(sampled)
        for pair in itertools.combinations(range(len(each.answers)), 2)
    ]
    asked = [
        Pair(rows[place].prompt, sampled[place].answers[first], sampled[place].answers[second])
        for place, (first, second) in order
    ]
    verdicts = compare(asked, judge.ask_all, criteria=criteria.strip(), language=section.language)
    won = [[list[float]() for _ in each.answers] for each in sampled]
    for (place, (first, second)), verdict in zip(order, verdicts, strict=True):
        if verdict.preference is not None and verdict.agreed:
            won[place][first].append(verdict.preference)
            won[place][second].append(1 - verdict.preference)
    return [
        each.model_copy(update={"scores": [math.fsum(wins) / len(wins) if wins else None for wins in lists]})
        for each, lists in zip(sampled, won, strict=True)
    ]


class _Scored(NamedTuple):
    """A candidate with a score."""

    score: float
    answer: str
    is_cut_off: bool


def _score_of(candidate: _Scored) -> float:
    return candidate.score


def _target(inputs: Inputs, rows: Sequence[Conversation]) -> Target:
    """RecipeError where answers have no fields to differ in."""
    task = read_records(inputs["curate"].file(TASK), Task)[0]
    target = find_target(task.output_schema, [parse_json(row.reply or "") for row in rows], "auto", "auto")
    if not target.exact_fields:
        raise RecipeError(
            "`same_text` needs answers with exact fields, and `ingest.output_schema` restricts none",
            where="recipe.prefer.same_text",
            hint="leave it out, or name a schema with enum, const, pattern, boolean or number fields",
        )
    return target


def _with_fields_of(chosen: str, worse: str, target: Target) -> tuple[str, str] | None:
    """The chosen answer, and the same with the exact fields of the worse one; None where they are equal there, or no objects.

    Both are written anew, alike: else a blank could tell them apart.
    """
    better, other = parse_json(chosen), parse_json(worse)
    if not isinstance(better, dict) or not isinstance(other, dict):
        return None
    swapped = {**better, **{name: other[name] for name in target.exact_fields if name in better and name in other}}
    if same(better, swapped):
        return None
    return json.dumps(better, ensure_ascii=False), json.dumps(swapped, ensure_ascii=False)


def _choose(section: Prefer, row: Conversation, candidates: Candidates, target: Target | None, pairs: _Pairs) -> None:
    """The best whole answer beside the worst. One that was cut off has no end to learn: it may be the worse one alone.

    target: the fields in which alone the two are to differ.
    """
    if len(candidates.answers) < 2:
        pairs.leave_out(row, "alike", "every candidate is the same text")
        return
    columns = zip(candidates.scores, candidates.answers, candidates.cut_off, strict=True)
    scored = [_Scored(score, answer, cut) for score, answer, cut in columns if score is not None]
    if len(scored) < 2:
        detail = f"{len(scored)} of {len(candidates.answers)} candidates have a score (of a judge: one that both orders give)"
        pairs.leave_out(row, "unscored", detail)
        return
    whole = [each for each in scored if not each.is_cut_off]
    top, worst = max(scored, key=_score_of), min(scored, key=_score_of)
    best = max(whole, key=_score_of, default=top)
    margin = best.score - worst.score
    if not whole or (margin <= section.min_margin < top.score - worst.score):
        detail = (
            f"no whole answer is better than another: {len(scored) - len(whole)} of {len(scored)} end at max_tokens"
        )
        pairs.leave_out(row, "cut_off", detail)
        return
    if margin <= section.min_margin:
        pairs.leave_out(row, "level", f"the best and the worst candidate are {margin:.3g} apart")
        return
    answers: tuple[str, str] | None = (best.answer, worst.answer)
    if target is not None:
        answers = _with_fields_of(best.answer, worst.answer, target)
    if answers is None:
        pairs.leave_out(row, "same_fields", "the best and the worst candidate differ in no exact field")
        return
    pairs.kept.append(
        Preference(
            prompt=row.prompt,
            chosen=answers[0],
            rejected=answers[1],
            source=f"prefer:{row.id}",
            scores={"chosen": best.score, "rejected": worst.score},
            origin=row.origin,
            split="train",
            licence=row.licence,
        )
    )
