"""The processes that train together: who starts them, what each is told, and what becomes of them.

The process of the run is the first rank; the others follow it: they wait for a job (a stage with its section and inputs), run
the same stage silently, and wait for the next one. Either this process starts them on its own machine for as long as a
stage trains, or torchrun has started all of them, on one machine or many. Owns their beginning and end. Refuses to
know what a stage does with several ranks: training/ranks.py is what stages see.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from tunesmith import errors
from tunesmith.errors import RecipeError, TrainingError, TunesmithError
from tunesmith.events import Note, NullSink
from tunesmith.protocols import Context
from tunesmith.recipe import Recipe, Runtime, Section
from tunesmith.stages.child_processes import Children
from tunesmith.stages.train import refuse_shared_device
from tunesmith.store import load_artifact
from tunesmith.training.ranks import AgreedStop
from tunesmith.types import Inputs, Outcome

RunStage = Callable[[Any, Inputs, Path, Context], Outcome]

_COLLECTIVE = timedelta(hours=6)  # one rank may write a large checkpoint while the others wait in a sum
_WAIT = timedelta(days=30)  # for a job: the stages before it have no bound
_BETWEEN_LOOKS_SECONDS = 0.05  # while the others start
_LAST_WORDS_SECONDS = 5.0  # in which a rank that failed says why


@dataclass
class Seat:
    """This process's place among the ranks, and the store through which they find each other."""

    rank: int
    size: int
    local_size: int  # ranks on this machine
    store: Store
    num_jobs: int = 0  # seen so far


