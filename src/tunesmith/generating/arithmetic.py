"""School arithmetic out of text: numbers, expressions, and lines that say `12 * 3 = 36`. Exact, in fractions; nothing is
ever executed: expressions are parsed and only numbers and + - * / ** % ( ) are walked."""

from __future__ import annotations

import ast
import re
from fractions import Fraction

_MAX_CHARACTERS = 400
_MAX_EXPONENT = 64
_MAX_BITS = 4096
_SIGNS = str.maketrans(
    {"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "（": "(", "）": ")", "：": "/", "［": "(", "］": ")"}
)
_NUMBER = re.compile(r"(?<![\w.])-?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?|-?\d+(?:\.\d+)?(?:/\d+)?%?")
_EQUATION = re.compile(
    r"(?P<left>[\d(][\d\s.,+\-*/×÷·−()^%$€¥]*[\d)%])\s*=\s*(?P<right>[$€¥]?\s*-?[\d][\d,.]*(?:/\d+)?%?)"
)
_FINAL = re.compile(
    r"(?:answer(?: is)?|result(?: is)?|答案(?:是|为)?|答|结果(?:是|为)?)\s*[:：=]?\s*[^\d\-\n]{0,12}"
    r"(?P<number>-?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?)",
    re.IGNORECASE,
)


def evaluate(expression: str) -> Fraction | None:
    """The value of an arithmetic expression, None where it is none (or too long, or divides by nothing)."""
    text = expression.translate(_SIGNS).strip().rstrip("=").replace("^", "**")
    text = re.sub(r"[$€¥]", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"(\d+(?:\.\d+)?)\s*%(?!\s*[\d(])", r"(\1/100)", text)
    if not text or len(text) > _MAX_CHARACTERS:
        return None
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError, OverflowError):
        return None


def number_in(text: str) -> Fraction | None:
    """The number a short text stands for: `1,200`, `$3.50`, `3/4`, `25%`, `42 apples`; None where there is not exactly one."""
    found = _NUMBER.findall(text.translate(_SIGNS))
    return _fraction(found[0]) if len(found) == 1 else None


def final_number(text: str) -> Fraction | None:
    """The answer at the end of a solution: after the last `Answer:` (答案：), else the last number of the last line."""
    named = list(_FINAL.finditer(text.translate(_SIGNS)))
    if named:
        return _fraction(named[-1]["number"])
    lines = [line for line in text.splitlines() if line.strip()]
    found = _NUMBER.findall(lines[-1].translate(_SIGNS)) if lines else []
    return _fraction(found[-1]) if found else None


def wrong_equation(text: str) -> str | None:
    """The first `expression = number` of a text that is wrong, None where all hold. A right side that was rounded to
    the decimals it shows is right."""
    for found in _EQUATION.finditer(text):
        left, right = evaluate(found["left"]), evaluate(found["right"].rstrip(".,"))
        if left is None or right is None or not re.search(r"[+\-*/×÷·−^]", found["left"][1:]):
            continue
        decimals = len(found["right"].rstrip(".,%").partition(".")[2])
        if abs(left - right) > Fraction(1, 2 * 10**decimals) * (decimals > 0):
            return found.group().strip().rstrip(".,")
    return None


def _fraction(text: str) -> Fraction | None:
    bare = text.replace(",", "")
    try:
        return Fraction(bare.rstrip("%")) / (100 if bare.endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        return None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return -_value(node.operand) if isinstance(node.op, ast.USub) else _value(node.operand)
    if not isinstance(node, ast.BinOp):
        raise ValueError("no arithmetic")
    left, right = _value(node.left), _value(node.right)
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.Mult):
        return left * right
    if isinstance(node.op, ast.Div):
        return left / right
    if isinstance(node.op, ast.Mod):
        return left % right
    if isinstance(node.op, ast.Pow) and right.denominator == 1 and abs(right) <= _MAX_EXPONENT:
        if left.numerator.bit_length() * abs(right) > _MAX_BITS:
            raise ValueError("too large")
        return left ** int(right)
    raise ValueError("no arithmetic")
