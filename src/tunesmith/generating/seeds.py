"""Seeds as generators use them: those that can be shown, and what rows descending from them inherit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.errors import DataError
from tunesmith.generating.examples import Example, example_of
from tunesmith.generating.gate import Frame
from tunesmith.protocols import GenerationContext
from tunesmith.types import Task


def seed_examples(ctx: GenerationContext, generator: str) -> list[Example]:
    """Every training row that begins with a message and its reply. DataError where there is none."""
    seeds = [example for seed in ctx.seeds if (example := example_of(seed)) is not None]
    if not seeds:
        raise DataError(
            f"{generator} needs examples of a message and its reply; none of the {len(ctx.seeds)} training rows is one",
            where="recipe.ingest.files",
            hint="name example files, or use `generate.generator: distill`, which works from `ingest.task` alone",
        )
    return seeds


def frame_of(shown: Sequence[Example], task: Task, **metadata: Any) -> Frame:
    """What rows inherit from the seeds that were shown for them: origin and system message of the first, the training
    split where all have it, and their ids."""
    return Frame(
        system_prompt=task.system_prompt or (system_message(shown[0]) if shown else None),
        origin=shown[0].conversation.origin if shown else "",
        split="train" if shown and all(seed.conversation.split == "train" for seed in shown) else None,
        metadata=_with_seeds(metadata, shown),
    )


def system_message(example: Example) -> str | None:
    """The system message the example's conversation begins with."""
    first = example.conversation.messages[0]
    return first.content if first.role == "system" and first.content.strip() else None


def _with_seeds(metadata: Mapping[str, Any], shown: Sequence[Example]) -> dict[str, Any]:
    return {"seeds": [seed.conversation.id for seed in shown], **metadata} if shown else dict(metadata)
