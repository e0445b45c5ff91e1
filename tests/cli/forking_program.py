"""Runs commands, each in a process of its own that is a copy of this one: what they import is imported once. Started by
test_bad_input.py.

A line of JSON in, [folder, arguments, environment, file of what it says, file of its errors]; its exit status out.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback

from tunesmith.cli import main as cli
from tunesmith.pipeline import STAGES


def run_copy(folder: str, arguments: list[str], environment: dict[str, str], said: str, errors: str) -> None:
    """Never returns."""
    status = 1
    try:
        for number, path in enumerate((os.devnull, said, errors)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), number)
        os.chdir(folder)
        os.environ.update(environment)
        sys.argv = ["tunesmith", *arguments]
        cli.main()
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  # as the interpreter ends
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    for spec in STAGES:
        importlib.import_module(spec.module)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run_copy(*json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
