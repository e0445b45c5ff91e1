"""What a teacher costs: the recipe's price, or the dated table. A model without a price is never taken for free."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import yaml

from tunesmith.errors import RecipeError, nearest
from tunesmith.protocols import Price
from tunesmith.recipe import TeacherSection

FREE = Price(0.0, 0.0, source="runs here")


def resolve_price(section: TeacherSection, *, where: str, base_url: str | None = None, batch: bool = False) -> Price:
    """The price of a teacher. `where` is the recipe path of its section ("recipe.generate.teacher").

    base_url: the endpoint where it is not the section's own. batch: through the batch API, whose discount the table
    knows; a price in the recipe is taken as it is written.

    Raises RecipeError for an endpoint whose price neither the recipe nor the table knows.
    """
    if section.price_usd_per_mtok is not None:
        return Price(*section.price_usd_per_mtok, source="recipe")
    if section.kind != "openai":
        return FREE
    table = _table()
    url = base_url or section.base_url
    host = urlsplit(url).hostname or ""
    known = table["hosts"].get(host, {})
    if section.model not in known:
        close = nearest(section.model, known)
        listed = f"{len(known)} models there" + (f", the nearest is {close!r}" if close else "")
        raise RecipeError(
            f"the price of {section.model!r} at {host or url!r} is not known (the table of "
            f"{table['date']} has {listed})",
            where=f"{where}.price_usd_per_mtok",
            hint=f"set `{where.removeprefix('recipe.')}.price_usd_per_mtok: [input, output]` in US dollars per million "
            "tokens; [0, 0] for an endpoint of your own",
        )
    prompt, answer, *batch_share = known[section.model]
    share = batch_share[0] if batch and batch_share else 1.0
    return Price(prompt * share, answer * share, source=f"{table['source']}, {table['date']}")


def price_warning(section: TeacherSection) -> str | None:
    """What to tell a person before money is spent by a price from the table; None where the recipe gives one."""
    if section.price_usd_per_mtok is not None or section.kind != "openai":
        return None
    date = _table()["date"]
    return (
        f"the price of {section.model!r} is from the built-in table of {date}, and prices change: check the provider's "
        "page, and set `price_usd_per_mtok` where it differs, or the budget is not the one you mean"
    )


@cache
def _table() -> dict[str, Any]:
    return yaml.safe_load((files("tunesmith.teachers") / "prices.yaml").read_text(encoding="utf-8"))
