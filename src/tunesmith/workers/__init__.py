"""Where work on many rows runs: in this process, in processes of this machine, or in a Ray cluster. The same results.

Knows nothing of rows: a function and items go in, results come out in the order of the items (protocols.Pool).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

from tunesmith.protocols import Pool
from tunesmith.recipe import Runtime

Kind = Literal["local", "ray"]


@contextmanager
def open_pool(kind: Kind, num_workers: int | None) -> Generator[Pool]:
    """A pool of that many workers, closed at the end of the block; one local worker is this process itself. None = one for
    each CPU: of the Ray cluster, or of this machine that this process may use.

    kind "ray" joins the cluster that RAY_ADDRESS names, else starts one on this machine. MissingExtra where the package
    is not installed.
    """
    pool = _build(kind, num_workers)
    try:
        yield pool
    finally:
        pool.close()


def _build(kind: Kind, num_workers: int | None) -> Pool:
    if kind == "ray":
        from tunesmith.workers.ray_data import RayPool

        return RayPool(num_workers)
    num_workers = num_workers or Runtime().usable_threads
    if num_workers == 1:
        from tunesmith.workers.local import ThisProcess

        return ThisProcess()
    from tunesmith.workers.local import Processes

    return Processes(num_workers)
