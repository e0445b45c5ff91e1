"""A reward in Python of the recipe's own: loads the function, calls it row by row, and takes its faults for the row's.

The file runs with all rights of the process: it belongs to the recipe, as the recipe does to the person. An error in one row is a
failure of that row; an error while the file is read is one of the recipe.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from traceback import extract_tb
from typing import Any

from tunesmith.errors import RecipeError, nearest
from tunesmith.hashing import digest_text
from tunesmith.protocols import Attempt, Reward, RewardContext
from tunesmith.recipe.rewards import PythonOptions
from tunesmith.types import Score

_SIGNATURE = "(prompt, completion, reference)"

UserFunction = Callable[[list[dict[str, Any]], str, str | None], Any]


def python(options: PythonOptions, ctx: RewardContext) -> Reward:
    """The function named by file.py:function. RecipeError where file or function is missing or cannot be called so."""
    name, _, attribute = options.function.rpartition(":")
    path = ctx.files.get(name, Path(name))
    function = _load(path, attribute, ctx.where)

    def score(attempts: Sequence[Attempt]) -> list[Score]:
        return [_score(function, path, attempt) for attempt in attempts]

    return score


def _load(path: Path, attribute: str, where: str) -> UserFunction:
    # A name of its own, so that a file called json.py shadows nothing.
    module_name = f"tunesmith_reward_{digest_text(str(path.resolve()))[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise RecipeError(f"there is no Python file {path}", where=where)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise RecipeError(
            f"{path.name} cannot be run: {_describe(error, path)}", where=where, hint="mend the file"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        close = nearest(attribute, known)
        hint = f"did you mean {close!r}?" if close else f"its functions: {', '.join(known) or 'none'}"
        raise RecipeError(f"{path.name} has no function {attribute!r}", where=where, hint=hint)
    try:
        inspect.signature(function).bind([], "", None)
    except TypeError as error:
        raise RecipeError(
            f"{path.name}:{attribute} cannot be called with {_SIGNATURE}: {error}",
            where=where,
            hint=f"def {attribute}{_SIGNATURE}: return a number, or None for what it cannot score",
        ) from None
    except ValueError:
        pass  # a builtin without a signature: its first call will tell
    return function


def _score(function: UserFunction, path: Path, attempt: Attempt) -> Score:
    messages = [message.model_dump(exclude_none=True) for message in attempt.prompt]
    try:
        value = function(messages, attempt.completion, attempt.reference)
    except Exception as error:  # noqa: BLE001 - somebody else's code may raise anything, and it is this row's failure
        return Score(value=None, explanation=f"the reward function failed: {_describe(error, path)}")
    if value is None:
        return Score(value=None, explanation="the reward function gave None")
    try:
        number = float(value)
    except (TypeError, ValueError):
        return Score(value=None, explanation=f"the reward function gave {type(value).__name__}, expected a number")
    if not math.isfinite(number):
        return Score(value=None, explanation=f"the reward function gave {number}")
    return Score(value=number)


def _describe(error: BaseException, path: Path) -> str:
    """ZeroDivisionError: division by zero (line 7)."""
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if Path(frame.filename) == path]
    at = f" ({path.name}:{lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{at}"
