"""Scores of a reward model: a language model with a scalar head, read at the token that ends the answer.

Owns loading one and the batches. Knows no recipe and no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.chat.renderer import Renderer
from tunesmith.errors import DataError, ModelError
from tunesmith.events import NullSink
from tunesmith.model.adapters import load_adapter
from tunesmith.model.load import ADAPTER_DIR, MODEL_DIR, load_checkpoint, load_model
from tunesmith.model.tuned import base_of
from tunesmith.model.value_head import ValueHead, load_value_head, scored_token
from tunesmith.protocols import Attempt
from tunesmith.store import MANIFEST, load_artifact
from tunesmith.types import Message

TEMPLATE = "chat_template.jinja"
REWARD_MODEL = "reward_model"
"""Kind of the artifacts that can be opened here."""

_HINT = "name what a stage `reward_model` made"

_TOKENS_PER_BATCH = 8192
"""Padded tokens of one forward pass: no logits are formed, so hidden states alone bound it."""


class RewardModelScorer:
    """Scores answers with a loaded model and its head. render: messages that end in an answer -> (ids, loss mask)."""

    def __init__(
        self,
        model: Any,
        head: ValueHead,
        *,
        render: Callable[[Sequence[Sequence[Message]]], Sequence[tuple[NDArray[Any], NDArray[Any]] | DataError]],
    ) -> None:
        self._model = model.eval()
        self._head = head.eval().to(model.device)
        self._render = render
        context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        self._context_length = int(context) if context else 1 << 62

    @torch.inference_mode()
    def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        """One score per attempt; NaN where the template refuses it or the model's context cannot hold it.

        A score does not depend on the other attempts beyond rounding.
        """
        answered = [[*attempt.prompt, Message(role="assistant", content=attempt.completion)] for attempt in attempts]
        sequences: dict[int, NDArray[Any]] = {}
        for index, rendered in enumerate(self._render(answered)):
            if not isinstance(rendered, DataError):
                ids, mask = rendered
                ids = ids[: scored_token(mask) + 1]
                if len(ids) <= self._context_length:
                    sequences[index] = ids
        scores = [float("nan")] * len(attempts)
        for batch in _batches({index: len(ids) for index, ids in sequences.items()}):
            for index, score in zip(batch, self._score([sequences[i] for i in batch]), strict=True):
                scores[index] = score
        return scores

    def _score(self, sequences: Sequence[NDArray[Any]]) -> list[float]:
        """Padding stands to the right of the scored token, which a causal model cannot see from there."""
        device = self._model.device
        lengths = torch.tensor([len(ids) for ids in sequences])
        padded = torch.zeros((len(sequences), int(lengths.max())), dtype=torch.long)  # (B, T)
        for row, ids in enumerate(sequences):
            padded[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        attended = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        hidden = self._model.get_decoder()(
            input_ids=padded.to(device), attention_mask=attended.to(device), use_cache=False
        ).last_hidden_state  # (B, T, D)
        last = hidden[torch.arange(len(sequences), device=device), lengths.to(device) - 1]  # (B, D)
        return self._head(last).tolist()


def open_reward_model(folder: Path, base_dir: Path, *, device: str, dtype: torch.dtype) -> RewardModelScorer:
    """The reward model of a folder: adapter/ or a whole model/; beside it value_head.safetensors and chat_template.jinja.

    An adapter of ours goes on the base model it was trained on, one of others on that in base_dir. ModelError says what is
    missing, or that the folder is one of our artifacts and no reward model (PPO's checkpoint has a head too, which says
    what will be earned, not what is good).
    """
    made_here = load_artifact(folder) if (folder / MANIFEST).is_file() else None
    if made_here is not None and made_here.manifest.kind != REWARD_MODEL:
        raise ModelError(
            f"expected a reward model, found an artifact of kind {made_here.manifest.kind!r}",
            where=str(folder),
            hint=_HINT,
        )
    template = folder / TEMPLATE
    if not template.is_file():
        raise ModelError(f"there is no {TEMPLATE}", where=str(folder), hint=_HINT)
    if (folder / MODEL_DIR).is_dir():
        model_dir = folder / MODEL_DIR
        model = load_model(model_dir, device=device, dtype=dtype)
    elif (folder / ADAPTER_DIR).is_dir() and made_here is not None:
        model_dir, _licence = base_of(made_here, NullSink())
        model = load_checkpoint(made_here, model_dir, device=device, dtype=dtype)
    elif (folder / ADAPTER_DIR).is_dir():
        model_dir = base_dir
        model = load_model(base_dir, device=device, dtype=dtype)
        load_adapter(model, folder / ADAPTER_DIR)
    else:
        raise ModelError(f"there is neither {ADAPTER_DIR}/ nor {MODEL_DIR}/ here", where=str(folder), hint=_HINT)
    width = model.config.get_text_config(decoder=True).hidden_size
    renderer = Renderer.for_model(model_dir, template.read_text(encoding="utf-8"))

    def render(conversations: Sequence[Sequence[Message]]) -> list[tuple[NDArray[Any], NDArray[Any]] | DataError]:
        return [
            each if isinstance(each, DataError) else (each.input_ids, each.loss_mask)
            for each in renderer.render_batch(conversations, "last_turn")
        ]

    return RewardModelScorer(model, load_value_head(folder, int(width)), render=render)


def _batches(lengths: dict[int, int]) -> list[list[int]]:
    """Indices of like length together, longest first."""
    batches: list[list[int]] = []
    widest = 0
    for index in sorted(lengths, key=lambda index: (-lengths[index], index)):
        if not batches or widest * (len(batches[-1]) + 1) > _TOKENS_PER_BATCH:
            batches.append([])
            widest = lengths[index]
        batches[-1].append(index)
    return batches
