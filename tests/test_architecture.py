"""The house rules, checked by reading the source: floors, light imports, one declaration for every parameter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from tunesmith.recipe import Recipe

SOURCE = Path(__file__).resolve().parent.parent / "src" / "tunesmith"

FLOORS = {
    **dict.fromkeys(("types", "protocols", "errors", "hashing", "registry"), 0),
    **dict.fromkeys(("recipe", "resolve", "events", "store"), 1),
    **dict.fromkeys(("chat", "model", "sinks", "text", "workers"), 2),
    **dict.fromkeys(("data", "teachers", "generating", "training", "inference", "judging", "exporting"), 3),
    "stages": 4,
    "pipeline": 5,
    **dict.fromkeys(("server", "studio", "api"), 6),
    "cli": 7,
}
ISOLATED_FLOOR = 3
TORCH_FREE = (
    "types",
    "protocols",
    "errors",
    "hashing",
    "registry",
    "recipe",
    "resolve",
    "events",
    "store",
    "pipeline",
    "cli",
)
MODULES = sorted(SOURCE.rglob("*.py"))


def package_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[tuple[str, int]]:
    """Every imported module name with its line, TYPE_CHECKING blocks and function bodies included."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "tunesmith" else [node.module]
            )
            found += [(name, node.lineno) for name in names]
    return found


def test_every_package_has_a_floor() -> None:
    assert {package_of(path) for path in MODULES} - {"__init__"} <= set(FLOORS)


def test_imports_go_strictly_downward_and_crafts_do_not_know_each_other() -> None:
    wrong: list[str] = []
    for path in MODULES:
        here = package_of(path)
        if here == "__init__":
            continue
        for name, line in imports_of(path):
            parts = name.split(".")
            if parts[0] != "tunesmith" or len(parts) < 2 or parts[1] not in FLOORS:
                continue
            there = parts[1]
            upward = FLOORS[there] > FLOORS[here]
            sibling = FLOORS[there] == FLOORS[here] == ISOLATED_FLOOR and there != here
            if upward or sibling:
                wrong.append(f"{path.relative_to(SOURCE)}:{line} imports {name}")
    assert wrong == []


def test_the_command_line_helps_without_loading_torch() -> None:
    code = (
        "import sys\nfrom tunesmith.cli.main import app\nfrom typer.testing import CliRunner\n"
        "result = CliRunner().invoke(app, ['--help'])\nassert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'transformers', 'numpy', 'xllamacpp', 'fastapi', 'pyarrow'} & set(sys.modules)\nprint(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_paper_floors_and_the_estimate_import_without_torch() -> None:
    code = (
        "import importlib, sys\n"
        "for name in ('protocols', 'events', 'resolve', 'store', 'training.estimate', 'pipeline', 'api'):\n"
        "    importlib.import_module(f'tunesmith.{name}')\n"
        "    if 'torch' in sys.modules: sys.exit(f'{name} imports torch')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def recipe_fields() -> set[str]:
    names: set[str] = set()
    for field in Recipe.model_fields.values():
        for model in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if hasattr(model, "model_fields"):
                names |= set(model.model_fields)
    return names - {"name", "files", "revision", "task", "teacher", "device", "temperature", "max_tokens", "top_p"}


def test_no_function_below_the_recipe_has_a_second_default_for_its_parameters() -> None:
    fields, wrong = recipe_fields(), []
    for path in MODULES:
        if package_of(path) not in FLOORS or not 2 <= FLOORS[package_of(path)] <= 4:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            positional = node.args.posonlyargs + node.args.args
            with_default = positional[len(positional) - len(node.args.defaults) :]
            with_default += [
                a for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d is not None
            ]
            wrong += [
                f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}({a.arg}=...)"
                for a in with_default
                if a.arg in fields
            ]
    assert wrong == []


def test_every_recipe_field_has_a_description_and_every_module_says_what_it_owns() -> None:
    undescribed: list[str] = []
    for name, field in Recipe.model_fields.items():
        for model in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if hasattr(model, "model_fields"):
                undescribed += [f"{name}.{key}" for key, inner in model.model_fields.items() if not inner.description]
    silent = [str(path.relative_to(SOURCE)) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert (undescribed, silent) == ([], [])


def test_nothing_below_the_faces_prints() -> None:
    wrong: list[str] = []
    for path in MODULES:
        if FLOORS.get(package_of(path), 0) >= 6:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                wrong.append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert wrong == []
