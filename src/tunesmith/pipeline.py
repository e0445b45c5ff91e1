"""Every stage, as one table; what a recipe will run (plan); running it (execute).

Finished stages are found by key; an unfinished one continues from its partial folder. A stage that ends with the
output it had before stops the change there: the stages after it are found by key again. Imports no stage until it
runs, and no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from tunesmith.chat.templates import check_template_name
from tunesmith.errors import EXTRAS, MissingExtra, RecipeError, StoreError, TrainingError, TunesmithError
from tunesmith.events import (
    FanOut,
    JsonlSink,
    Note,
    RunFinished,
    RunStarted,
    StageFailed,
    StageFinished,
    StageSink,
    StageStarted,
)
from tunesmith.hashing import digest_json, digest_path
from tunesmith.model.catalog import check_name
from tunesmith.protocols import Context, EventSink
from tunesmith.recipe import BaseModelSection, Recipe, Section, Tokenize
from tunesmith.resolve import ResolvedRecipe
from tunesmith.sinks.report import ReportSink, check_trackers, tracked_run
from tunesmith.store import Identity, Run, Store, make_folder, open_run, write_atomic
from tunesmith.types import Artifact, Inputs

T = TypeVar("T")


@dataclass(frozen=True)
class StageSpec:
    """One row of the table. `needs` must exist; `uses` are handed over where the recipe has them."""

    name: str
    version: int  # bump by hand when the same inputs give other outputs
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()  # of the extras: looked for before the first stage starts
    stands_for: str | None = None  # a stage whose artifact later stages get this one's for, which is of the same kind
    trains: bool = False  # runs on several ranks where there are several devices

    @property
    def module(self) -> str:
        """Where its `run` is."""
        return f"tunesmith.stages.{self.name}"


_MODELS = ("torch", "numpy", "transformers", "tokenizers", "safetensors", "peft", "gguf", "jinja2")

STAGES: tuple[StageSpec, ...] = (
    StageSpec("ingest", 2),
    StageSpec("generate", 3, needs=("ingest",)),
    StageSpec("curate", 3, needs=("ingest",), uses=("generate",)),
    StageSpec("base_model", 1, packages=_MODELS),
    StageSpec("pretrain", 1, needs=("base_model",), stands_for="base_model", packages=_MODELS, trains=True),
    StageSpec("tokenize", 2, needs=("curate", "base_model"), packages=_MODELS),
    StageSpec("train", 1, needs=("tokenize", "base_model"), packages=_MODELS, trains=True),
    StageSpec("prefer", 2, needs=("train", "tokenize", "curate", "base_model"), packages=_MODELS),
    StageSpec(
        "reward_model",
        1,
        needs=("train", "tokenize", "curate", "ingest", "base_model"),
        uses=("prefer",),
        packages=_MODELS,
        trains=True,
    ),
    StageSpec(
        "align",
        2,
        needs=("train", "tokenize", "curate", "ingest", "base_model"),
        uses=("prefer", "reward_model"),
        packages=_MODELS,
        stands_for="train",
        trains=True,
    ),
    StageSpec("evaluate", 2, needs=("train", "curate", "base_model"), packages=_MODELS),
    StageSpec("export", 1, needs=("train", "curate", "base_model"), uses=("evaluate",), packages=_MODELS),
)


@dataclass(frozen=True)
class PlannedStage:
    """What will happen to one stage. `identity` is None while an input of it has not been made yet."""

    spec: StageSpec
    section: Section
    status: Literal["cached", "resume", "run"]
    identity: Identity | None
    artifact: Artifact | None


@dataclass(frozen=True)
class Plan:
    """Every stage of a recipe, in order."""

    resolved: ResolvedRecipe
    stages: tuple[PlannedStage, ...]

    @property
    def unmade(self) -> list[PlannedStage]:
        """The stages that have something to do."""
        return [stage for stage in self.stages if stage.status != "cached"]

    def as_json(self) -> list[dict[str, Any]]:
        """For people and programs: stage, status and key (None where it is not known yet)."""
        return [
            {"stage": stage.spec.name, "status": stage.status, "key": stage.identity.key if stage.identity else None}
            for stage in self.stages
        ]


def plan(resolved: ResolvedRecipe, store: Store) -> Plan:
    """What executing the recipe would do. Reads files and manifests, changes nothing."""
    made: dict[str, Artifact | None] = {}
    planned: list[PlannedStage] = []
    for spec, section in _wanted(resolved.recipe):
        wanted = _inputs_of(spec, made)
        identity = artifact = None
        if all(made[name] is not None for name in wanted):
            identity = _identity(spec, section, {name: made[name] for name in wanted}, resolved.folder)
            artifact = _find(store, identity)
        status: Literal["cached", "resume", "run"] = "run"
        if artifact is not None:
            status = "cached"
        elif identity is not None and store.partial_dir(identity).is_dir():
            status = "resume"
        _hand_on(made, spec, artifact)
        planned.append(PlannedStage(spec, section, status, identity, artifact))
    return Plan(resolved, tuple(planned))


def execute(resolved: ResolvedRecipe, store: Store, events: EventSink, until: str | None = None) -> Run:
    """Run every stage that has no finished artifact yet; returns the run folder. until: stop after this stage, and leave
    out what it does not need.

    Raises what a stage raises, after recording it. Calling again continues where it stopped. In a process that torchrun
    started beside the first one: takes part in what the first one trains, and writes and tells nothing.
    """
    if follows_another():
        return _follow()
    stages = _stages_until(resolved.recipe, until)
    _check_stages(stages, resolved)
    check_trackers(resolved.recipe.runtime.report_to)
    if _asks_of_the_machine(resolved.recipe):  # else the finished stages need not be looked at twice
        unmade = {stage.spec.name for stage in plan(resolved, store).unmade}
        _check_machine(resolved.recipe, unmade.intersection(spec.name for spec, _ in stages))
    store.create()
    run = open_run(store, resolved.recipe.name, digest_json(resolved.recipe.model_dump(mode="json")))
    with store.lock_run(run), _other_ranks(run):
        return _execute_run(run, stages, resolved, store, events)


def follows_another() -> bool:
    """Whether torchrun started this process, and another one as the first."""
    return "MASTER_ADDR" in os.environ and int(os.environ.get("RANK", "0")) > 0


def _follow() -> Run:
    folder = importlib.import_module("tunesmith.stages.processes").follow()
    if folder is None:
        message = "the run was stopped or failed in the first process, which says why"
        raise TrainingError(message, where=f"rank {os.environ['RANK']}")
    return Run(folder)


@contextmanager
def _other_ranks(run: Run) -> Generator[None]:
    """Those that torchrun started, where it did, are let go at the end."""
    whole = False
    try:
        yield
        whole = True
    finally:
        if "MASTER_ADDR" in os.environ:
            importlib.import_module("tunesmith.stages.processes").dismiss(run.path if whole else None)


def check_ahead(planned: Plan) -> None:
    """Raises what executing the plan would refuse before its first stage: RecipeError, or MissingExtra."""
    _check_stages([(stage.spec, stage.section) for stage in planned.unmade], planned.resolved)
    _check_machine(planned.resolved.recipe, {stage.spec.name for stage in planned.unmade})


def _check_stages(stages: Sequence[tuple[StageSpec, Section]], resolved: ResolvedRecipe) -> None:
    """What a late stage would refuse: a package, a file or a template that is not there, a condition nobody writes."""
    for spec, section in stages:
        for package in spec.packages:
            if importlib.util.find_spec(package) is None:
                raise MissingExtra(package, EXTRAS[package], f"the stage `{spec.name}`")
        _locate_all(section, resolved.folder)
        if isinstance(section, Tokenize):
            check_template_name(section.chat_template)
        if isinstance(section, BaseModelSection):
            check_name(section.name)
    _check_condition(resolved, None)


def _check_condition(resolved: ResolvedRecipe, base_model: Artifact | None) -> None:
    recipe = resolved.recipe
    if recipe.evaluate is not None and recipe.evaluate.condition is not None:  # only then, since it takes torch
        files = _locate_all(recipe.tokenize, resolved.folder)
        importlib.import_module("tunesmith.stages.foresight").check_condition(recipe, files, base_model)


def _check_machine(recipe: Recipe, stages: Collection[str]) -> None:
    if _asks_of_the_machine(recipe):
        importlib.import_module("tunesmith.stages.foresight").check_machine(recipe, stages)


def _asks_of_the_machine(recipe: Recipe) -> bool:
    """Whether the recipe asks for something that a machine may lack. Only then is it looked at, since that takes torch."""
    runtime = recipe.runtime
    several = runtime.num_processes not in ("auto", 1) or "MASTER_ADDR" in os.environ
    return several or recipe.train.method == "qlora" or runtime.device not in ("auto", "cpu")


def _execute_run(
    run: Run,
    stages: Sequence[tuple[StageSpec, Section]],
    resolved: ResolvedRecipe,
    store: Store,
    events: EventSink,
) -> Run:
    write_atomic(run.path / "recipe.yaml", resolved.as_written.encode())
    write_atomic(run.path / "recipe.resolved.yaml", resolved.as_yaml().encode())
    log = JsonlSink(run.events_path)
    told = FanOut([log, events])
    reports = ReportSink(
        resolved.recipe.runtime.report_to,
        tracked_run(
            run.path, resolved.recipe.name, run.info.get("created", 0.0), resolved.recipe.model_dump(mode="json")
        ),
        told,
    )
    sink = FanOut([told, reports])
    started = time.time()
    try:
        run.update(status="running", stages=[spec.name for spec, _ in stages])
        sink.emit(RunStarted(run=run.name, stages=tuple(spec.name for spec, _ in stages)))
        made: dict[str, Artifact] = {}
        for spec, section in stages:
            given = {name: made[name] for name in _inputs_of(spec, made)}
            artifact = _execute_stage(spec, section, given, resolved, store, sink)
            _hand_on(made, spec, artifact)
            run.link(spec.name, artifact)
        run.update(status="finished", finished=time.time())
        sink.emit(RunFinished(seconds=time.time() - started))
    except KeyboardInterrupt:
        run.update(status="interrupted")
        raise
    except Exception:
        run.update(status="failed")
        raise
    finally:
        reports.close()
        log.close()
    return run


def _execute_stage(
    spec: StageSpec,
    section: Section,
    given: Mapping[str, Artifact],
    resolved: ResolvedRecipe,
    store: Store,
    sink: EventSink,
) -> Artifact:
    stage_sink = StageSink(sink, spec.name)
    try:
        identity = _identity(spec, section, given, resolved.folder)
        with store.lock(identity):
            found = _find_or_set_aside(store, identity, stage_sink)
            if found is not None:
                stage_sink.emit(StageFinished(key=identity.key, counts=found.manifest.counts, seconds=0, cached=True))
                return found
            partial = store.partial_dir(identity)
            stage_sink.emit(StageStarted(key=identity.key, resumed=partial.is_dir()))
            make_folder(partial)
            started = time.monotonic()
            if "base_model" in given:  # whose own template may not have been at hand before
                _check_condition(resolved, given["base_model"])
            files = _locate_all(section, resolved.folder)
            run_stage = importlib.import_module(spec.module).run
            context = Context(events=stage_sink, runtime=resolved.recipe.runtime, ledgers=store.root / "ledgers")
            if spec.trains:
                run_stage = importlib.import_module("tunesmith.stages.processes").on_all_ranks(spec.name, run_stage)
            outcome = run_stage(section, Inputs(dict(given), files), partial, context)
            seconds = time.monotonic() - started
            artifact = store.commit(identity, outcome, seconds)
            stage_sink.emit(StageFinished(key=identity.key, counts=outcome.counts, seconds=seconds))
            return artifact
    except TunesmithError as error:
        stage_sink.emit(StageFailed(message=error.message, where=error.where, hint=error.hint))
        raise
    except (Exception, KeyboardInterrupt) as error:
        stage_sink.emit(StageFailed(message=f"{type(error).__name__}: {error}"))
        raise


def _wanted(recipe: Recipe) -> Iterator[tuple[StageSpec, Section]]:
    for spec in STAGES:
        section = getattr(recipe, spec.name)
        if section is not None:
            yield spec, section


def _stages_until(recipe: Recipe, until: str | None) -> list[tuple[StageSpec, Section]]:
    """The recipe's stages; with `until`, those it needs and itself. RecipeError where the recipe has no such stage."""
    stages = list(_wanted(recipe))
    if until is None:
        return stages
    names = [spec.name for spec, _ in stages]
    if until not in names:
        raise RecipeError(
            f"this recipe has no stage {until!r}", where="--until", hint=f"its stages: {', '.join(names)}"
        )
    needed = {until}
    for spec, _ in reversed(stages[: names.index(until) + 1]):
        if spec.name in needed or spec.stands_for in needed:
            needed |= {spec.name, *spec.needs, *spec.uses}
    return [(spec, section) for spec, section in stages if spec.name in needed]


