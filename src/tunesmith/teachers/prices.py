"""What a teacher costs: the recipe's price, or the dated table. A model without a price is never taken for free."""

from __future__ import annotations

from importlib.resources import files
from urllib.parse import urlsplit

import yaml

from tunesmith.errors import RecipeError
from tunesmith.protocols import Price
from tunesmith.recipe import TeacherSection

FREE = Price(0.0, 0.0, source="runs here")


def resolve_price(section: TeacherSection, *, where: str) -> Price:
    """The price of a teacher. `where` is the recipe path of its section ("recipe.generate.teacher").

    Raises RecipeError for an endpoint whose price neither the recipe nor the table knows.
    """
    if section.price_usd_per_mtok is not None:
        return Price(*section.price_usd_per_mtok, source="recipe")
    if section.kind != "openai":
        return FREE
    table = yaml.safe_load((files("tunesmith.teachers") / "prices.yaml").read_text(encoding="utf-8"))
    host = urlsplit(section.base_url).hostname or ""
    known = table["hosts"].get(host, {})
    if section.model not in known:
        listed = ", ".join(known) or "no model there"
        raise RecipeError(
            f"the price of {section.model!r} at {host or section.base_url!r} is not known (the table of "
            f"{table['date']} lists: {listed})",
            where=f"{where}.price_usd_per_mtok",
            hint=f"set `{where.removeprefix('recipe.')}.price_usd_per_mtok: [input, output]` in US dollars per million "
            "tokens; [0, 0] for an endpoint of your own",
        )
    return Price(*known[section.model], source=f"{table['source']}, {table['date']}")