def on_all_ranks(stage: str, run_stage: RunStage) -> RunStage:
    """The stage's own `run`, with other ranks that run it too where there are several."""

    def run(section: Section, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
        runtime: Runtime = ctx.runtime
        if is_started_by_torchrun():
            seat = _torchrun_seat()
            return _lead(seat, _NoChildren(), stage, run_stage, section, inputs, out_dir, ctx)
        size = num_local_processes(runtime)
        if size == 1:
            return run_stage(section, inputs, out_dir, ctx)
        with Children(size, [sys.executable, "-P", "-c", _PROGRAM]) as children:
            seat = Seat(0, size, size, _file_store(children.store_path, size))
            return _lead(seat, children, stage, run_stage, section, inputs, out_dir, ctx)

    return run


def num_local_processes(runtime: Runtime) -> int:
    """runtime.num_processes, with auto resolved on this machine. RecipeError where there are fewer devices."""
    wanted, where = runtime.num_processes, "recipe.runtime.num_processes"
    if wanted == 1 or (wanted == "auto" and runtime.device not in ("auto", "cuda")):
        return 1
    devices = torch.cuda.device_count()
    if wanted == "auto":
        return max(devices, 1)
    if runtime.device == "cpu" or (runtime.device == "auto" and not devices):
        return wanted
    refuse_shared_device(runtime.device, wanted)
    if wanted > devices:
        raise RecipeError(f"{wanted} processes need as many CUDA devices, and torch sees {devices}", where=where)
    return wanted


def check_devices(runtime: Runtime) -> None:
    """RecipeError where the processes that are to train cannot have a device each, as far as this machine tells."""
    if not is_started_by_torchrun():
        num_local_processes(runtime)
        return
    refuse_shared_device(runtime.device, int(os.environ["WORLD_SIZE"]))
    local, devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    on_cuda = runtime.device == "cuda" or (runtime.device == "auto" and devices)
    if on_cuda and local > devices:
        raise RecipeError(
            f"torchrun has started {local} processes on this machine, and torch sees {devices} CUDA devices",
            where="recipe.runtime.device",
            hint="start torchrun with a smaller --nproc-per-node, or set device: cpu",
        )


def is_started_by_torchrun() -> bool:
    """Whether the environment names this process's rank among several, as torchrun does."""
    return "MASTER_ADDR" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def follow() -> Path | None:
    """Take part in every job until the first rank ends its run; returns the run's folder, None where the run failed.

    For a process of torchrun that is not the first. A failure here is told to the first rank, and raised.
    """
    return _follow(_torchrun_seat())


def dismiss(run_folder: Path | None) -> None:
    """Let the ranks that torchrun started go on: the run is over."""
    if is_started_by_torchrun():
        _post(_torchrun_seat(), {"end": str(run_folder.resolve()) if run_folder else None})


@lru_cache(maxsize=1)
def _torchrun_seat() -> Seat:
    store, rank, size = next(iter(rendezvous("env://", timeout=timedelta(minutes=10))))
    return Seat(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", size)), PrefixStore("tunesmith", store))


class _Watched(Protocol):
    """Processes that may end by themselves."""

    def ended(self, seconds: float) -> str | None:
        """What became of the first one that failed, within so many seconds; None where none did."""
        ...

    def watch(self, on_end: Callable[[], None]) -> None:
        """Call on_end, in a thread, when one ends."""
        ...

    def kill(self) -> None: ...


class _NoChildren:
    """torchrun watches the processes it has started, and ends all when one fails."""

    def ended(self, seconds: float) -> str | None:
        time.sleep(seconds)
        return None

    def watch(self, on_end: Callable[[], None]) -> None:
        return None

    def kill(self) -> None:
        return None


def _lead(
    seat: Seat,
    others: _Watched,
    stage: str,
    run_stage: RunStage,
    section: Section,
    inputs: Inputs,
    out_dir: Path,
    ctx: Context,
) -> Outcome:
    """The stage on the first rank, with every other one at its side. TrainingError where one of them fails."""
    runtime = _share_threads(ctx.runtime, seat.local_size)
    job = {
        "stage": stage,
        "section": section.model_dump(mode="json"),
        "artifacts": {name: str(artifact.path.resolve()) for name, artifact in inputs.artifacts.items()},
        "files": {name: str(path.resolve()) for name, path in inputs.files.items()},
        "out_dir": str(out_dir.resolve()),
        "runtime": runtime.model_dump(mode="json"),
        "ledgers": str(ctx.ledgers.resolve()) if ctx.ledgers else None,
    }
    number = _post(seat, job)
    ctx.events.emit(Note(message=f"{seat.size} processes work on this stage"))
    try:
        _wait_for_all(seat, number, others)
        with _joined(seat, number, runtime):
            others.watch(_break_off)
            return run_stage(section, inputs, out_dir, replace(ctx, runtime=runtime))
    except TunesmithError:
        raise
    except Exception as error:  # most often a connection that closed: the reason is another rank's
        found = _failure(seat, number, others)
        if found is None:
            raise
        raise found from error
    finally:
        others.kill()


def _follow(seat: Seat) -> Path | None:
    while True:
        number = seat.num_jobs
        seat.store.wait([f"job-{number}"], _WAIT)
        job: dict[str, Any] = json.loads(seat.store.get(f"job-{number}"))
        seat.num_jobs += 1
        if "end" in job:
            return Path(job["end"]) if job["end"] else None
        try:
            _take_part(seat, number, job)
        except AgreedStop:
            continue  # the first rank says why, and lets this one go or ends it
        except Exception as error:
            _tell(seat, number, error)
            raise


def _take_part(seat: Seat, number: int, job: Mapping[str, Any]) -> None:
    runtime = Runtime.model_validate(job["runtime"])
    kind: Any = Recipe.model_fields[job["stage"]].annotation
    section = TypeAdapter(kind).validate_python(job["section"])
    artifacts = {name: load_artifact(Path(path)) for name, path in job["artifacts"].items()}
    inputs = Inputs(artifacts, {name: Path(path) for name, path in job["files"].items()})
    ledgers = Path(job["ledgers"]) if job["ledgers"] else None
    run_stage: RunStage = importlib.import_module(f"tunesmith.stages.{job['stage']}").run
    seat.store.set(f"ready-{number}-{seat.rank}", "")
    with _joined(seat, number, runtime):
        run_stage(section, inputs, Path(job["out_dir"]), Context(NullSink(), runtime, ledgers))


def _wait_for_all(seat: Seat, number: int, others: _Watched) -> None:
    """Until every other rank is about to join. To connect with one that has ended would take until torch gives up, hours
    later, and no Ctrl-C ends it. TunesmithError where one has failed."""
    keys = [f"ready-{number}-{rank}" for rank in range(1, seat.size)]
    while not seat.store.check(keys):
        if others.ended(_BETWEEN_LOOKS_SECONDS) is not None or _has_failed(seat, number):
            found = _failure(seat, number, others)
            assert found is not None
            raise found


def _has_failed(seat: Seat, number: int) -> bool:
    return any(seat.store.check([f"error-{number}-{rank}"]) for rank in range(1, seat.size))


@contextmanager
def _joined(seat: Seat, number: int, runtime: Runtime) -> Generator[None]:
    """Inside, torch.distributed connects the ranks."""
    on_cuda = runtime.device != "cpu" and torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with _loopback(seat):
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
            store=PrefixStore(f"group-{number}", seat.store),
            rank=seat.rank,
            world_size=seat.size,
            timeout=_COLLECTIVE,
        )
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _loopback(seat: Seat) -> Generator[None]:
    """Inside, gloo connects ranks of one machine over the address that no other machine reaches."""
    name = "GLOO_SOCKET_IFNAME"
    apply = seat.local_size == seat.size and name not in os.environ and sys.platform == "linux"
    if apply:
        os.environ[name] = "lo"
    try:
        yield
    finally:
        if apply:
            del os.environ[name]


def _file_store(path: Path, size: int) -> Store:
    return dist.FileStore(str(path), size)  # pyright: ignore[reportPrivateImportUsage]


def _break_off() -> None:
    """A rank has ended: no collective will ever finish."""
    if dist.is_initialized() and dist.group.WORLD is not None:
        dist.group.WORLD.abort()


def _share_threads(runtime: Runtime, local_size: int) -> Runtime:
    if runtime.num_threads != "auto":
        return runtime
    return runtime.model_copy(update={"num_threads": max(runtime.usable_threads // local_size, 1)})


def _post(seat: Seat, job: Mapping[str, Any]) -> int:
    number, seat.num_jobs = seat.num_jobs, seat.num_jobs + 1
    seat.store.set(f"job-{number}", json.dumps(job))
    return number


def _tell(seat: Seat, number: int, error: Exception) -> None:
    if isinstance(error, TunesmithError):
        told = {
            "kind": type(error).__name__,
            "message": error.message,
            "where": error.where,
            "hint": error.hint,
        }
    else:
        told = {"kind": None, "message": f"{type(error).__name__}: {error}", "where": None, "hint": None}
    seat.store.set(f"error-{number}-{seat.rank}", json.dumps(told))


def _failure(seat: Seat, number: int, others: _Watched) -> TunesmithError | None:
    """What another rank has failed of, as an error of ours. None where none has."""
    end = others.ended(_LAST_WORDS_SECONDS)
    for rank in range(1, seat.size):
        key = f"error-{number}-{rank}"
        if not seat.store.check([key]):
            continue
        told = json.loads(seat.store.get(key))
        message = f"rank {rank} of {seat.size} failed: {told['message']}"
        kind: type[TunesmithError] = getattr(errors, told["kind"] or "", TrainingError)
        if kind.__init__ is not TunesmithError.__init__:  # one that is made of other things than a message
            kind = TrainingError
        return kind(message, where=told["where"], hint=told["hint"])
    if end is None:
        return None
    return TrainingError(end, hint="the same command continues from the newest checkpoint")


def follow_parent() -> None:
    """What a child process of Children does."""
    from tunesmith.stages.child_processes import end_with_parent

    threading.Thread(target=end_with_parent, daemon=True).start()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    _follow(Seat(rank, size, size, _file_store(Path(os.environ["TUNESMITH_STORE"]), size)))


_PROGRAM = (
    "import json, os, sys; sys.path[:] = json.loads(os.environ['TUNESMITH_PATH']); "
    "from tunesmith.stages.processes import follow_parent; follow_parent()"
)
