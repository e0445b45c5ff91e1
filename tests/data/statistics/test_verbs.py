"""Root verbs and nouns: one instruction of each form, and the seed tasks of Stanford Alpaca and BELLE."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tunesmith.data.statistics.verbs import QUESTION, Root, root_of


@pytest.mark.parametrize(
    ("instruction", "verb", "noun"),
    [
        ("Write a short story about a dragon.", "write", "story"),
        ("Please list three healthy snacks", "list", "snack"),
        ("Can you give me some suggestions?", "give", "suggestion"),
        ("Given a sentence, output the pos tags of all the words.", "output", "tag"),
        ("Your task is to classify the following email as spam or not.", "classify", "email"),
        ("I want you to act as a poet. Rewrite it.", "act", "poet"),
        ("Come up with a metaphor for my situation.", "come", "metaphor"),
        ("Fill in the blanks.", "fill", "blank"),
        ("Help me write an apology letter to my boss", "write", "letter"),
        ("Briefly describe the main causes of the war", "describe", "cause"),
        ("You are a historian. Describe the fall of Rome.", "describe", "fall"),
        ("Generate a response given the chat history.", "generate", "response"),
        ("Give a summary containing the word tea", "give", "summary"),
        ("Find two of the largest cities in the country", "find", "city"),
        ("Write a creative ending to the movie", "write", "ending"),
        ("Explain how to do it.", "explain", ""),
        ("写一篇关于环境保护的短文", "写", "短文"),
        ("请给出下面词语的同义词", "给出", "同义词"),
        ("将以下句子翻译成英语", "翻译", "句子"),
        ("根据之前的聊天记录生成一个回复。", "生成", "回复"),
        ("给定两种鸡尾酒原料，给出一个包含他们的鸡尾酒配方。", "给出", "配方"),
        ("解释什么是机器学习", "解释", ""),
    ],
)
def test_the_verb_and_its_object_are_found(instruction: str, verb: str, noun: str) -> None:
    assert root_of(instruction) == Root(verb, noun)


@pytest.mark.parametrize(
    ("instruction", "word"),
    [
        ("What is the capital of France?", "what"),
        ("Is working part-time a good idea for teenagers", "yes/no"),
        ("In your opinion, are there common traits?", "yes/no"),
        ("In your opinion, what makes a good coach?", "what"),
        ("Is there anything science can't explain?", "yes/no"),
        ("个人和组织如何减少无意识偏见？", "如何"),
    ],
)
def test_a_question_is_counted_by_its_question_word(instruction: str, word: str) -> None:
    assert root_of(instruction) == Root(QUESTION, word)


@pytest.mark.parametrize("instruction", ["Converting 85 F to Celsius.", "3 + 4", "", "....", "C'est une phrase"])
def test_where_nothing_is_found_nothing_is_claimed(instruction: str) -> None:
    assert root_of(instruction) is None


def test_a_label_before_the_question_is_no_verb() -> None:
    assert root_of("Question: in which year did it end?\nAnswer:") == Root(QUESTION, "which")


def test_stanford_seed_tasks_turn_on_the_verbs_a_reader_finds(shared_data: Path) -> None:
    lines = (shared_data / "alpaca/seed_tasks.jsonl").read_text(encoding="utf-8").splitlines()
    roots = [root_of(json.loads(line)["instruction"]) for line in lines]
    verbs = Counter(root.verb for root in roots if root)
    assert len(roots) - roots.count(None) >= 172
    assert verbs["write"] == 25 and verbs["give"] == 11 and verbs["explain"] == 10 and verbs["generate"] == 8
    nouns = Counter(root.noun for root in roots if root and root.verb == "make")
    assert nouns.most_common(1) == [("list", 3)]


def test_belle_seed_tasks_turn_on_chinese_verbs(shared_data: Path) -> None:
    lines = (shared_data / "belle/zh_seed_tasks.json").read_text(encoding="utf-8").splitlines()
    roots = [root_of(json.loads(line)["instruction"]) for line in lines]
    assert len(roots) - roots.count(None) >= 165
    assert Counter(root.verb for root in roots if root).most_common(2)[1][0] == "写"
