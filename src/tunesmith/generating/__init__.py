"""Ways to let a teacher write rows. Each member meets its teacher only through protocols.GenerationContext."""

from __future__ import annotations

from tunesmith.registry import Registry

GENERATORS = Registry(
    "generator",
    {
        "self_instruct": "tunesmith.generating.self_instruct:self_instruct",
        "distill": "tunesmith.generating.distill:distill",
    },
)
"""Members by the name a recipe gives in `generate.generator`."""
