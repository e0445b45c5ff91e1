"""Models that write: behind an endpoint, in this process, or from a script; and the ledger that pays each answer once."""

from __future__ import annotations

from tunesmith.registry import Registry

TEACHERS = Registry(
    "teacher",
    {
        "openai": "tunesmith.teachers.openai:OpenAITeacher",
        "local": "tunesmith.teachers.local:LocalTeacher",
        "scripted": "tunesmith.teachers.scripted:ScriptedTeacher",
    },
)
"""Members by the name a recipe gives in `teacher.kind`."""
