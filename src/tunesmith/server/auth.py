"""Who may call: API keys, Host names, Origins. Keys are held as digests only and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from tunesmith.errors import RecipeError, StoreError
from tunesmith.server.responses import RequestError, shorten
from tunesmith.server.settings import LOOPBACK_NAMES, ServerSettings

_MIN_KEY_LENGTH = 8


class KeyRing:
    """The accepted keys. Empty = everybody on this machine may call."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __repr__(self) -> str:
        return f"KeyRing({len(self._digests)} keys)"

    def identify(self, authorization: str | None) -> str:
        """A name for the caller's key (never the key). Raises RequestError 401 where it is missing or wrong."""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _unauthorized("no API key: send the header 'Authorization: Bearer KEY'")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]  # every one, always
        if not any(matches):
            raise _unauthorized("the API key is not known here")
        return given.hex()[:12]


def load_keys(settings: ServerSettings, environ: Mapping[str, str] | None = None) -> KeyRing:
    """Read the keys that the settings name. Raises RecipeError for an unset variable, or for none where one is needed."""
    environ = os.environ if environ is None else environ
    keys: list[str] = []
    for name in settings.api_key_envs:
        value = environ.get(name, "").strip()
        if not value:
            raise RecipeError(
                f"the environment variable {shorten(name, 80)} is not set or empty",
                where="api_key_envs",
                hint=f"export {shorten(name, 80)}=... (give the NAME of the variable, not the key)",
            )
        keys.append(value)
    if settings.api_key_file is not None:
        try:
            lines = settings.api_key_file.read_text("utf-8").splitlines()
        except OSError as error:
            raise StoreError(f"cannot read the file of API keys: {error.strerror}", where="api_key_file") from error
        keys += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not keys:
            raise RecipeError("the file of API keys holds none", where="api_key_file")
    if any(len(key) < _MIN_KEY_LENGTH for key in keys):
        raise RecipeError(f"an API key is shorter than {_MIN_KEY_LENGTH} characters", hint="use a long random one")
    if settings.beyond_this_machine and not keys:
        raise RecipeError(
            f"refusing to listen on {settings.host} without an API key: every machine that reaches it could use the model",
            where="host",
            hint="set a key in an environment variable and name it (--api-key-env NAME), or listen on 127.0.0.1",
        )
    return KeyRing(keys)


class Doorman:
    """Refuses calls that a web page of another site could make a browser send (DNS rebinding, cross-site requests)."""

    def __init__(self, settings: ServerSettings) -> None:
        self._names = {name.lower() for name in (*LOOPBACK_NAMES, settings.host, *settings.allowed_hosts)}
        self._any_address = settings.beyond_this_machine  # an address cannot be rebound, a name can
        self._origins = {origin.rstrip("/").lower() for origin in settings.cors_origins}

    def check_host(self, host: str | None) -> None:
        """Raises RequestError 403 for a Host header by which nobody is meant to call this server."""
        name = host_name(host or "")
        if name in self._names or (self._any_address and _is_address(name)):
            return
        raise RequestError(
            403,
            f"the host name {shorten(name, 100)!r} is not served here; `tunesmith serve --allowed-host NAME` adds one",
            code="host_not_allowed",
        )

    def is_allowed_origin(self, origin: str) -> bool:
        """Whether pages of this origin may read answers (the CORS list; empty by default)."""
        return origin.rstrip("/").lower() in self._origins

    def check_origin(self, origin: str | None, host: str | None, fetch_site: str | None) -> None:
        """Raises RequestError 403 for a state-changing call from a page of another site."""
        if origin is None:
            if fetch_site in ("cross-site", "same-site"):
                raise _foreign("another site")
            return
        own = (host or "").lower()
        if self.is_allowed_origin(origin) or urlsplit(origin).netloc.lower() == own:
            return
        raise _foreign(shorten(origin, 100))


def host_name(host: str) -> str:
    """The name in a Host header, without its port and brackets, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _foreign(origin: str) -> RequestError:
    return RequestError(
        403,
        f"pages of {origin!r} may not call this server; `tunesmith serve --cors-origin ORIGIN` allows one",
        code="origin_not_allowed",
    )


def _unauthorized(message: str) -> RequestError:
    return RequestError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": 'Bearer realm="tunesmith"'})
