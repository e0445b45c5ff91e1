"""What a request may say: OpenAI's chat completions and completions. Every parameter acts or is refused by its name."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tunesmith.chat.conditions import MAX_CHARACTERS, PATTERN
from tunesmith.server.responses import RequestError, from_validation, shorten

MAX_CHOICES = 16
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
MAX_PROMPTS = 64
MAX_SCHEMA_BYTES = 64 << 10

Form = TypeVar("Form", bound="Sampling")

# Parameters of OpenAI that this server does not have, and the values that ask for nothing.
_NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": (),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"expected a number, found {str(value).lower()}")
    return value


Number = Annotated[float, BeforeValidator(_no_bool)]
Count = Annotated[int, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]


class Strict(BaseModel):
    """Base: unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid")


class TextPart(Strict):
    type: Literal["text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        kind = cast("dict[str, Any]", value).get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise ValueError(f"parts of type {shorten(kind, 80)!r} are not supported: this server reads text alone")
        return value


class ChatMessage(Strict):
    """One message. `developer` means system."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    name: Text | None = None

    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Strict):
    include_usage: Flag | None = None
    include_obfuscation: Literal[False] | None = None


class JsonSchemaFormat(Strict):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: dict[str, Any] = Field(alias="schema")
    description: Text | None = None
    strict: Flag | None = None


class ResponseFormat(Strict):
    """text, any JSON object, or JSON of a schema (enforced while decoding, whatever `strict` says)."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_goes_with_its_type(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("type 'json_schema' and the field json_schema go together")
        return self

    def wanted_schema(self) -> dict[str, Any] | None:
        """The schema answers must have, None for free text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class Sampling(Strict):
    """What both endpoints share."""

    model: Text
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    max_tokens: Annotated[Count, Field(ge=1)] | None = None
    metadata: dict[str, Any] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    n: Annotated[Count, Field(ge=1, le=MAX_CHOICES)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    seed: Annotated[Count, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[
            list[Annotated[str, Field(strict=True, min_length=1, max_length=1000)]],
            BeforeValidator(_as_list),
            Field(max_length=MAX_STOPS),
        ]
        | None
    ) = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_k: Annotated[Count, Field(ge=-1, le=1_000_000)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    user: Text | None = None

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    condition: Annotated[str, Field(strict=True, max_length=MAX_CHARACTERS, pattern=PATTERN)] | None = None
    logprobs: Flag | None = None
    max_completion_tokens: Annotated[Count, Field(ge=1)] | None = None
    parallel_tool_calls: Flag | None = None
    prompt_cache_key: Text | None = None
    response_format: ResponseFormat | None = None
    safety_identifier: Text | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    top_logprobs: Annotated[Count, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _belongs_together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens and max_completion_tokens say different things; send one")
        return self


class CompletionRequest(Sampling):
    """POST /v1/completions: text or token ids, one or several prompts."""

    prompt: (
        Text
        | Annotated[list[Annotated[int, Field(strict=True, ge=0)]], Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[
            list[Annotated[list[Annotated[int, Field(strict=True, ge=0)]], Field(min_length=1)]],
            Field(min_length=1, max_length=MAX_PROMPTS),
        ]
    )
    echo: Flag | None = None
    logprobs: Annotated[Count, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]


def parse_request(body: dict[str, Any], form: type[Form]) -> Form:
    """Check a body against a form. Raises RequestError 400 that names the parameter."""
    kept = {key: value for key, value in body.items() if not _asks_for_nothing(key, value)}
    fields = {field.alias or name for name, field in form.model_fields.items()}
    for key in kept:
        if key in _NOT_OFFERED and key not in fields:
            raise RequestError(400, f"{key!r} is not supported by this server", param=key, code="unsupported_parameter")
        if key not in fields:
            name = shorten(key, 80)
            raise RequestError(400, f"unknown parameter: {name!r}", param=name, code="unknown_parameter")
    try:
        return form.model_validate(kept)
    except ValidationError as error:
        raise _named(error, kept) from None


def _asks_for_nothing(key: str, value: Any) -> bool:
    return key in _NOT_OFFERED and (value is None or value in _NOT_OFFERED[key])


def _named(error: ValidationError, body: dict[str, Any]) -> RequestError:
    """A complaint about several parameters together is filed under the first one its text names."""
    found = error.errors(include_url=False)[0]
    if found["loc"]:
        return from_validation(error, body)
    message = found["msg"].removeprefix("Value error, ")
    return RequestError(400, message, param=message.split()[0], code="invalid_value")


def effective_top_p(top_p: float | None) -> float:
    """OpenAI allows 0, which keeps the likeliest token alone; engines want a number above it."""
    return 1.0 if top_p is None else max(top_p, math.ulp(1.0))
