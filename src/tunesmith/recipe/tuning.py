"""Which model is tuned and which of its weights change."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tunesmith.recipe.optimisation import Optimisation
from tunesmith.recipe.section import Auto, Section, StrList


class BaseModelSection(Section):
    """The model that is tuned."""

    name: str
    """A built-in name (`tunesmith models`), a hub id, a local folder, or a .gguf file."""

    revision: str | None = None
    """Commit or tag of a hub id; none = the newest at fetch time, which is then recorded."""

    context_length: int | None = Field(default=None, ge=8)
    """Tokens the model is to read; none = as many as it does. More than that needs `rope_scaling`."""

    rope_scaling: Literal["none", "linear", "dynamic", "yarn", "extrapolate"] = "none"
    """How its rotary positions reach `context_length`: see docs/longer-context.md."""

    add_tokens: StrList = ()
    """New special tokens, such as `<|end_of_turn|>`; their rows begin as the mean of all rows."""

    @model_validator(mode="after")
    def _scaling_has_a_length(self) -> BaseModelSection:
        if self.rope_scaling != "none" and self.context_length is None:
            raise ValueError(f"`rope_scaling: {self.rope_scaling}` reaches a length: add `context_length`")
        return self


class Train(Optimisation):
    """How the weights change."""

    method: Literal["lora", "dora", "qlora", "full"] = "lora"
    """lora = train small added matrices; dora = and the length of every row; qlora = lora beside a base in 4 bits (needs
    a CUDA device); full = train every weight."""

    loss: Literal["cross_entropy"] = "cross_entropy"
    """What is minimised: -log p of every supervised token. For comparisons and rewards there is `align`."""

    lora_rank: int = Field(default=16, ge=1, le=8192)
    """Rank of the added matrices."""

    lora_alpha: float = Field(default=32, gt=0)
    """Scale of the added matrices: they count alpha / rank."""

    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the added matrices."""

    use_rslora: bool = False
    """The added matrices count alpha / sqrt(rank) instead of alpha / rank (rsLoRA): high ranks learn as fast as low ones."""

    lora_target_modules: StrList = ("all-linear",)
    """Names of the linear maps that get an adapter; all-linear = every one except the output head."""

    trainable_layers: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """Only this many topmost blocks are trained, or get adapters; all = every one."""

    train_embeddings: bool | Auto = "auto"
    """Whether full training changes the embeddings and the output head; auto = yes where trainable_layers is all."""

    @model_validator(mode="after")
    def _adapters_leave_embeddings_alone(self) -> Train:
        if self.train_embeddings is True and self.method != "full":
            raise ValueError(
                f"`train_embeddings: true` needs `method: full`: the files of an adapter ({self.method}) hold none"
            )
        return self
