"""The sections that name teachers: who writes, at which endpoints, and what is asked of them (`generate`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tunesmith.recipe.section import Address, Auto, EnvironmentName, RngSeed, Section, StrList


class EndpointSection(Section):
    """One more place that serves a teacher's model."""

    base_url: Address | None = None
    """Address up to and including /v1; none = the teacher's own (then `api_key_env` names another key)."""

    api_key_env: EnvironmentName | None = None
    """NAME of the environment variable that holds its key; null for endpoints without one."""

    @model_validator(mode="after")
    def _differs_from_the_main_one(self) -> EndpointSection:
        if self.base_url is None and self.api_key_env is None:
            raise ValueError("name another `base_url`, another `api_key_env`, or both")
        return self


class TeacherSection(Section):
    """A model that writes examples or answers test rows for comparison."""

    kind: Literal["openai", "local", "scripted"] = "openai"
    """openai = any OpenAI-compatible endpoint; local = llama.cpp in this process; scripted = answers from a file."""

    model: str = "gpt-4o-mini"
    """Model name at the endpoint; for local: anything `base_model.name` takes."""

    base_url: Address = "https://api.openai.com/v1"
    """Endpoint of kind openai, up to and including /v1."""

    api_key_env: EnvironmentName | None = "OPENAI_API_KEY"
    """NAME of the environment variable that holds the key; null for endpoints without one."""

    price_usd_per_mtok: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] | None = None
    """US dollars per million input and output tokens; needed where the built-in price table does not know the model."""

    extra_endpoints: tuple[EndpointSection, ...] = ()
    """More keys or servers for the same model: each request goes to the one with the lowest load."""

    script: str | None = None
    """JSONL file of answers for kind scripted: one {"text": ...} a line, or {"match": regex, "text": ...}."""

    context_length: int = Field(default=4096, ge=256)
    """Context tokens a local teacher may use per request."""

    def file_names(self) -> list[str]:
        return [self.script] if self.script else []

    @property
    def title(self) -> str:
        """What people call it in messages: its script where it has one, else its model."""
        return f"the script {self.script!r}" if self.script else f"the teacher {self.model!r}"

    @model_validator(mode="after")
    def _script_goes_with_scripted(self) -> TeacherSection:
        if (self.kind == "scripted") != (self.script is not None):
            raise ValueError("`script` and `kind: scripted` go together")
        return self


