"""Conditions of C-RLFT when answers are asked for: which class of source the model is to answer like.

In training the filter `classes` says of each row whose it is, and a template such as openchat-3.5 writes it before every turn
(Wang et al. 2023, arXiv 2309.11235, section 3). Asked with the condition of a class, the model answers like that class; asked
without, the template writes the one it prefers. Knows no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.errors import RecipeError
from tunesmith.types import Message

MAX_CHARACTERS = 64
PATTERN = r"^[^<>|\[\]\n\r]+$"
"""Of a condition that a stranger may send: none of what control tokens are made of, because it stands where the template itself
writes."""


def with_condition(messages: Sequence[Message], condition: str | None, *, template: str, where: str) -> list[Message]:
    """The messages under this condition, those that have one of their own too; as they are where it is None.

    RecipeError, filed under `where`, for a template (its text) that writes no condition: it would change nothing.
    """
    if condition is None:
        return list(messages)
    if "condition" not in template:
        raise RecipeError(
            "this model's chat template writes no condition, so naming one would change nothing",
            where=where,
            hint="leave it out; `tokenize.chat_template: openchat-3.5` writes the conditions of the filter `classes`",
        )
    return [message.model_copy(update={"condition": condition}) for message in messages]
