"""Personal data as a filter: report, mask or exclude. No detail repeats what was found."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tunesmith.data.filters.parts import with_messages, with_metadata
from tunesmith.data.pii import find_pii, mask_pii
from tunesmith.protocols import Filter, FilterContext, Verdict
from tunesmith.recipe.filters import PiiOptions
from tunesmith.types import Conversation, Message


def pii(options: PiiOptions, _ctx: FilterContext) -> Filter:
    """Reason pii. Reads contents, thoughts and the arguments of tool calls, system messages too; metadata.pii counts."""

    def judge(row: Conversation) -> Verdict:
        counts: Counter[str] = Counter()

        def mask(value: Any) -> Any:
            if isinstance(value, str):
                findings = find_pii(value, options.kinds)
                counts.update(found.kind for found in findings)
                return mask_pii(value, findings) if findings else value
            if isinstance(value, dict):
                return {key: mask(inner) for key, inner in value.items()}
            return [mask(inner) for inner in value] if isinstance(value, list) else value

        masked = [_masked(message, mask) for message in row.messages]
        if not counts:
            return None
        found = dict(sorted(counts.items()))
        if options.action == "exclude":
            return "pii", ", ".join(f"{kind} {number}" for kind, number in found.items())
        return with_messages(row, masked, pii=found) if options.action == "mask" else with_metadata(row, pii=found)

    return judge


def _masked(message: Message, mask: Any) -> Message:
    fields = {"content": message.content, "reasoning": message.reasoning, "tool_calls": message.tool_calls}
    return message.model_copy(update={name: mask(value) for name, value in fields.items() if value})
