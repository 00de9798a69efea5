"""Many jobs on all cores: one after the other as long as that is quick, in spawned processes once it turns out to take long.

Processes are spawned, not forked (a forked copy of a process that has threads or a GPU may hang). A spawned process imports the
main script, so a script needs the usual `if __name__ == "__main__":`; one without it goes on with one core and is told so.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from threading import Thread
from typing import Any

POOL_AFTER, POOL_FOR = 2.0, 6.0  # seconds: after how many the rest is estimated, and how long a rest is worth a pool
NO_GUARD = 'worker processes could not start (a script needs `if __name__ == "__main__":`): one core does it all'
_PARENT = "SPIKETRAIN_POOL_OF"

Job = tuple[Any, ...]


def run(function: Callable[..., object], jobs: Sequence[Job], workers: int = 0) -> Iterator[int]:
    """Calls `function(*job)` for every job and yields the job's index when it is done, in any order.

    `function` and jobs must be picklable, and doing a job twice must do no harm. The first error of a job is raised here.
    `workers` bounds the number of processes; 0 = one a core.
    """
    not_in_a_worker_that_starts()
    workers = workers or cores()
    start, rest = time.monotonic(), list(range(len(jobs)))
    while rest and not (workers > 1 and _long(time.monotonic() - start, len(jobs) - len(rest), len(rest))):
        function(*jobs[rest[0]])
        yield rest.pop(0)
    if rest:
        try:
            for index in _pooled(function, jobs, rest, workers):
                yield index
                rest.remove(index)
        except BrokenProcessPool:
            print(NO_GUARD, file=sys.stderr)
    for index in rest:
        function(*jobs[index])
        yield index


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _long(spent: float, done: int, left: int) -> bool:
    return done > 0 and spent > POOL_AFTER and spent / done * left > POOL_FOR


def _pooled(
    function: Callable[..., object], jobs: Sequence[Job], indices: Sequence[int], workers: int
) -> Iterator[int]:
    os.environ[_PARENT] = str(os.getpid())  # inherited by the workers
    pool = ProcessPoolExecutor(min(workers, len(indices)), get_context("spawn"), _leave_with_parent)
    try:
        futures = {pool.submit(function, *jobs[i]): i for i in indices}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    finally:
        os.environ.pop(_PARENT, None)
        pool.shutdown(wait=True, cancel_futures=True)


def not_in_a_worker_that_starts() -> None:
    """Ends a worker whose import of the main script has come back to here: it would wait for its own parent."""
    parent = os.environ.get(_PARENT)
    if parent and parent == str(os.getppid()):
        raise SystemExit('spiketrain: put the script\'s main part under `if __name__ == "__main__":`')


def _leave_with_parent() -> None:
    """A worker ends when the process that started it does, even if that was killed."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    Thread(target=watch, daemon=True).start()
