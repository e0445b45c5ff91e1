"""Parameters of continued pre-training: the text, how the vocabulary grows, what is trained on it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.recipe.optimisation import Optimisation
from tunesmith.recipe.section import Auto, StrList


class Pretrain(Optimisation):
    """The base model learns from plain text first, with new pieces in its vocabulary."""

    files: Annotated[StrList, Field(min_length=1)]
    """Text: .txt and .md files, rows with a `text`, folders, .zip archives."""

    num_test_texts: int = Field(default=200, ge=1)
    """Passages (about 500 characters) that are held out to count tokens and bits on, drawn by `rng_seed`; at most half."""

    num_new_tokens: Annotated[int, Field(ge=0)] | Auto = "auto"
    """Pieces to add, the most useful ones; 0 = none; auto = 8,000 learnt from the text, or all of `sentencepiece`."""

    sentencepiece: str | None = None
    """A SentencePiece .model file whose pieces are merged in, in place of learning some from the text."""

    max_piece_characters: int = Field(default=8, ge=1)
    """Longest piece to learn."""

    min_piece_count: int = Field(default=5, ge=1)
    """A learnt piece stands at least this often in the text."""

    new_rows: Literal["calibrated", "mean"] = "calibrated"
    """What new rows start as: mean = that of their old pieces' rows; calibrated = also as likely as they are frequent."""

    calibration_tokens: int = Field(default=4096, ge=1)
    """Tokens of the text that the model reads to bring rows to their frequencies."""

    embedding_steps: int = Field(default=100, ge=0)
    """Steps in which only the embeddings and the output head are trained, before everything is."""

    embedding_learning_rate: float = Field(default=1e-3, gt=0, le=1)
    """Peak learning rate of these steps."""

    method: Literal["full", "lora"] = "full"
    """full = then every weight is trained; lora = embeddings, head, and small added matrices that are merged at the end."""

    lora_rank: int = Field(default=8, ge=1, le=8192)
    """Rank of the added matrices."""

    lora_alpha: float = Field(default=32, gt=0)
    """Scale of the added matrices: they count alpha / rank."""

    pack_length: int = Field(default=512, ge=16)
    """Tokens of one pack; longer texts are cut, shorter ones share a pack without seeing each other."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] | Auto = "auto"
    """Peak learning rate after the embedding steps; auto = 2e-4 for lora, 1e-4 for full."""

    num_epochs: float = Field(default=1, gt=0, le=10_000)
    """Passes over the text, after the embedding steps."""

    def file_names(self) -> list[str]:
        return [*self.files, *([self.sentencepiece] if self.sentencepiece else [])]
