"""A tiny model with a tokenizer that knows no Chinese, and a small Chinese corpus made by rule."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from chinese_words import WORDS
from tunesmith.model.vocabulary.base import BaseTokenizer


def chinese_texts(num_texts: int, rng_seed: int = 3) -> list[str]:
    """Sentences of words drawn at random: they repeat, as those of a language do."""
    draw = random.Random(rng_seed)
    return [
        "，".join("".join(draw.choices(WORDS, k=draw.randint(2, 5))) for _ in range(draw.randint(1, 3))) + "。"
        for _ in range(num_texts)
    ]


@pytest.fixture(scope="session")
def base(base_dir: Path) -> BaseTokenizer:
    return BaseTokenizer.load(base_dir)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return chinese_texts(200)
