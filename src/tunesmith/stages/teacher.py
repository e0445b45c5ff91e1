"""Opens the teacher a section names, for every stage that asks one. Brings engine, model and renderer together for a
local teacher, which none of them knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tunesmith.errors import ModelError
from tunesmith.protocols import EventSink, Teacher
from tunesmith.recipe import Runtime, TeacherSection
from tunesmith.teachers.build import build_teacher

LOCAL_SLOTS = 4
"""Answers a local teacher writes side by side, at most: on 2 cores a 1.5B model writes 11.6 tokens/s alone and 23 with
8 streams, while each slot takes a context's memory."""


def open_teacher(
    section: TeacherSection, *, where: str, files: Mapping[str, Path], runtime: Runtime, events: EventSink
) -> Teacher:
    """A teacher ready to be asked; the caller closes it. where: recipe path of the section, for messages."""
    if section.kind != "local":
        return build_teacher(section, where=where, runtime=runtime, files=files)
    from tunesmith.chat.renderer import Renderer  # torch and llama.cpp only where a local teacher is wanted
    from tunesmith.inference.llama_cpp import LlamaCppEngine
    from tunesmith.model.catalog import fetch_gguf

    model = fetch_gguf(section.model, events=events)
    if model is None:
        raise ModelError(
            f"a local teacher runs in llama.cpp and needs a .gguf file; {section.model!r} has none",
            where=f"{where}.model",
            hint="name a built-in model (`tunesmith models`) or a .gguf file",
        )
    engine = LlamaCppEngine(
        model.gguf,
        context_length=section.context_length,
        num_slots=min(LOCAL_SLOTS, runtime.teacher_concurrency),
        num_threads=None if runtime.num_threads == "auto" else runtime.num_threads,
    )
    return build_teacher(
        section,
        where=where,
        runtime=runtime,
        files=files,
        engine=engine,
        build_prompt=Renderer.for_model(model.tokenizer_dir).prompt,
        local_name=f"{section.model}@{model.weights_digest[:12]}",
    )


def concurrency_of(section: TeacherSection, runtime: Runtime) -> int:
    """Requests to this teacher that are out at a time."""
    return min(LOCAL_SLOTS, runtime.teacher_concurrency) if section.kind == "local" else runtime.teacher_concurrency
