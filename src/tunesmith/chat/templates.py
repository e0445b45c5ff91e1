"""The chat templates that ship with the package. They are data (templates/*.jinja); this module finds them by name.

Knows what each is for and the string that ends an assistant turn. Refuses to know how a template is rendered.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import ModelError, RecipeError, nearest

FOLDER = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class BuiltinTemplate:
    """`stop` ends an assistant turn; None = the tokenizer's own end-of-sequence token."""

    name: str
    description: str
    stop: str | None = None

    @property
    def source(self) -> str:
        """The jinja text."""
        return (FOLDER / f"{self.name}.jinja").read_text(encoding="utf-8")


BUILTIN_TEMPLATES: dict[str, BuiltinTemplate] = {
    template.name: template
    for template in (
        BuiltinTemplate("alpaca", "### Instruction / ### Response; for a base model without special tokens"),
        BuiltinTemplate("alpaca-lora", "Alpaca-LoRA's two forms: what follows a user's first blank line is ### Input"),
        BuiltinTemplate("alpaca-short", "alpaca-lora without the preamble"),
        BuiltinTemplate("belle", "Human: / Assistant: on lines of their own, as BELLE writes them"),
        BuiltinTemplate("chatml", "<|im_start|>role ... <|im_end|>", "<|im_end|>"),
        BuiltinTemplate("command-r", "Command R's turn tokens", "<|END_OF_TURN_TOKEN|>"),
        BuiltinTemplate("deepseek", "User: / Assistant:, as DeepSeek LLM Chat writes them"),
        BuiltinTemplate("gemma", "<start_of_turn>user / model; a system message is folded in", "<end_of_turn>"),
        BuiltinTemplate("llama-2", "[INST] with <<SYS>>"),
        BuiltinTemplate("llama-3", "header ids and <|eot_id|>", "<|eot_id|>"),
        BuiltinTemplate("mistral", "[INST] ... [/INST]; a system message is folded into the first user turn"),
        BuiltinTemplate("openchat-3.5", "GPT4 Correct User: / Assistant:", "<|end_of_turn|>"),
        BuiltinTemplate("phi-3", "<|user|> ... <|end|>", "<|end|>"),
        BuiltinTemplate("qwen2.5", "ChatML with Qwen's system prompt and tool calls", "<|im_end|>"),
        BuiltinTemplate("qwen3", "ChatML with thoughts, stripped from earlier turns", "<|im_end|>"),
        BuiltinTemplate("smollm2", "ChatML with SmolLM2's system prompt", "<|im_end|>"),
        BuiltinTemplate("vicuna", "USER: / ASSISTANT: with Vicuna's system prompt"),
        BuiltinTemplate("vigogne", "alpaca-lora in French: ### Entrée / ### Réponse"),
        BuiltinTemplate("zephyr", "<|user|> ... end-of-sequence token"),
    )
}


def load_template(name: str) -> str:
    """Jinja text of a built-in template. Raises RecipeError with the nearest name where there is none."""
    if name not in BUILTIN_TEMPLATES:
        close = nearest(name, BUILTIN_TEMPLATES)
        raise RecipeError(
            f"there is no built-in chat template named {name!r}",
            where="recipe.tokenize.chat_template",
            hint=f"did you mean {close!r}?"
            if close
            else f"known: {', '.join(BUILTIN_TEMPLATES)}; or give a .jinja file",
        )
    return BUILTIN_TEMPLATES[name].source


def check_template_name(name: str) -> None:
    """RecipeError for what is neither `auto`, a .jinja file nor a built-in template."""
    if name != "auto" and not name.endswith(".jinja"):
        load_template(name)


def read_template(path: Path) -> str:
    """Jinja text of a file, as it is. Raises ModelError where it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the chat template cannot be read: {error}", where=str(path)) from error
