"""How many tokens a text takes, before and after: per character, per byte, and how much fewer. Counts only."""

from __future__ import annotations

from collections.abc import Iterable

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


def _num_tokens(tokenizer: Tokenizer, texts: list[str]) -> int:
    return sum(len(encoded.ids) for encoded in tokenizer.encode_batch(texts, add_special_tokens=False))
