"""The model behind the gateway, as requests see it: its names, its renderer, its system prompt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tunesmith.errors import TemplateMismatch
from tunesmith.protocols import Prompt
from tunesmith.types import Message


class PromptRenderer(Protocol):
    """The part of chat.renderer.Renderer that serving uses."""

    template: str
    template_digest: str
    stop_ids: tuple[int, ...]
    tokenizer: Any

    def prompt(self, messages: Sequence[Message]) -> Prompt: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class ServedModel:
    """id: the name clients use; aliases: other names that mean the same. system_prompt: the task's own.

    trained_template_digest: digest of the template the model was trained with, where it is known; another one at hand
    is refused (TemplateMismatch), because answers would silently get worse.
    """

    id: str
    renderer: PromptRenderer
    system_prompt: str | None = None
    aliases: tuple[str, ...] = ()
    trained_template_digest: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        expected = self.trained_template_digest
        if expected is not None and expected != self.renderer.template_digest:
            raise TemplateMismatch(
                f"the chat template is {self.renderer.template_digest[:12]}, the model was trained with {expected[:12]}",
                where=self.id,
                hint="serve the model with the chat_template.jinja that lies beside it",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that means this model."""
        return (self.id, *self.aliases)

    def with_system(self, messages: Sequence[Message], *, enabled: bool) -> list[Message]:
        """The messages, with the model's own system prompt in front where the request brings none."""
        if enabled and self.system_prompt and not any(message.role == "system" for message in messages):
            return [Message(role="system", content=self.system_prompt), *messages]
        return list(messages)

    def encode(self, text: str) -> list[int]:
        """Token ids of raw text, control strings included: /v1/completions leaves the template to the client."""
        return list(self.renderer.tokenizer(text, add_special_tokens=False)["input_ids"])
