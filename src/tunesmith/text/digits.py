"""A judge's mark as a number: the expectation over single digits from log-probabilities, or the digit that was written.

Knows no question and no scale beyond its two ends.
"""

from __future__ import annotations

import math
import re

from tunesmith.types import Completion

_MIN_MASS = 0.1
"""A place counts as the mark's only where the digits have this much probability together: else it is some other word."""


def expected_digit(answer: Completion, lowest: int, highest: int) -> float | None:
    """Expectation over the digits lowest..highest (both within 0 to 9) at the first place of the answer where the judge
    thought of one, from log-probabilities renormalised over those digits (Liu et al. 2023, G-Eval, arXiv 2303.16634, section 2);
    without log-probabilities the first such digit of the text that stands alone; None where there is neither."""
    wanted = {str(digit): digit for digit in range(lowest, highest + 1)}
    for place in answer.top_logprobs or ():
        masses: dict[int, float] = {}
        for token, logprob in place.items():
            if (digit := wanted.get(token.strip())) is not None:
                masses[digit] = masses.get(digit, 0.0) + math.exp(logprob)
        total = sum(masses.values())
        if total >= _MIN_MASS:
            return sum(digit * mass for digit, mass in masses.items()) / total
    match = re.search(rf"(?<![\d.])([{lowest}-{highest}])(?!\d|\.\d)", answer.text)
    return float(match[1]) if match else None
