"""The filters a recipe lists: each keeps what it should, says why it drops the rest, and changes only what it says."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.data.filters import FILTERS, build_filter
from tunesmith.data.filters.parts import instruction_and_input
from tunesmith.protocols import FilterContext, SetFilter, Verdict
from tunesmith.recipe import Curate
from tunesmith.recipe.filter_list import FILTER_OPTIONS
from tunesmith.types import Completion, Conversation, Message, Role, Task, TeacherRequest


class WordCountScorer:
    """Loss of a text = its words, halved where the context holds its first word."""

    def losses(self, pairs: Any) -> list[float | None]:
        return [len(text.split()) / (2 if text.split()[0] in context else 1) if text.split() else None for context, text in pairs]  # fmt: skip


def context(answers: list[Completion] | None = None, asked: list[TeacherRequest] | None = None) -> FilterContext:
    def ask_all(requests: Any) -> list[Completion]:
        (asked if asked is not None else []).extend(requests)
        return (answers or [])[: len(requests)]

    return FilterContext(
        Task(), lambda name: WordCountScorer(), lambda name: lambda texts: [len(text.split()) for text in texts], ask_all, 1
    )  # fmt: skip


def judge(written: Any, rows: list[Conversation], ctx: FilterContext | None = None) -> list[Verdict]:
    curate = Curate.model_construct(filters=())
    (options,) = type(curate).model_validate({"filters": [written], "teacher": {"kind": "local"}}).filters
    built = build_filter(options, ctx or context())
    return list(built.judge_all(rows)) if isinstance(built, SetFilter) else [built(row) for row in rows]


def pair(prompt: str, reply: str = "fine", **fields: Any) -> Conversation:
    return Conversation(
        messages=[Message(role="user", content=prompt), Message(role="assistant", content=reply)], **fields
    )


def talk(*roles: Role) -> Conversation:
    return Conversation(messages=[Message(role=role, content=f"{role} {number}") for number, role in enumerate(roles)])


def reasons(verdicts: list[Verdict]) -> list[str | None]:
    return [verdict[0] if isinstance(verdict, tuple) else None for verdict in verdicts]


def reply_of(verdict: Verdict) -> str:
    assert isinstance(verdict, Conversation)
    return verdict.reply or ""


def test_every_filter_has_options_a_builder_and_a_line_in_the_docs():
    docs = (Path(__file__).resolve().parents[2] / "docs" / "filters.md").read_text()
    assert set(FILTERS) == set(FILTER_OPTIONS)
    assert [name for name in FILTERS if f"`{name}`" not in docs] == []
    assert all(callable(FILTERS.load(name)) for name in FILTERS)


def test_the_recipes_in_the_docs_are_recipes():
    docs = (Path(__file__).resolve().parents[2] / "docs" / "filters.md").read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", docs, re.DOTALL)]
    read = [Curate.model_validate(block.get("curate", block)) for block in blocks]
    assert [each.filters[0].name for each in read] == ["refusal", "length"]


@pytest.mark.parametrize(
    ("written", "prompt", "reply", "expected"),
    [
        ("length", "one two three", "x", "word_length"),
        ("length", "one two three four", "x", None),
        ("length", "one two three\n\na long input follows here", "x", "word_length"),
        ({"name": "length", "of": "reply", "min_words": 0, "max_chars": 3}, "q", "abcd", "char_length"),
        ("char_length", "写诗吧", "x", "char_length"),
        ("char_length", "请写一首诗", "x", None),
        ("char_length", "写" * 120, "x", None),
        ("char_length", "写" * 120 + "\n\n夏天", "x", "char_length"),
        ("char_length", "例" + "写" * 120 + "\n\n夏天", "x", None),
        ("blacklist", "Please draw a house", "x", "blacklist"),
        ("blacklist", "请描述这张图片", "x", "blacklist"),
        ({"blacklist": "house"}, "Please draw a tree", "x", None),
        ("program_start", "Write a program that sorts", "x", "program_start"),
        ("program_start", "How to write a program?", "x", None),
        ("bad_start", "(a) is what?", "x", "punctuation_start"),
        ("bad_start", "请写诗", "x", None),
        ({"name": "bad_start", "allow_non_ascii": False}, "请写诗", "x", "non_ascii_start"),
        ("echo", "Repeat this\n\nHello  World", "hello world", "echo"),
        ("echo", "Repeat this", "something", None),
        ("repeated_digits", "pi?", "3.111111111", "repeated_digits"),
        ("repeated_digits", "pi?", "3.11111111", None),
        ("refusal", "q", "I'm sorry, but I can't help with that.", "refusal"),
        ("refusal", "q", "As an AI language model, I have no opinion.", "refusal"),
        ("refusal", "q", "抱歉，我无法回答这个问题。", "refusal"),
        ("refusal", "q", "作为一个人工智能语言模型，我没有感情。", "refusal"),
        ("refusal", "As an AI language model, what are you?", "A box of sorrows; I am sorry for the delay.", None),
        ({"name": "refusal", "patterns": "no comment"}, "q", "No comment!", "refusal"),
        ("vendor", "Who made you?", "OpenAI did.", "vendor"),
        ("vendor", "你是谁", "我是文心一言", "vendor"),
        ({"vendor": ["openai"]}, "Who made you?", "OpenAI did.", None),
    ],
)  # fmt: skip
def test_rules_about_wording(written: Any, prompt: str, reply: str, expected: str | None):
    assert reasons(judge(written, [pair(prompt, reply)])) == [expected]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Tell a joke.\n\n<noinput>", "Tell a joke."),
        ("Tell a joke.\n\nInput: N/A", "Tell a joke."),
        ("Tell a joke.\n\nNo input required.", "Tell a joke."),
        ("讲个笑话\n\n无输入", "讲个笑话"),
        ("Tell a joke.\n\nNo input device works.", None),
        ("<noinput>", None),
    ],
)
def test_the_spellings_of_no_input_are_cut(prompt: str, expected: str | None):
    (verdict,) = judge("no_input", [pair(prompt)])
    assert (verdict.messages[0].content if isinstance(verdict, Conversation) else None) == expected


def test_a_rewritten_row_has_the_id_of_its_new_messages_and_its_old_origin():
    row = pair("Tell a joke.\n\n<noinput>", source="a:1")
    (verdict,) = judge("no_input", [row])
    assert isinstance(verdict, Conversation)
    assert verdict.id == pair("Tell a joke.").id != row.id
    assert (verdict.origin, verdict.source) == (row.origin, "a:1")


def test_repeated_sentences_go_and_code_stays():
    text = "I like tea very much. It is hot. I like  tea very much. Yes. Yes.\n```\na = 1 + 1 + 1\na = 1 + 1 + 1\n```"
    row = pair("q", text)
    (verdict,) = judge("repeated_sentences", [row])
    assert reply_of(verdict) == "I like tea very much. It is hot. Yes. Yes.\n```\na = 1 + 1 + 1\na = 1 + 1 + 1\n```"
    assert reasons(judge({"repeated_sentences": "exclude"}, [row, pair("q", "Once only said.")])) == [
        "repeated_sentences",
        None,
    ]
    (verdict,) = judge("repeated_sentences", [pair("q", "我非常喜欢喝茶。我非常喜欢喝茶。好。")])
    assert reply_of(verdict) == "我非常喜欢喝茶。好。"


@pytest.mark.parametrize(
    ("rule", "prompt", "reply", "found"),
    [
        ("merged_instruction", "Sort these.\n2. Instruction: Count them.", "x", True),
        ("merged_instruction", "Instruction: sort these.", "x", False),
        ("internet_claim", "Who won?", "I searched the internet and found that Anna won.", True),
        ("internet_claim", "Summarize https://example.org/page", "It says much.", True),
        ("internet_claim", "Who won?", "根据网络搜索，安娜赢了。", True),
        ("internet_claim", "What is the internet?", "A network; people search on it.", False),
        ("image_task", "Generate an image of a cat.", "[image of a cat]", True),
        ("image_task", "画一张猫的图片", "好", True),
        ("image_task", "What is an image?", "A picture.", False),
        ("missing_code", "Write a Python function that adds.", "Sure, that is easy to do.", True),
        ("missing_code", "Write a Python function that adds.", "def add(a, b):\n    return a + b", False),
        ("not_applicable", "q", "N/A", True),
        ("not_applicable", "q", "无。", True),
        ("not_applicable", "q", "None of them", False),
        ("wrong_arithmetic", "q", "That is 5 + 3 = 9 apples.", True),
        ("wrong_arithmetic", "q", "10/3 = 3.33, 20/100 = 20%, 1,000 + 1 = 1,001", False),
        ("wrong_arithmetic", "q", "x = 5 + 3; f(2)+3 = 5; 7/2 = 3 r 1; 1/2 = 12 of them; 2 + 2 = 4 - 1 = 3", False),
        ("nonsense", "q", "caf\u00c3\u00a9 is closed", True),
        ("nonsense", "q", "ha " * 30, True),
        ("nonsense", "q", "No, no, no!", False),
        ("control_characters", "q", "a\x07b", True),
        ("control_characters", "q", "日本語 — café 👩‍🚀 مرحبا\n\t", False),
        ("colon_end", "q", "Here they are:", True),
        ("colon_end", "q", "Here: they are", False),
    ],
)  # fmt: skip
def test_lint_rules(rule: str, prompt: str, reply: str, found: bool):
    assert reasons(judge({"lint": [rule]}, [pair(prompt, reply)])) == [rule if found else None]


def test_lint_can_report_instead():
    (verdict,) = judge({"name": "lint", "action": "report"}, [pair("q", "5 + 3 = 9:")])
    assert isinstance(verdict, Conversation)
    assert verdict.metadata["lint"] == {"wrong_arithmetic": "'5 + 3 = 9' is wrong: it is 8", "colon_end": "the reply ends with a colon"}  # fmt: skip
    assert verdict.id == pair("q", "5 + 3 = 9:").id


def test_roles_alternate_and_turns_are_counted():
    good = talk("system", "user", "assistant", "tool", "tool", "assistant", "user", "assistant")
    rows = [good, talk("assistant", "user"), talk("user", "user", "assistant"), talk("system")]
    verdicts = judge("alternate_roles", rows)
    assert reasons(verdicts) == [None, "roles", "roles", "roles"]
    assert verdicts[2] == ("roles", "turn 2 is the user's after the user's")
    assert reasons(judge({"min_turns": 3}, [talk("system", "user", "assistant"), talk("user", "assistant", "user")])) == ["turns", None]  # fmt: skip


def test_tokens_beyond_the_context_are_cut_at_whole_turns():
    rows = [talk("user", "assistant", "user", "assistant", "user", "assistant"), talk("user", "assistant")]
    (cut, whole) = judge({"name": "token_length", "max_tokens": 9, "action": "cut"}, rows)
    assert isinstance(cut, Conversation) and (len(cut.messages), cut.metadata) == (4, {"cut_messages": 2})
    assert whole is None
    assert judge({"token_length": 3}, rows[1:]) == [("token_length", "the row has 4 tokens, allowed are 3")]


def test_only_wanted_models_stay_and_classes_weigh_the_assistants_turns():
    rows = [
        pair("a", metadata={"model": "Model: GPT-4"}), pair("b", metadata={"model": "Default (GPT-3.5)"}), pair("c", source="x:1"),
    ]  # fmt: skip
    assert reasons(judge("model", rows)) == [None, "model", "model"]
    classes = [{"name": "expert", "match": "*gpt-4*", "condition": "GPT4 Correct"}, {"name": "weak", "match": "*gpt-3*", "weight": 0.1}]  # fmt: skip
    verdicts = judge({"classes": classes}, rows)
    assert isinstance(verdicts[0], Conversation) and isinstance(verdicts[1], Conversation)
    assert verdicts[0].metadata == {"model": "Model: GPT-4", "source_class": "expert", "condition": "GPT4 Correct", "weights": [0.0, 1.0]}  # fmt: skip
    assert (verdicts[1].metadata["condition"], verdicts[1].metadata["weights"]) == ("weak", [0.0, 0.1])
    assert verdicts[2] == ("class", "'x:1' is of no class: expert, weak")


def test_exact_repetitions_and_conflicting_replies():
    rows = [pair("Hi  there", "a", source="r:1"), pair("hi there", "b", source="r:2"), pair("other", "a", source="r:3")]
    assert judge("exact", rows) == [None, ("exact", "the prompt of r:1"), None]
    assert reasons(judge({"name": "exact", "normalise": False}, rows)) == [None, None, None]
    assert reasons(judge({"exact": "reply"}, rows)) == [None, None, "exact"]
    assert reasons(judge("conflicting", rows)) == ["conflicting_reply", "conflicting_reply", None]


def test_near_copies_name_the_row_that_stays():
    text = "how do i change the back tyre of my old bicycle without any tools at home"
    rows = [pair(text, source="r:1"), pair("what is the weather like in paris today", source="r:2"), pair(text + " now", source="r:3")]  # fmt: skip
    rouge, minhash = judge("rouge_l", rows), judge({"name": "minhash", "of": "prompt"}, rows)
    assert reasons(rouge) == [None, None, "rouge_l"] and reasons(minhash) == [None, None, "near_copy"]
    assert rouge[2] == ("rouge_l", "ROUGE-L 0.970 with r:1, allowed is 0.7")


def test_bm25_rejects_what_the_pool_holds_already():
    words = [f"word{n} thing{n} stuff{n} item{n} part{n}" for n in range(60)]
    rows = [*(pair(text, source=f"r:{n}") for n, text in enumerate(words)), pair(words[7], source="again")]
    verdicts = judge({"bm25": 12}, rows)
    assert Counter(reasons(verdicts)) == {None: 60, "bm25": 1}
    assert isinstance(verdicts[-1], tuple) and verdicts[-1][1].endswith("with r:7, allowed is 12")


def test_perplexity_and_ifd_come_from_the_scorer_and_stay_with_the_row():
    rows = [pair("q", "one two"), pair("q", "a b c d e f g h"), pair("q", " ")]
    verdicts = judge({"name": "perplexity", "max": 100}, rows)
    assert reasons(verdicts) == [None, "perplexity", "unscored"]
    assert isinstance(verdicts[0], Conversation) and verdicts[0].metadata["scores"] == {"perplexity": 7.3891}
    helped, alone = pair("tea?", "tea? it is"), pair("q", "so it is")
    verdicts = judge({"name": "ifd", "max": 0.9}, [helped, alone])
    assert reasons(verdicts) == [None, "ifd"]
    assert isinstance(verdicts[0], Conversation) and verdicts[0].metadata["scores"] == {"ifd": 0.5}
    assert reasons(judge({"name": "ifd", "keep_fraction": 0.5}, [helped, alone])) == ["ifd_rank", None]


def test_a_rating_that_cannot_be_read_is_unscored_never_zero():
    answers = [Completion(text=text) for text in ("4.5\nGood.", "3/5\nMeh.", "It depends", "Score: 5")]
    failed = Completion(text="", finish_reason="error", error="HTTP 500")
    rows = [pair(f"q{n}") for n in range(5)]
    asked: list[TeacherRequest] = []
    verdicts = judge("alpagasus", rows, context([*answers, failed], asked))
    assert reasons(verdicts) == [None, "alpagasus", "unscored", None, "judge_failed"]
    assert isinstance(verdicts[0], Conversation) and verdicts[0].metadata["scores"] == {"alpagasus_accuracy": 4.5}
    assert "q0" in asked[0].messages[0].content and asked[0].sampling.temperature == 0
    kept = judge({"name": "alpagasus", "unscored": "keep"}, rows[2:3], context([answers[2]]))[0]
    assert isinstance(kept, Conversation) and kept.metadata["scores"] == {"alpagasus_accuracy": None}


def test_deita_takes_the_expectation_over_digits_where_there_are_log_probabilities():
    spread = Completion(text="4", top_logprobs=[{"4": -0.6931471805599453, "2": -0.6931471805599453, "x": -9.0}])
    plain = Completion(text="Digit: 5")
    asked: list[TeacherRequest] = []
    verdicts = judge("deita", [pair("q")], context([spread, plain], asked))
    assert isinstance(verdicts[0], Conversation) and verdicts[0].metadata["scores"] == {"deita": 15.0}  # 3 x 5
    assert asked[0].sampling.top_logprobs == 20
    rows = [pair(f"q{n}") for n in range(4)]
    digits = [Completion(text=text) for text in "22 55 33 x5".replace(" ", "")]
    verdicts = judge({"name": "deita", "keep_rows": 1}, rows, context(digits))
    assert reasons(verdicts) == ["deita_rank", None, "deita_rank", "unscored"]


def test_a_question_of_ones_own_is_answered_by_yes_or_no():
    answers = [Completion(text=text) for text in ("Yes, it is.", "**No**", "是", "Nothing to say", "maybe")]
    rows = [pair(f"q{n}") for n in range(5)]
    assert reasons(judge({"yes_no": "Is it kind?"}, rows, context(answers))) == [None, "judged_no", None, "unscored", "unscored"]  # fmt: skip


def test_languages_are_told_apart():
    pytest.importorskip("fasttext", reason="the extra `language` is not installed")
    rows = [
        pair("What is the capital of France?", "Paris is the capital of France."), pair("法国的首都是哪里？", "巴黎"),
        pair("Was ist die Hauptstadt von Frankreich?", "Die Hauptstadt ist Paris."), pair("1 + 1", "2"),
        pair("フランスの首都はどこですか", "パリです"),
    ]  # fmt: skip
    verdicts = judge("language", rows)
    assert reasons(verdicts) == [None, None, "language", None, "language"]
    assert isinstance(verdicts[1], Conversation) and verdicts[1].metadata == {"language": "zh"}
    assert isinstance(verdicts[4], tuple) and verdicts[4][1].startswith("ja with ")


def test_insults_are_found_sentence_by_sentence():
    pytest.importorskip("profanity_check", reason="the extra `toxicity` is not installed")
    rows = [pair("Hello.", "Have a nice day. " * 20 + "You are a stupid idiot."), pair("Hello.", "Have a nice day.")]
    verdicts = judge("toxicity", rows)
    assert reasons(verdicts) == ["toxicity", None]
    assert isinstance(verdicts[0], tuple) and verdicts[0][1].endswith("'You are a stupid idiot.'")


def test_alpacas_filters_keep_171_of_the_175_seed_tasks(shared_data: Path):
    lines = (shared_data / "alpaca/seed_tasks.jsonl").read_text().splitlines()
    rows = [pair(json.loads(line)["instruction"]) for line in lines]
    found: Counter[str] = Counter()
    written = [
        {"name": "length"},
        {"name": "blacklist", "lists": ["alpaca"]},
        "program_start",
        {"name": "bad_start", "allow_non_ascii": False},
    ]
    for each in written:
        verdicts = judge(each, rows)
        found.update(reason for reason in reasons(verdicts) if reason)
        rows = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict is None]
    assert (len(rows), found) == (171, {"word_length": 2, "program_start": 1, "blacklist": 1})


def test_arithmetic_that_a_person_wrote_mostly_holds(shared_data: Path):
    rows = json.loads((shared_data / "alpaca/gsm8k_train.json").read_text())
    verdicts = judge({"lint": ["wrong_arithmetic"]}, [pair(row["instruction"], row["output"]) for row in rows])
    assert len(rows) == 7473 and sum(verdict is not None for verdict in verdicts) == 20


def test_a_long_sum_without_an_equals_sign_takes_no_time():
    text = "It is " + " + ".join(f"{n} * $100" for n in range(300)) + " bills"
    assert judge({"lint": ["wrong_arithmetic"]}, [pair("q", text)]) == [
        None
    ]  # exponential in a regular expression's hands


def test_conflicting_replies_are_those_a_plain_count_finds():
    rng = random.Random(12)
    rows = [pair(f"prompt {rng.randrange(60)}", f"reply {rng.randrange(3)}", source=f"a:{n}") for n in range(200)]
    replies: dict[str, dict[str, str]] = {}
    for row in rows:
        asked, said = (message.content for message in row.messages)
        replies.setdefault(asked, {}).setdefault(said, row.source or "")
    expected: list[Verdict] = []
    for row in rows:
        asked, said = (message.content for message in row.messages)
        other = next((where for reply, where in replies[asked].items() if reply != said), None)
        detail = f"its prompt has {len(replies[asked])} different replies, another is that of {other}"
        expected.append(("conflicting_reply", detail) if other else None)
    assert judge("conflicting", rows) == expected
    assert 0 < sum(each is None for each in expected) < 100


def test_filters_of_sets_read_rows_in_order_and_go_back_to_those_alone_that_are_named():
    class Counted(Sequence[Conversation]):
        """Rows that lie elsewhere: read in order, or one at a time."""

        def __init__(self, rows: list[Conversation]) -> None:
            self.rows, self.looked_up, self.passes = rows, [], 0

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: Any) -> Any:
            self.looked_up.append(index)
            return self.rows[index]

        def __iter__(self) -> Iterator[Conversation]:
            self.passes += 1
            return iter(self.rows)

    told = [
        pair(f"tell me everything about topic number {n % 9} and {n % 9} again please", f"reply {n % 9}")
        for n in range(12)
    ]
    for written in ({"exact": "prompt"}, {"rouge_l": 0.9}, {"minhash": 0.9}):
        rows = Counted(told)
        (options,) = Curate.model_validate({"filters": [written]}).filters
        built = build_filter(options, context())
        assert isinstance(built, SetFilter)
        verdicts = list(built.judge_all(rows))
        assert [verdict is not None for verdict in verdicts] == [False] * 9 + [True] * 3
        assert (rows.passes, rows.looked_up) == (1, [0, 1, 2])


def test_the_input_begins_where_the_reader_put_it_not_at_the_first_blank_line():
    text = "Sort these.\n\nKeep their case.\n\nb, a"
    assert instruction_and_input(pair(text)) == ("Sort these.", "Keep their case.\n\nb, a")
    at = text.index("b, a")
    assert instruction_and_input(pair(text, metadata={"input_at": at})) == ("Sort these.\n\nKeep their case.", "b, a")
    assert instruction_and_input(pair(text, metadata={"input_at": 3})) == ("Sort these.", "Keep their case.\n\nb, a")
