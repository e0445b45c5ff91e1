"""What a person sees at the command line when something is wrong: `error:`, a place, a hint, an exit status, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROW = {"question": "What is this?", "response": "A row."}
GOOD = "name: desk\nbase_model: smollm2-135m\ningest:\n  files: seeds.jsonl\n"


@pytest.fixture(scope="module")
def commands() -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, str(Path(__file__).with_name("forking_program.py"))]
    env = {**os.environ, "COLUMNS": "200"}
    with subprocess.Popen(program, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        yield started


def tunesmith(commands: subprocess.Popen[str], folder: Path, *arguments: str) -> tuple[int, str, str]:
    """The command as a person runs it, in its own process: exit status, what it says, its errors."""
    assert commands.stdin is not None and commands.stdout is not None
    files = [folder.with_name(f"{folder.name}-{name}.txt") for name in ("said", "errors")]
    environment = {"TUNESMITH_ROOT": str(folder / "runs")}
    commands.stdin.write(json.dumps([str(folder), arguments, environment, *map(str, files)]) + "\n")
    commands.stdin.flush()
    status = int(commands.stdout.readline())
    said, errors = (path.read_text() for path in files)
    return status, said, errors


def seeds(*lines: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "seeds.jsonl").write_text("\n".join(lines) + "\n") and None


def raw(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def recipe(extra: str, text: str = GOOD) -> Callable[[Path], None]:
    return lambda folder: (folder / "recipe.yaml").write_text(text + extra) and None


GOOD_ROWS = seeds(*(json.dumps({"question": f"What is number {i}?", "response": f"It is {i}."}) for i in range(12)))

CASES: list[tuple[str, list[Callable[[Path], None]], list[str], int, list[str]]] = [
    ("no recipe", [], ["run", "none.yaml"], 2, ["no such recipe", "tunesmith new"]),
    ("recipe is a list", [recipe("", "- a")], ["run", "."], 2, ["a recipe is a mapping", "recipe.yaml"]),
    ("recipe is no yaml", [recipe("", "a: [")], ["run", "."], 2, ["not YAML", "recipe.yaml:"]),
    ("unknown key", [recipe("trian: {}\n")], ["run", "."], 2, ["trian", "did you mean `train`", "recipe.yaml:5"]),
    ("unknown key in a section", [recipe("train:\n  lora_rankk: 3\n")], ["plan", "."], 2, ["did you mean `lora_rank`"]),
    ("another trainer's key", [recipe("train:\n  lora_r: 3\n")], ["plan", "."], 2, ["called train.lora_rank"]),
    ("value out of bounds", [recipe("train:\n  num_epochs: -1\n")], ["plan", "."], 2, ["greater than 0", "-1"]),
    ("value of another type", [recipe("train:\n  lora_rank: big\n")], ["plan", "."], 2, ["valid integer", "'big'"]),
    ("double key", [recipe("name: again\n")], ["plan", "."], 2, ["stands twice"]),
    ("key in the recipe", [recipe("generate:\n  teacher:\n    api_key: sk-x\n")], ["plan", "."], 2, ["NAME of an environment"]),
    ("override without value", [recipe("")], ["plan", ".", "--set", "train.num_epochs"], 2, ["key.key=value"]),
    ("override of nothing", [recipe("")], ["plan", ".", "--set", "train.nothing=1"], 2, ["recipe.train.nothing"]),
    ("data file missing", [recipe("")], ["run", "."], 2, ["not there: seeds.jsonl", "recipe.yaml"]),
    ("data file empty", [recipe(""), raw("seeds.jsonl", b"")], ["run", "."], 1, ["seeds.jsonl"]),
    ("data in another encoding", [recipe(""), raw("seeds.jsonl", '{"question":"é"}'.encode("latin-1"))], ["run", "."], 1, ["UTF-8"]),
    ("data of unknown shape", [recipe(""), seeds('{"foo": 1}')], ["run", "."], 1, ["foo"]),
    ("every row bad", [recipe(""), seeds('{"question": "a", "response": ""}')], ["run", "."], 1, ["seeds.jsonl"]),
    ("data is a picture", [recipe(""), raw("seeds.jsonl", b"\x89PNG\r\n\x1a\n\x00\x00")], ["run", "."], 1, ["seeds.jsonl"]),
    ("parquet that is none", [recipe("", GOOD.replace("seeds.jsonl", "a.parquet")), raw("a.parquet", b"PAR1junk")], ["run", "."], 1, ["a.parquet"]),
    ("schema file missing", [recipe("  output_schema: s.json\n"), GOOD_ROWS], ["run", "."], 2, ["s.json"]),
    ("schema that is none", [recipe("  output_schema: s.json\n"), GOOD_ROWS, raw("s.json", b'{"type": "objekt"}')], ["run", "."], 1, ["schema"]),
    ("no row fits the schema", [recipe("  output_schema: {type: object}\n"), GOOD_ROWS], ["run", "."], 1, ["schema"]),
    ("all rows held out by likeness", [recipe("curate: {min_prompt_words: 50}\n"), GOOD_ROWS], ["run", "."], 1, ["min_prompt_words"]),
    ("model misspelt", [recipe("", GOOD.replace("smollm2-135m", "smolm2-135m")), GOOD_ROWS], ["run", "."], 1, ["smollm2-135m"]),
    ("model folder without weights", [recipe("", GOOD.replace("smollm2-135m", "./m")), GOOD_ROWS, lambda f: (f / "m").mkdir()], ["run", "."], 1, ["config.json"]),
    ("gguf that is none", [recipe("", GOOD.replace("smollm2-135m", "./m.gguf")), GOOD_ROWS, raw("m.gguf", b"GGUFxxxx")], ["run", "."], 1, ["m.gguf"]),
    ("gguf missing", [recipe("", GOOD.replace("smollm2-135m", "./m.gguf")), GOOD_ROWS], ["run", "."], 1, ["m.gguf"]),
    ("teacher key not set", [recipe("generate: {teacher: {api_key_env: NO_SUCH_KEY}}\n"), GOOD_ROWS], ["run", "."], 2, ["NO_SUCH_KEY"]),
    ("teacher without a price", [recipe("generate: {teacher: {model: unheard-of, api_key_env: null}}\n"), GOOD_ROWS], ["run", "."], 2, ["price_usd_per_mtok"]),
    ("teacher not reachable", [recipe("generate: {teacher: {base_url: 'http://127.0.0.1:9/v1', api_key_env: null, price_usd_per_mtok: [0, 0]}, max_failures: 0}\nruntime: {max_retries: 0}\n"), GOOD_ROWS], ["run", "."], 1, ["127.0.0.1:9"]),
    ("unknown generator", [recipe("generate: {generator: selfinstruct, teacher: {kind: local}}\n"), GOOD_ROWS], ["run", "."], 2, ["self_instruct"]),
    ("unknown template", [recipe("tokenize: {chat_template: chatmll}\n"), GOOD_ROWS], ["run", "."], 2, ["chatml"]),
    ("max_length below every row", [recipe("tokenize: {max_length: 3}\n"), GOOD_ROWS], ["run", "."], 1, ["max_length"]),
    ("unknown lora target", [recipe("train: {lora_target_modules: [q_prj]}\n"), GOOD_ROWS], ["run", "."], 2, ["q_proj"]),
    ("unknown loss", [recipe("train: {loss: crossentropy}\n"), GOOD_ROWS], ["run", "."], 2, ["cross_entropy"]),
    ("root is a file", [recipe(""), GOOD_ROWS, raw("file", b"")], ["run", ".", "--root", "file"], 1, ["run folder", "--root"]),
    ("no such run", [], ["show", "nothing"], 1, ["no run 'nothing'"]),
    ("chat with nothing", [], ["chat", "nothing-there"], 1, ["neither a run nor a model"]),
    ("serve in public without a key", [], ["serve", "smollm2-135m", "--host", "0.0.0.0"], 2, ["key"]),
    ("serve with a key that is not set", [], ["serve", "smollm2-135m", "--api-key-env", "NO_SUCH_KEY"], 2, ["NO_SUCH_KEY"]),
    ("serve with an engine that is none", [], ["serve", "smollm2-135m", "--engine", "vlm"], 2, ["did you mean 'vllm'"]),
    ("port out of range", [], ["serve", "smollm2-135m", "--port", "99999"], 2, ["port"]),
    ("section misspelt", [], ["reference", "trian"], 2, ["did you mean 'train'"]),
    ("unknown command", [], ["trian"], 2, ["trian"]),
    ("unknown option", [recipe("")], ["run", ".", "--fast"], 2, ["--fast"]),
    ("new over an old recipe", [recipe("")], ["new", "."], 2, ["recipe already"]),
    ("new with data that is not there", [], ["new", "a", "--data", "none.jsonl"], 2, ["no such file"]),
]  # fmt: skip


@pytest.mark.real
@pytest.mark.parametrize(("what", "prepare", "arguments", "status", "expected"), CASES, ids=[case[0] for case in CASES])
def test_bad_input_is_explained(
    tmp_path: Path,
    commands: subprocess.Popen[str],
    what: str,
    prepare: list[Callable[[Path], None]],
    arguments: list[str],
    status: int,
    expected: list[str],
) -> None:
    for step in prepare:
        step(tmp_path)
    found, answer, errors = tunesmith(commands, tmp_path, *arguments)
    said = answer + errors
    assert found == status, said
    assert "Traceback" not in said
    assert "a fault of tunesmith" not in said
    assert "rror" in errors
    for words in expected:
        assert words in said, said


def test_at_least_forty_cases_are_listed() -> None:
    assert len(CASES) >= 40
