"""What must hold before an exported file gets its final name. Each check returns its figures or raises ExportError.

The limits stand here, with what was measured to set them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from tokenizers import Tokenizer

from tunesmith.errors import ExportError
from tunesmith.exporting.agreement import AnswerAgreement, LogitAgreement
from tunesmith.exporting.gguf_file import GgufPlan
from tunesmith.exporting.strings import check_strings

Tokenize = Callable[[Sequence[str]], list[list[int]]]

MAX_CAST_KL = 0.05
"""Nats per position that casting the merged weights to the base model's type may cost. Measured on SmolLM2-135M, bf16,
after LoRA of rank 16 on 100 rows: 0.00003."""

MAX_TIE_GAP = 0.1
"""A greedy answer in f16 may leave the reference's only where the two best logits are this near."""


@dataclass(frozen=True)
class AnswerLimits:
    """How far the greedy answers of a file may be from the reference's. A wrong conversion is beyond all of them: with q
    and k left unpermuted SmolLM2-135M is 2.6 nats a token away and agrees on half of the tokens."""

    mean_logprob_difference: float
    equal_token_share: float


ANSWER_LIMITS = {
    # Measured on SmolLM2-135M, 20 prompts: f16 0.001 and 1.00, q8_0 0.05 and 0.96, q4_k_m 0.19 and 0.87.
    "f16": AnswerLimits(0.02, 0.9),
    "q8_0": AnswerLimits(0.3, 0.85),
    "q4_k_m": AnswerLimits(0.8, 0.6),
}


def check_merge(agreement: LogitAgreement, limit: float) -> dict[str, Any]:
    """The merged weights, still in fp32, must say what base and adapter say side by side."""
    if not agreement.max_logit_difference <= limit:  # a NaN fails too
        raise ExportError(
            f"merging changed the model: logits differ by up to {agreement.max_logit_difference:.2g}, expected at most "
            f"{limit:.2g} (recipe.export.max_logit_difference)",
            hint="nothing was exported; please report this, with the recipe",
        )
    return _rounded(asdict(agreement)) | {"limit": limit}


def check_cast(agreement: LogitAgreement, dtype: str) -> dict[str, Any]:
    """The folder on disk, in the base model's type, against base and adapter in fp32."""
    if not agreement.mean_kl <= MAX_CAST_KL:
        raise ExportError(
            f"rounding the merged weights to {dtype} changes the model by {agreement.mean_kl:.2g} nats a token, expected "
            f"at most {MAX_CAST_KL}",
            hint="nothing was exported; the adapter may be too large, or training diverged",
        )
    return _rounded(asdict(agreement)) | {"dtype": dtype, "limit": MAX_CAST_KL}


def check_read_back(plan: GgufPlan, path: Path) -> dict[str, Any]:
    """Read the file again: every tensor with its shape and type, the template, the ids that end an answer, the size."""
    reader = GGUFReader(path)
    written = {tensor.name: (tuple(map(int, reversed(tensor.shape))), tensor.tensor_type) for tensor in reader.tensors}
    for tensor in plan.tensors:
        if written.get(tensor.name) != (tensor.shape, tensor.kind):
            raise ExportError(f"{tensor.name} reads back as {written.get(tensor.name)}", where=str(path))
    if _value(reader, "tokenizer.chat_template") != plan.chat_template:
        raise ExportError("the chat template reads back changed", where=str(path))
    stops = [_value(reader, f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    expected = [plan.vocabulary.eos_id, *plan.vocabulary.other_stop_ids[:2]]
    if [stop for stop in stops if stop is not None] != expected:
        raise ExportError(f"the stop ids read back as {stops}, expected {expected}", where=str(path))
    kinds: dict[str, int] = {}
    for tensor in plan.tensors:
        kinds[tensor.kind.name] = kinds.get(tensor.kind.name, 0) + 1
    return {"num_tensors": len(written), "tensor_types": kinds, "size_bytes": path.stat().st_size, "stop_ids": expected}


def check_tokens(tokenizer_json: Path, tokenize: Tokenize, where: Path) -> dict[str, Any]:
    """Both tokenizers on 500 texts, control tokens among them. llama.cpp never normalises, so for a tokenizer that does
    (NFC) texts that are not in that form are counted apart."""
    ours = Tokenizer.from_file(str(tokenizer_json))
    special = [token.content for _, token in sorted(ours.get_added_tokens_decoder().items())]
    texts = check_strings(special)
    theirs = tokenize(texts)
    normalises = ours.normalizer is not None
    equal, unnormalised = 0, 0
    for text, found in zip(texts, theirs, strict=True):
        expected = ours.encode(text, add_special_tokens=False).ids
        if found == expected:
            equal += 1
        elif normalises and unicodedata.normalize("NFC", text) != text:
            unnormalised += 1
        else:
            place = next((i for i, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), None)
            raise ExportError(
                f"llama.cpp splits {text[:60]!r} into other tokens, from token {place}: "
                f"{expected[place : (place or 0) + 4]} here, {found[place : (place or 0) + 4]} there",
                where=str(where),
            )
    return {"num_strings": len(texts), "num_equal": equal, "num_not_normalised": unnormalised}


def check_answers(agreement: AnswerAgreement, quantisation: str, where: Path) -> dict[str, Any]:
    """Greedy answers of the engine against the reference model. f16 may part only at ties; a quantised file may be
    further away, by a limit that no wrong conversion keeps."""
    limits = ANSWER_LIMITS[quantisation]
    share = agreement.num_equal_tokens / max(1, agreement.num_tokens)
    problem = ""
    if agreement.num_unread > agreement.num_prompts / 2:
        problem = f"{agreement.num_unread} of its {agreement.num_prompts} answers hold control tokens"
    elif not agreement.mean_logprob_difference <= limits.mean_logprob_difference:
        problem = (
            f"its log probabilities are {agreement.mean_logprob_difference:.2g} away on average, "
            f"expected at most {limits.mean_logprob_difference}"
        )
    elif share < limits.equal_token_share:
        problem = f"{share:.0%} of its tokens are the reference's, expected at least {limits.equal_token_share:.0%}"
    elif quantisation == "f16":
        for parted in agreement.divergences:
            if parted.logit_gap > MAX_TIE_GAP:
                problem = (
                    f"its answer to prompt {parted.prompt} leaves the reference's at token {parted.position}, "
                    f"where the logits are {parted.logit_gap:.2g} apart"
                )
                break
    if problem:
        raise ExportError(
            f"the GGUF file does not answer as the merged model does: {problem}",
            where=str(where),
            hint="nothing was given its final name; export safetensors alone and report this",
        )
    return _rounded(asdict(agreement)) | {"equal_token_share": round(share, 4), "limits": asdict(limits)}


def _value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _rounded(value: Any) -> Any:
    """Three significant digits: what a person reads."""
    if isinstance(value, float):
        return float(f"{value:.3g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
