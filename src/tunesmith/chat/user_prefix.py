"""The header of a user turn: what a chat template writes before a person's words, for models that are to write those
words themselves (Magpie). Found by rendering probes and keeping what they share; no table of templates."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.chat.renderer import Renderer
from tunesmith.protocols import Prompt
from tunesmith.types import Message

_PROBES = ("Quiet", "7 x", "zebra", "苹果")


def user_prefix(renderer: Renderer, messages: Sequence[Message]) -> tuple[Prompt, tuple[str, ...]]:
    """Ids up to the first character of a user turn after `messages` (which may be none), and texts that end that turn
    where no stop id does."""
    talks = [[*messages, Message(role="user", content=probe)] for probe in _PROBES]
    ids = [prompt.input_ids for prompt in renderer.prompt_batch(talks)]
    shared = 0
    while all(len(one) > shared and one[shared] == ids[0][shared] for one in ids):
        shared += 1
    suffix = renderer.prompt_text(talks[0]).rpartition(_PROBES[0])[2]
    closing = renderer.tokenizer(suffix, add_special_tokens=False)["input_ids"]
    ends_by_id = bool(closing) and closing[0] in renderer.stop_ids
    stop = () if ends_by_id or not suffix.strip() else (suffix.strip().splitlines()[0],)
    return Prompt(ids[0][:shared], renderer.stop_ids), stop
