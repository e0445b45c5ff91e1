"""What a chat template writes for any texts, found by rendering it once with stand-ins for them.

A stand-in can be written, joined to other text, trimmed, and asked whether it is empty or a string; whatever else a template does
with it ends the trace. So where a trace comes to its end, the template cannot have looked inside the texts, and what it wrote is
what it writes for all other texts that are not empty. Knows nothing of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import _compile_jinja_template

_OPEN, _CLOSE = "\U0010fe50", "\U0010fe51"  # private use: no template writes them by itself
_MARK = re.compile(f"{_OPEN}([0-9]+)(t?){_CLOSE}")
_CAPTURES = (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock, nodes.Block, nodes.Include)
_CHANGES = ("strftime_now", "lipsum", "random")  # what may be written otherwise the next time
_IS = {"defined": True, "undefined": False, "string": True, "none": False, "mapping": False, "number": False}
_IS |= {"iterable": True, "sequence": True, "true": False, "false": False, "boolean": False}


class _LookedInside(Exception):
    """The template did something with a text that has another outcome for another text."""


@dataclass(frozen=True)
class Slot:
    """Where the content of a message stands; trimmed: without white space at its ends."""

    message: int
    trimmed: bool


@dataclass(frozen=True)
class Skeleton:
    """Text of the template and slots in turn: literals[0], slots[0], literals[1] ... literals[-1]."""

    literals: tuple[str, ...]
    slots: tuple[Slot, ...]


class Tracer:
    """Traces of one template. None of them is kept here."""

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        self._variables = dict(variables)
        self._template = None
        original: ImmutableSandboxedEnvironment = _compile_jinja_template(source).environment  # type: ignore[assignment]
        tree = original.parse(source)
        if any(word in source for word in (*_CHANGES, _OPEN, _CLOSE)) or not _is_plain(tree):
            return
        if any(mark in str(value) for value in self._variables.values() for mark in (_OPEN, _CLOSE)):
            return
        environment = original.overlay()
        environment.filters = {name: _filter(name, each) for name, each in original.filters.items()}
        environment.tests = {name: _test(name, each) for name, each in original.tests.items()}
        self._template = environment.from_string(source)

    def trace(self, roles: Sequence[str], *, add_generation_prompt: bool) -> Skeleton | None:
        """What is written for messages of these roles that hold nothing but a text; None where that is not known."""
        if self._template is None:
            return None
        messages = [{"role": role, "content": _Text((Slot(index, False),))} for index, role in enumerate(roles)]
        try:
            written = self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            )
        except Exception:  # noqa: BLE001 - a template may do anything; then it is rendered as it is, which names its error
            return None
        pieces = _MARK.split(written)
        slots = tuple(
            Slot(int(number), trimmed == "t") for number, trimmed in zip(pieces[1::3], pieces[2::3], strict=True)
        )
        literals = tuple(pieces[0::3])
        return None if any(_OPEN in each or _CLOSE in each for each in literals) else Skeleton(literals, slots)


class _Text:
    """A stand-in: literal text and slots."""

    __slots__ = ("_parts",)

    def __init__(self, parts: tuple[str | Slot, ...]) -> None:
        self._parts = parts

    def __add__(self, other: object) -> _Text:
        if isinstance(other, _Text):
            return _Text((*self._parts, *other._parts))
        return _Text((*self._parts, _literal(other)))

    def __radd__(self, other: object) -> _Text:
        return _Text((_literal(other), *self._parts))

    def __str__(self) -> str:
        return "".join(part if isinstance(part, str) else _marked(part) for part in self._parts)

    def __bool__(self) -> bool:
        return True

    def strip(self) -> _Text:
        """Of one slot alone: what joins it may be white space too."""
        if len(self._parts) != 1 or not isinstance(self._parts[0], Slot):
            raise _LookedInside
        return _Text((Slot(self._parts[0].message, True),))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _LookedInside(name)

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise _LookedInside

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __getitem__ = _refuse  # type: ignore[assignment]
    __len__ = __iter__ = __hash__ = __format__ = __mod__ = __rmod__ = __mul__ = __rmul__ = __repr__ = _refuse  # type: ignore[assignment]


def _marked(slot: Slot) -> str:
    return f"{_OPEN}{slot.message}{'t' if slot.trimmed else ''}{_CLOSE}"


def _literal(other: object) -> str:
    if type(other) is not str:
        raise _LookedInside
    return other


def _filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that knows stand-ins, and lets none of them through as plain text."""

    def checked(*args: Any, **options: Any) -> Any:
        texts = [value for value in (*args, *options.values()) if isinstance(value, _Text)]
        if texts:
            if name == "trim" and args[-1] is texts[0] and not options:
                return texts[0].strip()
            if name == "string":
                return texts[0]
            if name not in ("default", "d"):
                raise _LookedInside(name)
        result = function(*args, **options)
        if isinstance(result, str) and _OPEN in result:
            raise _LookedInside(name)
        return result

    for kind in ("jinja_pass_arg",):
        if hasattr(function, kind):
            setattr(checked, kind, getattr(function, kind))
    return checked


def _test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*args: Any, **options: Any) -> Any:
        if any(isinstance(value, _Text) for value in (*args, *options.values())):
            if name not in _IS or len(args) != 1:
                raise _LookedInside(name)
            return _IS[name]
        return function(*args, **options)

    if hasattr(function, "jinja_pass_arg"):
        checked.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return checked


def _is_plain(tree: nodes.Template) -> bool:
    """Whether what is written goes to the output alone: never into a name or a test as plain text."""
    if any(True for _ in tree.find_all(_CAPTURES)):
        return False
    written = [each for output in tree.find_all(nodes.Output) for each in output.nodes]
    joined = list(tree.find_all(nodes.Concat))
    if any(not any(each is top for top in written) for each in joined):
        return False
    # `"%s" % text` makes plain text of a stand-in; a remainder of numbers does not.
    return all(isinstance(each.right, nodes.Const) for each in tree.find_all(nodes.Mod))
