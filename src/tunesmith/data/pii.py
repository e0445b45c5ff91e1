"""Data about persons, and keys, in a text: where they are and of which kind. A number with a check digit is checked.

Precision before recall: names and addresses are not looked for. Documentation values (127.0.0.1, private networks) are
nobody's. Knows nothing of what is done with a finding.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from tunesmith.recipe.filters import PiiKind


class Finding(NamedTuple):
    """One finding: text[start:end]."""

    kind: PiiKind
    start: int
    end: int


_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24}(?![\w@-])")
_PHONE = re.compile(
    r"(?<![\w.+/=-])(?:"
    r"(?:\+\d{1,3}[ .-]?|00[1-9]\d{0,2}[ .-])(?:\(0?\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,12}"  # with a country code
    r"|\(\d{3}\)[ .-]?\d{3}[ .-]\d{4}|(?:1[ .-])?[2-9]\d{2}([ .-])\d{3}\1\d{4}"  # North America
    r"|1[3-9]\d(?:[ -]?\d{4}){2}"  # Chinese mobile
    r"|0\d{1,4}(?!/\d\d/)(?:[ /-]\d{2,8}){1,4}|0\d(?:\.\d{2}){4}"  # national, in groups
    r")(?![\w-]|\.\d)"
)
_CARD = re.compile(r"(?<![\w.-])(?:\d[ -]?){12,18}\d(?![\w-]|\.\d)")
_CARD_START = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720)\d*|3[47]\d{13}|6(?:011|5\d\d)\d{12}"
    r"|62\d{14,17}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}"
)
_IBAN = re.compile(r"(?<![\w-])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![\w-])")
_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AT": 20, "BE": 16, "BG": 22, "BR": 29, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20,
    "EG": 29, "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27,
    "KW": 30, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PT": 25,
    "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TR": 26, "UA": 29,
}  # fmt: skip
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_VERSION = re.compile(r"(?:\bv(?:er(?:sion)?)?|\brelease|版本)[ .:]*\Z", re.IGNORECASE)
_SSN = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_CHINESE_ID = re.compile(
    r"(?<![\w-])[1-8]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\w-])"
)
_NINO = re.compile(r"(?<!\w)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D](?!\w)")
_DNI = re.compile(r"(?<![\w-])[XYZ\d]\d{7}-?[A-HJ-NP-TV-Z](?![\w-])")
_INSEE = re.compile(r"(?<![\w-])[12] ?\d{2} ?(?:0[1-9]|1[0-2]) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}(?![\w-])")
_SECRET = re.compile(
    r"(?<![A-Za-z0-9_-])(?:sk-(?:proj-|ant-|or-)?[A-Za-z0-9_-]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{36,}"
    r"|github_pat_[A-Za-z0-9_]{50,}|glpat-[A-Za-z0-9_-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[A-Za-z0-9_-]{35}|hf_[A-Za-z0-9]{30,}"
    r"|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}|SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}|pypi-[A-Za-z0-9_-]{50,}|npm_[A-Za-z0-9]{36}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})"
    r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[\s\S]{0,8000}?(?:-----END (?:[A-Z]+ )*PRIVATE KEY-----|\Z)"
)
_SECRET_SIGNS = (
    "sk-", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "AIza", "hf_", "k_live_",
    "k_test_", "SG.", "pypi-", "npm_", "eyJ", "PRIVATE KEY",
)  # fmt: skip
_SIX_DIGITS = re.compile(r"\d(?:[ ./()-]{0,2}\d){5}")
"""What every number of a person has somewhere; most texts do not, and are done with."""


def find_pii(text: str, kinds: Collection[PiiKind]) -> list[Finding]:
    """Findings in the order of the text, never overlapping: where two kinds claim a place, the earlier of _FINDERS has it."""
    taken: list[Finding] = []
    has_number = _SIX_DIGITS.search(text) is not None
    for kind, (find, needs_number) in _FINDERS.items():
        if kind in kinds and (has_number or not needs_number):
            for start, end in find(text):
                if all(end <= other.start or start >= other.end for other in taken):
                    taken.append(Finding(kind, start, end))
    return sorted(taken, key=lambda found: found.start)


def mask_pii(text: str, findings: Collection[Finding]) -> str:
    """The text with [EMAIL], [PHONE] ... in the place of the findings."""
    for found in sorted(findings, key=lambda each: each.start, reverse=True):
        text = f"{text[: found.start]}[{found.kind.upper()}]{text[found.end :]}"
    return text


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others (ISO/IEC 7812-1)."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def _spans(pattern: re.Pattern[str], text: str, check: Callable[[str], bool]) -> Iterator[tuple[int, int]]:
    return (match.span() for match in pattern.finditer(text) if check(match.group()))


def _secrets(text: str) -> Iterator[tuple[int, int]]:
    return _spans(_SECRET, text, lambda found: True) if any(sign in text for sign in _SECRET_SIGNS) else iter(())


def _emails(text: str) -> Iterator[tuple[int, int]]:
    return _spans(_EMAIL, text, lambda found: ".." not in found) if "@" in text else iter(())


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN.finditer(text):
        wanted = _IBAN_LENGTHS.get(match.group()[:2])
        end = match.start()
        while wanted and end < match.end():  # the expression may have taken a word of capitals behind the number
            wanted -= text[end] != " "
            end += 1
        if wanted == 0 and not (end < len(text) and text[end].isalnum()) and _iban_checks(text[match.start() : end]):
            yield match.start(), end


def _iban_checks(found: str) -> bool:
    number = found.replace(" ", "")
    return int("".join(str(int(character, 36)) for character in number[4:] + number[:4])) % 97 == 1


def _cards(text: str) -> Iterator[tuple[int, int]]:
    def check(found: str) -> bool:
        digits = re.sub(r"\D", "", found)
        known = _CARD_START.fullmatch(digits) is not None and (len(digits) == 16 or digits[0] not in "25")
        return known and luhn(digits) and len(set(digits)) > 1

    return _spans(_CARD, text, check)


def _ips(text: str) -> Iterator[tuple[int, int]]:
    for pattern, mark in ((_IPV4, "."), (_IPV6, ":")):
        for match in pattern.finditer(text) if text.count(mark) > 1 else ():
            try:
                address = ipaddress.ip_address(match.group())
            except ValueError:
                continue
            if address.is_global and not _VERSION.search(text, max(0, match.start() - 12), match.start()):
                yield match.span()


def _id_numbers(text: str) -> Iterator[tuple[int, int]]:
    checks: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = (
        (_SSN, lambda found: found != "123-45-6789"),
        (_CHINESE_ID, _chinese_id_checks),
        (_NINO, lambda found: found[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")),
        (_DNI, _dni_checks),
        (_INSEE, _insee_checks),
    )
    for pattern, check in checks:
        yield from _spans(pattern, text, check)


def _chinese_id_checks(found: str) -> bool:
    """ISO 7064 MOD 11-2, as in GB 11643-1999."""
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(found[:17]))
    return "10X98765432"[total % 11] == found[17].upper()


def _dni_checks(found: str) -> bool:
    number = found[:8].replace("X", "0").replace("Y", "1").replace("Z", "2")
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == found[-1]


def _insee_checks(found: str) -> bool:
    digits = found.replace(" ", "").replace("2A", "19").replace("2B", "18")
    return digits.isdigit() and int(digits[:13]) % 97 == 97 - int(digits[13:])


_FINDERS: dict[PiiKind, tuple[Callable[[str], Iterator[tuple[int, int]]], bool]] = {
    "secret": (_secrets, False),
    "email": (_emails, False),
    "iban": (_ibans, True),
    "card": (_cards, True),
    "id_number": (_id_numbers, True),
    "ip": (_ips, False),
    "phone": (lambda text: _spans(_PHONE, text, lambda found: 8 <= sum(map(str.isdigit, found)) <= 15), True),
}
