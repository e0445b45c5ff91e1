"""The dry run: which micro batch is the largest, what it was measured to take, and what happens where it does not fit."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tunesmith.errors import TrainingError
from tunesmith.training import memory_plan
from tunesmith.training.batches import Samples
from tunesmith.training.memory_plan import find_largest, plan_memory

WIDTH, LAYERS, VOCABULARY = 64, 6, 300


class Stack(nn.Module):
    """Linear layers with a square between: each saves two times rows x 64 floats for its backward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = layer(hidden) ** 2
        return hidden


class Lent:
    """What a loop lends to the plan, with a limit on the rows that fit."""

    def __init__(self, samples: Samples, *, limit: int | None = None, shared: int = 1) -> None:
        self.model, self.samples, self.limit, self.shared = Stack(), samples, limit, shared
        self.ran: list[tuple[int, ...]] = []

    def rows(self, members: Sequence[int]) -> int:
        return int(self.samples.lengths[list(members)].sum()) // self.shared

    def run(self, members: Sequence[int]) -> None:
        self.ran.append(tuple(members))
        if self.limit is not None and self.rows(members) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        (self.model(torch.rand(self.rows(members), WIDTH)) * 1e-3).sum().backward()

    def plan(self, steps: Sequence[Sequence[tuple[int, ...]]], size: Any) -> memory_plan.MemoryPlan:
        return plan_memory(
            self.model,
            self.samples,
            steps,
            size,
            self.run,
            count_rows=self.rows,
            drop_gradients=lambda: self.model.zero_grad(set_to_none=True),
            optimizer_bytes=8 * sum(p.numel() for p in self.model.parameters()),
        )


@pytest.fixture
def samples(make_samples: Callable[..., Samples]) -> Samples:
    return make_samples([400, 1200, 300, 700, 2000, 500, 350, 900])


STEPS = [((0, 1), (2, 3)), ((4,), (5, 6, 7))]  # packs of 1,600, 1,000, 2,000 and 1,750 tokens


def test_the_largest_micro_batch_is_found_by_rows_not_by_samples(samples: Samples) -> None:
    lent = Lent(samples)
    batches = [pack for packs in STEPS for pack in packs]
    largest = find_largest(batches, samples, lent.rows)
    assert (largest.members, largest.num_tokens, largest.num_rows) == ((4,), 2000, 2000)


def test_where_beginnings_are_shared_fewer_tokens_can_be_more_rows(samples: Samples) -> None:
    rows = {(4,): 800, (5, 6, 7): 1700}
    looked: list[tuple[int, ...]] = []

    def count(members: Sequence[int]) -> int:
        looked.append(tuple(members))
        return rows.get(tuple(members), 0)

    largest = find_largest([pack for packs in STEPS for pack in packs], samples, count)
    assert largest.members == (5, 6, 7) and largest.num_rows == 1700
    assert looked == [(4,), (5, 6, 7)]  # 1,600 tokens cannot be more than 1,700 rows


def test_every_part_of_the_plan_is_what_the_model_takes(samples: Samples) -> None:
    lent = Lent(samples)
    plan = lent.plan(STEPS, 1)
    parameters = LAYERS * (WIDTH * WIDTH + WIDTH)
    assert plan.weights_bytes == plan.gradient_bytes == 4 * parameters
    assert plan.optimizer_bytes == 8 * parameters and plan.micro_batch_size == 1
    assert (plan.num_tokens, plan.num_rows) == (2000, 2000)
    saved = 4 * WIDTH * 1000 * 2 * LAYERS  # bytes per 1,000 rows
    assert saved <= plan.activation_bytes_per_1k_tokens <= 1.6 * saved
    assert plan.peak_bytes < plan.available_bytes
    assert lent.ran[-1] == (4,) and lent.rows(lent.ran[0]) <= 1000
    assert all(parameter.grad is None for parameter in lent.model.parameters())


def test_samples_that_belong_together_are_never_parted(samples: Samples) -> None:
    """Half of a pair has no preference loss."""
    paired = dataclasses.replace(samples, group_sizes=np.array([2, 2, 2, 2]))
    lent = Lent(paired)
    plan = lent.plan([((0, 1, 4, 5), (2, 3)), ((6, 7),)], 1)
    assert plan.num_tokens == 4100
    shortest, part, whole = lent.ran
    assert (shortest, part, whole) == ((2, 3), (0, 1), (0, 1, 4, 5))  # the part is its smallest pair that is a quarter


def test_a_dry_run_moves_no_random_numbers_and_no_weight(samples: Samples) -> None:
    lent = Lent(samples)
    before = [parameter.detach().clone() for parameter in lent.model.parameters()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    lent.plan(STEPS, 1)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(before, lent.model.parameters(), strict=True))


def test_the_plan_is_one_sentence_with_its_figures(samples: Samples) -> None:
    said = Lent(samples).plan(STEPS, 1).sentence()
    assert "\n" not in said and "largest micro batch (1 pack, 2,000 tokens)" in said
    for word in ("weights", "gradients", "optimiser", "activations", "per 1,000 tokens", "head and buffers", "on cpu"):
        assert word in said
    assert "2,000 tokens, computed as 1,000" in Lent(samples, shared=2).plan(STEPS, 1).sentence()


