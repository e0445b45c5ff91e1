"""What transformers raises where a config.json cannot be used. It checks little of it, so a wrong value may fail anywhere."""

from huggingface_hub.errors import StrictDataclassError

CONFIG_FAULTS = (
    StrictDataclassError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)


def first_line(error: BaseException) -> str:
    """Of a message that may be a page long; the second where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
