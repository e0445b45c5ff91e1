"""A tiny model with a tokenizer that knows no Chinese, and a small Chinese corpus made by rule."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from small_models import build_model
from tunesmith.model.vocabulary.base import BaseTokenizer

WORDS = (
    "自行车",
    "订单",
    "退款",
    "我们",
    "今天",
    "天气",
    "很好",
    "请问",
    "什么",
    "时候",
    "可以",
    "收到",
    "新的",
    "车轮",
)


def chinese_texts(num_texts: int, rng_seed: int = 3) -> list[str]:
    """Sentences of words drawn at random: they repeat, as those of a language do."""
    draw = random.Random(rng_seed)
    return [
        "，".join("".join(draw.choices(WORDS, k=draw.randint(2, 5))) for _ in range(draw.randint(1, 3))) + "。"
        for _ in range(num_texts)
    ]


@pytest.fixture(scope="session")
def small_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("vocabulary") / "tiny")


@pytest.fixture(scope="session")
def base(small_dir: Path) -> BaseTokenizer:
    return BaseTokenizer.load(small_dir)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return chinese_texts(200)
