"""The texts on which two tokenisers must agree: 500, the same on every machine. Data made by rule, nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence

NUM_STRINGS = 500

_FIXED = (
    "Hello, world!",
    "I'll say it's John's; you're right, they've gone, we'd know, I'm sure. DON'T SHOUT, IT'S",
    "  leading and trailing  ",
    "\n\n\n",
    "\t\ttabs\tand  double  spaces   and\r\nline\rends\n",
    "no-break\u00a0space, thin\u2009space, ideographic\u3000space, zero\u200bwidth",
    "2024-11-30 12:34:56.789 +01:00; 1,234,567.89; 0x1F; 1e-9; ½ ¾ ² ³ Ⅷ ٣ ३",
    "naïve café Zürich Ångström Łódź Straße ĳ ﬁ",
    "Καλημέρα κόσμε. Привет, мир! שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก გამარჯობა",
    "你好，世界！今天的天气怎么样？",
    "日本語のテキスト、カタカナとひらがな。㍿ ①②③",
    "한국어 문장입니다. 띄어쓰기도 있어요.",
    "🙂🚲🔧 👩‍👩‍👧‍👦 🇩🇪🇨🇳 👍🏽 ❤️‍🔥 1️⃣",
    "def f(x):\n    return {'a': [1, 2, 3], \"b\": x ** 2}  # comment\n",
    '{"intent": "refund", "order": null, "reply": "We\'re on it!"}',
    "SELECT * FROM t WHERE a >= 10 AND b <> 'x'; -- done",
    "<html><body class=\"x\">&nbsp;<br/></body></html>",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org C:\\dir\\file.txt ~/x",
    "$$\\int_0^1 x^2 \\, dx = \\frac{1}{3}$$",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!???...,,,;;;:::---___===+++***&&&%%%$$$###@@@",
    "a\u0301 e\u0308 o\u0302 (combining marks)",
    "\u200d\ufe0f\ufeff",
    "\U0001f9ec\U00020000\U000e0041 rare planes",
    "",
    " ",
)  # fmt: skip

_WORDS = [
    "the",
    "bicycle",
    "order",
    "invoice",
    "wheel",
    "please",
    "broken",
    "refund",
    "and",
    "or",
    "not",
    "I",
    "we",
    "can't",
    "won't",
    "order's",
    "re-send",
    "e-mail",
    "HTTP",
    "Server",
    "JSON",
    "Über",
    "été",
    "señor",
    "заказ",
    "велосипед",
    "自行车",
    "订单",
    "退款",
    "自転車",
    "자전거",
    "דרך",
    "دراجة",
    "🙂",
    "🚲",
    "⚙️",
    "1",
    "42",
    "2024",
    "3.14",
    "1,000",
    "#",
    "@",
    "%",
    "&",
    "*",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "<",
    ">",
    "/",
    "\\",
    "|",
    "`",
    "~",
    "^",
    '"',
    "'",
    "?",
    "!",
    ".",
    ",",
    ";",
    ":",
]
_GAPS = (" ", " ", " ", " ", "", "  ", "    ", "\n", "\n\n", "\t", "\r\n", " \n ", "\u00a0", "\u3000")


def check_strings(special_tokens: Sequence[str]) -> list[str]:
    """500 texts: the fixed ones, special tokens alone and inside text, and random mixtures of scripts, digits, emoji,
    code and white space."""
    texts: list[str] = list(_FIXED)
    for token in special_tokens[:20]:
        texts += [token, f"before{token}after", f" {token} ", f"{token}{token}\n{token}"]
    draw = random.Random(500)
    while len(texts) < NUM_STRINGS:
        if draw.random() < 0.25:
            texts.append("".join(chr(_any_character(draw)) for _ in range(draw.randint(1, 40))))
        else:
            texts.append("".join(draw.choice(_WORDS) + draw.choice(_GAPS) for _ in range(draw.randint(1, 30))))
    return texts[:NUM_STRINGS]


def _any_character(draw: random.Random) -> int:
    """A code point: mostly of the blocks people write in, never half of a surrogate pair, never NUL."""
    low, high = draw.choice(
        (
            (0x09, 0x0D),
            (0x20, 0x7E),
            (0x20, 0x7E),
            (0xA0, 0x24F),
            (0x370, 0x5FF),
            (0x600, 0x6FF),
            (0x900, 0xDFF),
            (0x2000, 0x2BFF),
            (0x3000, 0x30FF),
            (0x4E00, 0x9FFF),
            (0xAC00, 0xD7A3),
            (0x1F300, 0x1FAFF),
        )
    )
    return draw.randint(low, high)
