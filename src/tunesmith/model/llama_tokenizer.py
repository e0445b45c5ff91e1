"""tokenizer.model as LLaMA publishes it, turned into a tokenizer.json that gives the same ids: SentencePiece BPE (Llama 1, 2)
and ranked byte pairs in tiktoken's form (Llama 3). A tokenizer.json, of a model that was made elsewhere, is taken as it is.

The original file is kept beside the new one. Refuses to know weights.
"""

from __future__ import annotations

import base64
import binascii
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from tunesmith.errors import MissingExtra, ModelError
from tunesmith.events import Note
from tunesmith.model.gguf import quiet_transformers
from tunesmith.model.llama_sizes import LlamaSizes
from tunesmith.model.pretokenizers import PRE_TOKENIZERS
from tunesmith.protocols import EventSink

TOKENIZER, TOKENIZER_JSON = "tokenizer.model", "tokenizer.json"
_BESIDE_JSON = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")

_MOST_DIFFERENT = (
    0.01  # share of probe texts: pieces of equal score (a merged vocabulary) leave the order of merges open
)
_PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "  Two spaces before,  two between, one after. ",
    "def f(x):\n\treturn {'a': [1, 2, 3]}  # 2024-01-31\n\n",
    "naïve café, Straße, Привет мир, 自転車の注文, 订单 12345, 🚲🙂",
    "</s> is no end, <s> no beginning: 3.14159 != 2.71828",
)


def check_convertible(path: Path) -> None:
    """Before any work: MissingExtra where the file is SentencePiece and the package is not installed; ModelError where it is
    neither form or is not there."""
    if not path.is_file():
        raise ModelError("there is no such tokenizer file", where=str(path))
    if path.name != TOKENIZER_JSON and not _is_tiktoken(path):
        _open_sentencepiece(path)


def copy_tokenizer_json(path: Path, out_dir: Path) -> None:
    """A tokenizer.json with the files that belong to it (special tokens, chat template)."""
    for name in (TOKENIZER_JSON, *_BESIDE_JSON):
        if (path.parent / name).is_file():
            shutil.copyfile(path.parent / name, out_dir / name)


def convert_tokenizer_model(path: Path, out_dir: Path, *, sizes: LlamaSizes, events: EventSink) -> tuple[int, int]:
    """Write tokenizer.json and tokenizer_config.json, and keep tokenizer.model. Returns the ids of beginning and end of text.

    ModelError where the result would give other ids than the original, on probe texts and on the vocabulary itself.
    """
    if path.name == TOKENIZER_JSON:
        return _take_json(path, out_dir, sizes)
    tokenizer, special = _from_tiktoken(path, sizes) if _is_tiktoken(path) else _from_sentencepiece(path, events)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=sizes.context_length,
        **special,
    )
    with quiet_transformers():
        wrapped.save_pretrained(out_dir)
    shutil.copyfile(path, out_dir / TOKENIZER)
    known = tokenizer.get_vocab(with_added_tokens=True)
    _check_size(tokenizer.get_vocab_size(), sizes, path)
    return known[special["bos_token"]], known[special["eos_token"]]


def _take_json(path: Path, out_dir: Path, sizes: LlamaSizes) -> tuple[int, int]:
    """The files as they are, and the ids of beginning and end of text that they name."""
    copy_tokenizer_json(path, out_dir)
    with quiet_transformers():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out_dir, local_files_only=True)
    _check_size(len(tokenizer), sizes, path)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None or eos is None:
        missing = "beginning" if bos is None else "end"
        raise ModelError(
            f"no token is named for the {missing} of a text",
            where=str(path.with_name("tokenizer_config.json")),
            hint="copy tokenizer_config.json with `bos_token` and `eos_token` beside tokenizer.json",
        )
    return int(bos), int(eos)


def _check_size(num_tokens: int, sizes: LlamaSizes, path: Path) -> None:
    if num_tokens > sizes.vocab_size:
        raise ModelError(
            f"the tokenizer has {num_tokens:,} tokens, the model {sizes.vocab_size:,}",
            where=str(path),
            hint="it belongs to another model",
        )


def _from_sentencepiece(path: Path, events: EventSink) -> tuple[Tokenizer, dict[str, str]]:
    """SentencePiece joins, again and again, the neighbours whose union is the piece of the highest score; as a list of
    merges that is every split of every piece into two, by falling score."""
    model = _open_sentencepiece(path)
    pieces = [model.id_to_piece(index) for index in range(model.get_piece_size())]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    plain = {
        piece: index
        for piece, index in vocabulary.items()
        if not (model.is_control(index) or model.is_unknown(index) or model.is_byte(index) or model.is_unused(index))
    }
    order = sorted(plain.values(), key=lambda index: (-model.get_score(index), index))
    merges = [pair for index in order for pair in _splits(pieces[index], plain)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=pieces[model.unk_id()],
            fuse_unk=True,
            byte_fallback=any(model.is_byte(index) for index in range(len(pieces))),
        )
    )
    prefix = model.encode("a", out_type=str)[0].startswith("▁")
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _check_same(model, tokenizer, list(plain), path, events)
    special = {
        "bos_token": pieces[model.bos_id()],
        "eos_token": pieces[model.eos_id()],
        "unk_token": pieces[model.unk_id()],
    }
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special.values()])
    _begin_with(tokenizer, special["bos_token"])
    return tokenizer, special


