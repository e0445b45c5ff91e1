"""Which verb an instruction turns on, and what it is done to: "Write a short story" -> write, story.

Self-Instruct (Wang et al. 2023, figure 3) shows its data as a wheel of the 20 most common root verbs with 4 nouns each,
found by a constituency parser of some hundred MB. This is no parser: it looks for a known verb where an instruction has its
verb (at the start of a sentence, after "please", "can you", "your task is to", after the comma of "Given ..., "), and takes
the last word of the noun phrase behind it. Sentences that ask are counted by their question word. English and Chinese;
an instruction in which nothing is found says so. docs/seeing-data.md has how often it is right.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple

QUESTION = "?"
"""Stands as the verb of a question; its noun is the question word, "yes/no" where there is none."""

_LONGEST = 600  # characters looked at: the request comes first
_MAX_SENTENCES = 6
_HAN = re.compile(r"[\u4e00-\u9fff]")


class Root(NamedTuple):
    """Verb in its base form; noun in the singular, "" where the verb has none that was found."""

    verb: str
    noun: str


def root_of(instruction: str) -> Root | None:
    """The root of an instruction in English or Chinese; None where no verb and no question was found."""
    text = instruction[:_LONGEST].strip()
    return _chinese(text) if _HAN.search(text[:40]) else _english(text)


@cache
def _verbs(language: str) -> frozenset[str]:
    text = (files("tunesmith.data") / "words" / f"verbs_{language}.txt").read_text(encoding="utf-8")
    return frozenset(word for line in text.splitlines() if not line.startswith("#") for word in line.split())


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_SENTENCE = re.compile(r"[.?!;:]+(?=\s|$)|\n+")
_TOKEN = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*|\d[\d,.]*|[^\sA-Za-z\d]")
_BEFORE_VERB = _set(
    "please kindly now then also just next first second third finally and so but ok okay hi hello hey dear always instead do not"
)
_ASKED = re.compile(
    r"(?:(?:can|could|would|will) you(?: please| kindly| also| help me(?: to)?| be able to)?"
    r"|(?:i|we)(?:'d| would)? (?:want|need|like|ask|wish)(?:ed)? (?:you )?to"
    r"|(?:your|the) (?:task|job|goal|role|aim|objective)s? (?:here )?is to"
    r"|you(?:'re| are)? (?:should|must|have to|need to|will|can|asked to|required to|expected to|supposed to|going to|to)"
    r"|you (?:will|would) (?:need|have|be (?:asked|required)) to|help (?:me|us)(?: to)?|try to|make sure to|be sure to"
    r"|i would (?:like|love) you to|let us|let's|need to|want to|asked to)\s+(?:please |also |then )?(?P<verb>[a-z]+)"
)
_QUESTION_WORDS = _set("what which who whom whose when where why how")
_OPENS_YES_NO = _set(
    "is are was were am do does did can could would will should shall may might has have had isn't aren't don't doesn't"
)
_ONLY_ASKS = _set("is are was were am does did isn't aren't doesn't")
_PREFACE = _set(
    "given if in for based using from with suppose imagine as when after before considering assuming to on at by while "
    "according once taking under among between following without about like"
)
_NOT_NOUN = _set(
    "a an the this that these those some any all both each every no another other such my your his her its our their one two three "
    "four five six seven eight nine ten several many few more most at least up exactly only following given provided below above "
    "short long new good different various own possible first last next same following"
)
_QUANTITY = _set("one two three four five six seven eight nine ten some any all both each most many few several part")
_PRONOUNS = _set("me us you him them it myself yourself itself himself")
_ENDS_PHRASE = _set(
    "of in on at by for with from to into onto about as between among over under after before during without within against "
    "through than like via per based using regarding such that which who whom whose where when why how what whether if because so and "
    "or but then while is are was were be been being can could would should will may might must has have had do does did not "
    "below above here there again together accordingly carefully correctly briefly please also too yourself upon toward towards along"
)
_ING_NOUNS = _set(
    "ending beginning meaning building setting painting drawing recording greeting meeting heading string thing something anything "
    "morning evening ring king spring sibling wedding opening rating ranking spelling saying feeling reading seed need speed feed bed"
)
_PARTICLES = _set("up out down off away back over")
_DETERMINERS = _set(
    "a an the this that these those your my his her its their our no every each any some by in on at as to with from for"
)


def _english(text: str) -> Root | None:
    asked = ""
    for sentence in [part for part in _SENTENCE.split(text) if part.strip()][:_MAX_SENTENCES]:
        tokens = _TOKEN.findall(sentence)
        words = [token.lower().replace("’", "'") for token in tokens]
        start = _root_place(words)
        if start is not None and len(words) > 1:  # a word alone is a label: "Question: ..."
            return (
                Root(words[start], _object_of(words[start + 1 :], words[start])) if not asked else Root(QUESTION, asked)
            )
        asked = asked or _question_word(words, text)
    return Root(QUESTION, asked) if asked else None


def _root_place(words: list[str]) -> int | None:
    """Index of the verb of the sentence, None where it has none of the list in a verb's place."""
    place = _verb_at(words, 0)
    if place is not None and words[place] == "help" and place + 1 < len(words) and words[place + 1] in ("me", "us"):
        further = place + (3 if words[place + 2 : place + 3] == ["to"] else 2)
        place = further if further < len(words) and words[further] in _verbs("en") else place
    if place is not None:
        return place
    for match in _ASKED.finditer(" ".join(words)):
        if match["verb"] in _verbs("en"):
            return " ".join(words)[: match.start("verb")].count(" ")
    if words and (words[0] in _PREFACE or words[0].endswith("ing")):
        for index, word in enumerate(words):
            if word == "," and (place := _verb_at(words, index + 1)) is not None:
                return place
    return None


