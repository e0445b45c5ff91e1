"""What cannot change a result beyond rounding: devices, threads, batches side by side, waiting times."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from tunesmith.recipe.section import Auto, Section, as_list

_ROWS_FOR_ONE_PROCESS = 20_000
"""Starting workers takes one to three seconds, in which one process reads and filters about as many rows."""


class Runtime(Section):
    """What cannot change a result beyond rounding: outside every key, so changing it never repeats work."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the forward and backward pass; auto = bf16 where the processor multiplies it faster."""

    num_threads: int | Auto = "auto"
    """CPU threads; auto = the cores this process may use."""

    @property
    def usable_threads(self) -> int:
        """num_threads, with auto resolved on this machine."""
        if self.num_threads != "auto":
            return self.num_threads
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    num_processes: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Processes that train together on this machine; auto = one for each CUDA device torch sees, 1 on a CPU. Under torchrun
    its own number counts."""

    shard_weights: bool | Auto = "auto"
    """Spread weights, gradients and optimiser over the training processes (FSDP2); auto = where one CUDA device cannot
    hold them."""

    workers: Literal["local", "ray"] = "local"
    """Where rows are read, filtered and rendered: processes of this machine, or a Ray cluster ($RAY_ADDRESS)."""

    num_workers: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Processes that work on rows; auto = this one alone up to 20,000 rows, then one for each CPU thread; with `ray` one
    for each CPU of the cluster."""

    def workers_for(self, num_rows: int) -> int | None:
        """num_workers, with auto resolved for so many rows; None = one for each CPU of the Ray cluster, which it tells."""
        if self.num_workers != "auto":
            return self.num_workers
        if self.workers == "ray":
            return None
        return 1 if num_rows <= _ROWS_FOR_ONE_PROCESS else self.usable_threads

    micro_batch_size: int | Auto = "auto"
    """Packs per forward pass on one device; auto = 1 on a CPU, what fits on a GPU."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""

    share_prefixes: bool = True
    """Compute what samples of a micro batch begin with in common (a system prompt, earlier turns) only once."""

    trim_last_block: bool = True
    """Leave out of the last block what no loss reads: its MLP on rows that predict nothing."""

    compile_blocks: bool = False
    """Compile the model's blocks before the first step (torch.compile; on a CPU it needs a C++ compiler and saves nothing)."""

    cache_activations: bool = True
    """Where lower blocks are frozen (`trainable_layers`), keep what they compute on disk from the first epoch to the last."""

    checkpoint_every_steps: int | Auto = "auto"
    """Steps between training checkpoints; auto = about once a minute."""

    log_every_steps: int = Field(default=1, ge=1)
    """Steps between two loss lines."""

    report_to: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...], BeforeValidator(as_list)
    ] = ()
    """Trackers that get every loss line too (see docs/watching.md); one that fails is left out with a warning."""

    eval_batch_size: int = Field(default=32, ge=1)
    """Prompts answered side by side in evaluation."""

    teacher_concurrency: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Requests in flight at each endpoint; auto = more and more, up to 1,024, while answers come faster."""

    teacher_requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests a minute to each endpoint; none = what its rate-limit headers allow."""

    teacher_tokens_per_minute: int | None = Field(default=None, ge=1)
    """Tokens a minute, prompts and answers, of each endpoint; none = what its rate-limit headers allow."""

    teacher_batch: bool = False
    """Send requests through the endpoint's batch API: often half the price, answers within 24 hours."""

    request_timeout_seconds: float = Field(default=120, gt=0)
    """Longest wait for one answer of a teacher."""

    max_retries: int = Field(default=6, ge=0)
    """Tries after the first for one request."""

    keep_checkpoints: int = Field(default=2, ge=1)
    """Training checkpoints kept while a run is unfinished."""