def _splits(piece: str, plain: Mapping[str, int]) -> list[tuple[str, str]]:
    pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
    known = [pair for pair in pairs if pair[0] in plain and pair[1] in plain]
    return sorted(known, key=lambda pair: (plain[pair[0]], plain[pair[1]]))


def _check_same(model: Any, tokenizer: Tokenizer, pieces: Sequence[str], path: Path, events: EventSink) -> None:
    """The ids of probe texts and of every piece in a row of three, as SentencePiece has them. Before special tokens are
    added: SentencePiece reads `</s>` in a text as text, and so does our renderer."""
    texts = [*_PROBES, *("".join(pieces[start : start + 3]).replace("▁", " ") for start in range(0, len(pieces), 3))]
    ours = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    wrong = [text for text, ids, wanted in zip(texts, ours, model.encode(texts), strict=True) if ids != wanted]
    if not wrong:
        return
    message = f"tokenizer.json would cut {len(wrong):,} of {len(texts):,} texts otherwise, such as {wrong[0]!r}"
    if len(wrong) > _MOST_DIFFERENT * len(texts):
        raise ModelError(
            message, where=str(path), hint="only SentencePiece models of type BPE without normalisation can be rebuilt"
        )
    events.emit(Note(level="warning", message=message))


def _from_tiktoken(path: Path, sizes: LlamaSizes) -> tuple[Tokenizer, dict[str, str]]:
    """Lines of base64 bytes and rank. A rank is the id, and lower ranks are merged first (tiktoken's rule)."""
    ranks = _read_ranks(path)
    letters = _byte_letters()
    words = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges: list[tuple[str, str]] = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if ranks.get(pair[0], rank) < rank and ranks.get(pair[1], rank) < rank]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(words[left], words[right]) for left, right in known]
    vocabulary = {words[token]: rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    raw = json.loads(tokenizer.to_str())
    raw["pre_tokenizer"] = PRE_TOKENIZERS["llama-bpe"]
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    tokenizer.decoder = decoders.ByteLevel()
    names = _llama_3_specials(sizes.vocab_size - len(ranks), later=sizes.scaling_factor is not None)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    _begin_with(tokenizer, names[0])
    return tokenizer, {"bos_token": names[0], "eos_token": names[1]}


def _llama_3_specials(count: int, *, later: bool) -> list[str]:
    """Names of the ids above the ranks, in order; later: Llama 3.1 and its successors, which named three reserved ones."""
    named = ["<|begin_of_text|>", "<|end_of_text|>"]
    fixed = {6: "<|start_header_id|>", 7: "<|end_header_id|>", 9: "<|eot_id|>"}
    if later:
        fixed |= {4: "<|finetune_right_pad_id|>", 8: "<|eom_id|>", 10: "<|python_tag|>"}
    reserved = 0
    for place in range(2, max(count, 10)):
        if place in fixed:
            named.append(fixed[place])
        else:
            named.append(f"<|reserved_special_token_{reserved}|>")
            reserved += 1
    return named


def _begin_with(tokenizer: Tokenizer, bos: str) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def _byte_letters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: itself where it is visible, else one above 255."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters, above = [], 256
    for byte in range(256):
        letters.append(chr(byte if byte in visible else above))
        above += byte not in visible
    if set(letters) != set(ByteLevel.alphabet()):
        raise ModelError("the installed package `tokenizers` has another byte alphabet than GPT-2's")
    return letters


def _is_tiktoken(path: Path) -> bool:
    """Whether the file begins with a line of base64 and rank; SentencePiece files begin with a protobuf field."""
    with path.open("rb") as stream:
        first = stream.readline(1000).split()
    return len(first) == 2 and first[1].isdigit()


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ModelError(f"expected base64 and a rank, found {line[:60]!r}", where=f"{path}:{number}") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ModelError("the ranks do not count up from 0", where=str(path))
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ModelError(
            f"{len(missing)} of the 256 single bytes have no rank, so not every text could be cut", where=str(path)
        )
    return ranks


def _open_sentencepiece(path: Path) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise MissingExtra("sentencepiece", "llama", "reading a tokenizer.model of Llama 1 or 2") from error
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        for index in range(model.get_piece_size()):
            model.id_to_piece(index)  # a damaged file can hold pieces that are no text
        return model
    except (RuntimeError, OSError, UnicodeDecodeError) as error:
        raise ModelError(
            "this is neither a SentencePiece model nor a list of ranks", where=str(path), hint="fetch it again"
        ) from error
