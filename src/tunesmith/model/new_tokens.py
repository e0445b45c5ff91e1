"""A few new tokens (an end of turn, a role): ids in the tokenizer, rows in the tables, each row the mean of the old ones.

Learning pieces from a corpus is vocabulary/'s. Refuses to know templates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.errors import ModelError, RecipeError
from tunesmith.model.config_faults import CONFIG_FAULTS, first_line
from tunesmith.model.folder import read_json
from tunesmith.model.gguf import quiet_transformers
from tunesmith.model.tensor_files import Spec, Tensors, write_json

_WHERE = "recipe.base_model.add_tokens"
_DAMAGED = "the base model's weights are damaged: fetch them again"


@dataclass(frozen=True)
class GrownRows:
    """Which tensors have a row per token, how many rows they get, and which rows are new."""

    tables: frozenset[str]
    vocab_size: int
    new_ids: tuple[int, ...]

    def spec(self, spec: Spec) -> Spec:
        """A tensor's type and shape with the new rows."""
        return spec._replace(shape=(self.vocab_size, *spec.shape[1:])) if spec.name in self.tables else spec

    def grow(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A table (V, D) or a bias (V,) with its new rows, each the mean of the rows of the old tokens; another tensor
        as it is."""
        if name not in self.tables:
            return tensor
        mean = tensor[: min(self.new_ids)].mean(0, dtype=torch.float64)
        if not bool(torch.isfinite(mean).all()):
            raise ModelError(f"{name} holds numbers that are not finite, so new rows have no mean", hint=_DAMAGED)
        grown = torch.empty((self.vocab_size, *tensor.shape[1:]), dtype=tensor.dtype)
        grown[: tensor.shape[0]] = tensor
        grown[tensor.shape[0] :] = mean.to(tensor.dtype)
        grown[list(self.new_ids)] = mean.to(tensor.dtype)  # rows that were there without a token
        return grown


def add_to_tokenizer(folder: Path, texts: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Make texts special tokens of the folder's tokenizer, with the next free ids. Returns those that were not before.

    RecipeError for a text that is no token (empty, white space at an end, given twice) or is already one of the words.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError("new tokens need a tokenizer.json, and the model has none", where=str(folder))
    raw = read_json(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(f"the tokenizer cannot be read: {error}", where=str(path)) from error
    raw.setdefault("added_tokens", [])
    special = {token["content"] for token in raw["added_tokens"]}
    taken = [*tokenizer.get_vocab(with_added_tokens=True).values()]
    added: list[tuple[str, int]] = []
    for text in texts:
        if not text.strip() or text != text.strip() or texts.count(text) > 1:
            raise RecipeError(f"expected different texts without space around them, found {text!r}", where=_WHERE)
        if text in special:
            continue
        if tokenizer.token_to_id(text) is not None:
            raise RecipeError(
                f"{text!r} is a word of the vocabulary already", where=_WHERE, hint="choose one like <|end_of_turn|>"
            )
        index = max([*taken, *(index for _, index in added)]) + 1
        added.append((text, index))
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        raw["added_tokens"].append({"id": index, "content": text, **flags})
    if added:
        path.write_text(json.dumps(raw, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        _check_ids(path, added)
        _list_in_config(folder / "tokenizer_config.json", added)
    return tuple(added)


def plan_rows(model_dir: Path, new_ids: Sequence[int]) -> GrownRows:
    """The tables of a model folder that need a row for each id. ModelError where they cannot be found."""
    try:
        with quiet_transformers(), torch.device("meta"):
            config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
            model = AutoModelForCausalLM.from_config(config)
    except CONFIG_FAULTS as error:
        raise ModelError(f"transformers cannot use this model: {first_line(error)}", where=str(model_dir)) from error
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    wanted = {id(parameter) for module in modules if module is not None for parameter in module.parameters()}
    tensors = Tensors(model_dir)
    named = model.named_parameters(remove_duplicate=False)
    tables = frozenset(name for name, parameter in named if id(parameter) in wanted and name in tensors)
    rows = {tensors.spec(name).shape[0] for name in tables}
    if len(rows) != 1:
        raise ModelError(
            f"the embedding table cannot be found among the weights ({', '.join(sorted(tables)) or 'no tensor fits'})",
            where=str(model_dir),
        )
    return GrownRows(tables, max(rows.pop(), max(new_ids) + 1), tuple(new_ids))


def _check_ids(path: Path, added: Sequence[tuple[str, int]]) -> None:
    read = Tokenizer.from_file(str(path))
    for text, index in added:
        if read.token_to_id(text) != index:
            raise ModelError(f"{text!r} got the id {read.token_to_id(text)}, expected {index}", where=str(path))


def _list_in_config(path: Path, added: Sequence[tuple[str, int]]) -> None:
    """Older folders list added tokens once more in tokenizer_config.json; there they must agree."""
    if not path.is_file():
        return
    settings = read_json(path)
    listed = settings.get("added_tokens_decoder")
    if isinstance(listed, dict):
        flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        listed |= {str(index): {"content": text, **flags} for text, index in added}
        write_json(path, settings)