def _verb_at(words: list[str], start: int) -> int | None:
    for index in range(start, min(start + 4, len(words))):
        word = words[index]
        if word in _verbs("en"):
            return index
        if word not in _BEFORE_VERB and not (word.endswith("ly") and len(word) > 4) and word.isalpha():
            return None
    return None


def _question_word(words: list[str], text: str) -> str:
    """What the sentence asks with; "" where it is no question. Of "In your opinion, are ..." the second part is looked at."""
    comma = words.index(",") + 1 if "," in words and words[0] in _PREFACE else 0
    for start in (0, comma):
        for word in words[start : start + 4]:
            if word.partition("'")[0] in _QUESTION_WORDS:
                return word.partition("'")[0]
        first = words[start] if start < len(words) else ""
        if first in _OPENS_YES_NO and (first in _ONLY_ASKS or "?" in text):
            return "yes/no"
    return next((word for word in words if word in _QUESTION_WORDS), "") if "?" in text else ""


def _object_of(words: list[str], verb: str) -> str:
    """Head of the noun phrase that follows the verb."""
    index = 0
    while index < len(words) and (words[index] in _PARTICLES or (index == 1 and words[index] in ("with", "of"))):
        index += 1
    if words[index : index + 1] == ["in"] and verb == "fill":
        index += 1
    if (
        verb in ("come", "think", "look", "act", "respond", "reply", "search", "ask", "apply")
        and words[index : index + 1]
    ):
        index += words[index] in ("with", "of", "at", "as", "to", "for")
    if index < len(words) and words[index] in _PRONOUNS:
        index += 1
    head, counted = "", False
    while index < len(words):
        word = words[index]
        if word == "of" and counted and not head:
            index += 1
            continue
        if word in _ENDS_PHRASE and not (word == "that" and not head):
            break
        if not word[0].isalpha():
            if word[0].isdigit() or word in "\"'“”‘’-<[(#*":
                counted = counted or word[0].isdigit()
                index += 1
                continue
            break
        following = words[index + 1] if index + 1 < len(words) else ""
        participle = word in ("given", "written") or (word.endswith(("ing", "ed")) and word not in _ING_NOUNS)
        if head and participle and (word == "given" or following in _DETERMINERS or following[:1].isdigit()):
            break
        if word in _QUANTITY:
            counted = True
        elif word not in _NOT_NOUN and not (word.endswith("ly") and len(word) > 4):
            head = word
        index += 1
    return _singular(head.removesuffix("'s"))


_IRREGULAR = {
    "people": "person", "children": "child", "men": "man", "women": "woman", "data": "data", "analyses": "analysis",
    "hypotheses": "hypothesis", "criteria": "criterion", "lives": "life", "knives": "knife", "leaves": "leaf", "series": "series",
    "species": "species", "news": "news", "movies": "movie", "cookies": "cookie", "synonyms": "synonym", "mice": "mouse",
    "feet": "foot", "teeth": "tooth", "theses": "thesis", "bases": "base", "phases": "phase", "courses": "course",
}  # fmt: skip


