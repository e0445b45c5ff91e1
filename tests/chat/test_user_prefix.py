"""The header of a user turn comes from the template, not from a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.chat.renderer import Renderer
from tunesmith.chat.templates import BUILTIN_TEMPLATES
from tunesmith.chat.user_prefix import user_prefix
from tunesmith.types import Message


def test_the_header_is_what_the_template_writes_before_a_persons_words(smollm2_dir: Path) -> None:
    renderer = Renderer.for_model(smollm2_dir)
    prompt, stop = user_prefix(renderer, [Message(role="system", content="Be brief.")])
    assert renderer.tokenizer.decode(prompt.input_ids) == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    assert (prompt.stop_ids, stop) == (renderer.stop_ids, ())
    whole = renderer.prompt([Message(role="system", content="Be brief."), Message(role="user", content="Why?")])
    assert whole.input_ids[: len(prompt.input_ids)] == prompt.input_ids


@pytest.mark.parametrize(
    ("name", "ending", "stop"),
    [("chatml", "<|im_start|>user\n", ()), ("alpaca", "### Instruction:\n", ("### Response:",)), ("vicuna", "USER:", ("ASSISTANT:",))],
)  # fmt: skip
def test_templates_without_a_stop_id_for_the_user_get_a_stop_text(
    smollm2_dir: Path, name: str, ending: str, stop: tuple[str, ...]
) -> None:
    renderer = Renderer.for_model(smollm2_dir, BUILTIN_TEMPLATES[name].source)
    prompt, found = user_prefix(renderer, [])
    assert renderer.tokenizer.decode(prompt.input_ids).endswith(ending)
    assert found == stop
