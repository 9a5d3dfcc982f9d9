"""The run itself: every missing shard of every FieldSet, computed here or by Ray's actors.

The unit is a shard. A worker decodes in threads ahead of the model, fills the shard's rows batch by batch and hands
them to the store, which commits them or nothing. What is to be done is asked of the store, so the same command
continues a run that was killed, whatever engine it used.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from contract.errors import StoreError, UserError
from contract.schema import FieldSet
from contract.store import Quarantined, TargetStore
from contract.views import Item, UndecodableError, View
from encoders import Encoder
from pipeline.plan import Task
from pipeline.settings import Workers

if TYPE_CHECKING:
    from tqdm import tqdm

Engine = Literal["ray", "local"]

BATCHES_AHEAD = 3


@dataclass(frozen=True, kw_only=True)
class Done:
    """What one FieldSet took."""

    key: str
    num_rows: int
    elapsed_s: float


def run(store: TargetStore, tasks: Sequence[Task], engine: Engine, workers: Workers) -> list[Done]:
    """Compute what is missing of every task; returns what was computed."""
    for task in tasks:
        store.add(task.fieldset)
    waiting = [task for task in tasks if task.missing]
    if not waiting:
        return []
    if engine == "ray":
        with _actors(store, waiting, workers) as actors:
            return [_run_task(store, task, _on_ray(task, actors)) for task in waiting]
    return [_run_task(store, task, _in_process(store, task, workers)) for task in waiting]


class ShardWorker:
    """A built encoder, and the store that its shards go to."""

    def __init__(self, store: TargetStore, fieldset: FieldSet, encoder: Encoder, workers: Workers) -> None:
        import torch

        self.key = fieldset.key
        self._store, self._fieldset = store, fieldset
        self._view: View = encoder.view()
        self._model = encoder.build(workers.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._root = Path(store.manifest.media_root)
        num_threads = workers.decode_threads or torch.get_num_threads()
        self._decoders = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    def compute(self, shard: int) -> Iterator[int]:
        """Compute and commit one shard; yields the number of rows of every batch."""
        rows = self._store.shard_rows(self._fieldset.key, shard)
        values = {
            field.name: np.zeros(
                (len(rows), *field.shape), np.float32 if field.encoding.kind != "int32" else np.int32
            )
            for field in self._fieldset.fields
        }
        quarantined = []
        for start, decoded in self._batches(rows):
            good = [place for place, view in enumerate(decoded) if not isinstance(view, Quarantined)]
            quarantined += [view for view in decoded if isinstance(view, Quarantined)]
            if good:
                outputs = self._model([decoded[place] for place in good])
                for name, array in values.items():
                    array[[start + place for place in good]] = outputs[name]
            yield len(decoded)
        self._store.write_shard(self._fieldset.key, shard, values, quarantined)

    def _batches(self, rows: range) -> Iterator[tuple[int, list[Any]]]:
        """(first row within the shard, views) of each batch, decoded ahead of the model."""
        size = self._fieldset.batch_size
        starts = range(0, len(rows), size)
        ahead: list[tuple[int, list[Future[Any]]]] = []
        for start in starts:
            items = self._items(rows[start : start + size])
            ahead.append((start, [self._decoders.submit(self._decode, row, item) for row, item in items]))
            if len(ahead) > BATCHES_AHEAD:
                yield _results(ahead.pop(0))
        yield from map(_results, ahead)

    def _items(self, rows: range) -> list[tuple[int, Item]]:
        table = self._store.manifest.items[self._fieldset.modality].slice(rows.start, len(rows))
        return [
            (row, Item(id=entry["id"], file=self._root / entry["file"], text=entry["text"]))
            for row, entry in zip(rows, table.select(["id", "file", "text"]).to_pylist(), strict=True)
        ]

    def _decode(self, row: int, item: Item) -> npt.NDArray[np.generic] | str | Quarantined:
        try:
            return self._view.load(item)
        except UndecodableError as error:
            file = "" if item.file == self._root else str(item.file.relative_to(self._root))
            return Quarantined(row=row, id=item.id, file=file, reason=str(error))


def _results(batch: tuple[int, list[Future[Any]]]) -> tuple[int, list[Any]]:
    start, futures = batch
    return start, [future.result() for future in futures]


def _run_task(store: TargetStore, task: Task, progress: Iterator[int]) -> Done:
    started = time.monotonic()
    with _bar(task) as bar:
        for num_rows in progress:
            bar.update(num_rows)
    assert store.complete(task.fieldset.key)
    return Done(key=task.fieldset.key, num_rows=task.missing_rows, elapsed_s=time.monotonic() - started)


def _bar(task: Task) -> tqdm[Any]:
    from tqdm import tqdm

    return tqdm(total=task.missing_rows, desc=task.fieldset.key, unit="row", unit_scale=True, mininterval=0.5)


def _in_process(store: TargetStore, task: Task, workers: Workers) -> Iterator[int]:
    worker = ShardWorker(store, task.fieldset, task.encoder, workers)
    for rows in task.missing:
        yield from worker.compute(rows.start // task.fieldset.rows_per_shard)


def _on_ray(task: Task, actors: Sequence[Any]) -> Iterator[int]:
    """Each actor takes the next shard when it is done; yields the rows of every batch."""
    import ray

    shards = [rows.start // task.fieldset.rows_per_shard for rows in task.missing]
    running: dict[Any, Any] = {}
    try:
        while shards or running:
            busy = set(running.values())
            for actor in actors:
                if shards and actor not in busy:
                    stream = actor.compute.options(num_returns="streaming").remote(
                        task.fieldset, task.encoder, shards.pop(0)
                    )
                    running[stream] = actor
            ready, _ = ray.wait(list(running), num_returns=1)
            for stream in ready:
                try:
                    yield ray.get(next(stream))
                except StopIteration:
                    del running[stream]
    except ray.exceptions.RayTaskError as error:
        # Ray wraps what an actor raised; the user's mistake inside is what the user should read.
        raise error.cause if isinstance(error.cause, UserError | OSError) else error from None
    except ray.exceptions.RayError as error:
        lost = f"an actor was lost ({type(error).__name__})"
        raise StoreError(f"{lost}; the same command continues the run") from error


@contextmanager
def _actors(store: TargetStore, tasks: Sequence[Task], workers: Workers) -> Iterator[list[Any]]:
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
        yield [actor_type.remote(store.path.resolve(), workers, num_threads) for _ in range(num_actors)]
    finally:
        if own:
            ray.shutdown()


class _Actor:
    """A process of Ray's, with the worker of the FieldSet that it was last given."""

    def __init__(self, store_path: Path, workers: Workers, num_threads: int) -> None:
        import torch

        # Ray gives a process one thread unless told otherwise.
        torch.set_num_threads(num_threads)
        self._store_path, self._workers = store_path, workers
        self._worker: ShardWorker | None = None

    def compute(self, fieldset: FieldSet, encoder: Encoder, shard: int) -> Generator[int]:
        if self._worker is None or self._worker.key != fieldset.key:
            self._worker = None  # lets go of one model before the next is loaded
            self._worker = ShardWorker(TargetStore.open(self._store_path), fieldset, encoder, self._workers)
        yield from self._worker.compute(shard)
