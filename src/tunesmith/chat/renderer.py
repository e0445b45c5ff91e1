"""The one road from messages to tokens: text, ids, owner of each token, loss mask and stop ids, for training,
evaluation, serving and export alike.

Laws (each a test in tests/chat/test_renderer.py): no user or system token is a target unless asked, and none of a turn of
weight 0; every supervised turn ends in a supervised stop id; a sample with no target is an error; control strings typed
by a person are plain text; what stands before an assistant turn in training has the ids of the prompt at inference;
nothing is added to what the template wrote, so a beginning-of-sequence token never comes twice. Padding does not exist
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from tunesmith.chat.probing import TemplateTraits, probe
from tunesmith.chat.shaped import RenderedArrays, render_shaped
from tunesmith.chat.shapes import Shapes
from tunesmith.chat.template import Located
from tunesmith.chat.templates import BUILTIN_TEMPLATES
from tunesmith.chat.tokenizer import Encoded, TextEncoder, Written, control_pattern, load_tokenizer
from tunesmith.chat.tracing import Tracer
from tunesmith.chat.turns import Turn, assistant_indices, find_turns, plain_ranges, turn_starts
from tunesmith.errors import DataError, ModelError, RecipeError, TemplateMismatch
from tunesmith.hashing import digest_text
from tunesmith.protocols import Prompt
from tunesmith.types import Message, Rendered

SUPERVISE = ("all_turns", "last_turn", "everything")


@dataclass(frozen=True)
class _Planned:
    located: Located
    turns: tuple[Turn, ...]
    written: Written
    silent: frozenset[int] = frozenset()  # messages of weight 0


class Renderer:
    """A tokenizer with a chat template.

    template: the template's text as used; longer than the one given where a system message had to be folded into the
    first user turn. stop_ids: ids that end an assistant turn. traits: what probing the template has shown.
    Raises ModelError where the template cannot be used for training (see probing.py).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: str) -> None:
        self.tokenizer = tokenizer
        self.traits: TemplateTraits = probe(tokenizer, template)
        self.template = self.traits.template.source
        self.template_digest = digest_text(self.template)
        self._encoder = TextEncoder(tokenizer, self.traits.control)
        self.stop_ids = tuple(self._encoder.control_id(stop) for stop in self.traits.stops)
        self._stops = control_pattern(self.traits.stops)
        self._shapes = self._find_shapes()
        self._refuse_double_bos()

    @classmethod
    def for_model(cls, model_dir: Path, template: str | None = None) -> Renderer:
        """With a model folder's tokenizer, and its own template where none is given (RecipeError where it has none)."""
        tokenizer = load_tokenizer(model_dir)
        return cls(tokenizer, template if template is not None else own_template(tokenizer, model_dir))

    @property
    def prefix_stable(self) -> bool:
        """Whether an earlier turn is written as it was when it was the last one. False for templates that strip
        thoughts: there the prefix law holds for the last turn, and `last_turn` is the honest supervision."""
        return self.traits.prefix_stable

    def render(self, messages: Sequence[Message], supervise: str, *, where: str | None = None) -> Rendered:
        """A conversation as the model sees it in training. supervise: all_turns, last_turn or everything.

        `where` names the row in errors. Raises DataError where the template refuses the messages, the turns cannot be
        told apart, or no token would be a target.
        """
        (result,) = self.render_batch([messages], supervise)
        if isinstance(result, DataError):
            raise DataError(result.message, where=where, hint=result.hint) from result
        return Rendered(
            input_ids=tuple(result.input_ids.tolist()),
            owner=tuple(result.owner.tolist()),
            loss_mask=tuple(result.loss_mask.tolist()),
            segment_ids=(0,) * len(result.input_ids),
            stop_ids=self.stop_ids,
            template_digest=self.template_digest,
            text=result.text,
        )

    def render_batch(
        self, conversations: Sequence[Sequence[Message]], supervise: str
    ) -> list[RenderedArrays | DataError]:
        """render() of each, tokenised side by side; what render() would raise stands in its place."""
        if supervise not in SUPERVISE:
            raise RecipeError(
                f"supervise is {supervise!r}, expected one of {', '.join(SUPERVISE)}", where="recipe.tokenize.supervise"
            )
        shaped = self._render_shaped(conversations, supervise)
        planned: list[_Planned | DataError | RenderedArrays] = []
        for messages, done in zip(conversations, shaped, strict=True):
            if done is not None:
                planned.append(done)
                continue
            try:
                planned.append(self._plan(messages, supervise))
            except DataError as error:
                planned.append(error)
        encoded = iter(self._encoder.encode_batch([one.written for one in planned if isinstance(one, _Planned)]))
        results: list[RenderedArrays | DataError] = []
        for one in planned:
            try:
                results.append(self._assemble(one, next(encoded), supervise) if isinstance(one, _Planned) else one)
            except DataError as error:
                results.append(error)
        return results

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """The ids a model continues with the next assistant turn. Raises DataError where the template refuses."""
        return self.prompt_batch([messages])[0]

    def prompt_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Prompt]:
        """prompt() of each, tokenised side by side."""
        written = [self._plan_prompt(messages).written for messages in conversations]
        return [
            Prompt(tuple(encoded.input_ids.tolist()), self.stop_ids) for encoded in self._encoder.encode_batch(written)
        ]

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The text of prompt()."""
        return self.traits.template.render(messages, add_generation_prompt=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text a person reads: control tokens (stop ids among them) left out, nothing tidied."""
        kept = [index for index in ids if index not in self._encoder.control_ids]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _find_shapes(self) -> Shapes | None:
        """Where a text's tokens do not depend on what stands around it between control tokens and turns."""
        template, encoder = self.traits.template, self._encoder
        if not encoder.takes_segments:
            return None
        control = {text: -1 if encoder.takes_space(text) else encoder.control_id(text) for text in self.traits.control}
        return Shapes(Tracer(template.source, template.variables), control, control_pattern(control), self._stops)

    def _render_shaped(
        self, conversations: Sequence[Sequence[Message]], supervise: str
    ) -> Sequence[RenderedArrays | None]:
        if self._shapes is None or len(conversations) == 1:  # one by itself is not worth a shape
            return [None] * len(conversations)
        return render_shaped(conversations, supervise, self._shapes, self._encoder, self.stop_ids)

    def _plan(self, messages: Sequence[Message], supervise: str) -> _Planned:
        if not messages:
            raise DataError("the conversation has no messages")
        located = self.traits.template.locate(messages, add_generation_prompt=False)
        starts = turn_starts(self.traits.template, messages, located, is_prompt=False, prefix_stable=self.prefix_stable)
        plain = self._plain(messages, located, starts)
        silent = frozenset(index for index, message in enumerate(messages) if message.weight == 0)
        answers = assistant_indices(messages)
        wanted = answers[-1:] if supervise == "last_turn" else answers
        if supervise == "everything":  # the mask does not need the turns; they say whose tokens these are
            wanted = [message for message in wanted if message in starts]
        else:
            wanted = [message for message in wanted if message not in silent]
        turns = find_turns(located, wanted, starts, self._stops)
        if not turns and supervise != "everything":
            which = "every assistant turn of it" if supervise == "all_turns" else "its last assistant turn"
            why = f"{which} has weight 0" if answers else "it has no assistant turn"
            raise DataError(
                f"no token of this conversation would be a training target: {why}",
                hint="give one of its turns the weight 1, or take the row out"
                if answers
                else "give the row an answer, or take it out",
            )
        return _Planned(located, turns, Written(located.text, plain, tuple(sorted(starts.values()))), silent)

    def _plan_prompt(self, messages: Sequence[Message]) -> _Planned:
        if not messages:
            raise DataError("the conversation has no messages")
        located = self.traits.template.locate(messages, add_generation_prompt=True)
        starts = turn_starts(self.traits.template, messages, located, is_prompt=True, prefix_stable=self.prefix_stable)
        plain = self._plain(messages, located, starts)
        return _Planned(located, (), Written(located.text, plain, tuple(sorted(starts.values()))))

    def _plain(self, messages: Sequence[Message], located: Located, starts: dict[int, int]) -> list[tuple[int, int]]:
        suspicious = [
            index
            for index, message in enumerate(messages)
            if self._encoder.has_control(message.content)
            or (message.reasoning and self._encoder.has_control(message.reasoning))
            or (message.tool_calls and self._encoder.has_control(str(message.tool_calls)))
        ]
        return plain_ranges(messages, located, starts, suspicious) if suspicious else []

    def _assemble(self, planned: _Planned, encoded: Encoded, supervise: str) -> RenderedArrays:
        num_tokens = len(encoded.input_ids)
        owner = np.full(num_tokens, -1, dtype=np.int16)
        mask = np.zeros(num_tokens, dtype=np.bool_)
        for span in planned.located.spans:
            first = np.searchsorted(encoded.ends, span.start, side="right")
            owner[first : np.searchsorted(encoded.starts, span.end)] = span.message
        for turn in planned.turns:
            first, last = np.searchsorted(encoded.starts, [turn.start, turn.end])
            owner[first:last] = turn.message
            mask[first:last] = True
            if first == last or int(encoded.input_ids[last - 1]) not in self.stop_ids:
                raise DataError(f"message {turn.message} does not end in a stop token after tokenisation")
        if supervise == "everything":
            mask[:] = True
            for message in planned.silent:
                mask[owner == message] = False
        mask[:1] = False
        if not mask.any():
            raise DataError(
                "no token of this conversation would be a training target", hint="give the row a text, or take it out"
            )
        return RenderedArrays(encoded.input_ids, owner, mask, planned.located.text)

    def _refuse_double_bos(self) -> None:
        bos = self.tokenizer.bos_token_id
        ids = self.prompt([Message(role="user", content="Ping?")]).input_ids
        if bos is not None and ids[:2] == (bos, bos):
            raise ModelError(
                f"the chat template writes the beginning-of-sequence token {self.tokenizer.bos_token!r} twice",
                hint="remove one of them from the template",
            )