def test_what_does_not_fit_is_halved_and_every_sample_stays_in_its_step(samples: Samples) -> None:
    steps = [tuple((index,) for index in range(8))]  # one step of eight packs: 6,350 tokens
    lent = Lent(samples, limit=2500)
    plan = lent.plan(steps, 8)
    # four packs hold at most 3,750 tokens, two at most 2,500
    assert plan.micro_batch_size == 2 and plan.asked_micro_batch_size == 8
    assert "(2 packs (micro_batch_size 8 does not fit), 2,500 tokens)" in plan.sentence()
    assert all(parameter.grad is None for parameter in lent.model.parameters())


def test_a_size_above_the_packs_of_a_step_is_no_larger_than_a_step(samples: Samples) -> None:
    assert Lent(samples).plan(STEPS, 64).micro_batch_size == 2


def test_a_single_pack_that_does_not_fit_ends_training_with_figures(samples: Samples) -> None:
    with pytest.raises(
        TrainingError, match=r"a pack of 2,000 tokens does not fit: weights .* are free on cpu"
    ) as error:
        Lent(samples, limit=1500).plan(STEPS, "auto")
    assert "runtime.gradient_checkpointing" in str(error.value.hint)


def test_auto_on_a_cpu_is_one_pack(samples: Samples) -> None:
    assert Lent(samples).plan(STEPS, "auto").micro_batch_size == 1


@pytest.mark.parametrize(("limit", "expected"), [(100_000, 8), (2500, 2), (2000, 1)])
def test_auto_elsewhere_is_the_most_that_fits(
    samples: Samples, monkeypatch: pytest.MonkeyPatch, limit: int, expected: int
) -> None:
    monkeypatch.setattr(memory_plan, "fills_with_one_pack", lambda _: False)
    steps = [tuple((index,) for index in range(8))]
    assert Lent(samples, limit=limit).plan(steps, "auto").micro_batch_size == expected


def test_auto_leaves_room_for_the_optimiser(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "fills_with_one_pack", lambda _: False)
    steps = [tuple((index,) for index in range(8))]
    needed = Lent(samples).plan(steps, 8)
    room = needed.peak_bytes - needed.other_bytes - needed.weights_bytes
    monkeypatch.setattr(memory_plan, "available_bytes", lambda _: room - 8 * 1000)
    assert Lent(samples).plan(steps, "auto").micro_batch_size in (3, 4)


def test_on_a_cpu_what_would_not_fit_is_never_run(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel would end the process: a quarter is run, and its figures decide."""
    monkeypatch.setattr(memory_plan, "available_bytes", lambda _: 5_000_000)
    lent = Lent(samples)
    with pytest.raises(TrainingError, match="does not fit"):
        lent.plan(STEPS, 1)
    assert max(lent.rows(members) for members in lent.ran) <= 500


def test_a_sample_of_two_tokens_forbids_nothing(
    make_samples: Callable[..., Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What two tokens take is what any number of tokens takes, and not two thousandths of what two thousand do."""
    lent = Lent(make_samples([2, 2000]))
    fixed = 4 * 8 * sum(parameter.numel() for parameter in lent.model.parameters())
    monkeypatch.setattr(memory_plan, "available_bytes", lambda _: fixed + 2000 * 2 * LAYERS * WIDTH * 4 + 5_000_000)
    run = lent.run

    def run_with_buffer(members: Sequence[int]) -> None:
        run(members)
        torch.empty(100_000)  # whatever the rows are

    monkeypatch.setattr(lent, "run", run_with_buffer)
    assert lent.plan([((1,),)], 1).micro_batch_size == 1
    assert lent.ran == [(0,), (1,)]  # gradients are formed by the one, the other is measured


RSS_CHECK = """
import sys, torch, psutil
from pathlib import Path
sys.path[:0] = [{tests!r}]
import numpy as np
from test_memory_plan import Lent, STEPS, WIDTH
from tunesmith.training.batches import Samples
torch.set_num_threads(1)
lengths = np.array([400, 1200, 300, 700, 15000, 500, 350, 900])
total = int(lengths.sum())
lent = Lent(Samples(np.zeros(total, np.int32), np.ones(total, np.uint8), lengths, tuple("abcdefgh")))
lent.run((4,))  # libraries take their own buffers once
lent.model.zero_grad()
Path("/proc/self/clear_refs").write_text("5")
before = psutil.Process().memory_info().rss
lent.run((4,))
high = next(line for line in Path("/proc/self/status").read_text().split("\\n") if line.startswith("VmHWM"))
resident = 1024 * int(high.split()[1]) - before
plan = lent.plan(STEPS, 1)
print(resident, plan.activation_bytes + plan.buffer_bytes + plan.gradient_bytes)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak resident size cannot be reset here")
@pytest.mark.slow
def test_the_measured_bytes_are_those_the_process_grows_by() -> None:
    code = RSS_CHECK.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc: what is freed leaves the process
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, env=environment
    )
    resident, planned = map(int, done.stdout.split())
    assert resident > 30_000_000
    assert 0.95 * resident <= planned <= 1.05 * resident
