"""How llama.cpp's names for pre-tokenizers read in tokenizer.json. Data, looked up in both directions."""

from __future__ import annotations

from typing import Any


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _byte_level(use_regex=True),
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)],
    },
    "qwen2": _split(_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL),
    "llama-bpe": _split(_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL),
}
"""llama.cpp's name -> the `pre_tokenizer` of tokenizer.json."""

TRANSFORMERS_KNOWS = frozenset({"llama3", "llama-v3", "tekken", "qwen35", "gpt-4o", "llama4", "deepseek-r1-qwen"})
"""Further names that transformers' own GGUF reader rebuilds exactly."""

WHOLE_WORDS_FIRST = frozenset({"llama-bpe", "llama3", "llama-v3", "tekken"})
"""Those that take a word of the vocabulary whole before any merge (`ignore_merges`)."""


def same_rule(rule: dict[str, Any] | None) -> str | None:
    """llama.cpp's name of a tokenizer.json pre-tokenizer, None where it has none that we know."""
    wanted = _plain(rule)
    return next((name for name, known in PRE_TOKENIZERS.items() if _plain(known) == wanted), None)


def _plain(rule: Any) -> Any:
    """The rule without fields that do not change the split (offsets; `invert` false)."""
    if isinstance(rule, list):
        return [_plain(item) for item in rule]
    if isinstance(rule, dict):
        return {key: _plain(value) for key, value in rule.items() if key != "trim_offsets"}
    return rule
