"""`tunesmith models`, `tunesmith reference` and `tunesmith doctor`: what there is."""

from __future__ import annotations

import importlib.util
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tunesmith.cli.fitting import open_console, print_block, whole_table, width_of
from tunesmith.errors import EXTRAS, RecipeError, nearest
from tunesmith.recipe import Recipe


def list_models(fetch: str | None) -> None:
    """Print the models that have a built-in name, or fetch one."""
    from tunesmith.model import catalog

    if fetch is not None:
        from tunesmith.cli.terminal import TerminalSink

        console = Console()
        with TerminalSink(console) as sink:
            found = catalog.fetch_model(fetch, events=sink)
        console.print(f"[green]✓[/] {escape(found.name)}  {escape(str(found.path))}", highlight=False)
        return
    heads = ["name", "parameters", "download", "at hand", "licence", "for"]
    rows = [
        [
            model.name,
            f"{model.num_parameters / 1e6:,.0f} M",
            f"{model.download_bytes / 1e6:,.0f} MB",
            "yes" if model.at_hand else "no",
            model.licence,
            model.purpose,
        ]
        for model in catalog.list_models()
    ]
    console, width = open_console()
    if width is None or width_of([heads, *rows]) <= width:
        console.print(whole_table([heads, *rows], [head in ("parameters", "download") for head in heads]))
    else:
        for name, *about in rows:
            print_block(console, (name,), list(zip(heads[1:], about, strict=True)))
            console.print()
    note = "a hub id, a local folder and a .gguf file work wherever a model is named"
    console.print(note, style="dim", soft_wrap=width is None)


def show_reference(section: str | None, *, schema: bool) -> None:
    """Print every parameter, from the one place that declares them."""
    console = Console()
    if schema:
        print(json.dumps(Recipe.model_json_schema(), indent=2))
        return
    sections = {name: _section_type(field.annotation) for name, field in Recipe.model_fields.items()}
    if section is not None and sections.get(section) is None:
        known = [name for name, model in sections.items() if model]
        close = nearest(section, known)
        raise RecipeError(
            f"there is no section {section!r}",
            hint=f"did you mean {close!r}?" if close else f"sections: {', '.join(known)}",
        )
    for name, model in sections.items():
        if section in (None, name):
            if model is None:
                field = Recipe.model_fields[name]
                console.print(f"[bold]{name}[/]  {field.description}", highlight=False)
            else:
                _print_section(console, name, model)


def _print_section(console: Console, path: str, model: type[BaseModel]) -> None:
    console.print(f"\n[bold]{path}[/]  [dim]{(model.__doc__ or '').strip()}[/]", highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(style="green", overflow="fold", max_width=24)
    table.add_column(overflow="fold")
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        inner = _section_type(field.annotation)
        if inner is not None:
            nested.append((f"{path}.{name}", inner))
        table.add_row(name, escape(_default_text(field.default)), escape(field.description or ""))
    console.print(table)
    for inner_path, inner in nested:
        _print_section(console, inner_path, inner)


def _default_text(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "none"
    if isinstance(default, tuple):
        return ", ".join(map(str, default)) or "empty"
    return str(default)


def _section_type(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _section_type(inner))), None)


_LOOKED_AT = ("torch", "transformers", "peft", "gguf", "xllamacpp", "fastapi", "aiohttp", "pyarrow")


def run_doctor() -> None:
    """Say in one screen what works here."""
    console = Console()
    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    missing: set[str] = set()
    for package in _LOOKED_AT:
        try:
            table.add_row(package, f"[green]{version(package)}[/]")
        except PackageNotFoundError:
            extra = EXTRAS[package]
            missing.add(extra)
            table.add_row(package, f"[yellow]not installed[/]  pip install 'tunesmith\\[{extra}]'")
    if importlib.util.find_spec("torch"):
        import torch

        from tunesmith.model.cache import cache_dir

        gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
        table.add_row("gpu", gpu)
        table.add_row("cpu threads", str(torch.get_num_threads()))
        table.add_row("cpu flags", ", ".join(_cpu_flags()) or "none of avx2, avx512, amx")
        table.add_row("model cache", escape(str(cache_dir())))
    console.print(table)
    verdict = "ready" if not missing else f"the light core works; missing extras: {', '.join(sorted(missing))}"
    console.print(f"[bold]{verdict}[/]")


def _cpu_flags() -> list[str]:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return []
    flags = next((line for line in info.read_text().splitlines() if line.startswith("flags")), "").split()
    return [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8") if flag in flags]
