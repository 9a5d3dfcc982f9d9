"""The run itself: every missing shard of every FieldSet, computed here or by Ray's actors.

What is to be done is asked of the store, so the same command continues a run that was killed, whatever engine it
used. Before the first shard the teacher passes the gate, and the constants of the encodings are made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from contract.errors import StoreError
from contract.storage import StorePath
from contract.store import TargetStore
from encoders.outputs import precisions
from pipeline import gate, show
from pipeline.plan import Task, resized
from pipeline.settings import Gate, Workers
from pipeline.timing import Progress, Timing
from pipeline.worker import ShardWorker

if TYPE_CHECKING:
    from tqdm import tqdm

Engine = Literal["ray", "local"]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Done:
    """What one FieldSet took once its encoder was loaded on `num_devices`, GPUs or machines without one."""

    task: Task
    elapsed_s: float
    timing: Timing
    num_devices: int


class Crew(Protocol):
    """Whoever does the work."""

    def prepare(self, task: Task) -> int:
        """Have every worker load the task's encoder; on how many devices: GPUs, or machines without one."""

    def ask(self, task: Task, what: str, *arguments: Any) -> Any:
        """The result of one worker's method `what`."""

    def compute(self, task: Task) -> Generator[Progress]:
        """Compute every missing shard; yields what happens."""


def run(
    store: TargetStore,
    tasks: Sequence[Task],
    engine: Engine,
    workers: Workers,
    scored: Gate,
    say: Say,
    *,
    address: str | None = None,
    find_batch_size: bool = False,
) -> list[Done]:
    """Compute what is missing of every task; returns what was computed.

    `address` is that of a running Ray cluster (None: Ray on this machine, for this run). With `find_batch_size`,
    each encoder whose FieldSet is yet to be begun gets the largest batch for which there is memory.
    """
    waiting = [task for task in tasks if task.missing]
    if not waiting:
        return []
    hired: AbstractContextManager[Crew] = nullcontext(Here(store.path, workers))
    if engine == "ray":
        from pipeline import actors

        hired = actors.hired(store, waiting, workers, address, say)
    try:
        with hired as crew:
            if find_batch_size:
                waiting = [_with_largest_batch(store, task, crew, say) for task in waiting]
            gate.pass_through(store, waiting, scored, crew.ask, say)
            waiting = [_added(store, task, crew, say) for task in waiting]
            return [_run_task(store, task, crew, say) for task in waiting]
    except KeyboardInterrupt:
        raise StoreError("interrupted; the same command continues where it stopped") from None


def _with_largest_batch(store: TargetStore, task: Task, crew: Crew, say: Say) -> Task:
    if store.holds(task.fieldset):
        return task
    sized = resized(task, crew.ask(task, "largest_batch"))
    say(f"{task.fieldset.key}: batches of {sized.fieldset.batch_size} views")
    return sized


def _added(store: TargetStore, task: Task, crew: Crew, say: Say) -> Task:
    """Make room for a FieldSet; its constants were made once and for all if it is there."""
    if store.holds(task.fieldset):
        return task
    lower = precisions(task.encoder)
    if lower:
        cosines = crew.ask(task, "precision_error")
        say(f"{task.fieldset.key}: cosine of {', '.join(sorted(lower))} with float32: {show.cosines(cosines)}")
        provenance = {**task.fieldset.provenance, "cosine_with_float32": cosines}
        task = replace(task, fieldset=replace(task.fieldset, provenance=provenance))
    has_constants = any(field.constants for field in task.fieldset.fields)
    store.add(task.fieldset, crew.ask(task, "constants") if has_constants else None)
    return task


def _run_task(store: TargetStore, task: Task, crew: Crew, say: Say) -> Done:
    num_devices = crew.prepare(task)
    started, timing = time.monotonic(), Timing()
    said: set[str] = set()  # by another worker perhaps
    with _bar(task) as bar, closing(crew.compute(task)) as progresses:
        for progress in progresses:
            bar.update(progress.num_rows)
            timing += progress.timing
            for line in progress.notes:
                if line not in said:
                    bar.clear()
                    say(f"note: {line}")
                    said.add(line)
    assert store.complete(task.fieldset.key)
    elapsed_s = time.monotonic() - started
    return Done(task=task, elapsed_s=elapsed_s, timing=timing, num_devices=num_devices)


def _bar(task: Task) -> tqdm[Any]:
    from tqdm import tqdm

    return tqdm(total=task.missing_rows, desc=task.fieldset.key, unit="row", unit_scale=True, mininterval=0.5)


class Here:
    """This process, with the worker of the FieldSet that it was last asked for."""

    def __init__(self, path: StorePath, workers: Workers) -> None:
        self._path, self._workers = path, workers
        self._worker: ShardWorker | None = None

    def prepare(self, task: Task) -> int:
        """Load the encoder, on one device."""
        self.worker(task)
        return 1

    def ask(self, task: Task, what: str, *arguments: Any) -> Any:
        """The result of the worker's method `what`."""
        return getattr(self.worker(task), what)(*arguments)

    def compute(self, task: Task) -> Generator[Progress]:
        """Compute every missing shard."""
        yield from self.worker(task).compute(task.shards)

    def worker(self, task: Task) -> ShardWorker:
        """That of the task's FieldSet."""
        known = self._worker
        if known is None or known.fieldset.fingerprint != task.fieldset.fingerprint:
            self._worker = known = None  # lets go of one model before the next is loaded
            self._worker = known = self._hired(TargetStore.open(self._path), task)
        if not known.store.holds(task.fieldset):
            known.store = TargetStore.open(self._path)  # it may have been added since
        return known

    def _hired(self, store: TargetStore, task: Task) -> ShardWorker:
        return ShardWorker(store, task, self._workers)
