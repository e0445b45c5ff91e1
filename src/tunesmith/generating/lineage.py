"""What a text that a later generator takes up brings along: where it comes from, whose terms it stands under. It stands beside
the text in files that people edit, so each part of it may be missing. Knows no file formats."""

from __future__ import annotations

from typing import Any, Literal

from tunesmith.types import Conversation, Record, Split


class Lineage(Record):
    """All empty = the text is its user's own."""

    origin: str = ""  # "" = each row made from it is its own
    split: Split | None = None
    system_prompt: str | None = None
    seeds: tuple[str, ...] = ()  # ids of the examples it was made from
    written_by: str = ""
    licence: str | None = None
    teacher_may_train: Literal["no", "unknown", "no_competitors", "with_conditions", "yes"] | None = None
    commercial_use: bool | None = None

    @classmethod
    def of(cls, row: Conversation) -> Lineage:
        """What the last user message of a generated row would bring along."""
        first = row.messages[0] if row.messages else None
        return cls(
            origin=row.origin,
            split=row.split,
            system_prompt=first.content if first is not None and first.role == "system" else None,
            seeds=row.metadata.get("seeds", ()),
            written_by=row.source,
            licence=row.licence,
            teacher_may_train=row.metadata.get("teacher_may_train"),
            commercial_use=row.metadata.get("commercial_use"),
        )

    def metadata(self) -> dict[str, Any]:
        """What rows made from the text carry of it, beside origin, split and licence."""
        names = ("seeds", "written_by", "teacher_may_train", "commercial_use")
        found = {name: getattr(self, name) for name in names}
        return {
            name: list(value) if name == "seeds" else value
            for name, value in found.items()
            if value not in ((), "", None)
        }