class Generate(Section):
    """Let a teacher write more examples. Leave the section out to train on the given ones alone."""

    generator: str = "self_instruct"
    """How rows are written, from what: see docs/generators.md; self_instruct (from examples), distill (from `ingest.task`
    alone), label_first (the message for a drawn answer), three_step, questions, responses, question_response, dialogue,
    maths, evolve, magpie, personas, back_translate, translate, documents."""

    teacher: TeacherSection
    """Who writes."""

    num_rows: int = Field(default=100, ge=1)
    """Rows to accept; generation stops there."""

    rows_per_request: int = Field(default=5, ge=1, le=50)
    """Rows asked for in one request."""

    num_seeds_shown: int = Field(default=3, ge=1, le=20)
    """Examples shown in one request."""

    temperature: float = Field(default=1.0, ge=0, le=2)
    """Sampling temperature of the teacher."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the teacher's sampling."""

    max_tokens: int = Field(default=2048, ge=16)
    """Longest answer of one request, in tokens."""

    max_similarity: float = Field(default=0.7, ge=0, le=1)
    """A row whose prompt has a ROUGE-L F1 above this with any earlier one is rejected."""

    budget_usd: float | None = Field(default=None, ge=0)
    """Hard stop: worst-case cost is reserved before a request is sent."""

    max_requests: int | None = Field(default=None, ge=1)
    """Hard stop on requests; none = 20 times what an all-accepting run would need."""

    max_failures: int = Field(default=20, ge=0)
    """Requests that may fail for good before the stage gives up."""

    language: Literal["en", "zh"] = "en"
    """Language of the prompts."""

    files: StrList = ()
    """Files or folders a generator works from: questions (responses), texts (back_translate, documents)."""

    constrain: bool | Auto = "auto"
    """Hold answers to a JSON schema, so that each can be read; auto = for local teachers."""

    repair: bool = True
    """Where an answer holds nothing that can be read, or only what breaks the schema, say so to the teacher and ask once more."""

    dialogue_form: Literal["transcript", "generated_chat", "self_chat", "two_teachers"] = "transcript"
    """dialogue: the whole talk in one answer; the same between two people with names and roles; one teacher in both roles,
    turn by turn; or `user_teacher` as the user."""

    dialogue_topics: Literal["seeds", "tree"] = "seeds"
    """dialogue: start each talk from an example, or from an opening question of a tree of topics and subtopics, whose lists the
    teacher writes with `rows_per_request` entries each."""

    user_teacher: TeacherSection | None = None
    """dialogue: who plays the user in the form two_teachers; half of `budget_usd` is this teacher's."""

    max_rounds: int = Field(default=3, ge=1, le=16)
    """dialogue: exchanges at most; evolve: evolutions of one example at most."""

    turns: int = Field(default=1, ge=1, le=16)
    """magpie: exchanges of a row at most; from the second one on the model writes the person's next message too."""

    follow_up_system: bool = True
    """magpie: with `turns` above 1, write later messages of the person under a system line that asks for follow-up questions;
    rows do not hold it."""

    min_score: int = Field(default=4, ge=1, le=5)
    """back_translate: pairs of instruction and text that the teacher scores below this, of 5, are rejected."""

    score_rounds: int = Field(default=1, ge=1, le=8)
    """back_translate: rounds over the texts; from the second one on, each text without a kept row gets another instruction, and
    the teacher sees examples and pairs that were kept."""

    augmented_system_prompt: str | None = None
    """back_translate: system message of its rows, by which a model tells them from the examples; none = the task's."""

    answer_check: Literal["arithmetic", "majority"] = "arithmetic"
    """maths: run the arithmetic of the answer, or let `num_votes` answers agree."""

    num_votes: int = Field(default=5, ge=2, le=64)
    """maths: answers to one problem that vote."""

    min_agreement: float = Field(default=0.6, gt=0, le=1)
    """maths: share of the votes that the answer needs."""

    operations: StrList = ("constrain", "deepen", "concretise", "reason", "complicate", "breadth")
    """evolve: which ways of changing an instruction are drawn from."""

    target_language: str = "Chinese"
    """translate: language to write, in the words of the prompts' language."""

    reanswer: bool = False
    """translate: let the teacher answer the translated prompt anew instead of translating the reply."""

    chunk_characters: int = Field(default=4096, ge=200)
    """documents: characters of a document shown at a time."""

    chunk_overlap: int = Field(default=2048, ge=0)
    """documents: characters that two neighbouring chunks share."""

    outputs_licence: str | None = None
    """Licence of what the teacher writes, where the table of teachers' terms does not know it; goes into every row."""

    require_commercial_use: bool = False
    """Refuse a teacher whose terms forbid training on its answers, and show it no example whose licence forbids trade."""

    rng_seed: RngSeed = 17
    """Seed of the draws of examples."""

    def file_names(self) -> list[str]:
        others = self.user_teacher.file_names() if self.user_teacher else []
        return [*self.teacher.file_names(), *others, *self.files]

    @model_validator(mode="after")
    def _every_option_acts(self) -> Generate:
        fields = type(self).model_fields
        for name, generators in _OPTIONS_OF.items():
            if self.generator not in generators and getattr(self, name) != fields[name].get_default():
                raise ValueError(f"`{name}` acts in {', '.join(generators)} and not in {self.generator}")
        if (self.user_teacher is None) == (self.generator == "dialogue" and self.dialogue_form == "two_teachers"):
            raise ValueError("`user_teacher` and `dialogue_form: two_teachers` go together")
        if self.chunk_overlap >= self.chunk_characters:
            raise ValueError("`chunk_overlap` must be smaller than `chunk_characters`")
        return self


_OPTIONS_OF: dict[str, tuple[str, ...]] = {
    "files": ("responses", "back_translate", "documents"),
    "dialogue_form": ("dialogue",),
    "dialogue_topics": ("dialogue",),
    "turns": ("magpie",),
    "follow_up_system": ("magpie",),
    "min_score": ("back_translate",),
    "score_rounds": ("back_translate",),
    "augmented_system_prompt": ("back_translate",),
    "max_rounds": ("dialogue", "evolve"),
    "answer_check": ("maths",),
    "num_votes": ("maths",),
    "min_agreement": ("maths",),
    "operations": ("evolve",),
    "target_language": ("translate",),
    "reanswer": ("translate",),
    "chunk_characters": ("documents",),
    "chunk_overlap": ("documents",),
}
"""Parameters of `generate` that act in some generators only; elsewhere they are refused by name."""
