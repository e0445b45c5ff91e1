"""The one pass over a data set: every number of it on rows where it is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tunesmith.data.statistics import survey as survey_module
from tunesmith.data.statistics.counts import Count
from tunesmith.data.statistics.survey import Survey, SurveyOptions, survey
from tunesmith.errors import MissingExtra
from tunesmith.types import Conversation, Document, Example, Excluded, Labelled, Message, Preference

OPTIONS = SurveyOptions(max_rows=50, num_clusters=2, num_names=5, rng_seed=1, num_threads=1, closely=True)


def row(prompt: str, reply: str | None, system: str = "", **fields: Any) -> Conversation:
    messages = [Message(role="user", content=prompt)]
    if system:
        messages.insert(0, Message(role="system", content=system))
    if reply is not None:
        messages.append(Message(role="assistant", content=reply))
    return Conversation(messages=messages, **fields)


def look(rows: Sequence[Example | Excluded], **changes: Any) -> Survey:
    options = SurveyOptions(**{**OPTIONS.__dict__, **changes})
    return survey(
        rows,
        name="set",
        options=options,
        count_tokens=lambda texts: [2 * len(t) for t in texts],
        on_rows=lambda _: None,
    )


ROWS: list[Example | Excluded] = [
    row("Write a poem about tea", "Tea is warm and green.", system="Be brief", source="a.jsonl:1", split="train"),
    row("Write a poem about tea", "Another poem on a cup.", source="a.jsonl:2", split="test", licence="MIT"),
    row("write a POEM about  tea", "tea is warm and green.", source="b.jsonl:1"),
    row("Who are you?", None, source="b.jsonl:2"),
    row("请写一首关于春天的诗", "The spring is a warm season of the year.", source="c.jsonl:1"),
    Preference(prompt=[Message(role="user", content="Explain rain")], chosen="Water falls.", rejected="No.", source="p.jsonl:1"),
    Labelled(prompt=[Message(role="user", content="Say hello")], reply="Hello", desirable=True, source="l.jsonl:1"),
    Document(text="A long document about the sea.", source="d.txt:1"),
    Excluded(reason="bad_row", detail="no text", where="a.jsonl:9", raw="{"),
]  # fmt: skip


def test_every_row_is_counted_once_in_every_table() -> None:
    found = look(ROWS)
    assert (found.num_rows, found.num_excluded) == (8, 1)
    assert found.kinds == [Count("conversation", 5), Count("preference", 1), Count("labelled", 1), Count("document", 1)]
    for title in ("sources", "models", "licences", "splits"):
        assert sum(count.num for count in found.tables[title]) == 8
    assert found.tables["splits"] == [Count("(undecided)", 6), Count("test", 1), Count("train", 1)]
    assert found.tables["sources"][-1] == Count("(1 others)", 1)
    assert (found.num_without_reply, found.num_with_system) == (1, 1)
    assert [(taken.reason, taken.num) for taken in found.taken] == [("bad_row", 1)]


def test_lengths_are_those_of_prompts_and_replies_without_the_system_message() -> None:
    found = look(ROWS)
    assert found.lengths["prompt"]["chars"].num == 7 and found.lengths["reply"]["chars"].num == 7
    assert found.lengths["prompt"]["chars"].max == len("write a POEM about  tea")
    assert found.lengths["rejected reply"]["words"].total == 1
    assert found.lengths["reply"]["tokens"].max == 2 * found.lengths["reply"]["chars"].max
    assert found.turns is not None and (found.turns.min, found.turns.max) == (1, 2)


def test_verbs_nouns_and_repetitions_are_found() -> None:
    found = look(ROWS)
    verbs = {verb.verb: (verb.num, verb.nouns) for verb in found.verbs}
    assert verbs["write"] == (3, [Count("poem", 3)]) and verbs["?"] == (1, [Count("who", 1)])
    assert verbs["写"] == (1, [Count("诗", 1)])
    assert (found.num_instructions, found.num_rootless) == (7, 0)
    assert (found.equal_rows.num_repeats, found.equal_prompts.num_repeats) == (1, 2)
    assert found.equal_prompts.most[0].num == 3


def test_a_reply_in_another_language_than_its_prompt_is_counted() -> None:
    found = look(ROWS)
    assert found.num_language_changes == 1
    assert Count("zh", 1) in found.tables["languages of prompts"]


def test_only_so_many_rows_are_drawn_and_all_are_equally_likely() -> None:
    rows = [row(f"question {n}", "a") for n in range(300)]
    assert look(rows, max_rows=10).num_sampled == 10
    surveyor = survey_module.Surveyor(SurveyOptions(**{**OPTIONS.__dict__, "max_rows": 60}), None)
    for each in rows:
        surveyor.add(each)
    surveyor._look()
    drawn = [int(subject.split()[1]) for subject, _ in surveyor._drawn]
    assert len(set(drawn)) == 60 and 90 < sum(drawn) / 60 < 210 and max(drawn) > 200


def test_rows_of_many_chunks_give_the_same_as_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(f"Write a text about {n % 7}", f"reply {n % 5}") for n in range(40)]
    whole = look(rows)
    monkeypatch.setattr(survey_module, "_ROWS_AT_ONCE", 3)
    assert look(rows) == whole


def test_what_needs_a_missing_extra_says_so_and_the_rest_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Any:
        raise MissingExtra("absent", "semantic", "this")

    monkeypatch.setattr(survey_module, "wordllama_embedder", missing)
    monkeypatch.setattr("tunesmith.data.statistics.counts.LanguageDetector", missing)
    found = look(ROWS)
    assert [each.part for each in found.missing] == ["languages", "clusters"]
    assert "tunesmith[semantic]" in found.missing[1].what_to_do
    assert found.clusters == [] and Count("zh", 1) in found.tables["scripts of prompts"] and found.verbs


def test_no_row_at_all_is_a_survey_too() -> None:
    found = look([])
    assert (found.num_rows, found.turns, found.lengths, found.verbs, found.clusters) == (0, None, {}, [], [])
