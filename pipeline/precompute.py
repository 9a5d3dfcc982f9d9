"""The run itself: every missing shard of every FieldSet, computed here or by Ray's actors.

What is to be done is asked of the store, so the same command continues a run that was killed, whatever engine it
used. Before the first shard the teacher passes the gate, and the constants of the encodings are made.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from contract.errors import StoreError, UserError
from contract.storage import StorePath
from contract.store import TargetStore
from pipeline import gate
from pipeline.plan import Task
from pipeline.settings import Gate, Workers
from pipeline.worker import ShardWorker

if TYPE_CHECKING:
    from tqdm import tqdm

Engine = Literal["ray", "local"]


@dataclass(frozen=True, kw_only=True)
class Done:
    """What one FieldSet took."""

    key: str
    num_rows: int
    elapsed_s: float


class Crew(Protocol):
    """Whoever does the work."""

    def ask(self, task: Task, what: str, *arguments: Any) -> Any:
        """The result of one worker's method `what`."""

    def compute(self, task: Task) -> Iterator[int]:
        """Compute every missing shard; yields the rows of every batch."""


def run(
    store: TargetStore,
    tasks: Sequence[Task],
    engine: Engine,
    workers: Workers,
    scored: Gate,
    say: Callable[[str], None],
) -> list[Done]:
    """Compute what is missing of every task; returns what was computed."""
    waiting = [task for task in tasks if task.missing]
    if not waiting:
        return []
    hired: AbstractContextManager[Crew] = nullcontext(_Here(store.path, workers))
    if engine == "ray":
        hired = _actors(store, waiting, workers)
    try:
        with hired as crew:
            gate.pass_through(store, waiting, scored, crew.ask, say)
            for task in waiting:
                _add(store, task, crew)
            return [_run_task(store, task, crew) for task in waiting]
    except KeyboardInterrupt:
        raise StoreError("interrupted; the same command continues where it stopped") from None


def _add(store: TargetStore, task: Task, crew: Crew) -> None:
    """Make room for a FieldSet; its constants were made once and for all if it is there."""
    if not store.holds(task.fieldset):
        has_constants = any(field.constants for field in task.fieldset.fields)
        store.add(task.fieldset, crew.ask(task, "constants") if has_constants else None)


def _run_task(store: TargetStore, task: Task, crew: Crew) -> Done:
    started = time.monotonic()
    with _bar(task) as bar:
        for num_rows in crew.compute(task):
            bar.update(num_rows)
    assert store.complete(task.fieldset.key)
    return Done(key=task.fieldset.key, num_rows=task.missing_rows, elapsed_s=time.monotonic() - started)


def _bar(task: Task) -> tqdm[Any]:
    from tqdm import tqdm

    return tqdm(total=task.missing_rows, desc=task.fieldset.key, unit="row", unit_scale=True, mininterval=0.5)


class _Here:
    """This process, with the worker of the FieldSet that it was last asked for."""

    def __init__(self, path: StorePath, workers: Workers) -> None:
        self._path, self._workers = path, workers
        self._worker: ShardWorker | None = None

    def ask(self, task: Task, what: str, *arguments: Any) -> Any:
        return getattr(self._ready(task), what)(*arguments)

    def compute(self, task: Task) -> Iterator[int]:
        for shard in task.shards:
            yield from self._ready(task).compute(shard)

    def _ready(self, task: Task) -> ShardWorker:
        if self._worker is None or self._worker.fieldset != task.fieldset:
            self._worker = None  # lets go of one model before the next is loaded
            self._worker = ShardWorker(TargetStore.open(self._path), task, self._workers)
        if not self._worker.store.holds(task.fieldset):
            self._worker.store = TargetStore.open(self._path)  # it may have been added since
        return self._worker


class _Actor(_Here):
    """The same in a process of Ray's."""

    def __init__(self, path: StorePath, workers: Workers, num_threads: int) -> None:
        import torch

        # Ray gives a process one thread unless told otherwise.
        torch.set_num_threads(num_threads)
        super().__init__(path, workers)

    def compute(self, task: Task) -> Generator[int]:
        # Ray streams what a generator function yields, and looks at the method itself.
        yield from super().compute(task)


class _Crew:
    """Ray's actors: each takes the next shard when it is done."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = actors

    def ask(self, task: Task, what: str, *arguments: Any) -> Any:
        import ray

        with _translated():
            return ray.get(self._actors[0].ask.remote(replace(task, missing=()), what, *arguments))

    def compute(self, task: Task) -> Iterator[int]:
        import ray

        waiting = list(task.missing)
        running: dict[Any, Any] = {}
        with _translated():
            while waiting or running:
                busy = set(running.values())
                for actor in self._actors:
                    if waiting and actor not in busy:
                        part = replace(task, missing=(waiting.pop(0),))
                        running[actor.compute.options(num_returns="streaming").remote(part)] = actor
                ready, _ = ray.wait(list(running), num_returns=1)
                for stream in ready:
                    try:
                        yield ray.get(next(stream))
                    except StopIteration:
                        del running[stream]


@contextmanager
def _translated() -> Iterator[None]:
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        # Ray wraps what an actor raised; the user's mistake inside is what the user should read.
        raise error.cause if isinstance(error.cause, UserError | OSError) else error from None
    except ray.exceptions.RayError as error:
        lost = f"an actor was lost ({type(error).__name__})"
        raise StoreError(f"{lost}; the same command continues the run") from error


@contextmanager
def _actors(store: TargetStore, tasks: Sequence[Task], workers: Workers) -> Iterator[Crew]:
    """One actor a GPU, or one for the whole machine without any, in a Ray session of our own if there is none."""
    import ray

    own = not ray.is_initialized()
    if own:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        num_actors = min(workers.actors or max(1, num_gpus), max(len(task.missing) for task in tasks))
        num_threads = max(1, int(ray.cluster_resources()["CPU"]) // num_actors)
        # More actors than GPUs share them evenly.
        share = 1 / math.ceil(num_actors / num_gpus) if num_gpus else 0
        actor_type = ray.remote(num_cpus=0, num_gpus=share)(_Actor)
        path = store.path if isinstance(store.path, str) else store.path.resolve()
        yield _Crew([actor_type.remote(path, workers, num_threads) for _ in range(num_actors)])
    finally:
        if own:
            ray.shutdown()
