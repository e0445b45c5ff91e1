"""Ways to let a teacher write rows. Each member meets its teacher only through protocols.GenerationContext."""

from __future__ import annotations

from tunesmith.registry import Registry

GENERATORS = Registry(
    "generator",
    {
        "self_instruct": "tunesmith.generating.self_instruct:self_instruct",
        "three_step": "tunesmith.generating.three_step:three_step",
        "label_first": "tunesmith.generating.label_first:label_first",
        "distill": "tunesmith.generating.distill:distill",
        "questions": "tunesmith.generating.question_response:questions",
        "responses": "tunesmith.generating.question_response:responses",
        "question_response": "tunesmith.generating.question_response:question_response",
        "dialogue": "tunesmith.generating.dialogue:dialogue",
        "maths": "tunesmith.generating.maths:maths",
        "evolve": "tunesmith.generating.evolve:evolve",
        "magpie": "tunesmith.generating.magpie:magpie",
        "personas": "tunesmith.generating.personas:personas",
        "back_translate": "tunesmith.generating.back_translate:back_translate",
        "translate": "tunesmith.generating.translate:translate",
        "documents": "tunesmith.generating.documents:documents",
    },
)
"""Members by the name a recipe gives in `generate.generator`."""
