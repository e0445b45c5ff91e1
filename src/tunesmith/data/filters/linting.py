"""The lint rules as a filter."""

from __future__ import annotations

from tunesmith.data.filters.parts import text_of, with_metadata
from tunesmith.data.lint import RULES, LintText
from tunesmith.protocols import Filter, FilterContext, Verdict
from tunesmith.recipe.filters import LintOptions
from tunesmith.types import Conversation


def lint(options: LintOptions, _ctx: FilterContext) -> Filter:
    """The first rule that finds something is the reason. With action report all findings go to metadata.lint."""

    def judge(row: Conversation) -> Verdict:
        text = LintText(text_of(row, "instruction"), text_of(row, "prompt"), text_of(row, "reply"))
        if options.action == "exclude":
            return next(((rule, found) for rule in options.rules if (found := RULES[rule](text))), None)
        found = {rule: detail for rule in options.rules if (detail := RULES[rule](text))}
        return with_metadata(row, lint=found) if found else None

    return judge
