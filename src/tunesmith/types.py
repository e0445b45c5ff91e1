"""Everything that flows between stages. pydantic where a person, a disk or a socket is on the other side;
dataclasses where tensors or folders are. Knows nothing of how any of it is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.hashing import digest_json

Role = Literal["system", "user", "assistant", "tool"]
Split = Literal["train", "test"]
FinishReason = Literal["stop", "length", "tool_calls", "error"]


class Record(BaseModel):
    """A value that lives on disk as one JSON object. Unknown fields are an error, so a typo is never lost."""

    model_config = ConfigDict(extra="forbid")


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str = ""
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    weight: Literal[0, 1] | None = None  # 0: a turn of the assistant that is shown and not learnt; None = 1
    condition: str | None = None  # C-RLFT: what the role header says of the source, in templates that write it


class Conversation(Record):
    """A list of messages with its origin. `id` is a digest of the messages, so equal conversations have equal ids.

    `origin` groups rows that descend from the same example (a seed and its paraphrases); a split never cuts a group.
    `split` is set where it was decided before any teacher saw the row, None where curate decides.
    """

    id: str = ""
    messages: list[Message]
    source: str = ""  # "seeds.jsonl:41", "self_instruct:openai:gpt-x"
    origin: str = ""
    split: Split | None = None
    licence: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    def model_post_init(self, _context: Any) -> None:
        if not self.id:
            self.id = conversation_id(self.messages)
        if not self.origin:
            self.origin = self.id

    @property
    def prompt(self) -> list[Message]:
        """The messages before the last assistant turn (all of them where the last turn is not the assistant's)."""
        return self.messages[:-1] if self.messages and self.messages[-1].role == "assistant" else list(self.messages)

    @property
    def reply(self) -> str | None:
        """Text of the last assistant turn, None where the conversation does not end in one."""
        return self.messages[-1].content if self.messages and self.messages[-1].role == "assistant" else None

    @property
    def place(self) -> str:
        """Where to find the row, for people: its source (its id without one), and of a generated row the teacher's request."""
        request = self.metadata.get("request")
        return f"{self.source or self.id}, request {request}" if isinstance(request, int) else self.source or self.id


def conversation_id(messages: list[Message]) -> str:
    """First 16 hex digits of the digest of the messages."""
    return digest_json([message.model_dump(exclude_none=True) for message in messages])[:16]


class Excluded(Record):
    """A row that did not go on, with the reason. Every input row ends as kept, rejected or failed."""

    reason: str  # machine-readable: "rouge_l", "schema", "bad_row"
    detail: str = ""  # for people: what was found and what was expected
    where: str = ""  # "seeds.jsonl:41"
    field: str | None = None
    conversation: Conversation | None = None
    raw: Any = None  # the row as it was found, where it is no conversation


class Task(Record):
    """What the model is for. Travels with the data from ingest to the exported model."""

    description: str | None = None
    system_prompt: str | None = None
    output_schema: dict[str, Any] | None = None


class Preference(Record):
    """Two answers to one prompt, the better one first. `id`, `origin` and `split` as in Conversation."""

    id: str = ""
    prompt: list[Message]
    chosen: str
    rejected: str
    source: str = ""
    scores: dict[str, float] = Field(default_factory=dict)
    origin: str = ""
    split: Split | None = None
    licence: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    def model_post_init(self, _context: Any) -> None:
        if not self.id:
            self.id = digest_json([conversation_id(self.prompt), self.chosen, self.rejected])[:16]
        if not self.origin:
            self.origin = self.id


class Labelled(Record):
    """One answer to a prompt with a thumb up or down (KTO). `id`, `origin` and `split` as in Conversation."""

    id: str = ""
    prompt: list[Message]
    reply: str
    desirable: bool
    source: str = ""
    origin: str = ""
    split: Split | None = None
    licence: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    def model_post_init(self, _context: Any) -> None:
        if not self.id:
            self.id = digest_json([conversation_id(self.prompt), self.reply, self.desirable])[:16]
        if not self.origin:
            self.origin = self.id


class Document(Record):
    """Text without turns, for pre-training. `id`, `origin` and `split` as in Conversation."""

    id: str = ""
    text: str
    source: str = ""
    origin: str = ""
    split: Split | None = None
    licence: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    def model_post_init(self, _context: Any) -> None:
        if not self.id:
            self.id = digest_json(self.text)[:16]
        if not self.origin:
            self.origin = self.id


Example = Conversation | Preference | Labelled | Document
"""What a reader makes of a row it can read."""


class Usage(Record):
    """Tokens of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False  # counted by us because the endpoint did not say; then an upper bound


class Completion(Record):
    """One answer of an engine or a teacher. `error` is set exactly where finish_reason is "error"."""

    text: str
    finish_reason: FinishReason = "stop"
    usage: Usage = Field(default_factory=Usage)
    cost_usd: float = 0.0
    error: str | None = None
    token_ids: list[int] | None = None
    top_logprobs: list[dict[str, float]] | None = (
        None  # per token of the answer: text -> log-probability, the likeliest
    )


class Score(Record):
    """A measured value of one sample; None means unscored, never zero."""

    value: float | None
    explanation: str = ""


class Sample(Record):
    """One test row with the answers of every contestant side by side."""

    id: str
    messages: list[Message]  # the prompt
    reference: str
    completions: dict[str, Completion] = Field(default_factory=dict)  # contestant -> answer
    scores: dict[str, dict[str, Score]] = Field(default_factory=dict)  # contestant -> metric -> score


class SamplingParams(Record):
    """How an answer is drawn. temperature 0 = greedy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)  # 0 = off
    min_p: float = Field(default=0.0, ge=0, le=1)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    stop: tuple[str, ...] = ()
    rng_seed: int | None = None
    json_schema: dict[str, Any] | None = None
    top_logprobs: int | None = Field(
        default=None, ge=1, le=20
    )  # alternatives wanted per token, where the teacher has them