def own_template(tokenizer: PreTrainedTokenizerFast, model_dir: Path) -> str:
    """A tokenizer's own chat template. Raises RecipeError where it has none."""
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, by name
        template = template.get("default")
    if not template:
        raise RecipeError(
            f"the model {model_dir.name!r} has no chat template of its own",
            where="recipe.tokenize.chat_template",
            hint=f"name a built-in one ({', '.join(BUILTIN_TEMPLATES)}) or a .jinja file",
        )
    return template


def check_template(
    expected_digest: str, renderer: Renderer, *, expected_template: str | None = None, where: str | None = None
) -> None:
    """Refuse a chat template that is not the one a model was trained with.

    expected_template: its text, where at hand: the message then shows the first token that differs.
    Raises TemplateMismatch.
    """
    if renderer.template_digest == expected_digest:
        return
    difference = ""
    if expected_template is not None:
        difference = "; " + first_difference(Renderer(renderer.tokenizer, expected_template), renderer)
    raise TemplateMismatch(
        f"the chat template is {renderer.template_digest[:12]}, the model was trained with {expected_digest[:12]}"
        f"{difference}",
        where=where,
        hint="use the chat_template.jinja that lies beside the model",
    )


_EXAMPLE = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="Where is my bike?"),
    Message(role="assistant", content="On its way."),
    Message(role="user", content="Thanks"),
)


def first_difference(expected: Renderer, found: Renderer) -> str:
    """In words: the first token at which two templates render the same conversation differently."""
    for messages in (_EXAMPLE, _EXAMPLE[1:]):
        left, right = expected.prompt(messages).input_ids, found.prompt(messages).input_ids
        for position in range(max(len(left), len(right))):
            pair = [ids[position] if position < len(ids) else None for ids in (left, right)]
            if pair[0] != pair[1]:
                was, is_now = (
                    "the end" if token is None else f"{found.tokenizer.decode([token])!r} (id {token})"
                    for token in pair
                )
                return f"first difference at token {position}: {was} in training, {is_now} now"
    return "they render the probe conversation alike, so only other conversations differ"
