"""Keys and values of a running batch: one slot per row, each row at its own position. Owns the memory and the mask.

Every row starts at place 0 of its slot, so the place of a token is its position and no row knows how long the others
are. Rows and width are rounded up, because matrix products of a CPU give a row the same bits whatever stands beside it
only for some shapes: measured with torch 2.13, fp32 rows differ for 1, 2, 3, 5 and 7 rows and agree from 8 on in steps of
4; bf16 rows always agree. With one thread answers were then equal bit by bit in every batch size; with two, attention
still rounds a row differently once in some thousand tokens. Knows no sampling and no text.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from tunesmith.errors import EngineError

ROW_MULTIPLE = 8
WIDTH_MULTIPLE = 64
_GROWTH = 1.5  # slots grow by at least this factor, so that copying stays a small share of the work


Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""(keys, values) of each layer, (B, H, T, D)."""


class _Place:
    """Where the running step writes and how far it reads; shared by all layers."""

    def __init__(self) -> None:
        self.rows = torch.empty(0, dtype=torch.long)  # (R,)
        self.positions = torch.empty(0, dtype=torch.long)  # (R,)
        self.width = 0


class _SlotLayer(CacheLayerMixin):
    """One layer's keys and values, (S, H, N, D): S slots of N places."""

    is_sliding = False

    def __init__(self, like: torch.Tensor, values_like: torch.Tensor, place: _Place, num_slots: int) -> None:
        super().__init__()
        self.place = place
        self.keys: torch.Tensor = like.new_zeros(num_slots, like.shape[1], 0, like.shape[3])
        self.values: torch.Tensor = values_like.new_zeros(num_slots, values_like.shape[1], 0, values_like.shape[3])
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise AssertionError("slots are made whole")

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any):
        """Write the step's (R, H, 1, D) at each row's position; read everything up to the width."""
        place = self.place
        self.keys[place.rows, :, place.positions] = key_states[:, :, 0]
        self.values[place.rows, :, place.positions] = value_states[:, :, 0]
        num_rows = len(place.rows)
        return self.keys[:num_rows, :, : place.width], self.values[:num_rows, :, : place.width]

    def grow(self, width: int) -> None:
        """Make at least `width` places."""
        extra = max(width, int(self.keys.shape[2] * _GROWTH)) - self.keys.shape[2]
        self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, extra))
        self.values = torch.nn.functional.pad(self.values, (0, 0, 0, extra))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.place.width, 0

    def get_seq_length(self) -> int:
        return self.place.width - 1

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """The cache a model reads and writes while a batch of rows decodes."""

    def __init__(self, prefilled: Layers, num_slots: int) -> None:
        """`prefilled` may be any prompt's: it tells how many layers there are, and their shapes."""
        self._place = _Place()
        layers = [
            _SlotLayer(keys, values, self._place, round_up(num_slots, ROW_MULTIPLE)) for keys, values in prefilled
        ]
        super().__init__(layers=layers)  # pyright: ignore[reportArgumentType]
        self._slots = layers

    def fill(self, slot: int, prefilled: Layers) -> None:
        """Put a prompt's keys and values into a slot."""
        for layer, (keys, values) in zip(self._slots, prefilled, strict=True):
            length = keys.shape[2]
            if length > layer.keys.shape[2]:
                layer.grow(round_up(length + 1, WIDTH_MULTIPLE))
            layer.keys[slot, :, :length] = keys[0]
            layer.values[slot, :, :length] = values[0]

    def move(self, source: int, target: int) -> None:
        """Copy one slot over another, so that the rows still running stand side by side."""
        for layer in self._slots:
            layer.keys[target] = layer.keys[source]
            layer.values[target] = layer.values[source]

    def prepare(self, positions: torch.Tensor) -> int:
        """Set the step's positions (R,), R a multiple of ROW_MULTIPLE, on the cache's device. Returns the width."""
        width = round_up(int(positions.max()) + 1, WIDTH_MULTIPLE)
        self._place.rows = torch.arange(len(positions), device=positions.device)
        self._place.positions = positions
        self._place.width = width
        if width > self._slots[0].keys.shape[2]:
            for layer in self._slots:
                layer.grow(width)
        return width


class StepMask:
    """The attention mask of one decoding step, in the form the model's layers want it."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        text = config.get_text_config(decoder=True)
        self._dtype = dtype
        self._window: int | None = getattr(text, "sliding_window", None)
        self._kinds = sorted(set(getattr(text, "layer_types", None) or []))
        unknown = set(self._kinds) - {"full_attention", "sliding_attention"}
        if unknown:
            raise EngineError(
                f"the model has layers of kind {', '.join(sorted(unknown))}, which this engine cannot batch",
                where=str(getattr(text, "model_type", "model")),
                hint="evaluate its export with another engine",
            )

    def build(self, positions: torch.Tensor, width: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """Additive masks (R, 1, 1, W): row r sees places 0 .. positions[r], its own token included."""
        places = torch.arange(width, device=positions.device)
        seen = places <= positions[:, None]  # (R, W)
        if self._window is None or self._kinds == ["full_attention"]:
            return self._additive(seen)
        near = seen & (places > positions[:, None] - self._window)
        if "full_attention" not in self._kinds:
            return self._additive(near)
        return {"full_attention": self._additive(seen), "sliding_attention": self._additive(near)}

    def _additive(self, seen: torch.Tensor) -> torch.Tensor:
        hidden = torch.zeros(seen.shape, dtype=self._dtype, device=seen.device)
        return hidden.masked_fill_(~seen, torch.finfo(self._dtype).min)[:, None, None, :]


def layers_of(cache: DynamicCache) -> Layers:
    """What a cache holds."""
    return [(keys, values) for keys, values, *_ in cache if keys is not None and values is not None]


def seeded(layers: Layers) -> DynamicCache:
    """A cache that starts with these keys and values, which using it does not change."""
    return DynamicCache(ddp_cache_data=layers)


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is at least `value`."""
    return -(-value // multiple) * multiple
