"""Which language a text is in."""

from __future__ import annotations

import pytest

from tunesmith.data.language import LanguageDetector

pytest.importorskip("fasttext", reason="the extra `language` is not installed")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Where is my parcel? It was sent on Monday.", "en"),
        ("WHERE IS MY PARCEL? IT WAS SENT ON MONDAY.", "en"),
        ("我的包裹在哪里？", "zh"),
        ("これは日本語の文章です。", "ja"),
        ("12 + 3 = 15", ""),
        ("\ud83d", ""),
    ],
)
def test_the_language_of_a_text_is_found(text: str, code: str) -> None:
    assert LanguageDetector().detect(text).code == code


def test_half_a_surrogate_pair_does_not_hide_the_language() -> None:
    detector = LanguageDetector()
    assert detector.detect("Where is my parcel \ud83d today?").code == "en"
    assert detector.detect("我的包裹在哪里\ude00？").code == "zh"
