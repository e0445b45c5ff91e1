"""What a chat template does, found by rendering a few short conversations with it once, before any data is touched.

Owns: which strings end a turn, which strings are control tokens, whether earlier turns are rewritten, whether a system
message has a place. Each is a question users otherwise meet as a model that never stops or answers gibberish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tunesmith.chat.template import FOLD_SYSTEM, ChatTemplate, Located
from tunesmith.chat.templates import BUILTIN_TEMPLATES
from tunesmith.chat.tokenizer import control_pattern
from tunesmith.chat.turns import find_turns, turn_starts
from tunesmith.errors import DataError, ModelError
from tunesmith.types import Message

_SYSTEM = Message(role="system", content="Rules apply.")
_ASK = Message(role="user", content="Ping?")
_TELL = Message(role="assistant", content="Pong!")
_AGAIN = Message(role="user", content="Once more?")
_THOUGHTS = (
    Message(role="assistant", content="<think>\nHm, Ping.\n</think>\n\nPong!"),
    Message(role="assistant", content="Pong!", reasoning="Hm, Ping."),
)


@dataclass(frozen=True)
class TemplateTraits:
    """template: as used (with the folding preamble where one was needed). stops: strings that end an assistant turn.
    control: strings that are control tokens where the template writes them. The rest as the names say."""

    template: ChatTemplate
    stops: tuple[str, ...]
    control: frozenset[str]
    prefix_stable: bool
    folds_system: bool
    takes_system: bool
    shows_reasoning: bool
    reads_clock: bool


def probe(tokenizer: PreTrainedTokenizerFast, source: str) -> TemplateTraits:
    """Raises ModelError where the template is no jinja, refuses a plain question and answer, writes a generation
    prompt it does not write in training, or ends an answer without a token of the tokenizer."""
    variables = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    template = ChatTemplate(source, variables)
    located = _first_answer(template)
    folds = not _renders(template, [_SYSTEM, _ASK])
    if folds:
        folding = ChatTemplate(FOLD_SYSTEM + source, variables)
        folds = _renders(folding, [_SYSTEM, _ASK])
        template = folding if folds else template
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    stop = _stop(located, added)
    takes_system = _renders(template, [_SYSTEM, _ASK])
    return TemplateTraits(
        template=template,
        stops=(stop,),
        control=frozenset(special | {stop} | _structure(template, added, stop, takes_system)),
        prefix_stable=_is_prefix_stable(template, stop, takes_system),
        folds_system=folds,
        takes_system=takes_system,
        shows_reasoning="Hm, Ping." in _text(template, [_ASK, _THOUGHTS[1]]),
        reads_clock=template.reads_clock,
    )


def _first_answer(template: ChatTemplate) -> Located:
    """A question and an answer, rendered; and the law that training starts an answer where the prompt ends."""
    try:
        located = template.locate([_ASK, _TELL], add_generation_prompt=False)
        prompt = template.render([_ASK], add_generation_prompt=True)
    except DataError as error:
        raise ModelError(
            f"the chat template cannot render a question and an answer: {error.message}",
            hint="name another with `tokenize.chat_template`",
        ) from error
    if not located.text.startswith(prompt):
        raise ModelError(
            f"the chat template prompts for an answer with {prompt[-60:]!r}, but writes a given answer as "
            f"{located.text[-80:]!r}: the model would be trained on another prompt than it meets",
            hint="name another with `tokenize.chat_template`, or edit it so that the second begins with the first",
        )
    return located


def _stop(located: Located, added: set[str]) -> str:
    """The string that ends an answer: the first token of its own after the text."""
    end = located.ends.get(1, located.text.rfind(_TELL.content) + len(_TELL.content))
    found = control_pattern(added).search(located.text, end)
    if found is None:
        eos_based = ", ".join(template.name for template in BUILTIN_TEMPLATES.values() if template.stop is None)
        raise ModelError(
            f"the chat template ends an answer with {located.text[end:]!r}, which holds no token of this tokenizer, so "
            "the model could not learn to stop",
            hint="add the token (base_model.add_tokens), or choose a template that ends an answer with the tokenizer's own "
            f"end-of-sequence token: {eos_based}",
        )
    return found.group()


def _structure(template: ChatTemplate, added: set[str], stop: str, takes_system: bool) -> set[str]:
    """Added tokens, special or not, that the template itself writes outside what the model writes."""
    messages = [_ASK, _TELL, _AGAIN, _TELL]
    if takes_system:
        messages.insert(0, _SYSTEM)
    pattern = control_pattern(added)
    try:
        located = template.locate(messages, add_generation_prompt=False)
        starts = turn_starts(template, messages, located, is_prompt=False, prefix_stable=False)
        turns = find_turns(located, list(starts), starts, control_pattern({stop}))
    except DataError:  # a template for one question and one answer
        return set(pattern.findall(_text(template, [_ASK])))
    covered = [(turn.start, turn.end) for turn in turns]
    return {
        match.group()
        for match in pattern.finditer(located.text)
        if not any(start <= match.start() < end for start, end in covered)
    }


def _is_prefix_stable(template: ChatTemplate, stop: str, takes_system: bool) -> bool:
    """Whether a turn is written the same when more turns follow, thoughts and a system message included."""
    stops = control_pattern({stop})
    for answer in (_TELL, *_THOUGHTS):
        for head in ([_SYSTEM], []) if takes_system else ([],):
            alone, followed = [*head, _ASK, answer], [*head, _ASK, answer, _AGAIN, _TELL]
            try:
                text = template.render(alone, add_generation_prompt=False)
                longer = template.render(followed, add_generation_prompt=False)
                prompt = template.render([*head, _ASK], add_generation_prompt=True)
            except DataError:  # it takes one turn only: nothing ever follows
                continue
            ends = [match.end() for match in stops.finditer(text, len(prompt))]
            if not ends or not longer.startswith(text[: ends[0]]):
                return False
    return True


def _renders(template: ChatTemplate, messages: Sequence[Message]) -> bool:
    """Whether the template takes the messages and leaves none out."""
    try:
        template.locate(messages, add_generation_prompt=True)
    except DataError:
        return False
    return True


def _text(template: ChatTemplate, messages: Sequence[Message]) -> str:
    try:
        return template.render(messages, add_generation_prompt=False)
    except DataError:
        return ""
