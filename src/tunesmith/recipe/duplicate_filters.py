"""The options of the filters that compare a row with others: doubles, contradictions, near-doubles."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tunesmith.recipe.filters import FilterOptions, Part, Probability
from tunesmith.recipe.section import RngSeed


class ExactOptions(FilterOptions):
    """Repetitions; the first row stays. Prompts are compared by default, as Lamini's program does."""

    name: Literal["exact"] = "exact"
    chief: ClassVar[str | None] = "of"
    of: Literal["prompt", "reply", "conversation"] = "prompt"
    """What makes two rows the same."""
    normalise: bool = True
    """Compare without case, width and spacing; false = byte for byte."""


class ConflictingOptions(FilterOptions):
    """Prompts with different replies: every such row goes (Self-Instruct)."""

    name: Literal["conflicting"] = "conflicting"


class Bm25Options(FilterOptions):
    """Instructions that BM25 finds in the rows before them (BELLE)."""

    name: Literal["bm25"] = "bm25"
    chief: ClassVar[str | None] = "max_score"
    scope: ClassVar[Literal["all", "train"]] = "train"
    max_score: float = Field(default=18, gt=0)
    """A higher score with an earlier row excludes. A Chinese character counts as a word, so for Chinese take 24."""


class RougeOptions(FilterOptions):
    """Rows like an earlier one by ROUGE-L F1; `curate.max_similarity` does the same for prompts, test rows included."""

    name: Literal["rouge_l"] = "rouge_l"
    chief: ClassVar[str | None] = "max_similarity"
    scope: ClassVar[Literal["all", "train"]] = "train"
    max_similarity: Probability = 0.7
    """Above this a row is excluded; exactly at it stays."""
    of: Part = "prompt"
    """Which text is compared."""
    tokens: Literal["unicode", "rouge_score"] = "unicode"
    """rouge_score = the tokens of google's package ([a-z0-9] alone), for published numbers."""


class MinhashOptions(FilterOptions):
    """Near copies by Jaccard of word n-grams, found by MinHash; the first row of a cluster stays."""

    name: Literal["minhash"] = "minhash"
    chief: ClassVar[str | None] = "min_jaccard"
    scope: ClassVar[Literal["all", "train"]] = "train"
    min_jaccard: Probability = 0.7
    """From this likeness on two rows are near copies."""
    of: Part = "all"
    """Which text is compared."""
    ngram_words: int = Field(default=3, ge=1)
    """Words of one n-gram."""
    num_bands: int = Field(default=16, ge=1)
    """Bands of the signature: more find more."""
    rows_per_band: int = Field(default=8, ge=1)
    """Values of one band: more find less."""
    rng_seed: RngSeed = 17
    """Seed of the permutations."""


class SemanticOptions(FilterOptions):
    """Rows that mean the same, by the cosine of static embeddings (SemDeDup, Abbas et al. 2023)."""

    name: Literal["semantic"] = "semantic"
    chief: ClassVar[str | None] = "max_cosine"
    scope: ClassVar[Literal["all", "train"]] = "train"
    max_cosine: Probability = 0.9
    """From this cosine on one of two rows is excluded; Lamini's modes are 0.99 and 0.9."""
    of: Part = "prompt"
    """Which text is compared."""
    keep: Literal["first", "hard", "easy"] = "first"
    """Which row of a likeness stays: the first, the one far from its cluster's centre, or the one near it."""
    num_clusters: int | None = Field(default=None, ge=1)
    """Clusters rows are compared in; none = the square root of the rows."""
    rng_seed: RngSeed = 17
    """Seed of the clusters."""
