"""Parameters of learning from comparisons and rewards: how pairs of answers are made (prefer), and what is made of them
or of rewards (align)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from tunesmith.recipe.optimisation import Optimisation
from tunesmith.recipe.rewards import RewardList, RewardModelOptions, is_own_reward_model
from tunesmith.recipe.section import Auto, RngSeed, Section, as_list
from tunesmith.recipe.teaching import TeacherSection

REFERENCE_FREE = ("orpo", "simpo")
"""Losses over pairs that compare with no reference model."""

ON_POLICY = ("grpo", "rloo", "ppo")
"""Losses over answers that are sampled while the model is trained."""


_PAIRS = ("dpo", "ipo", "orpo", "simpo")

_READ_BY: dict[str, tuple[str, ...]] = {
    "global_batch_size": (*_PAIRS, "kto"),  # a rollout is a step
    "beta": (*_PAIRS, "kto"),
    "label_smoothing": ("dpo", "simpo"),
    "simpo_gamma": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "teacher": ON_POLICY,
    "budget_usd": ON_POLICY,
    "max_failures": ON_POLICY,
    "num_generations": ON_POLICY,
    "prompts_per_rollout": ON_POLICY,
    "rollout_epochs": ON_POLICY,
    "temperature": ON_POLICY,
    "max_tokens": ON_POLICY,
    "stop": ON_POLICY,
    "clip_low": ON_POLICY,
    "clip_high": ON_POLICY,
    "ratio_cap": ON_POLICY,
    "ratio_level": ("grpo",),
    "entropy_weight": ON_POLICY,
    "kl_weight": ON_POLICY,
    "normalisation": ("grpo", "ppo"),
    "advantage_scale": ("grpo",),
    "gamma": ("ppo",),
    "gae_lambda": ("ppo",),
    "value_weight": ("ppo",),
    "value_function": ("ppo",),
}
"""Options that not every loss reads, and those that do."""


class Prefer(Section):
    """Pairs of the model's own answers, the better one first, found without people: candidates are sampled and judged."""

    num_candidates: int = Field(default=4, ge=2, le=64)
    """Answers sampled for each prompt."""

    max_prompts: int | None = Field(default=None, ge=1)
    """At most this many training prompts, drawn by `rng_seed`; none = all."""

    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the candidates."""

    max_tokens: int = Field(default=256, ge=1)
    """Longest candidate, in tokens."""

    min_margin: float = Field(default=0.0, ge=0)
    """A pair is kept where its answers' scores are more than this apart."""

    use_reference: bool = False
    """The row's own answer is a candidate too."""

    same_text: bool = False
    """Of two JSON answers only the exact fields differ: the rejected one is the chosen one with the worse one's fields."""

    rewards: RewardList = ()
    """What tells better answers from worse ones; none = the teacher compares each two, in both orders."""

    teacher: TeacherSection | None = None
    """Who compares, or answers for the reward `judge`."""

    criteria: str | None = None
    """What a good answer is, for the teacher that compares; none = helpfulness, correctness and `ingest.task`."""

    language: Literal["en", "zh"] = "en"
    """Language of the teacher's question."""

    budget_usd: float | None = Field(default=None, ge=0)
    """Hard stop of the teacher: worst-case cost is reserved before a request is sent."""

    max_failures: int = Field(default=20, ge=0)
    """Answers of the teacher that may fail before the stage gives up."""

    rng_seed: RngSeed = 17
    """Seed of prompts and candidates."""

    def file_names(self) -> list[str]:
        rewards = [name for reward in self.rewards for name in reward.file_names()]
        return [*rewards, *(self.teacher.file_names() if self.teacher else [])]

    @model_validator(mode="after")
    def _somebody_tells_answers_apart(self) -> Prefer:
        if not self.rewards and self.teacher is None:
            raise ValueError(
                "nobody tells answers apart: name `prefer.rewards`, or a `prefer.teacher` that compares them"
            )
        if any(reward.asks_teacher for reward in self.rewards) and self.teacher is None:
            raise ValueError("the reward `judge` asks a teacher: add `prefer.teacher`")
        if any(map(is_own_reward_model, self.rewards)):
            raise ValueError(
                "the recipe's own reward model learns from the pairs that `prefer` makes, so it cannot judge them: name "
                "the folder of another one: `rewards: [{reward_model: FOLDER}]`"
            )
        return self


