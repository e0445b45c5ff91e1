"""A reward model's scores: which token is read, and that neighbours and padding do not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from small_models import STOP_ID, TEMPLATE
from tunesmith.chat.renderer import Renderer
from tunesmith.errors import DataError, ModelError
from tunesmith.inference.reward_model import open_reward_model
from tunesmith.model.adapters import AdapterConfig, add_adapter, choose_targets, save_adapter, target_names
from tunesmith.model.load import load_model
from tunesmith.model.value_head import new_value_head, save_value_head, scored_token
from tunesmith.protocols import Attempt
from tunesmith.types import Message

ATTEMPTS = [
    Attempt((Message(role="user", content="where is my order?"),), "it is on its way"),
    Attempt((Message(role="user", content="hello"),), "hi"),
    Attempt(
        (Message(role="system", content="be brief"), Message(role="user", content="my wheel is broken")), "ok " * 40
    ),
]


@pytest.fixture(scope="module")
def checkpoint(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that matters, a head and the template, as a training leaves them."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = load_model(base_dir, device="cpu", dtype=torch.float32)
    targets = choose_targets(model, ("all-linear",))
    config = AdapterConfig(4, 8.0, 0.0, targets, target_names(model, targets), "base")
    add_adapter(model, config, rng_seed=1)
    generator = torch.Generator().manual_seed(2)
    weights = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            if name.endswith("lora_B"):
                parameter.data.normal_(0, 0.05, generator=generator)
            weights[name] = parameter
    save_adapter(folder / "adapter", config, weights)
    save_value_head(folder, new_value_head(64, rng_seed=3))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def open_it(checkpoint: Path, base_dir: Path) -> Any:
    return open_reward_model(checkpoint, base_dir, device="cpu", dtype=torch.float32)


def test_the_score_is_the_head_of_the_token_that_ends_the_answer(checkpoint: Path, base_dir: Path) -> None:
    scorer = open_it(checkpoint, base_dir)
    renderer = Renderer.for_model(base_dir, TEMPLATE)
    expected = []
    for attempt in ATTEMPTS:
        rendered = renderer.render(
            [*attempt.prompt, Message(role="assistant", content=attempt.completion)], "last_turn"
        )
        end = scored_token(rendered.loss_mask)
        assert rendered.input_ids[end] == STOP_ID and end < len(rendered.input_ids) - 1, "the template goes on after it"
        with torch.no_grad():
            decoder = scorer._model.get_decoder()
            hidden = decoder(input_ids=torch.tensor([rendered.input_ids]), use_cache=False).last_hidden_state
            expected.append(scorer._head(hidden[0, end]).item())
    assert scorer(ATTEMPTS) == pytest.approx(expected, abs=1e-4)
    assert len({round(value, 3) for value in expected}) == 3


def test_a_score_does_not_depend_on_its_neighbours(checkpoint: Path, base_dir: Path) -> None:
    scorer = open_it(checkpoint, base_dir)
    together = scorer(ATTEMPTS)
    assert [scorer([attempt])[0] for attempt in ATTEMPTS] == pytest.approx(together, abs=1e-4)
    assert scorer(ATTEMPTS[::-1])[::-1] == pytest.approx(together, abs=1e-4)
    assert scorer([]) == []


def test_what_the_context_cannot_hold_has_no_score(checkpoint: Path, base_dir: Path) -> None:
    scores = open_it(checkpoint, base_dir)([ATTEMPTS[0], Attempt(ATTEMPTS[0].prompt, "word " * 600)])
    assert np.isfinite(scores[0]) and np.isnan(scores[1])


def test_a_folder_without_template_weights_or_head_is_refused(checkpoint: Path, base_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no chat_template\.jinja"):
        open_it(tmp_path, base_dir)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    with pytest.raises(ModelError, match="neither adapter/ nor model/"):
        open_it(tmp_path, base_dir)
    (tmp_path / "adapter").symlink_to(checkpoint / "adapter")
    with pytest.raises(ModelError, match=r"no value_head\.safetensors"):
        open_it(tmp_path, base_dir)


def test_an_answer_without_a_token_has_no_place_for_a_score() -> None:
    assert scored_token(np.array([0, 1, 1, 0])) == 2
    with pytest.raises(DataError):
        scored_token([False, False])
