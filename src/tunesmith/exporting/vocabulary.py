"""A tokenizer.json as GGUF metadata: tokens, types, merges, the pre-tokenizer's name, special ids, the chat template.

Refuses a tokenizer that llama.cpp would apply differently, before any other work is done.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from tunesmith.errors import ExportError
from tunesmith.model.pretokenizers import PRE_TOKENIZERS, same_rule


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says about tokens. Lists have the length of the embedding table."""

    pre_tokenizer: str
    tokens: list[str]
    token_types: list[int]
    merges: list[str]
    bos_id: int | None
    eos_id: int
    other_stop_ids: tuple[int, ...]
    pad_id: int | None
    unk_id: int | None
    adds_bos: bool


def read_vocabulary(model_dir: Path, vocab_size: int, stop_ids: tuple[int, ...]) -> Vocabulary:
    """Read the tokenizer of a transformers folder. vocab_size: rows of the embedding table; rows without a token get
    an unused one. ExportError where llama.cpp has no equal of it."""
    path = model_dir / "tokenizer.json"
    if not path.is_file():
        raise ExportError("a GGUF file needs a tokenizer.json, and the model has none", where=str(model_dir))
    raw: dict[str, Any] = json.loads(path.read_bytes())
    pre_tokenizer = _pre_tokenizer_name(raw, path)
    by_id = {index: token for token, index in raw["model"]["vocab"].items()}
    types = dict.fromkeys(by_id, TokenType.NORMAL)
    for added in raw["added_tokens"]:
        by_id[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if max(by_id) >= vocab_size:
        raise ExportError(
            f"the tokenizer has ids up to {max(by_id)}, the model only {vocab_size} embeddings", where=str(path)
        )
    config = json.loads((model_dir / "tokenizer_config.json").read_bytes())
    ids = {token: index for index, token in by_id.items()}
    named = {kind: ids.get(_text_of(config.get(f"{kind}_token"))) for kind in ("bos", "eos", "pad", "unk")}
    eos = named["eos"] if named["eos"] in stop_ids or not stop_ids else stop_ids[0]
    if eos is None:
        raise ExportError("the model has no id that ends an answer", where=str(model_dir))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in raw["model"]["merges"]]
    return Vocabulary(
        pre_tokenizer=pre_tokenizer,
        tokens=[by_id.get(index, f"[PAD{index}]") for index in range(vocab_size)],
        token_types=[int(types.get(index, TokenType.UNUSED)) for index in range(vocab_size)],
        merges=merges,
        bos_id=named["bos"],
        eos_id=eos,
        other_stop_ids=tuple(stop for stop in stop_ids if stop != eos),
        pad_id=named["pad"],
        unk_id=named["unk"],
        adds_bos=_adds_bos(raw, by_id, named["bos"]),
    )


def add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary, chat_template: str) -> None:
    """Put it into a GGUF file's metadata."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.token_types)
    writer.add_token_merges(vocabulary.merges)
    if vocabulary.bos_id is not None:
        writer.add_bos_token_id(vocabulary.bos_id)
    writer.add_eos_token_id(vocabulary.eos_id)
    # llama.cpp ends an answer at eos, eot and eom alike
    for stop_id, add in zip(
        vocabulary.other_stop_ids, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False
    ):
        add(stop_id)
    if vocabulary.pad_id is not None:
        writer.add_pad_token_id(vocabulary.pad_id)
    if vocabulary.unk_id is not None:
        writer.add_unk_token_id(vocabulary.unk_id)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(chat_template)


def _pre_tokenizer_name(raw: dict[str, Any], path: Path) -> str:
    kind = raw["model"].get("type")
    name = same_rule(raw.get("pre_tokenizer"))
    normalizer = (raw.get("normalizer") or {}).get("type")
    if kind == "BPE" and name is not None and normalizer in (None, "NFC"):
        return name
    if kind != "BPE":
        found = f"a tokenizer of type {kind}"
    elif name is None:
        found = "its pre-tokenizer"
    else:
        found = f"its normalizer {normalizer}"
    raise ExportError(
        f"llama.cpp would split text differently: no known equal of {found}",
        where=str(path),
        hint=f"GGUF can be written for byte-level BPE split as {', '.join(sorted(PRE_TOKENIZERS))}; "
        "the safetensors format works for every model",
    )


def _text_of(token: Any) -> str:
    """Special tokens are written as text or as {"content": text}."""
    return token["content"] if isinstance(token, dict) else (token or "")


def _adds_bos(raw: dict[str, Any], by_id: dict[int, str], bos_id: int | None) -> bool:
    """Whether the tokenizer puts bos before every text by itself."""
    processor = raw.get("post_processor") or {}
    steps = processor.get("processors", [processor])
    first = [step["single"][0] for step in steps if step.get("type") == "TemplateProcessing" and step.get("single")]
    return any(bos_id is not None and item.get("SpecialToken", {}).get("id") == by_id.get(bos_id) for item in first)