class Align(Optimisation):
    """How the tuned model is moved by comparisons or rewards."""

    loss: Literal["dpo", "ipo", "orpo", "simpo", "kto", "grpo", "rloo", "ppo"] = "dpo"
    """dpo, ipo, orpo, simpo: pairs; kto: labelled answers; grpo, rloo, ppo: rewards of answers sampled on the way."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """How strongly the model is held to where it began (dpo, ipo, kto); the weight of the odds (orpo), the scale (simpo)."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs whose order is thought wrong (dpo, simpo)."""

    simpo_gamma: float = Field(default=0.5, ge=0)
    """Margin by which the better answer should win (simpo)."""

    desirable_weight: float = Field(default=1.0, gt=0)
    """What a good answer counts (kto)."""

    undesirable_weight: float = Field(default=1.0, gt=0)
    """What a bad answer counts (kto)."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] | Auto = "auto"
    """Peak learning rate; auto = 2e-5 for an adapter, 1e-6 for all weights."""

    num_epochs: float = Field(default=1, gt=0, le=10_000)
    """Passes over the pairs; over the prompts where answers are sampled."""

    rewards: RewardList = ()
    """What answers are rewarded for (grpo, rloo, ppo): json_schema, fields, exact, rouge_l, python, judge, reward_model."""

    teacher: TeacherSection | None = None
    """Who answers for the reward `judge`."""

    budget_usd: float | None = Field(default=None, ge=0)
    """Hard stop of the judge: worst-case cost is reserved before a request is sent."""

    max_failures: int = Field(default=20, ge=0)
    """Answers of the judge that may fail before the stage gives up; so many sampled answers in a row may have no reward."""

    num_generations: int = Field(default=8, ge=2, le=1024)
    """Answers sampled for each prompt."""

    prompts_per_rollout: int = Field(default=8, ge=1)
    """Prompts answered between two updates of the sampler."""

    rollout_epochs: int = Field(default=1, ge=1)
    """Optimiser steps on the answers of one rollout."""

    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the answers; training divides its logits by it too."""

    max_tokens: int = Field(default=256, ge=1)
    """Longest sampled answer, in tokens."""

    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(as_list)] = ()
    """A sampled answer ends where its text holds one of these; rewards see what stands before it."""

    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """How far below 1 the ratio to the sampling model still has a gradient."""

    clip_high: float = Field(default=0.2, gt=0)
    """How far above 1; as far may PPO's value function move from what it said before."""

    ratio_cap: Annotated[float, Field(gt=1)] | None = None
    """Of an answer that earned less than expected the ratio counts at most this (dual clip); above 1 + clip_high; none = off."""

    ratio_level: Literal["token", "sequence_mean"] = "token"
    """Each token has its own ratio, or an answer has one, the geometric mean over its tokens, as in GSPO (grpo)."""

    entropy_weight: float = Field(default=0.0, ge=0)
    """What the entropy of each token's distribution is rewarded, in the loss."""

    kl_weight: float = Field(default=0.0, ge=0)
    """Weight of the divergence from the model before alignment."""

    normalisation: Literal["sequence", "token", "constant"] | Auto = "auto"
    """What a token counts: its answer counts 1, it counts 1 itself, or 1 / max_tokens; auto = token (grpo, ppo). rloo has
    one of its own: a mean over answers, each as a whole."""

    advantage_scale: Literal["group", "batch", "none"] = "group"
    """Rewards are divided by the deviation of their group, of all, or not (grpo)."""

    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount from token to token (ppo)."""

    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Between the value function's word (0) and what was earned (1) (ppo)."""

    value_weight: float = Field(default=0.1, ge=0)
    """What the value function's loss counts beside the policy's (ppo)."""

    value_function: Literal["auto", "new", "reward_model"] = "auto"
    """Where the value function begins (ppo): auto = at the one that an earlier PPO left with the base model, else new;
    reward_model = at the head of the first reward model in `rewards`."""

    def file_names(self) -> list[str]:
        rewards = [name for reward in self.rewards for name in reward.file_names()]
        return [*rewards, *(self.teacher.file_names() if self.teacher else [])]

    @property
    def uses_own_reward_model(self) -> bool:
        """Whether answers are rewarded by the reward model that the recipe itself trains."""
        return any(map(is_own_reward_model, self.rewards))

    @model_validator(mode="after")
    def _the_value_function_begins_somewhere(self) -> Align:
        listed = any(isinstance(reward, RewardModelOptions) for reward in self.rewards)
        if self.value_function == "reward_model" and not (self.loss == "ppo" and listed):
            raise ValueError(
                "`value_function: reward_model` begins the value function of `loss: ppo` at the head of a reward model: list one "
                "in `rewards`"
            )
        return self

    @model_validator(mode="after")
    def _rloo_is_a_mean_over_answers(self) -> Align:
        if self.loss == "rloo" and self.normalisation != "auto":
            raise ValueError(
                f"`normalisation: {self.normalisation}` is none of rloo, which is a mean over answers, each with its whole "
                "log-probability: leave it out, or take `loss: grpo`"
            )
        return self

    @model_validator(mode="after")
    def _the_cap_is_beyond_the_clip(self) -> Align:
        if self.ratio_cap is not None and self.ratio_cap <= 1 + self.clip_high:
            raise ValueError(
                f"`ratio_cap: {self.ratio_cap:g}` is not above 1 + clip_high = {1 + self.clip_high:g}: it bounds what the clip of "
                "the other side leaves free; the paper takes 3"
            )
        return self

    @model_validator(mode="after")
    def _rewards_are_where_they_are_needed(self) -> Align:
        if self.loss in ON_POLICY and not self.rewards:
            raise ValueError(f"the loss {self.loss!r} needs `rewards`: say what an answer is rewarded for")
        if self.rewards and self.loss not in ON_POLICY:
            raise ValueError(
                f"`rewards` are for {', '.join(ON_POLICY)}; the loss {self.loss!r} learns from comparisons"
            )
        if any(reward.asks_teacher for reward in self.rewards) and self.teacher is None:
            raise ValueError("the reward `judge` asks a teacher: add `align.teacher`")
        return self

    @model_validator(mode="after")
    def _every_option_is_read(self) -> Align:
        for name, losses in _READ_BY.items():
            if self.loss not in losses and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"the loss {self.loss!r} does not read `{name}`, which is for {', '.join(losses)}: leave it out, or take "
                    "another loss"
                )
        return self
