"""Every real input file is read, and its rows are counted to the last one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tunesmith.data.identity import prompt_key
from tunesmith.data.readers import read_examples
from tunesmith.errors import DataError
from tunesmith.types import Conversation, Excluded

COUNTS: dict[str, dict[str, int]] = {
    "alpaca/gsm8k_train.json": {"reply": 7473},
    "alpaca/roleplay-simple-deduped-roleplay-dataset.json": {"reply": 3146},
    "alpaca/seed_tasks.jsonl": {"reply": 175},
    "alpaca/toolformer-dedupe-only-dataset.json": {"reply": 7673},
    "alpaca/toolformer-similarity-0.8-dataset.json": {"reply": 4709},
    "belle/eval_prompt.json": {"prompt alone": 11},
    "belle/eval_set.json": {"reply": 631, "empty_reply": 369},
    "belle/zh_seed_tasks.json": {"reply": 175},
    "lamini/1_questions.jsonl": {"prompt alone": 476},
    "lamini/filtered_1_questions.jsonl": {"prompt alone": 251},
    "lamini/lamini_dataset.jsonl": {"reply": 5668, "empty_prompt": 170},
    "lamini/seed_bts.csv": {"reply": 140},
    "sharegpt/dummy_conversation.json": {"reply": 500},
    "zh/developer_instruction.json": {"reply": 48},
}
NO_EXAMPLES: dict[str, str] = {
    "alpaca-lora-templates/alpaca.json": "no known form of example has the fields: description, prompt_input",
    "alpaca-lora-templates/alpaca_legacy.json": "no known form of example has the fields: description",
    "alpaca-lora-templates/alpaca_short.json": "no known form of example has the fields: description",
    "alpaca-lora-templates/vigogne.json": "no known form of example has the fields: description",
    "multipack/testdata.json": "the rows are a number each, expected objects",
    "zh/chinese_sp.model": "this is binary data",
}


def kind(example: Conversation | Excluded) -> str:
    if isinstance(example, Excluded):
        return example.reason
    return "prompt alone" if example.reply is None else "reply"


@pytest.mark.parametrize("name", COUNTS)
def test_every_row_of_a_real_file_is_accounted_for(shared_data: Path, name: str):
    examples = list(read_examples(shared_data / name))
    assert Counter(map(kind, examples)) == COUNTS[name]
    assert all((e.source if isinstance(e, Conversation) else e.where).startswith(Path(name).name) for e in examples)


@pytest.mark.parametrize("name", NO_EXAMPLES)
def test_a_real_file_without_examples_says_so(shared_data: Path, name: str):
    with pytest.raises(DataError) as caught:
        list(read_examples(shared_data / name))
    assert NO_EXAMPLES[name] in str(caught.value)


def test_no_real_file_is_forgotten(shared_data: Path):
    tried = {*COUNTS, *NO_EXAMPLES}
    there = {path.relative_to(shared_data).as_posix() for path in shared_data.rglob("*") if path.is_file()}
    assert {name for name in there if "/" in name} == tried


def test_real_conversations_have_their_turns(shared_data: Path):
    examples = list(read_examples(shared_data / "sharegpt/dummy_conversation.json"))
    lengths = Counter(len(example.messages) for example in examples if isinstance(example, Conversation))
    assert lengths == {2: 167, 4: 166, 6: 167}
    first = examples[0]
    assert isinstance(first, Conversation)
    assert first.messages[3].content == "You too!" and first.metadata == {"row_id": "identity_0"}


def test_lamini_has_the_known_number_of_different_questions(shared_data: Path):
    examples = list(read_examples(shared_data / "lamini/lamini_dataset.jsonl"))
    rows = [example for example in examples if isinstance(example, Conversation)]
    assert len({row.messages[0].content for row in rows}) == 4103 - 1  # the empty question is the 4,103rd
    assert len({prompt_key(row) for row in rows}) <= 4102
    assert rows[0].source == "lamini_dataset.jsonl:1"


def test_the_pandas_index_of_a_real_table_is_left_out(shared_data: Path):
    first = next(read_examples(shared_data / "lamini/seed_bts.csv"))
    assert isinstance(first, Conversation)
    assert first.metadata == {}
    assert first.messages[0].content == "What are some of Seventeen's most popular songs?"
