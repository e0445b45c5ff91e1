"""The language filter."""

from __future__ import annotations

from tunesmith.data.filters.parts import shown, text_of, with_metadata
from tunesmith.data.language import LanguageDetector
from tunesmith.protocols import Filter, FilterContext, Verdict
from tunesmith.recipe.filters import LanguageOptions
from tunesmith.types import Conversation


def language(options: LanguageOptions, _ctx: FilterContext) -> Filter:
    """Reasons language and unknown_language; kept rows get metadata.language. Text without a letter is of no language
    and stays, as does, unless asked otherwise, text the model is unsure of."""
    detector = LanguageDetector()
    keep = frozenset(options.keep)

    def judge(row: Conversation) -> Verdict:
        text = text_of(row, options.of)
        found = detector.detect(text)
        if not found.code:
            return None
        if found.code in keep:
            return with_metadata(row, language=found.code)
        if found.probability >= options.min_probability:
            return (
                "language",
                f"{found.code} with {found.probability:.2f}, wanted is {', '.join(options.keep)}: {shown(text)}",
            )
        if options.exclude_unknown:
            return "unknown_language", f"perhaps {found.code}, {found.probability:.2f}: {shown(text)}"
        return None

    return judge
