"""The text of a pre-training: read, cut into passages, a part held out, and turned into samples of token ids.

Everything is in memory: characters once, tokens twice over. Knows no models and no recipe.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tunesmith.data.readers import read_examples
from tunesmith.errors import DataError
from tunesmith.training.batches import Samples
from tunesmith.types import Document, Excluded

_PASSAGE_CHARACTERS = 500
_MOST_BYTES = 4  # of a character, and so its most tokens
_SENTENCE = re.compile(r".*?(?:\n+|[。！？!?]+[”’」』）]*|[.][ ]+|\Z)", re.DOTALL)


@dataclass
class Corpus:
    """Texts to learn from, passages to measure on, and rows that are neither."""

    texts: list[str] = field(default_factory=list[str])
    test_texts: list[str] = field(default_factory=list[str])
    num_documents: int = 0
    num_repeats: int = 0  # passages left out of the texts because they are held out
    excluded: list[Excluded] = field(default_factory=list[Excluded])


def read_corpus(files: Iterable[tuple[str, Path]], num_test_texts: int, rng_seed: int, context_length: int) -> Corpus:
    """All documents of the files (name as written, path). Held-out passages are drawn from all of them alike, at most half;
    what is equal to one is learnt nowhere, and any tokenizer cuts one into fewer tokens than context_length. DataError where there
    is no text."""
    corpus = Corpus()
    documents: list[list[str]] = []
    longest = max(min(_PASSAGE_CHARACTERS, (context_length - 1) // _MOST_BYTES), 1)
    for name, path in files:
        for row in read_examples(path):
            if isinstance(row, Excluded):
                corpus.excluded.append(row)
            elif not isinstance(row, Document):
                detail = f"a {type(row).__name__.lower()}, expected text without turns"
                corpus.excluded.append(Excluded(reason="not_text", detail=detail, where=row.source or name))
            elif not row.text.strip():
                corpus.excluded.append(Excluded(reason="empty_text", where=row.source or name))
            else:
                documents.append(cut_passages(row.text, longest))
    corpus.num_documents = len(documents)
    places = [(index, place) for index, document in enumerate(documents) for place in range(len(document))]
    if len(places) < 2:
        raise DataError(
            f"there is {'one passage' if places else 'no text'} to learn from, expected more than one",
            where="recipe.pretrain.files",
            hint="name .txt files, rows with a `text`, or a folder of these; conversations are learnt by `train`",
        )
    held_out = random.Random(rng_seed).sample(places, min(num_test_texts, len(places) // 2))
    corpus.test_texts = [documents[index][place] for index, place in sorted(held_out)]
    _leave_out(corpus, documents)
    if not corpus.texts:
        raise DataError(
            "every passage of the text is held out", where="recipe.pretrain.files", hint="give it more text"
        )
    return corpus


def _leave_out(corpus: Corpus, documents: Sequence[Sequence[str]]) -> None:
    """Texts without the held-out passages: what stands between two of them stays together."""
    held_out = set(corpus.test_texts)
    num_left_out = 0
    for document in documents:
        run: list[str] = []
        for passage in document:
            if passage in held_out:
                num_left_out += 1
                corpus.texts += ["".join(run)] if run else []
                run = []
            else:
                run.append(passage)
        corpus.texts += ["".join(run)] if run else []
    corpus.num_repeats = num_left_out - len(corpus.test_texts)


def cut_passages(text: str, num_characters: int) -> list[str]:
    """Whole sentences, as many as fit; a longer sentence is cut. Together they are the text."""
    passages: list[str] = []
    current = ""
    for sentence in _SENTENCE.findall(text):
        if current and len(current) + len(sentence) > num_characters:
            passages.append(current)
            current = ""
        current += sentence
        while len(current) > num_characters:
            passages.append(current[:num_characters])
            current = current[num_characters:]
    if current.strip() or not passages:
        passages.append(current)
    else:
        passages[-1] += current
    return passages


class TextTokenizer:
    """Text to samples: ids without special tokens, control strings as ordinary text, a separator before each sample."""

    def __init__(self, tokenizer: Tokenizer, separator: int) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True
        self._separator = separator

    def training_samples(self, texts: Sequence[str], pack_length: int) -> Samples:
        """Texts cut to pack_length tokens; the last piece of each ends in the separator. Every token but a sample's first,
        which is the separator, is predicted."""
        pieces: list[np.ndarray] = []
        ids: list[str] = []
        room = pack_length - 1
        for number, tokens in enumerate(self._encode(texts)):
            tokens = np.append(tokens, self._separator)
            for start in range(0, len(tokens), room):
                pieces.append(tokens[start : start + room])
                ids.append(f"text {number + 1}, token {start}")
        return self._samples(pieces, ids)

    def test_samples(self, texts: Sequence[str]) -> Samples:
        """One sample a text, whole, without a separator at its end: what is predicted is the text."""
        return self._samples(self._encode(texts), [f"held-out text {number + 1}" for number in range(len(texts))])

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(each.ids, np.int32) for each in encoded]

    def _samples(self, pieces: Sequence[np.ndarray], ids: Sequence[str]) -> Samples:
        lengths = np.array([len(piece) + 1 for piece in pieces], np.int64)
        starts = np.cumsum(lengths) - lengths
        input_ids = np.insert(np.concatenate(pieces), starts - np.arange(len(starts)), self._separator)
        return Samples(
            input_ids=input_ids.astype(np.int32),
            loss_mask=np.ones(len(input_ids), np.uint8),
            lengths=lengths,
            ids=tuple(ids),
        )
