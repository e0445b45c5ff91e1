"""`tunesmith chat -m`: the answer on stdout, and a word on stderr where it was cut off."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli import chatting
from tunesmith.protocols import Chunk
from tunesmith.types import Message, SamplingParams


class Speaker:
    """Says one word for each token it may use, and never stops by itself before the fourth."""

    def __init__(self) -> None:
        self.asked: list[SamplingParams] = []

    async def stream(self, messages: Sequence[Message], sampling: SamplingParams) -> AsyncIterator[Chunk]:
        self.asked.append(sampling)
        for number in range(min(4, sampling.max_tokens)):
            yield Chunk(text=f"word{number} ")
        yield Chunk(finish_reason="stop" if sampling.max_tokens >= 4 else "length")

    async def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize(
    ("max_tokens", "words", "said"),
    [(None, 4, ""), (4, 4, ""), (2, 2, "(cut off at 2 tokens, or at the end of the context)\n")],
)
def test_an_answer_that_was_cut_off_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], max_tokens: int | None, words: int, said: str
):
    speaker = Speaker()

    async def open_speaker(*_: Any) -> Speaker:
        return speaker

    monkeypatch.setattr(chatting, "open_answerer", open_speaker)
    chatting.chat_with(
        "desk", Path("runs"), message="Hi", system=None, condition=None, temperature=None, max_tokens=max_tokens
    )
    shown = capsys.readouterr()
    assert (len(shown.out.split()), shown.err) == (words, said)
    assert speaker.asked[0].max_tokens == (max_tokens or chatting.ANSWER_TOKENS)


def test_a_condition_reaches_the_model(
    monkeypatch: pytest.MonkeyPatch,
):
    opened: list[Any] = []

    async def open_speaker(*given: Any) -> Speaker:
        opened.append(given[-1])
        return Speaker()

    monkeypatch.setattr(chatting, "open_answerer", open_speaker)
    told: dict[str, Any] = {"message": "Hi", "system": None, "temperature": None, "max_tokens": None}
    chatting.chat_with("desk", Path("runs"), condition="GPT3", **told)
    assert opened == ["GPT3"]