def _singular(noun: str) -> str:
    if noun in _IRREGULAR or len(noun) < 4 or not noun.endswith("s"):
        return _IRREGULAR.get(noun, noun)
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    if noun.endswith(("sses", "shes", "ches", "xes", "zzes")):
        return noun[:-2]
    return noun if noun.endswith(("ss", "us", "is", "ias", "gas", "vas")) else noun[:-1]


_ZH_CLAUSE = re.compile(r"[，。！？；：,!?;:\n]+")
_ZH_LEAD = re.compile(
    r"^(?:现在|首先|然后|接着|最后|同时|并且|并|再|也|你|您|我|请|帮|帮忙|麻烦|可以|可否|能|能否|能不能|可不可以|需要|希望|要求|想|想要|想让|"
    r"任务是|尝试|试着|试图|为我|替我|尽可能|尽量|简要|简单|简短|详细|快速|仔细|礼貌|自动|从中|由此|来|去|地|\s|\d+[.、)])+"
)
_ZH_CLASSIFIER = "[个篇段首种条句份些封则项道组套部章张名位行点本场幅款节次步]"
_ZH_COUNT = re.compile(
    r"^(?:一下|出|成|为|到|了|着|下(?![列面])|好|我|至少|大约|约|\s)*"
    r"(?:(?:以下|下列|下面|上述|上面|该|此|给定|所给|所有)的?|(?:这|那|每|[一二两三四五六七八九十百几多\d]+)"
    rf"{_ZH_CLASSIFIER}?)*个?"
)
_ZH_ASKS = re.compile(r"什么|如何|怎么|怎样|为何|多少|哪|谁|几个|吗|是否|是不是|能不能|会不会|有没有|呢")
_ZH_MOVES_OBJECT = re.compile(r"^(?:将|把|对(?!于))(.+)$")
_ZH_PREFACE = re.compile(
    r"^(?:给定|根据|按照|基于|对于|使用|利用|运用|针对|通过|结合|以|从|在|由|如果|假如|当|作为|为了?|给(?=.+[给提写做])|用)(.*)$"
)
_ZH_GOES_ON = re.compile(r"^(?:[一二两三四五六七八九十几\d出成为]|以下|下列)")


def _chinese(text: str) -> Root | None:
    clauses = [clause.strip() for clause in _ZH_CLAUSE.split(text) if clause.strip()][:_MAX_SENTENCES]
    asked = ""
    for clause in clauses:
        bare = _ZH_LEAD.sub("", clause)
        asks = _ZH_ASKS.search(clause)
        if (moved := _ZH_MOVES_OBJECT.match(bare)) is not None:
            found = _zh_inside(moved[1], object_first=True)
        elif (preface := _ZH_PREFACE.match(bare)) is not None:
            found = None if asks else _zh_inside(preface[1], object_first=False)
        else:
            verb = _zh_verb(bare)
            found = Root(verb, _zh_noun(bare[len(verb) :])) if verb else None
        if found is not None:
            return found
        asked = asked or (asks[0] if asks else "")
    return Root(QUESTION, asked) if asked else None


def _zh_verb(text: str) -> str:
    """The longest verb the text begins with."""
    return next((text[:size] for size in (2, 1) if text[:size] in _verbs("zh")), "")


def _zh_inside(text: str, *, object_first: bool) -> Root | None:
    """The verb further on in a clause: the first that goes on with a number or a complement, else the last one."""
    found: tuple[int, str] | None = None
    for index in range(1, len(text)):
        verb = text[index : index + 2] if text[index : index + 2] in _verbs("zh") else ""
        verb = verb or ("写" if text[index] == "写" else "")
        rest = text[index + len(verb) :]
        if verb and (object_first or rest):
            found = (index, verb)
            if _ZH_GOES_ON.match(rest):
                break
    if found is None:
        return None
    index, verb = found
    return Root(verb, _zh_noun(text[:index].partition("进行")[0] if object_first else text[index + len(verb) :]))


def _zh_noun(text: str) -> str:
    """The end of the noun phrase: what follows its last 的, and of a long word the last two characters."""
    if _ZH_ASKS.search(text):
        return ""
    text = _ZH_COUNT.sub("", text).strip(" \"“”‘’'《》「」()（）")
    phrase = re.split(r"[和与及或、\s\"“”‘’'《》()（）]|使|让|以便", text)[0].removesuffix("中")
    phrase = _ZH_COUNT.sub("", phrase.rpartition("的")[2])
    if not phrase or not all(map(_HAN.match, phrase)) or phrase[0] in "关有对将把其它":
        return ""
    return phrase if len(phrase) <= 4 else phrase[-2:]
