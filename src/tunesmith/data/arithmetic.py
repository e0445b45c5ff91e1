"""Equations between numbers in a text, and whether they hold. Exact fractions; never evaluates anything but + - * / and
brackets. Knows nothing of who wrote the text."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?%?|\.\d+%?"
_GAP = r"[^\S\n]*"
# Left: at least one operator between numbers, all on one line. Right: one number, not itself the beginning of a longer
# expression. Possessive throughout, or a long sum without an equals sign would take exponential time.
_OPERAND = rf"(?>[(]*+{_GAP}+[$€£¥]?+[(]*+(?>{_NUMBER}){_GAP}+[)]*+)"
_EQUATION = re.compile(
    rf"(?<![\w.,/*^+=%)\]}}×÷√-])(?P<left>{_OPERAND}(?:{_GAP}+[-+*/×÷−x]{_GAP}+{_OPERAND})++)"
    rf"{_GAP}+=\s*+(?P<right>-?{_GAP}+[$€£¥]?{_GAP}+(?>{_NUMBER}))"
    rf"(?![\d.,]*\d|,?[ \u00a0\u202f]\d{{3}}(?!\d)|{_GAP}[-+*/×÷−–^(:x]{_GAP}(?:[\d($€£¥]|[a-zA-Z]\b)"
    rf"|{_GAP}\.\.\.|{_GAP}(?:r|R|remainder)\b|[a-zA-Z_]|{_GAP}%)"
)
_TOKEN = re.compile(rf"{_NUMBER}|[-+*/()]")
_CUT_BEFORE = re.compile(r"\d,?[ \u00a0\u202f]$|[^\s-][ \t]*[-+*/×÷−–][ \t]*$")
"""The expression begins earlier: "100 000 x 2", "1 1/2 * 60", "x + 4 + 2". A dash that begins a line is a list's."""
_CLOCK = re.compile(r"(?<![\d.,])0\d{3}(?![\d.,])")
"""A time of day: "0900-0130 = 0730" counts in hours and minutes."""
_MOST_TOKENS = 60
_RELATIVE_ROUNDING = Fraction(1, 100)
"""A right side may be rounded more coarsely than its digits show ("about"): up to a hundredth of the value."""


def first_wrong_equation(text: str) -> str | None:
    """The first equation that does not hold, with the right value, or None. "48/2 = 24" holds, "10/3 = 3.33" does too."""
    if "=" not in text:
        return None
    for match in _EQUATION.finditer(text):
        left, right = _plain(match["left"]), _plain(match["right"])
        value, said = evaluate(left), evaluate(right)
        if value is None or said is None or _CLOCK.search(match.group()):
            continue
        if _ambiguous(left, text[max(0, match.start() - 8) : match.start()], value) or _close(value, said, right):
            continue
        shown = int(value) if value.denominator == 1 else round(float(value), 4)
        return f"{match.group().strip()!r} is wrong: it is {shown}"
    return None


def evaluate(expression: str) -> Fraction | None:
    """Value of an expression of numbers, + - * / and brackets; None where it has none (0 as a divisor, unpaired bracket)."""
    tokens = _TOKEN.findall(expression)
    if not tokens or len(tokens) > _MOST_TOKENS:
        return None
    try:
        value, end = _sum(tokens, 0)
    except (ArithmeticError, IndexError, ValueError):
        return None
    return value if end == len(tokens) else None


def _sum(tokens: list[str], at: int) -> tuple[Fraction, int]:
    value, at = _product(tokens, at)
    while at < len(tokens) and tokens[at] in "+-":
        term, after = _product(tokens, at + 1)
        value, at = (value + term if tokens[at] == "+" else value - term), after
    return value, at


def _product(tokens: list[str], at: int) -> tuple[Fraction, int]:
    value, at = _atom(tokens, at)
    while at < len(tokens) and tokens[at] in "*/":
        factor, after = _atom(tokens, at + 1)
        value, at = (value * factor if tokens[at] == "*" else value / factor), after
    return value, at


def _atom(tokens: list[str], at: int) -> tuple[Fraction, int]:
    token = tokens[at]
    if token == "-":
        value, at = _atom(tokens, at + 1)
        return -value, at
    if token == "(":
        value, at = _sum(tokens, at + 1)
        if tokens[at] != ")":
            raise ValueError("unpaired bracket")
        return value, at + 1
    return Fraction(token.rstrip("%")) / (100 if token.endswith("%") else 1), at + 1


def _plain(text: str) -> str:
    text = re.sub(r"[$€£¥\s]|(?<=\d),(?=\d{3})", "", text)
    return text.replace("×", "*").replace("x", "*").replace("÷", "/").replace("−", "-")


def _ambiguous(left: str, before: str, value: Fraction) -> bool:
    """Texts that only look like an equation: "1/2 = 12" (half of them is 12), "2/ 1/5 = 10", the end of a longer one."""
    share = re.fullmatch(r"\(*\d+/\d+\)*", left) is not None and value < 1
    return share or left.count("/") > 1 or _CUT_BEFORE.search(before) is not None


def _close(value: Fraction, said: Fraction, written: str) -> bool:
    """Whether `said`, written with these digits, is the value exactly, rounded or cut; or the same as a percentage."""
    unit = Fraction(1, 10 ** len(written.rstrip("%").partition(".")[2]))
    for same in (value, value * 100, value / 100):
        exact = (same / unit).denominator == 1  # the digits could show it exactly, so rounding is no excuse
        if same == said or (not exact and abs(same - said) < unit):
            return True
    return unit < 1 and abs(value - said) <= abs(value) * _RELATIVE_ROUNDING
