"""One process's part of a run: a built encoder, and the store that its shards go to."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.encodings import NotEncodableError
from contract.errors import DataError
from contract.manifest import Rows
from contract.schema import Field
from contract.store import Quarantined, TargetStore
from contract.views import AudioView, ImageView, Item, UndecodableError
from pipeline.plan import PARAMETERS, Task
from pipeline.settings import Workers

BATCHES_AHEAD = 3
# Views from which the scales of sequences and of single vectors are measured: each channel's largest magnitude
# settles at some thousands of vectors (1 - cosine of int8 4e-4 after 200 of them, 5e-5 after 3,000).
NUM_CALIBRATED = 256
NUM_CALIBRATED_VECTORS = 2048
# Views from which an encoding's error is measured.
NUM_MEASURED = 32

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one forward pass says of `num_rows` rows.

    `good` are those that could be decoded, as places in the batch; `outputs` has their views, [good x views, ...],
    and is empty where there are none.
    """

    num_rows: int
    good: list[int]
    outputs: Arrays
    quarantined: list[Quarantined]


class ShardWorker:
    """Computes and commits shards of one FieldSet."""

    def __init__(self, store: TargetStore, task: Task, workers: Workers) -> None:
        import torch

        self.fieldset = task.fieldset
        self.store, self._views = store, task.views
        self._augmentation: Any = task.views.of(task.fieldset.modality)
        self._view = task.encoder.view()
        self._model = task.encoder.build(workers.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._root = Path(store.manifest.media_root)
        num_threads = workers.decode_threads or torch.get_num_threads()
        self._decoders = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    def compute(self, shard: int) -> Iterator[int]:
        """Compute what is missing of one shard and commit it; yields the number of rows of every batch."""
        key, fieldset = self.fieldset.key, self.fieldset
        rows = self.store.shard_rows(key, shard)[self.store.kept_rows(key, shard) :]
        views = (fieldset.views_per_row,) if fieldset.num_views else ()
        values: Arrays = {}
        for field in fieldset.fields:
            dtype, shape = field.encoding.input(field.shape)
            values[field.name] = np.zeros((len(rows), *views, *shape), dtype)
        quarantined: list[Quarantined] = []
        error: dict[str, dict[str, float]] = {}
        start = 0
        for batch in self._run(self._batches(rows), fieldset.num_views):
            if batch.good:
                places = start + np.asarray(batch.good)
                for name, array in values.items():
                    taken = batch.outputs[_taken(fieldset.field(name))]
                    array[places] = taken.reshape(len(places), *array.shape[1:])
                error = error or self._errors(batch.outputs)
            quarantined += batch.quarantined
            start += batch.num_rows
            yield batch.num_rows
        self.store.write_shard(key, shard, values, quarantined, error)

    def constants(self) -> Arrays:
        """The constants of the FieldSet's fields: the model's own, and those measured on a sample of its views."""
        constants = self._model.constants()
        calibrated = [field for field in self.fieldset.fields if field.encoding.calibrated]
        if calibrated:
            num_views, num_rows = self.fieldset.num_views, self.store.manifest.num_rows(self.fieldset.modality)
            has_vectors = any(len(field.shape) == 1 for field in calibrated)
            num_sampled = NUM_CALIBRATED_VECTORS if has_vectors else NUM_CALIBRATED
            rows = spread(np.arange(num_rows), -(-num_sampled // (num_views + 1)))
            good, sample = self._sample(rows, [field.name for field in calibrated], num_views)
            if not good.any():
                raise DataError(
                    f"{self.fieldset.key}: none of {len(rows)} inputs under {self._root} could be decoded, and "
                    f"{calibrated[0].encoding.kind} measures its scales on them"
                )
            for field in calibrated:
                constants |= self._calibrated(field, rows[good], sample[field.name])
        return constants

    def vectors(self, rows: Rows, name: str) -> tuple[Mask, Array]:
        """Bool [n], which rows could be decoded, and a vector of a field of each of these, float [m, D]."""
        lengths = [field.name for field in self.fieldset.fields if field.name == "length"]
        good, sample = self._sample(rows, [name, *lengths], 0)
        return good, pooled(sample[name], sample.get("length"))

    def _calibrated(self, field: Field, rows: Rows, sample: Array) -> Arrays:
        try:
            return field.calibrate(sample)
        except NotEncodableError as error:
            row = rows[error.row * len(rows) // len(sample)]
            name = self.store.manifest.column(self.fieldset.modality, "id", [row])[0]
            raise DataError(
                f"{self.fieldset.key}: {field.name} of sample {name!r} and perhaps others: {error}; choose another "
                "encoding under `encodings`, or mend the encoder"
            ) from error

    def _sample(self, rows: Rows, names: Sequence[str], num_views: int) -> tuple[Mask, Arrays]:
        """Bool [n], which rows could be decoded, and the encoder's own values for these, [m x views, ...]."""
        found = {name: [np.empty((0, *self.fieldset.field(name).shape), np.float32)] for name in names}
        mask = np.zeros(len(rows), bool)
        size = self._rows_per_batch
        starts = range(0, len(rows), size)
        for start, batch in zip(starts, self._run((rows[s : s + size] for s in starts), num_views), strict=True):
            mask[start + np.asarray(batch.good, np.int64)] = True
            for name in names if batch.good else ():
                found[name].append(batch.outputs[name])
        return mask, {name: np.concatenate(arrays) for name, arrays in found.items()}

    def _run(self, batches: Iterable[range | Rows], num_views: int) -> Iterator[Batch]:
        """The outputs of each batch of rows, decoded ahead of the model."""
        ahead: deque[list[Future[Any]]] = deque()
        for rows in batches:
            items = self._items(rows)
            ahead.append([self._decoders.submit(self._decode, row, item, num_views) for row, item in items])
            if len(ahead) > BATCHES_AHEAD:
                yield self._forward(ahead.popleft())
        while ahead:
            yield self._forward(ahead.popleft())

    def _forward(self, futures: list[Future[Any]]) -> Batch:
        decoded = [future.result() for future in futures]
        good = [place for place, one in enumerate(decoded) if not isinstance(one, Quarantined)]
        outputs: Arrays = {}
        if good:
            outputs = self._model([view for place in good for view in decoded[place][0]])
            outputs = outputs | {PARAMETERS: np.concatenate([decoded[place][1] for place in good])}
        return Batch(
            num_rows=len(decoded),
            good=good,
            outputs=outputs,
            quarantined=[one for one in decoded if isinstance(one, Quarantined)],
        )

    def _batches(self, rows: range) -> list[range]:
        """Rows of each forward pass: a pure function of the manifest, so that equal stores are equal bytes.

        A batch never reaches over what the manifest gained later, since the rows before that may be kept.
        """
        starts = self.store.manifest.segment_starts(self.fieldset.modality)
        bounds = [rows.start, *(start for start in starts if rows.start < start < rows.stop), rows.stop]
        size = self._rows_per_batch
        return [
            range(first, min(first + size, stop))
            for start, stop in pairwise(bounds)
            for first in range(start, stop, size)
        ]

    @property
    def _rows_per_batch(self) -> int:
        return max(1, self.fieldset.batch_size // self.fieldset.views_per_row)

    def _errors(self, outputs: Arrays) -> dict[str, dict[str, float]]:
        """What the encoding of each of the encoder's fields costs, on the first of these outputs."""
        constants = self.store.constants(self.fieldset.key)
        found = {}
        for field in self.fieldset.fields:
            if field.name == PARAMETERS:
                continue
            try:
                stored = field.encode(outputs[_taken(field)][:NUM_MEASURED], constants)
            except NotEncodableError:
                continue  # the store will say so, with every count
            figures = field.error(outputs[field.name][:NUM_MEASURED], field.decode(stored, constants, np))
            if figures:
                found[field.name] = figures
        return found

    def _items(self, rows: range | Rows) -> list[tuple[int, Item]]:
        table = self.store.manifest.items[self.fieldset.modality].select(["id", "file", "text"])
        # Taking scattered rows takes time in proportion to the whole table: 5 ms for a million items.
        taken = table.slice(rows.start, len(rows)) if isinstance(rows, range) else table.take(rows)
        return [
            (int(row), Item(id=entry["id"], file=self._root / entry["file"], text=entry["text"]))
            for row, entry in zip(rows, taken.to_pylist(), strict=True)
        ]

    def _decode(self, row: int, item: Item, num_views: int) -> tuple[list[Any], Array] | Quarantined:
        """The item's views and their parameters."""
        try:
            if num_views:
                assert isinstance(self._view, ImageView | AudioView)
                return self._view.load_views(item, self._augmentation, self._views.seed, num_views)
            return [self._view.load(item)], np.empty((1, 0))
        except UndecodableError as error:
            file = "" if item.file == self._root else str(item.file.relative_to(self._root))
            return Quarantined(row=row, id=item.id, file=file, reason=str(error))


def pooled(values: Array, length: Array | None) -> Array:
    """One vector a row: float [n, D] as it is, the mean over the real tokens of float [n, T, D]."""
    if values.ndim == 2:
        return values
    if length is None:
        mean: Array = values.mean(axis=1)
        return mean
    real = np.arange(values.shape[1]) < length[:, None]
    total: Array = (values * real[..., None]).sum(axis=1) / np.maximum(length, 1)[:, None]
    return total


def spread(rows: Rows, most: int) -> Rows:
    """At most `most` of the rows, evenly spread."""
    chosen: Rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
    return chosen


def _taken(field: Field) -> str:
    """The output that the field's encoding takes."""
    return f"{field.name}.{field.encoding.source}" if field.encoding.source else field.name
