"""Two ranks over gloo train as one does; work is shared by what it costs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from rank_runs import RankRuns

from tunesmith.training.ranks import Ranks

ONE_PACK = [20, 12]


@pytest.fixture(scope="module")
def runs(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RankRuns:
    """`parts` stops after three steps on two ranks and goes on with one."""
    made = RankRuns(tmp_path_factory.mktemp("ranks"), base_dir)
    made.alone("alone")
    made.alone("one-pack-alone", lengths=ONE_PACK)
    made.together(made.spec("together"), made.spec("parts", max_steps=3), made.spec("one-pack", lengths=ONE_PACK))
    made.alone("parts")
    return made


@pytest.mark.real
def test_two_ranks_take_the_steps_of_one(runs: RankRuns) -> None:
    alone = runs.losses("alone", 1)
    assert len(alone) >= 4 and alone[-1] < alone[0]
    assert runs.losses("together", 2) == pytest.approx(alone, rel=1e-5)
    first, second = (runs.weights("together", 2, rank) for rank in (0, 1))
    for name, weight in runs.weights("alone", 1).items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight, atol=2e-4, rtol=1e-3)
    told = [(runs.root / "together" / f"metrics-{rank}.jsonl").read_text() for rank in (0, 1)]
    assert told[0] and not told[1]


@pytest.mark.real
def test_a_training_goes_on_with_another_number_of_ranks(runs: RankRuns) -> None:
    whole, started, resumed = runs.losses("alone", 1), runs.losses("parts", 2), runs.losses("parts", 1)
    assert (runs.root / "parts" / "checkpoints").is_dir()
    assert started[:2] == pytest.approx(whole[:2], rel=1e-3)  # the schedule's end differs, so only its begin is alike
    assert len(resumed) == len(whole) and resumed[0] == started[0]


def test_packs_are_shared_by_what_they_cost() -> None:
    lengths = np.array([2000, 100, 100, 100, 100, 100, 1000, 900])
    packs = [(0,), (1, 2), (3,), (4,), (5,), (6,), (7,)]
    shares = [Ranks(rank, 2).share(packs, lengths) for rank in range(2)]
    assert sorted(pack for share in shares for pack in share) == sorted(packs)
    costs = [sum((1 + lengths[i] / 4096) * lengths[i] for pack in share for i in pack) for share in shares]
    assert max(costs) / min(costs) < 1.35
    assert Ranks().share(packs, lengths) == packs


def test_sums_over_ranks_have_the_order_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of metrics has the same keys in the same order however many processes write it."""
    everyone = [{"loss": 1.0, "tokens": 2.0, "margin": 3.0}, {"loss": 4.0, "accuracy": 5.0, "margin": 6.0}]
    monkeypatch.setattr(Ranks, "gather", lambda _self, _value: everyone)
    summed = Ranks(0, 2).sum_named(everyone[0])
    assert list(summed.items()) == [("loss", 5.0), ("tokens", 2.0), ("margin", 9.0), ("accuracy", 5.0)]


def test_work_is_shared_out_by_key_and_every_rank_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that are alike stay together: their answers are numbered on."""
    keys = ["a", "b", "a", "c", "d", "c"]
    done: list[dict[int, str]] = []
    asked: list[list[int]] = []

    def work(indices: Sequence[int]) -> list[str]:
        asked.append(list(indices))
        return [keys[index].upper() for index in indices]

    monkeypatch.setattr(Ranks, "gather", lambda self, value: done.append(value) or [*done, value])
    for rank in range(2):
        with contextlib.suppress(KeyError):  # the first one has not heard of the second
            assert Ranks(rank, 2).share_out(keys, work) == ["A", "B", "A", "C", "D", "C"]
    assert asked == [[0, 2, 3, 5], [1, 4]]
    assert Ranks().share_out(keys, work) == ["A", "B", "A", "C", "D", "C"]


@pytest.mark.real
def test_a_rank_without_a_pack_adds_nothing(runs: RankRuns) -> None:
    assert runs.losses("one-pack", 2) == pytest.approx(runs.losses("one-pack-alone", 1), rel=1e-5)
