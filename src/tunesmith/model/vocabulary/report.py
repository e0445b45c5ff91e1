"""What a text takes, before and after: tokens per character and per byte, and bits per byte with their error. Counts only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from tunesmith.types import Record


class TokenCounts(Record):
    """What some texts take. Rates are None where there is no text."""

    num_texts: int
    num_characters: int
    num_bytes: int  # UTF-8
    tokens_before: int
    tokens_after: int

    def rates(self) -> dict[str, float | None]:
        """Tokens per character and per byte before and after, and the share of tokens that is gone."""

        def share(part: int, whole: int) -> float | None:
            return round(part / whole, 4) if whole else None

        return {
            "tokens_per_character_before": share(self.tokens_before, self.num_characters),
            "tokens_per_character_after": share(self.tokens_after, self.num_characters),
            "tokens_per_byte_before": share(self.tokens_before, self.num_bytes),
            "tokens_per_byte_after": share(self.tokens_after, self.num_bytes),
            "tokens_saved": share(self.tokens_before - self.tokens_after, self.tokens_before),
        }


def count_tokens(before: Tokenizer, after: Tokenizer, texts: Iterable[str]) -> TokenCounts:
    """Count both ways, without special tokens."""
    listed = list(texts)
    return TokenCounts(
        num_texts=len(listed),
        num_characters=sum(map(len, listed)),
        num_bytes=sum(len(text.encode()) for text in listed),
        tokens_before=_num_tokens(before, listed),
        tokens_after=_num_tokens(after, listed),
    )


def bits_per_byte(bits: Sequence[float], num_bytes: Sequence[int]) -> tuple[float, float | None]:
    """(bits of all texts over bytes of all texts, its standard error), given those of each text. Of a change: differences of bits
    of the same texts, whose error is much smaller than that of either side.

    The error is that of a ratio of two sums (Cochran 1977, Sampling Techniques, eq. 2.46): of the residuals of the texts.
    None where there is one text.
    """
    whole, count = sum(num_bytes), len(bits)
    ratio = sum(bits) / whole
    if count < 2:
        return ratio, None
    residuals = sum((value - ratio * size) ** 2 for value, size in zip(bits, num_bytes, strict=True))
    return ratio, math.sqrt(residuals * count / (count - 1)) / whole


def _num_tokens(tokenizer: Tokenizer, texts: list[str]) -> int:
    return sum(len(encoded.ids) for encoded in tokenizer.encode_batch(texts, add_special_tokens=False))
