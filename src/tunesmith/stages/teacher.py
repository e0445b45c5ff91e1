"""Opens the teacher a section names, for every stage that asks one. Brings engine, model and renderer together for a
local teacher, which none of them knows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import ceil
from pathlib import Path

from tunesmith.errors import ModelError
from tunesmith.events import Note
from tunesmith.protocols import EventSink, Teacher
from tunesmith.recipe import Runtime, TeacherSection
from tunesmith.teachers.build import build_teacher
from tunesmith.teachers.prices import price_warning
from tunesmith.teachers.window import MOST_IN_FLIGHT, MOST_IN_ONE_BATCH

LOCAL_SLOTS = 4
"""Answers a local teacher writes side by side, at most: on 2 cores a 1.5B model writes 11.6 tokens/s alone and 23 with
8 streams, while each slot takes a context's memory."""


_PAUSING = 1.25
"""Requests handed to an endpoint over those it has in flight: one that was refused waits, and its place must not stay empty. Above a
quarter of refusals the endpoint means it (window.SUSTAINED_SHARE) and fewer are in flight anyway."""


def open_teacher(
    section: TeacherSection, *, where: str, files: Mapping[str, Path], runtime: Runtime, events: EventSink
) -> Teacher:
    """A teacher ready to be asked; the caller closes it. where: recipe path of the section, for messages."""
    if section.kind != "local":
        if (warning := price_warning(section)) is not None:
            events.emit(Note(level="warning", message=warning))

        def notify(sentence: str) -> None:
            events.emit(Note(message=sentence))

        return build_teacher(section, where=where, runtime=runtime, files=files, notify=notify)
    from tunesmith.chat.renderer import Renderer  # torch and llama.cpp only where a local teacher is wanted
    from tunesmith.chat.user_prefix import user_prefix
    from tunesmith.inference.llama_cpp import LlamaCppEngine, free_cores
    from tunesmith.model.catalog import fetch_gguf
    from tunesmith.teachers.local import LocalTeacher

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
        num_slots=concurrency_of(section, runtime),
        num_threads=free_cores() if runtime.num_threads == "auto" else runtime.num_threads,
    )
    renderer = Renderer.for_model(model.tokenizer_dir)
    teacher = build_teacher(
        section,
        where=where,
        runtime=runtime,
        files=files,
        engine=engine,
        build_prompt=renderer.prompt,
        local_name=f"{section.model}@{model.weights_digest[:12]}",
    )
    assert isinstance(teacher, LocalTeacher)
    teacher.build_prefix = partial(user_prefix, renderer)
    return teacher


def weights_licence(section: TeacherSection, events: EventSink) -> str | None:
    """Licence of a local teacher's model, None for other kinds."""
    if section.kind != "local":
        return None
    from tunesmith.model.catalog import fetch_gguf

    model = fetch_gguf(section.model, events=events)
    return model.licence if model is not None else None


def concurrency_of(section: TeacherSection, runtime: Runtime) -> int:
    """Requests that this teacher is handed at a time, at most. How many of them are really out is its business."""
    wanted = runtime.teacher_concurrency
    if section.kind == "local":
        return LOCAL_SLOTS if wanted == "auto" else min(LOCAL_SLOTS, wanted)
    if section.kind == "openai" and runtime.teacher_batch:
        return MOST_IN_ONE_BATCH
    in_flight = (1 + len(section.extra_endpoints)) * (MOST_IN_FLIGHT if wanted == "auto" else wanted)
    return ceil(in_flight * _PAUSING) if section.kind == "openai" else in_flight
