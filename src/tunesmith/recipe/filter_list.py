"""Every filter that `curate.filters` can list, and how one is read (recipe/listing.py says in which forms). Knows no
option itself."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from tunesmith.recipe import duplicate_filters, filters, score_filters
from tunesmith.recipe.filters import FilterOptions
from tunesmith.recipe.listing import read_listed

FILTER_OPTIONS: dict[str, type[FilterOptions]] = {
    str(options.model_fields["name"].default): options
    for module in (filters, duplicate_filters, score_filters)
    for options in vars(module).values()
    if isinstance(options, type) and issubclass(options, FilterOptions) and options is not FilterOptions
}
"""Every filter that can be listed, by name."""


def read_filter(value: Any) -> FilterOptions:
    """One entry of the list. ValueError names the nearest filter or option."""
    return value if isinstance(value, FilterOptions) else read_listed(value, "filter", FILTER_OPTIONS)


FilterList = tuple[Annotated[SerializeAsAny[FilterOptions], BeforeValidator(read_filter)], ...]
