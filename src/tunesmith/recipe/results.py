"""What becomes of the tuned model: the sections of evaluate and export."""

from __future__ import annotations

from pydantic import Field

from tunesmith.recipe.section import Auto, RngSeed, Section, StrList
from tunesmith.recipe.teaching import TeacherSection


class Evaluate(Section):
    """Base, tuned and teacher side by side on the test split."""

    max_samples: int | None = Field(default=None, ge=1)
    """At most this many test rows; none = all."""

    max_tokens: int = Field(default=256, ge=1)
    """Longest answer, in tokens."""

    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 = greedy."""

    condition: str | None = None
    """Source class the answers are asked for under (C-RLFT), in templates that write it; none = the template's own."""

    exact_fields: StrList | Auto = "auto"
    """JSON fields scored by equality; auto = those the schema restricts by enum, const, pattern, boolean or number."""

    text_field: str | Auto = "auto"
    """JSON field scored by ROUGE-L; auto = the free-text one."""

    teacher: TeacherSection | None = None
    """Also let this model answer the test rows."""

    max_failures: int = Field(default=20, ge=0)
    """Teacher answers that may fail before the stage gives up."""

    rng_seed: RngSeed = 17
    """Seed of sampling."""

    def file_names(self) -> list[str]:
        return self.teacher.file_names() if self.teacher else []


class Export(Section):
    """Files that other programs load."""

    formats: StrList = ("safetensors", "gguf-q8_0")
    """safetensors (merged transformers folder), gguf-f16, gguf-q8_0, gguf-q4_k_m."""

    num_check_prompts: int = Field(default=20, ge=0)
    """Prompts whose greedy answers are compared between the GGUF engine and transformers."""

    max_logit_difference: float = Field(default=1e-3, gt=0)
    """Largest difference allowed between merged and adapter logits, in fp32."""
