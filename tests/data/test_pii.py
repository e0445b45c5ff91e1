"""Personal data is found by kind, checked where it has a check digit, and masked without a trace of the value."""

from __future__ import annotations

import pytest

from tunesmith.data.filters import build_filter
from tunesmith.data.pii import find_pii, luhn, mask_pii
from tunesmith.protocols import FilterContext
from tunesmith.recipe.filters import PII_KINDS, PiiOptions
from tunesmith.types import Conversation, Message, Task

CONTEXT = FilterContext(Task(), lambda name: None, lambda name: None, lambda requests: [], 1)  # pyright: ignore


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("email", "a.b+c@mail.example.co.uk"),
        ("phone", "+49 171 1234567"),
        ("phone", "+8613812345678"),
        ("phone", "(555) 123-4567"),
        ("phone", "555-123-4567"),
        ("phone", "13812345678"),
        ("phone", "01 23 45 67 89"),
        ("phone", "030/1234567"),
        ("card", "4111 1111 1111 1111"),
        ("card", "5500-0000-0000-0004"),
        ("card", "378282246310005"),
        ("iban", "DE89 3704 0044 0532 0130 00"),
        ("iban", "GB29NWBK60161331926819"),
        ("ip", "8.8.8.8"),
        ("ip", "2001:4860:4860::8888"),
        ("id_number", "078-05-1120"),
        ("id_number", "11010519491231002X"),
        ("id_number", "AB 12 34 56 C"),
        ("id_number", "12345678Z"),
        ("secret", "sk-" + "a1" * 12),
        ("secret", "AKIA" + "ABCDEFGH" * 2),
        ("secret", "ghp_" + "a" * 36),
    ],
)
@pytest.mark.parametrize("around", ["Contact: {} now", "{}", "（{}）。", "x, {}, y"])
def test_each_kind_is_found_whole(kind: str, text: str, around: str):
    whole = around.format(text)
    (found,) = find_pii(whole, PII_KINDS)
    assert (found.kind, whole[found.start : found.end]) == (kind, text)
    assert mask_pii(whole, [found]) == around.format(f"[{kind.upper()}]")


@pytest.mark.parametrize(
    "text",
    [
        "call 911", "in 2024-01-15", "01/02/2024", "2024/01/02", "1,234,567.89", "3.14159265358979", "version 1.2.3.4",
        "192.168.1.1", "127.0.0.1", "12:30:45", "ISBN 978-3-16-148410-0", "4111 1111 1111 1112", "1234567890123456",
        "110105194912310021", "12345678A", "@property", "a@b", "0.5 0.25", "sk-short",
    ],
)  # fmt: skip
def test_other_numbers_are_left_alone(text: str):
    assert find_pii(f"see {text} ok", PII_KINDS) == []


def test_an_iban_with_a_wrong_check_number_is_none():
    assert find_pii("DE88 3704 0044 0532 0130 00", ["iban"]) == []
    (found,) = find_pii("IBAN FR1420041010050500013M02606 THANKS", ["iban"])
    assert (found.start, found.end) == (5, 32)


def test_the_check_digit_of_cards():
    assert luhn("4111111111111111") and not luhn("4111111111111112")


def test_rows_are_masked_in_every_message_and_in_tool_calls():
    row = Conversation(
        messages=[
            Message(role="user", content="I am ann@example.org"),
            Message(role="assistant", tool_calls=[{"name": "mail", "arguments": {"to": "ann@example.org", "n": 1}}]),
        ]
    )
    judge = build_filter(PiiOptions(name="pii"), CONTEXT)
    masked = judge(row)  # pyright: ignore
    assert isinstance(masked, Conversation)
    assert masked.messages[0].content == "I am [EMAIL]"
    assert masked.messages[1].tool_calls == [{"name": "mail", "arguments": {"to": "[EMAIL]", "n": 1}}]
    assert masked.metadata == {"pii": {"email": 2}}
    assert masked.id != row.id and masked.origin == row.origin


def test_report_counts_and_exclude_says_no_value():
    row = Conversation(messages=[Message(role="user", content="ann@example.org, 8.8.8.8, bob@example.org")])
    reported = build_filter(PiiOptions(name="pii", action="report"), CONTEXT)(row)  # pyright: ignore
    assert isinstance(reported, Conversation)
    assert (reported.messages, reported.metadata) == (row.messages, {"pii": {"email": 2, "ip": 1}})
    excluded = build_filter(PiiOptions(name="pii", action="exclude", kinds=("email",)), CONTEXT)(row)  # pyright: ignore
    assert excluded == ("pii", "email 2")
