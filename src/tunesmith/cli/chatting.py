"""`tunesmith chat`: a conversation in the terminal, or one question and its answer."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tunesmith.cli.terminal import TerminalSink
from tunesmith.errors import TunesmithError
from tunesmith.server.answering import LocalAnswerer, open_answerer
from tunesmith.store import default_root
from tunesmith.types import Message, SamplingParams

ANSWER_TOKENS = 1024


def chat_with(
    reference: str,
    root: Path | None,
    *,
    message: str | None,
    system: str | None,
    condition: str | None,
    temperature: float | None,
    max_tokens: int | None,
) -> None:
    """Talk to a run or a model."""
    sampling = SamplingParams(max_tokens=max_tokens or ANSWER_TOKENS, temperature=temperature or 0.0)
    asyncio.run(_chat(reference, root or default_root(), message, system, condition, sampling))


async def _chat(
    reference: str, root: Path, message: str | None, system: str | None, condition: str | None, sampling: SamplingParams
) -> None:
    console = Console(stderr=True)
    with TerminalSink(console) as sink:
        answerer = await open_answerer(reference, root, sink, system, condition)
    try:
        if message is not None:
            await _answer(answerer, [Message(role="user", content=message)], sampling)
            return
        console.print(
            f"[bold]{escape(answerer.model.name)}[/]  /new starts over, /quit or Ctrl-D ends", highlight=False
        )
        history: list[Message] = []
        while True:
            try:
                text = (await asyncio.to_thread(console.input, "[bold cyan]you[/] ")).strip()
            except EOFError:
                return
            if text == "/quit":
                return
            if text == "/new":
                history = []
            elif text:
                history = await _turn(console, answerer, [*history, Message(role="user", content=text)], sampling)
    finally:
        await answerer.close()


async def _turn(
    console: Console, answerer: LocalAnswerer, messages: list[Message], sampling: SamplingParams
) -> list[Message]:
    try:
        reply = await _answer(answerer, messages, sampling)
    except TunesmithError as error:
        console.print(f"[red]{escape(str(error))}[/]  {escape(error.hint or '')}", highlight=False)
        return messages[:-1]
    return [*messages, Message(role="assistant", content=reply)]


async def _answer(answerer: LocalAnswerer, messages: list[Message], sampling: SamplingParams) -> str:
    reply, reason = "", None
    async for chunk in answerer.stream(messages, sampling):
        sys.stdout.write(printable(chunk.text))
        sys.stdout.flush()
        reply += chunk.text
        reason = chunk.finish_reason or reason
    sys.stdout.write("\n")
    sys.stdout.flush()
    if reason == "length":
        print(f"(cut off at {sampling.max_tokens:,} tokens, or at the end of the context)", file=sys.stderr)
    return reply


def printable(text: str) -> str:
    """Text without control characters, so that an answer cannot drive the terminal."""
    return "".join(c for c in text if c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160))
