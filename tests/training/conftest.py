"""A random model small enough to train in milliseconds, and random samples for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.model.adapters import AdapterConfig, add_adapter, choose_targets, target_names
from tunesmith.model.load import load_model
from tunesmith.training.batches import Samples


@pytest.fixture
def tiny_model(base_dir: Path) -> Any:
    return load_model(base_dir, device="cpu", dtype=torch.float32)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_samples() -> Callable[..., Samples]:
    """Random ids; the second half of each sample is supervised."""

    def make(lengths: Sequence[int], vocab_size: int = 300) -> Samples:
        rng = np.random.default_rng(3)
        mask = np.concatenate([np.arange(length) >= (length + 1) // 2 for length in lengths])
        return Samples(
            input_ids=rng.integers(3, vocab_size, size=sum(lengths)).astype(np.int32),
            loss_mask=mask.astype(np.uint8),
            lengths=np.array(lengths, dtype=np.int64),
            ids=tuple(f"row-{index}" for index in range(len(lengths))),
        )

    return make


@pytest.fixture(scope="session")
def with_adapter() -> Callable[..., AdapterConfig]:
    """Adds an adapter whose B is not zero, so that it matters from the first step."""

    def add(model: Any, *, rank: int = 4, dropout: float = 0.0) -> AdapterConfig:
        targets = choose_targets(model, ("all-linear",))
        config = AdapterConfig(rank, 8.0, dropout, targets, target_names(model, targets), "tiny")
        add_adapter(model, config, rng_seed=11)
        generator = torch.Generator().manual_seed(12)
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.data.normal_(0, 0.05, generator=generator)
        return config

    return add
