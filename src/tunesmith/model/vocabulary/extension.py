"""New pieces and the merges that make them, and the tokenizer.json that has both.

The ids of old tokens stay, and new merges stand after all old ones. BPE applies merges in their order, and a new merge makes
a new piece, which no old merge takes: so a text is first cut exactly as before, and then some neighbours are joined. The new
tokens of a text are its old tokens, joined. Knows nothing of how pieces were found.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.model.vocabulary.base import TOKENIZER, BaseTokenizer
from tunesmith.store import write_atomic

COMPANIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""Files beside tokenizer.json that stay as they are. vocab.json, merges.txt and the like are left behind: they say the same
as the old tokenizer.json, and would contradict the new one."""


@dataclass(frozen=True)
class Extension:
    """New pieces in the order of their ids, which follow the old ones."""

    first_id: int
    pieces: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]  # at least one for each piece
    old_pieces: tuple[tuple[int, ...], ...]  # of each piece: the old ids that stood for its bytes

    def __post_init__(self) -> None:
        made = {left + right for left, right in self.merges}
        if len(set(self.pieces)) != len(self.pieces) or made != set(self.pieces):
            raise ModelError("the new merges do not make exactly the new pieces")
        if len(self.old_pieces) != len(self.pieces):
            raise ModelError(f"{len(self.pieces)} new pieces and {len(self.old_pieces)} lists of old ones")

    @property
    def size(self) -> int:
        """Ids after the extension: one more than the largest."""
        return self.first_id + len(self.pieces)


def extend_description(base: BaseTokenizer, extension: Extension) -> dict[str, Any]:
    """tokenizer.json with the new pieces and merges. ModelError where a new piece is an old one."""
    old = base.vocabulary
    taken = [piece for piece in extension.pieces if piece in old]
    if taken or extension.first_id != base.first_free_id:
        what = f"the piece {taken[0]!r} is in the vocabulary already" if taken else "the new ids do not follow the old"
        raise ModelError(what, where=str(base.path))
    description = json.loads(json.dumps(base.description))
    model = description["model"]
    # Added tokens that have no seat in the vocabulary are numbered after it when the file is read: without one they would
    # move behind the new pieces.
    model["vocab"].update({text: index for text, index in base.added.items() if text not in model["vocab"]})
    model["vocab"].update({piece: extension.first_id + place for place, piece in enumerate(extension.pieces)})
    as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
    model["merges"] += [" ".join(pair) if as_text else list(pair) for pair in extension.merges]
    return description


def write_tokenizer(base: BaseTokenizer, extension: Extension, folder: Path) -> None:
    """The extended tokenizer and its companions, as a model folder has them."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(extend_description(base, extension), ensure_ascii=False, separators=(",", ":"))
    write_atomic(folder / TOKENIZER, text.encode())
    for name in COMPANIONS:
        if (source := base.path.parent / name).is_file():
            shutil.copyfile(source, folder / name)
