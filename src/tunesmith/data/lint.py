"""Defects of instruction rows, one function each: what AlpacaDataCleaned (G. Ruebsamen, 2023) found by hand in Alpaca's
52,002 rows, as rules. A rule answers what it found, or None. Knows nothing of what happens to the row.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.data.arithmetic import first_wrong_equation
from tunesmith.recipe.filters import LintRule
from tunesmith.text.rouge import unicode_tokens

_MERGED = re.compile(r"(?im)(?:^|\n)\W{0,4}(?:\d{1,2}\s*[.)、]\s*)?(?:instructions?|指令)\s*\d*\s*[:：]\s*\S")
_BROWSED = re.compile(
    r"\b(?:i(?:'|’)?(?:ve| have)? (?:just )?(?:searched|looked up|browsed|googled|visited|checked)\b.{0,40}\b(?:internet|online|web(?:site|page)?|google|link|url|article)"
    r"|(?:after|based on|according to) (?:my |a |an )?(?:quick )?(?:internet|online|web|google) (?:search|research)"
    r"|i found (?:this|it|the following|that) (?:on the internet|online))\b"
    r"|(?:我(?:刚刚|已经)?(?:在|从)?(?:网上|互联网上?|百度|谷歌)(?:上)?(?:搜索|查到|查找|找到|查询))|(?:根据(?:我的)?(?:网络|网上|互联网)搜索)",
    re.IGNORECASE | re.DOTALL,
)
_URL = re.compile(r"https?://\S+|www\.\S+\.\S+")
_READS_A_LINK = re.compile(
    r"\b(?:summari[sz]e|visit|open|read|browse|review|analy[sz]e|extract|check|scrape|translate)\b|总结|访问|打开|阅读|浏览|概括|分析",
    re.IGNORECASE,
)
_IMAGE_ASKED = re.compile(
    r"\b(?:draw|sketch|paint|design|create|generate|make|produce|render|describe|caption|edit|crop|look at|identify)\b[^.?!\n]{0,40}"
    r"\b(?:an?|the|this|these|following|given|attached)\s+(?:\w+\s+){0,3}(?:images?|pictures?|photos?|photographs?|paintings?|logos?|drawings?|screenshots?|gifs?)\b"
    r"|\b(?:in|from) (?:this|the (?:given|attached|following)) (?:image|picture|photo|photograph)\b"
    r"|(?:画(?:一|出|个|张|幅)|绘制|生成(?:一|张|幅)|看(?:这|下面)?(?:张|幅)?|描述)[^。？！\n]{0,12}(?:图片|图像|照片|图画|插图|海报)",
    re.IGNORECASE,
)
_IMAGE_GIVEN = re.compile(
    r"!\[[^\]]*\]\([^)]*\)|[\[<(](?:image|picture|photo|图片|图像)[^\]>)\n]{0,60}[\]>)]", re.IGNORECASE
)
_CODE_ASKED = re.compile(
    r"\b(?:write|create|implement|develop|code|build|generate|provide)\b[^.?!\n]{0,40}\b(?:code|program|function|script|sql(?: query)?|query in sql|regex|regular expression|html|css|class in (?:java|python|c\+\+))\b"
    r"|(?:写|编写|实现|给出)[^。？！\n]{0,16}(?:代码|程序|函数|脚本|SQL|正则表达式)",
    re.IGNORECASE,
)
_CODE_SIGN = re.compile(r"```|[{};<>=\\^$]|\w\(|\bSELECT\b|\bdef\b|^\s{2,}\S|:\s*\n", re.MULTILINE | re.IGNORECASE)
_NOT_APPLICABLE = re.compile(
    r"[\s<(\[{]*(?:n\s*/\s*a|not applicable|no ?(?:input|output)|none|null|nan|undefined|无|暂无|不适用|没有输出)[\s>)\]}.。!！]*",
    re.IGNORECASE,
)
_MOJIBAKE = re.compile(r"Ã[\x80-\xbf©¨¡¢£ª«±³´µº»¼½¾¿]|â€[™œ\x9d˜“”¦]|ï¿½|锟斤拷")
_BAD_CATEGORIES = frozenset({"Cc", "Cs", "Co", "Cn"})
_BAD_FORMATS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\ufffd")
_SUSPICIOUS = re.compile(r"[^\t\n\r\x20-\x7e\xa0-\xff\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]")


@dataclass(frozen=True)
class LintText:
    """A row as the rules see it."""

    instruction: str
    prompt: str  # everything the user says
    reply: str  # everything the assistant says


def merged_instruction(row: LintText) -> str | None:
    """Several tasks in one row: a line that begins "Instruction:" behind the beginning of the prompt, or in the reply."""
    head = row.prompt.lstrip()
    match = _MERGED.search(head, 1) or _MERGED.search(row.reply)
    return f"holds {match.group().strip()!r}" if match else None


def internet_claim(row: LintText) -> str | None:
    """A reply that says it looked something up, or a prompt whose matter is behind a link the model cannot open."""
    match = _BROWSED.search(row.reply)
    if match:
        return f"the reply says {match.group()[:80]!r}"
    link = _URL.search(row.prompt)
    if link and _READS_A_LINK.search(row.instruction) and len(_URL.sub("", row.prompt)) < 200:
        return f"the prompt asks about {link.group()[:80]!r}"
    return None


def image_task(row: LintText) -> str | None:
    """A task that needs eyes or a brush."""
    match = _IMAGE_ASKED.search(row.instruction) or _IMAGE_GIVEN.search(row.prompt) or _IMAGE_GIVEN.search(row.reply)
    return f"says {match.group()[:80]!r}" if match else None


def missing_code(row: LintText) -> str | None:
    """Code is asked for, and the reply has no sign of any."""
    match = _CODE_ASKED.search(row.instruction)
    return (
        f"{match.group()[:80]!r} is asked for, the reply has no code"
        if match and not _CODE_SIGN.search(row.reply)
        else None
    )


def not_applicable(row: LintText) -> str | None:
    """A placeholder for a reply."""
    return f"the reply is {row.reply.strip()!r}" if _NOT_APPLICABLE.fullmatch(row.reply) else None


def wrong_arithmetic(row: LintText) -> str | None:
    """An equation between numbers that does not hold, beyond rounding."""
    return first_wrong_equation(row.reply)


def nonsense(row: LintText) -> str | None:
    """Broken encodings; one character, or one word, again and again."""
    for text in (row.prompt, row.reply):
        match = _MOJIBAKE.search(text)
        if match:
            return f"broken encoding: {text[max(0, match.start() - 10) : match.end() + 10]!r}"
        match = re.search(r"([^\W\d_])\1{14,}", text)
        if match:
            return f"says {match.group()[:30]!r}"
    words = unicode_tokens(row.reply)
    if len(words) >= 20:
        word, count = Counter(words).most_common(1)[0]
        if count > len(words) / 2:
            return f"{word!r} is {count} of {len(words)} words of the reply"
    return None


def control_characters(row: LintText) -> str | None:
    """Characters that nobody typed: controls, private use, unassigned, direction marks, the replacement character."""
    for text in (row.prompt, row.reply):
        for match in _SUSPICIOUS.finditer(text):
            character = match.group()
            if character in _BAD_FORMATS or unicodedata.category(character) in _BAD_CATEGORIES:
                return f"holds U+{ord(character):04X}"
    return None


def colon_end(row: LintText) -> str | None:
    """A reply that breaks off before its list begins (Self-Instruct: output ends with a colon)."""
    return "the reply ends with a colon" if row.reply.rstrip().endswith((":", "：")) else None


RULES: dict[LintRule, Callable[[LintText], str | None]] = {
    "merged_instruction": merged_instruction,
    "internet_claim": internet_claim,
    "image_task": image_task,
    "missing_code": missing_code,
    "not_applicable": not_applicable,
    "wrong_arithmetic": wrong_arithmetic,
    "nonsense": nonsense,
    "control_characters": control_characters,
    "colon_end": colon_end,
}
"""Every rule by name."""