class TeacherRequest(Record):
    """One request to a teacher. `key` identifies it for ever: the same key is never paid twice."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    messages: tuple[Message, ...]
    sampling: SamplingParams
    sample_index: int = 0  # tells apart several draws of the same prompt
    prefix_only: Literal[True] | None = None  # continue the header of a user turn (Magpie); local teachers alone can

    def key(self, teacher: str) -> str:
        """Digest of the teacher's identity and everything that can change the answer."""
        return digest_json([teacher, self.model_dump(mode="json", exclude_none=True)])


class FileEntry(Record):
    """One file of an artifact."""

    sha256: str
    size_bytes: int


class Manifest(Record):
    """The last file written into an artifact; its presence means the artifact is whole."""

    kind: str
    stage: str
    stage_version: int
    key: str  # digest of (stage, version, section, input digests): what was asked
    digest: str  # digest of the files' digests and the facts: what came out
    section: dict[str, Any]
    inputs: dict[str, str]  # input name -> digest
    counts: dict[str, int]
    facts: dict[str, Any]  # what later stages need to know about this artifact
    files: dict[str, FileEntry]  # path inside the folder -> entry; logs/ is listed but not part of the digest
    provenance: dict[str, Any]  # versions, machine, seconds: never part of a digest


@dataclass(frozen=True)
class Artifact:
    """A committed folder and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage recorded for later stages."""
        return self.manifest.facts

    def file(self, name: str) -> Path:
        """Path of one file of the artifact."""
        return self.path / name


@dataclass(frozen=True)
class Inputs:
    """What a stage may read: finished artifacts by stage name, and files named in its section by the name as written."""

    artifacts: dict[str, Artifact]
    files: dict[str, Path]

    def __getitem__(self, stage: str) -> Artifact:
        return self.artifacts[stage]

    def __contains__(self, stage: str) -> bool:
        return stage in self.artifacts


class Outcome(NamedTuple):
    """What a stage returns: counts for people, facts for the stages that come after."""

    kind: str
    counts: dict[str, int]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model sees it. All tuples have the same length T.

    owner[i]: index of the message that token i belongs to, -1 for text of the template between messages.
    loss_mask[i]: token i is a training target (the model is asked to predict it).
    segment_ids[i]: which packed sample token i belongs to (all 0 before packing).
    """

    input_ids: tuple[int, ...]  # (T,)
    owner: tuple[int, ...]  # (T,)
    loss_mask: tuple[bool, ...]  # (T,)
    segment_ids: tuple[int, ...]  # (T,)
    stop_ids: tuple[int, ...]  # ids that end an assistant turn
    template_digest: str
    text: str = ""
