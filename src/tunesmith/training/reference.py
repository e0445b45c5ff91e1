"""What a frozen model thinks of answers, computed once: log-probabilities stored by content.

The key is the model, the arithmetic, and the sample's ids and targets; so epochs, resumed runs and sweeps over the same
pairs share them, whatever else of the recipe changes. One file per model and arithmetic, a line per answer. Refuses to know
which model is the reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tunesmith.text.jsonl import RecordLog, read_log
from tunesmith.training.batches import Samples
from tunesmith.training.measuring import TokenLoss, measure_losses
from tunesmith.types import Record


class ReferenceLine(Record):
    """One answer under the reference model."""

    key: str  # of its ids and targets
    log_prob: float  # nats, summed over its supervised tokens


def reference_log_probs(
    model: PreTrainedModel, samples: Samples, path: Path, on_done: Callable[[int, int], None]
) -> NDArray[np.float64]:
    """(S,) log-probability of each sample's supervised tokens under the model as it is now.

    path: the file of this model and arithmetic; what it lacks is computed and appended as it comes, so a run that is
    killed goes on where it stopped. on_done(number known, number wanted). StoreError where the disk is full.
    """
    keys = [_key(samples, index) for index in range(len(samples.lengths))]
    known = {line.key: line.log_prob for line in read_log(path, ReferenceLine)}
    groups = [group for group in samples.groups if any(keys[index] not in known for index in group)]
    missing = [index for group in groups for index in group]  # pairs stay together: their prompt is computed once
    num_known = len(keys) - len(missing)
    on_done(num_known, len(keys))
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        with RecordLog(path) as log:

            def keep(place: int, loss: TokenLoss) -> None:
                nonlocal num_known
                line = ReferenceLine(key=keys[missing[place]], log_prob=-loss.total)
                known[line.key] = line.log_prob
                log.append(line)
                num_known += 1
                on_done(num_known, len(keys))

            measure_losses(model, samples.select(missing), keep)
    return np.array([known[key] for key in keys])


def _key(samples: Samples, index: int) -> str:
    rows = samples.rows(index)
    ids = samples.input_ids[rows].astype("<i4").tobytes()
    mask = np.packbits(samples.loss_mask[rows] != 0).tobytes()
    return hashlib.sha256(len(ids).to_bytes(8, "little") + ids + mask).hexdigest()[:32]
