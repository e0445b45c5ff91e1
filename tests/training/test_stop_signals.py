"""Trainings that are told to stop: at once where there is one process, together at the end of a step where there are several."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_runs import RankRuns

from tunesmith.training.stopping import StopSignals

LAYER = "model.layers.0.mlp"
WHOLE, SPREAD = "whole", "spread"
SIGNALS = {WHOLE: {"rank": 1, "step": 2, "signal": "SIGTERM"}, SPREAD: {"rank": 0, "step": 2, "signal": "SIGINT"}}


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """As in a process in which nothing else has taken a signal."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def runs(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RankRuns:
    """Of each kind one that is stopped by a signal in its third step and then goes on, and one whose fifth row is poison."""
    made = RankRuns(tmp_path_factory.mktemp("stopped"), base_dir)
    made.alone("alone")
    poison = {"row": 4, "step": 1, "layer": LAYER}
    specs: list[dict[str, Any]] = []
    for kind, signals in SIGNALS.items():
        spread = kind == SPREAD
        specs.append(made.spec(f"{kind}-asked", spread=spread, disturb=signals))
        specs.append(made.spec(f"{kind}-asked", spread=spread))
        specs.append(made.spec(f"{kind}-poisoned", spread=spread, disturb=poison))
    made.together(*specs)
    return made


def stop_of(runs: RankRuns, folder: str, rank: int) -> str:
    return (runs.root / folder / f"stopped-{rank}.txt").read_text()


@pytest.mark.real
@pytest.mark.parametrize("kind", SIGNALS)
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint_of_the_step_they_were_in(runs: RankRuns, kind: str) -> None:
    folder = f"{kind}-asked"
    assert stop_of(runs, folder, 0).startswith("KeyboardInterrupt") and stop_of(runs, folder, 1).startswith(
        "AgreedStop"
    )
    assert "training continues after step 3 " in (runs.root / folder / "notes-0.txt").read_text()
    assert runs.losses(folder, 2) == pytest.approx(runs.losses("alone", 1), rel=1e-5)
    for name, weight in runs.weights("alone", 1).items():
        torch.testing.assert_close(runs.weights(folder, 2)[name], weight, atol=2e-4, rtol=1e-3)


@pytest.mark.real
@pytest.mark.parametrize("kind", SIGNALS)
def test_a_loss_that_is_not_finite_stops_all_ranks_and_the_one_that_saw_it_names_layer_and_rows(
    runs: RankRuns, kind: str
) -> None:
    first, second = (stop_of(runs, f"{kind}-poisoned", rank) for rank in (0, 1))
    assert first.startswith("TrainingError") and second.startswith("AgreedStop")
    assert "of 2: the loss is nan at step " in first and first.partition("rank ")[2][0] in "01"
    assert f"first bad layer: {LAYER};" in first and "row-4" in first.partition("rows of the batch")[2]
    checkpoints = runs.root / f"{kind}-poisoned" / "checkpoints"
    assert not checkpoints.is_dir() or all("tmp" not in path.name for path in checkpoints.iterdir())


def test_the_first_signal_is_a_request_and_the_second_one_is_obeyed_at_once() -> None:
    with StopSignals(alone=False) as signals:
        assert not signals.asked
        signal.raise_signal(signal.SIGINT)
        assert signals.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_request_that_nobody_has_seen_comes_after_the_block() -> None:
    with pytest.raises(KeyboardInterrupt), StopSignals(alone=False):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_process_takes_a_request_to_end_as_ctrl_c() -> None:
    with pytest.raises(KeyboardInterrupt), StopSignals(alone=True):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_signals_that_somebody_else_takes_and_other_threads_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with StopSignals(alone=False) as signals:
            signal.raise_signal(signal.SIGTERM)
            assert not signals.asked
    finally:
        signal.signal(signal.SIGTERM, before)
    found: list[Any] = []

    def elsewhere() -> None:
        with StopSignals(alone=False):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
