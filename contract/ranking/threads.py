"""Work on every core."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_parallel(work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    """The result of each task, in order, with as many threads as BLAS has; each of its products then takes one."""
    if len(tasks) == 1:
        yield work(tasks[0])
        return
    num_threads = _num_threads()
    with _blas().limit(limits=1), ThreadPoolExecutor(num_threads) as pool:
        yield from pool.map(work, tasks)


def shares(total: int, most: int) -> list[slice]:
    """Slices that cover `total`, of at most `most` and about one size: as many for every thread."""
    num_threads = _num_threads()
    num_tasks = num_threads * -(-total // (most * num_threads))
    size = -(-total // num_tasks)
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _num_threads() -> int:
    return max((library["num_threads"] for library in _blas().info()), default=1)


@cache
def _blas() -> Any:
    # Looking through the libraries of a process takes 10 ms.
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")
