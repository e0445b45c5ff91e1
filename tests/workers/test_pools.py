"""Pools give the results of a plain loop, in its order, whoever does the work and whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

import psutil
import pytest

from tunesmith.errors import DataError, WorkerError
from tunesmith.protocols import Pool
from tunesmith.workers import Kind, local, open_pool
from waiting import wait_until

HERE = Path(__file__).parent
WORKER_PATH = os.pathsep.join([str(HERE), *sys.path])  # workers import the module `work` by its name
sys.path.insert(0, str(HERE))
import work  # noqa: E402

KINDS = [("local", 1), ("local", 2), pytest.param(("ray", 2), marks=pytest.mark.real)]


@pytest.fixture(scope="module", params=KINDS, ids=str)
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    kind, num_workers = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", WORKER_PATH)
        with open_pool(kind, num_workers) as opened:
            yield opened


def test_results_come_in_the_order_of_the_items(pool: Pool):
    assert list(pool.map(work.square, range(300))) == [number * number for number in range(300)]
    assert list(pool.map(work.square, iter([]))) == []


def test_items_are_taken_a_few_at_a_time(pool: Pool):
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(2000):
            taken.append(number)
            yield number

    results = pool.map(work.square, items())
    assert next(results) == 0
    assert len(taken) <= 256


def test_what_the_function_raises_arrives_whole(pool: Pool):
    with pytest.raises(DataError, match="seven is refused") as caught:
        list(pool.map(work.refuse, range(20)))
    assert (caught.value.where, caught.value.hint) == ("rows.jsonl:7", "count from eight")


@pytest.mark.parametrize("kind", ["local", pytest.param("ray", marks=pytest.mark.real)])
def test_a_worker_that_is_killed_loses_nothing_and_signals_are_what_they_were_after_the_pool(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", WORKER_PATH)
    flag = tmp_path / "died"
    before = signal.getsignal(signal.SIGTERM)
    with open_pool(kind, 2) as pool:
        results = list(pool.map(partial(work.die_once, flag), range(40)))
    assert [number for number, _ in results] == list(range(40))
    assert flag.exists() and os.getpid() not in {process for _, process in results}
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_worker_that_is_killed_while_it_answers_loses_nothing(tmp_path: Path):
    with open_pool("local", 2) as pool:
        sizes = [10_000, *[50_000] * 8]
        results = pool.map(partial(work.die_while_it_answers, tmp_path / "died"), sizes)
        assert [len(each) for each in results] == sizes


def test_two_items_for_two_workers_are_worked_on_at_once():
    with open_pool("local", 2) as pool:
        assert len(set(pool.map(work.process_id, range(2)))) == 2


def test_what_a_program_defines_itself_travels_to_the_workers(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(
        "from tunesmith.workers import open_pool\n"
        "def twice(number): return 2 * number\n"
        "with open_pool('local', 2) as pool: print(list(pool.map(twice, range(4))))\n"
    )
    assert subprocess.check_output([sys.executable, program], text=True) == "[0, 2, 4, 6]\n"


def test_results_and_errors_that_cannot_travel_are_errors_that_name_them():
    with open_pool("local", 2) as pool:
        with pytest.raises(TypeError, match="lock"):
            list(pool.map(work.unable_to_travel, [0]))
        with pytest.raises(WorkerError, match="Stubborn: and no copy of 3"):
            list(pool.map(work.unable_to_travel, [3]))
        assert list(pool.map(work.square, [2])) == [4]


def test_a_pool_whose_lock_an_interrupt_left_taken_still_closes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local, "_CLOSE_SECONDS", 0.2)
    before = workers_of(psutil.Process())
    with open_pool("local", 2) as pool:
        assert next(iter(pool.map(work.slow, range(50)))) == 0
        assert isinstance(pool, local.Processes)
        pool._queue._changed.acquire()
    wait_until(lambda: not any(is_alive(each) for each in workers_of(psutil.Process()) if each not in before))
    pool._queue._changed.release()  # so that its threads end with the test


def test_a_pool_that_is_closed_early_leaves_no_process():
    before = workers_of(psutil.Process())
    with open_pool("local", 2) as pool:
        assert next(iter(pool.map(work.slow, range(50)))) == 0
        assert len(workers_of(psutil.Process())) == len(before) + 2
    assert workers_of(psutil.Process()) == before


def test_a_pool_that_is_closed_takes_no_work_and_keeps_nobody_waiting():
    with open_pool("local", 2) as pool:
        begun = pool.map(work.square, range(50))
        assert next(begun) == 0
    for results in (begun, pool.map(work.square, range(3))):
        with pytest.raises((WorkerError, CancelledError)):
            list(results)


@pytest.mark.parametrize("kind", ["local", pytest.param("ray", marks=pytest.mark.real)])
def test_workers_that_always_die_are_an_error_that_says_so(kind: Kind, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", WORKER_PATH)
    with open_pool(kind, 2) as pool, pytest.raises(WorkerError, match="died 6 times") as caught:
        list(pool.map(work.die_always, range(4)))
    assert "memory" in (caught.value.hint or "")


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    return [each for each in process.children() if "tunesmith.workers.process" in command_of(each)]


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_killed_worker_breaks_no_other_map_of_the_pool(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", WORKER_PATH)
    others = workers_of(psutil.Process())  # of other tests' pools
    with open_pool("local", 2) as pool:
        results: list[tuple[int, int]] = []
        for pair in zip(pool.map(work.slow, range(20)), pool.map(work.slow, range(20)), strict=True):
            results.append(pair)
            if len(results) == 5:
                next(each for each in workers_of(psutil.Process()) if each not in others).kill()
    assert results == [(number, number) for number in range(20)]


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_no_worker_outlives_the_process_that_gives_the_work(sent: signal.Signals, status: int, tmp_path: Path):
    errors = tmp_path / "stderr"
    with errors.open("w") as stream:
        giver = psutil.Popen(
            [sys.executable, work.__file__],
            stderr=stream,
            env={**os.environ, "PYTHONPATH": WORKER_PATH},
            start_new_session=True,
        )
    wait_until(lambda: len(workers_of(giver)) == 2)
    workers = workers_of(giver)  # they are still importing
    if sent == signal.SIGINT:
        os.killpg(giver.pid, sent)  # what a terminal does at Ctrl-C
    else:
        giver.send_signal(sent)
    assert giver.wait(60) == status
    wait_until(lambda: not any(map(is_alive, workers)))
    assert "Traceback" not in errors.read_text()


@pytest.mark.real
def test_a_ray_cluster_that_is_not_there_is_an_error_that_names_its_address():
    program = (
        "import sys\nfrom tunesmith.errors import WorkerError\nfrom tunesmith.workers import open_pool\n"
        "try:\n  open_pool('ray', 2).__enter__()\nexcept WorkerError as error:\n  sys.exit(str(error))"
    )
    env = {**os.environ, "RAY_ADDRESS": "nonsense"}
    joined = subprocess.run([sys.executable, "-c", program], env=env, stderr=subprocess.PIPE, text=True)
    assert joined.returncode == 1
    assert "RAY_ADDRESS=nonsense: the Ray cluster cannot be joined" in joined.stderr


@pytest.mark.real
def test_results_keep_their_order_on_a_ray_that_the_caller_started():
    program = (
        "import ray, work, sys; from tunesmith.workers import open_pool; ray.init(num_cpus=2, logging_level='ERROR')\n"
        "with open_pool('ray', 2) as pool: assert list(pool.map(work.later_is_faster, range(12))) == list(range(12))\n"
        "assert ray.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": WORKER_PATH}, check=True)


@pytest.mark.real
def test_two_machines_share_the_work_and_auto_is_as_many_workers_as_they_have_processors():
    program = (
        "import os, ray, work\n"
        "from ray.cluster_utils import Cluster\n"
        "from tunesmith.workers import open_pool\n"
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1})\n"
        "cluster.add_node(num_cpus=2)\n"
        "os.environ['RAY_ADDRESS'] = cluster.address\n"
        "with open_pool('ray', None) as pool:\n"
        "  numbers, nodes = zip(*pool.map(work.node_of, range(24)))\n"
        "  assert pool.num_workers == 3, pool.num_workers\n"
        "assert numbers == tuple(range(24)) and len(set(nodes)) == 2, nodes\n"
        "assert not ray.is_initialized()\n"
        "cluster.shutdown()"
    )
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": WORKER_PATH}, check=True)
