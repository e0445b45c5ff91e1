"""When two rows are the same: prompts and replies compared without case, width and spacing.

Owns the words "equal" and "same origin"; refuses to know what happens to a row that is.
"""

from __future__ import annotations

import unicodedata

from tunesmith.hashing import digest_json
from tunesmith.types import Conversation, Labelled, Message, Preference


def normalise(text: str) -> str:
    """NFKC, case folded, runs of white space as one space: what a person would call the same text."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_key(conversation: Conversation | Preference | Labelled) -> str:
    """Digest of everything before the last reply, normalised: equal for prompts that ask the same."""
    return digest_json([_essence(message) for message in conversation.prompt])


def reply_key(conversation: Conversation) -> str:
    """Digest of the last reply, normalised."""
    return digest_json([_essence(message) for message in conversation.messages[len(conversation.prompt) :]])


def prompt_and_reply_keys(conversation: Conversation) -> tuple[str, str]:
    """(prompt_key, reply_key)."""
    return prompt_key(conversation), reply_key(conversation)


def with_system_prompt(conversation: Conversation, system_prompt: str | None) -> Conversation:
    """The conversation with the system prompt in front where it has no system message of its own.

    The id is that of the new messages; origin, source and metadata stay.
    """
    if not system_prompt or any(message.role == "system" for message in conversation.messages):
        return conversation
    messages = [Message(role="system", content=system_prompt), *conversation.messages]
    fields = {name: getattr(conversation, name) for name in type(conversation).model_fields}
    return Conversation(**{**fields, "id": "", "messages": messages})


def _essence(message: Message) -> list[object]:
    return [message.role, normalise(message.content), message.tool_calls or []]
