"""Every parameter there is: type, bounds, default, one sentence. Declared here once; nothing below holds a second default.

One Section per stage, in the module named after its matter; Recipe holds them all.
The string under a field is its description and feeds `--help`, the docs and the studio's form.
`auto` is replaced in resolve.py where the recipe alone decides, and by the stage (as a fact in its manifest) where
the data or the machine decides. What cannot change a result beyond rounding lives in `runtime`, outside every key.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tunesmith.recipe.align import Align, Prefer
from tunesmith.recipe.optimisation import Optimisation
from tunesmith.recipe.pretrain import Pretrain
from tunesmith.recipe.results import Evaluate, Export
from tunesmith.recipe.reward_model import RewardModel
from tunesmith.recipe.rows import Curate, Ingest, Tokenize, split_sampled
from tunesmith.recipe.runtime import Runtime
from tunesmith.recipe.section import Section
from tunesmith.recipe.synonyms import SYNONYMS
from tunesmith.recipe.teaching import Generate, TeacherSection
from tunesmith.recipe.tuning import BaseModelSection, Train

__all__ = [
    "SYNONYMS", "Align", "BaseModelSection", "Curate", "Evaluate", "Export", "Generate", "Ingest", "Optimisation", "Prefer",
    "Pretrain", "Recipe", "RewardModel", "Runtime", "Section", "TeacherSection", "Tokenize", "Train", "split_sampled",
]  # fmt: skip


def _from_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Recipe(BaseModel):
    """A whole run on one screen."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the run folders."""

    description: str = ""
    """For people."""

    base_model: Annotated[BaseModelSection, BeforeValidator(_from_name)]
    """The model to tune; a bare string is its name."""

    ingest: Ingest = Ingest()
    generate: Generate | None = None
    curate: Curate = Curate()
    tokenize: Tokenize = Tokenize()
    train: Train = Train()
    pretrain: Pretrain | None = None
    prefer: Prefer | None = None
    reward_model: RewardModel | None = None
    align: Align | None = None
    evaluate: Evaluate | None = Evaluate()
    export: Export | None = Export()
    runtime: Runtime = Runtime()

    @model_validator(mode="after")
    def _there_is_something_to_learn_from(self) -> Recipe:
        if not self.ingest.files and self.generate is None:
            raise ValueError("there is nothing to learn from: name `ingest.files`, or add a `generate` section")
        if self.generate is not None and self.generate.generator == "distill" and not self.ingest.task:
            raise ValueError("`generate.generator: distill` works from `ingest.task`, which is missing")
        return self

    @model_validator(mode="after")
    def _the_own_reward_model_is_there(self) -> Recipe:
        if self.align is not None and self.reward_model is None and self.align.uses_own_reward_model:
            raise ValueError(
                "`align` is rewarded by a reward model, and none is named: add a section `reward_model` that trains one, "
                "or name its folder: `rewards: [{reward_model: FOLDER}]`"
            )
        return self

    @model_validator(mode="after")
    def _new_tokens_are_learnt(self) -> Recipe:
        frozen = (
            self.train.trainable_layers != "all"
            if self.train.train_embeddings == "auto"
            else not self.train.train_embeddings
        )
        if self.base_model.add_tokens and (self.train.method != "full" or frozen):
            raise ValueError(
                "the rows of `base_model.add_tokens` would stay the mean they begin as, so the model could never write such "
                "a token: set `train.method: full` and let it train the embeddings"
            )
        return self
