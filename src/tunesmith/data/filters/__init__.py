"""Filters of rows: each keeps a row, keeps it changed, or excludes it with (reason, what was found and expected).

ROW_FILTERS are switched by the plain fields of `curate`, in this order: (section, task) -> filter, or None where the
recipe does not ask for it; they see every row, test rows too. FILTERS are listed in `curate.filters`: (options, FilterContext) -> filter. Adding one is a function in the module of its family, a line here, its
options in recipe/filters.py and a line in docs/filters.md.
"""

from __future__ import annotations

from tunesmith.protocols import Filter, FilterContext, SetFilter
from tunesmith.recipe.filters import FilterOptions
from tunesmith.registry import Registry

_HERE = "tunesmith.data.filters"

ROW_FILTERS = Registry(
    "filter",
    {
        "no_reply": f"{_HERE}.fields:no_reply",
        "length": f"{_HERE}.fields:length",
        "blacklist": f"{_HERE}.fields:blacklist",
        "schema": f"{_HERE}.fields:schema",
    },
)

FILTERS = Registry(
    "filter",
    {
        "length": f"{_HERE}.lengths:length",
        "char_length": f"{_HERE}.lengths:char_length",
        "token_length": f"{_HERE}.lengths:TokenLength",
        "blacklist": f"{_HERE}.wording:blacklist",
        "program_start": f"{_HERE}.wording:program_start",
        "bad_start": f"{_HERE}.wording:bad_start",
        "refusal": f"{_HERE}.wording:refusal",
        "vendor": f"{_HERE}.wording:vendor",
        "no_input": f"{_HERE}.wording:no_input",
        "echo": f"{_HERE}.repetition:echo",
        "repeated_sentences": f"{_HERE}.repetition:repeated_sentences",
        "repeated_digits": f"{_HERE}.repetition:repeated_digits",
        "lint": f"{_HERE}.linting:lint",
        "alternate_roles": f"{_HERE}.turns:alternate_roles",
        "min_turns": f"{_HERE}.turns:min_turns",
        "model": f"{_HERE}.sources:model",
        "classes": f"{_HERE}.sources:classes",
        "language": f"{_HERE}.language:language",
        "pii": f"{_HERE}.privacy:pii",
        "toxicity": f"{_HERE}.toxicity:Toxicity",
        "exact": f"{_HERE}.likeness:Exact",
        "conflicting": f"{_HERE}.likeness:Conflicting",
        "bm25": f"{_HERE}.bm25:Bm25",
        "rouge_l": f"{_HERE}.likeness:RougeL",
        "minhash": f"{_HERE}.likeness:NearCopies",
        "semantic": f"{_HERE}.likeness:SameMeaning",
        "perplexity": f"{_HERE}.likelihood:Perplexity",
        "ifd": f"{_HERE}.likelihood:InstructionDifficulty",
        "alpagasus": f"{_HERE}.judged:Alpagasus",
        "deita": f"{_HERE}.judged:Deita",
        "yes_no": f"{_HERE}.judged:YesNo",
    },
)


def build_filter(options: FilterOptions, ctx: FilterContext) -> Filter | SetFilter:
    """One listed filter."""
    return FILTERS.load(options.name, where="recipe.curate.filters")(options, ctx)
