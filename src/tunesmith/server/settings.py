"""How the gateway listens and what it allows: every figure of the server, declared once."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?/?")


def _origin(value: str) -> str:
    if not _ORIGIN.fullmatch(value):
        raise ValueError(f"expected scheme://host or scheme://host:port, such as https://app.example, found {value!r}")
    return value


def _allowed_host(value: str) -> str:
    bare = value.removeprefix("[").removesuffix("]")
    if not (re.fullmatch(r"[A-Za-z0-9._-]+", bare) or _is_address(bare)):
        raise ValueError(f"expected a host name without scheme, port and path, such as desk.example, found {value!r}")
    return bare


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


Origin = Annotated[str, AfterValidator(_origin)]
AllowedHost = Annotated[str, AfterValidator(_allowed_host)]


class ServerSettings(BaseModel):
    """Settings of one server. Secrets are named, never held: keys come from environment variables or a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address to listen on; one beyond this machine needs a key."""

    port: int = Field(default=18888, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""

    api_key_envs: tuple[str, ...] = ()
    """NAMES of environment variables that hold accepted keys."""

    api_key_file: Path | None = None
    """File of accepted keys, one a line; lines that start with # are skipped."""

    cors_origins: tuple[Origin, ...] = ()
    """Origins whose pages may call from a browser, such as https://app.example; none = no page of another site."""

    allowed_hosts: tuple[AllowedHost, ...] = ()
    """Host names clients may call this server by, besides the address it listens on."""

    use_system_prompt: bool = True
    """Put the model's own system prompt before requests that have no system message."""

    chat_page: bool = True
    """Show the chat page at /."""

    max_queue: int = Field(default=64, ge=0)
    """Answers that may wait for a free slot; the next request gets 503."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests of one key (without keys: of one address) per minute; the next one gets 429."""

    max_body_bytes: int = Field(default=8 << 20, ge=1024)
    """Largest request body."""

    max_header_bytes: int = Field(default=64 << 10, ge=1024)
    """Largest request header."""

    max_json_depth: int = Field(default=64, ge=4)
    """Deepest nesting of a request body."""

    body_timeout_seconds: float = Field(default=30, gt=0)
    """Longest wait for a request body to arrive."""

    write_timeout_seconds: float = Field(default=60, gt=0)
    """A reader that takes nothing for this long is cut off."""

    drain_timeout_seconds: float = Field(default=30, ge=0)
    """On shutdown, how long answers may go on before they are ended with an error."""

    @property
    def beyond_this_machine(self) -> bool:
        """Whether other machines can reach the server."""
        if self.host in LOOPBACK_NAMES:
            return False
        try:
            return not ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return True


class EngineSettings(BaseModel):
    """What a served engine may use. Which engine it is, is not said here."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    slots: int = Field(default=8, ge=1, le=1024)
    """Answers computed side by side; llama.cpp has at most 256."""

    context_length: int | None = Field(default=None, ge=16)
    """Tokens of one request, prompt and answer; none = 4,096 on llama.cpp (less where the model was trained for less),
    all the model was trained for on vLLM."""

    engine_args: tuple[str, ...] = ()
    """More arguments of vLLM's own server, such as --enforce-eager."""
