"""What differs between OpenAI-compatible endpoints, and what their refusals mean: the outcome of one attempt, the form
of the request body, statuses. Sends nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from tunesmith.errors import TeacherError
from tunesmith.types import Completion, TeacherRequest

MOST_LOGPROBS = 20
"""OpenAI's bound of `top_logprobs`."""

FEWER_LOGPROBS = 5
"""What servers allow that allow less: the bound of OpenAI's older endpoint, and of vLLM's first default."""

NO_LOGPROBS = "gives no log-probabilities: answers are read from their text alone"

NO_PREFIX = "an endpoint writes answers and cannot continue the header of a user turn (prefix_only); a teacher of kind local can"


@dataclass
class Attempt:
    """Outcome of one POST."""

    kind: Literal["answered", "retry", "failed"]
    message: str = ""
    completion: Completion | None = None
    retry_after: float | None = None  # seconds the endpoint asked for
    maybe_billed: bool = False  # the endpoint may have made (and charged for) an answer that did not reach us
    unreachable: bool = False  # no connection came about
    refused: bool = False  # for sending too much (429)
    raw: bytes | None = None  # what the endpoint said beside the text


class Dialect:
    """The parameters an endpoint takes. Starts with the common form and learns from refusals, once for each parameter."""

    def __init__(self) -> None:
        self._without: set[str] = set()  # parameters that this endpoint does not take
        self._max_tokens = "max_tokens"
        self._most_logprobs = MOST_LOGPROBS

    def body(self, model: str, request: TeacherRequest) -> dict[str, Any]:
        """The JSON body of a request. Parameters beyond OpenAI's own are sent only where they are set."""
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": model,
            "messages": [message.model_dump(exclude_none=True, exclude={"weight"}) for message in request.messages],
            self._max_tokens: sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        for name in ("top_k", "min_p", "frequency_penalty", "presence_penalty"):
            if value := getattr(sampling, name):
                body[name] = value
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.rng_seed is not None:
            body["seed"] = sampling.rng_seed
        if sampling.top_logprobs is not None:
            body["logprobs"], body["top_logprobs"] = True, min(sampling.top_logprobs, self._most_logprobs)
        if sampling.json_schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": sampling.json_schema, "strict": False},
            }
        return {name: value for name, value in body.items() if name not in self._without} if self._without else body

    def adapt(self, body: Mapping[str, Any], message: str) -> str | None:
        """Learn from a 400 that names a parameter. What will be done from now on, in words; None = nothing can be.

        A schema or a seed is left out (the answer is checked anyway), temperature and top_p only where they are 1,
        which is what an endpoint without them does. Log-probabilities become fewer and are then left out: who asked for them reads
        the text instead. Anything else would change what was asked for.
        """
        if "max_tokens" in body and "max_completion_tokens" in message:
            self._max_tokens = "max_completion_tokens"
            return "takes `max_completion_tokens` and no `max_tokens`"
        if "logprobs" in body and "logprobs" in message:
            if body["top_logprobs"] > FEWER_LOGPROBS and "top_logprobs" in message:
                self._most_logprobs = FEWER_LOGPROBS
                return f"refuses {body['top_logprobs']} log-probabilities a token and is asked for {FEWER_LOGPROBS}"
            self._without |= {"logprobs", "top_logprobs"}
            return NO_LOGPROBS
        droppable = {"response_format", "seed"} | {name for name in ("temperature", "top_p") if body.get(name) == 1}
        for name in sorted(droppable & body.keys()):
            if name in message or (name == "response_format" and "json_schema" in message):
                self._without.add(name)
                return f"does not take `{name}` and is asked without it"
        return None

    def has_learnt(self, message: str) -> bool:
        """Whether a refusal is one of a body that was written before an earlier `adapt`."""
        renamed = self._max_tokens != "max_tokens" and self._max_tokens in message
        fewer = self._most_logprobs != MOST_LOGPROBS and "top_logprobs" in message
        return renamed or fewer or any(name in message for name in self._without)


def explain_refusal(status: int, message: str, location: str | None, model: str, url: str) -> TeacherError | None:
    """The error for a refusal that every further request would meet too; None for all others."""
    hints = {
        401: "is the key in the variable `api_key_env` names right?",
        402: "the account has no credit left",
        403: "the key may not use this model or endpoint",
        404: f"does the endpoint have the model {model!r}, and does `base_url` end in /v1?",
        405: "`base_url` is not that of a chat completions endpoint",
    }
    if status in hints:
        return TeacherError(f"the endpoint refused with HTTP {status}: {message}", where=url, hint=hints[status])
    if 300 <= status < 400:
        target = public_url(location) if location else "another address"
        return TeacherError(f"the endpoint redirects to {target}", where=url, hint="write that address as `base_url`")
    if status == 429 and "insufficient_quota" in message:
        return TeacherError(f"the quota is used up: {message}", where=url, hint="look at the account's billing page")
    return None


def public_url(url: str) -> str:
    """A URL without user, password, query and fragment, any of which may hold a secret."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}" if parts.scheme else parts.path.rstrip("/")