def artifact_in_force(run: Run, stage: str) -> Artifact | None:
    """What a finished run's later stages got for this stage: its own artifact, or that of the one that stood for it."""
    names = [spec.name for spec in STAGES if spec.stands_for == stage]
    return next((found for name in reversed(names) if (found := run.artifact(name))), None) or run.artifact(stage)


def _hand_on(made: dict[str, T], spec: StageSpec, artifact: T) -> None:
    made[spec.name] = artifact
    if spec.stands_for:
        made[spec.stands_for] = artifact


def _inputs_of(spec: StageSpec, made: Mapping[str, Any]) -> tuple[str, ...]:
    return (*spec.needs, *(name for name in spec.uses if name in made))


def _identity(spec: StageSpec, section: Section, given: Mapping[str, Any], folder: Path) -> Identity:
    inputs = {name: artifact.manifest.digest for name, artifact in given.items()}
    for name, path in _locate_all(section, folder).items():
        inputs[f"file:{name}"] = digest_path(path)
    return Identity(spec.name, spec.version, section.model_dump(mode="json"), inputs)


def _find(store: Store, identity: Identity) -> Artifact | None:
    try:
        return store.find(identity)
    except StoreError:
        return None  # execute sets the damaged artifact aside and says so


def _find_or_set_aside(store: Store, identity: Identity, sink: EventSink) -> Artifact | None:
    try:
        return store.find(identity)
    except StoreError as error:
        aside = store.set_aside(identity)
        sink.emit(Note(level="warning", message=f"{error}; moved to {aside}, the stage runs again"))
        return None


def _locate_all(section: Section, folder: Path) -> dict[str, Path]:
    return {name: _locate(name, folder) for name in section.file_names()}


def _locate(name: str, folder: Path) -> Path:
    path = Path(name).expanduser()
    path = path if path.is_absolute() else folder / path
    if not name.strip() or path.resolve() == folder.resolve():
        raise RecipeError(
            f"{name!r} is the recipe's own folder, not a file of examples", where=str(path), hint="name the file"
        )
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise RecipeError(f"{name} is no regular file", where=str(path), hint="save what it gives to a file first")
    if not path.exists():
        near = sorted(entry.name for entry in path.parent.iterdir())[:8] if path.parent.is_dir() else []
        raise RecipeError(
            f"the recipe names a file that is not there: {name}",
            where=str(path),
            hint=f"files there: {', '.join(near)}" if near else "file names are relative to the recipe's folder",
        )
    return path
