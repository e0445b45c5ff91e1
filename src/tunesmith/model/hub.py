"""Models fetched from the hub: safetensors, configuration and tokenizer only, at one recorded commit."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import MissingExtra, ModelError
from tunesmith.events import Progress
from tunesmith.model import cache, folder
from tunesmith.protocols import EventSink

_SMALL_FILES = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_NAMES = ("README.md", "LICENSE")


@dataclass(frozen=True)
class Snapshot:
    """One commit of a hub repository."""

    repository: str
    commit: str
    files: tuple[tuple[str, int], ...]  # (name, bytes), those worth fetching
    licence: str | None

    @property
    def size_bytes(self) -> int:
        """Bytes to fetch."""
        return sum(size for _, size in self.files)


def find_snapshot(repository: str, revision: str | None) -> Snapshot:
    """Ask the hub for a repository's newest (or the named) commit. ModelError where it has none, or none that is safe."""
    try:
        import httpx
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "train", "fetching a model from the hub") from error
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=20)
    except (HfHubHTTPError, httpx.HTTPError, OfflineModeIsEnabled, HFValidationError, OSError) as error:
        raise _hub_error(repository, error) from error
    files = [(sibling.rfilename, sibling.size or 0) for sibling in info.siblings or []]
    top = [(name, size) for name, size in files if "/" not in name]
    if not any(name.endswith(".safetensors") for name, _ in top):
        folder.refuse_pickles([name for name, _ in top], f"hub: {repository}")
        raise ModelError(f"the hub's {repository} has no safetensors weights", hint="name another model")
    wanted = tuple((n, s) for n, s in top if n.endswith((".safetensors", *_SMALL_FILES)) or n in _NAMES)
    licence = info.card_data.get("license") if info.card_data else None
    return Snapshot(repository, str(info.sha), wanted, str(licence) if licence else None)


def download(snapshot: Snapshot, work_dir: Path, events: EventSink) -> None:
    """Fetch a snapshot's files into `work_dir`; files of an interrupted attempt are kept. Small files come first, so
    that a model with code of its own is refused before its weights are fetched."""
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    from tunesmith.model.gguf import quiet_transformers

    cache.need_room(snapshot.size_bytes - cache.size_of(work_dir), f"fetching {snapshot.repository}")
    task = f"fetching {snapshot.repository}"
    try:
        with quiet_transformers(), cache.watch_size(work_dir, snapshot.size_bytes, task, events):
            for name, _ in sorted(snapshot.files, key=lambda file: (file[0].endswith(".safetensors"), file[0])):
                if name.endswith(".safetensors"):
                    folder.refuse_remote_code(work_dir)
                hf_hub_download(snapshot.repository, name, revision=snapshot.commit, local_dir=work_dir)
    except (HfHubHTTPError, httpx.HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise _hub_error(snapshot.repository, error) from error
    shutil.rmtree(work_dir / ".cache", ignore_errors=True)
    total = snapshot.size_bytes
    events.emit(Progress(task=task, done=total, total=total, unit="bytes"))


def _hub_error(repository: str, error: Exception) -> ModelError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return ModelError(
            f"the hub does not show {repository} (status {status}): no such model, or it is gated",
            hint="check the name; for a gated model accept its terms on the hub and set HF_TOKEN",
        )
    if status == 404:
        return ModelError(f"the hub has no model {repository}, or not this revision", hint="check name and revision")
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return ModelError(
        f"the hub could not be reached for {repository}: {reason}",
        hint="without a network, name a built-in model (`tunesmith models`), a local folder or a .gguf file",
    )
