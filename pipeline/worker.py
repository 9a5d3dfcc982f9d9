"""One process's part of a run: a built encoder, and the store that its shards go to.

Three things go on at a time: the decoders are some batches ahead, also over the end of a shard; the encoder works
on the next batch; and the shard before is encoded, checksummed and written by a thread of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.encodings import NotEncodableError
from contract.errors import DataError
from contract.manifest import Rows
from contract.schema import Field
from contract.store import TargetStore
from encoders import Encoder
from encoders.outputs import in_float32
from pipeline import batch_size
from pipeline.decoding import Decoded, Decoder, Decoders, Pending
from pipeline.filling import Shard, Writing, taken
from pipeline.forward import Forward
from pipeline.plan import PARAMETERS, Task
from pipeline.settings import Workers
from pipeline.timing import Progress, Stopwatch

# Views from which the scales of sequences and of single vectors are measured: each channel's largest magnitude
# settles at some thousands of vectors (1 - cosine of int8 4e-4 after 200 of them, 5e-5 after 3,000).
NUM_CALIBRATED = 256
NUM_CALIBRATED_VECTORS = 2048
# Views from which an encoding's error is measured.
NUM_MEASURED = 32
# Items on which a lower precision is compared with float32.
NUM_COMPARED = 64

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Mask = npt.NDArray[np.bool_]


class ShardWorker:
    """Computes and commits shards of one FieldSet."""

    def __init__(self, store: TargetStore, task: Task, workers: Workers, decoders: Decoders | None = None) -> None:
        import torch

        self.fieldset = task.fieldset
        self.store = store
        self._task = task
        self.device = workers.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._forward = self._forward_of(task.encoder)
        self._decoders = decoders or Decoder(
            store.manifest,
            task.fieldset.modality,
            task.encoder.view(),
            task.views,
            workers.decode_threads or torch.get_num_threads(),
        )

    def compute(self, shards: Iterable[int]) -> Generator[Progress]:
        """Compute what is missing of these shards and commit them; yields after every batch and at the end.

        However it ends, also when it is closed early, nothing of it goes on in the background.
        """
        watch = Stopwatch()
        shard: Shard | None = None
        ahead = self._ahead(self._batches_of(shards), self.fieldset.num_views)
        with closing(ahead), Writing() as writing:
            for number, pending in ahead:
                if shard is None or shard.number != number:
                    shard = Shard.empty(self.store, self.fieldset.key, number)
                decoded = self._wait(pending, watch)
                with watch.on("teacher_s"):
                    outputs = self._forward(decoded)
                    shard.add(decoded, outputs, self._errors)
                writing.check()
                if shard.is_full:
                    shard.batch_size = self._forward.halved_to
                    with watch.on("blocked_s"):
                        writing.begin(shard.write)
                yield Progress(num_rows=decoded.num_rows, timing=watch.take(), notes=self._forward.take_notes())
            with watch.on("blocked_s"):
                writing.finish()
        yield Progress(timing=watch.take())

    def constants(self) -> Arrays:
        """The constants of the FieldSet's fields: the model's own, and those measured on a sample of its views."""
        constants = self._forward.model.constants()
        calibrated = [field for field in self.fieldset.fields if field.encoding.calibrated]
        if calibrated:
            num_views, num_rows = self.fieldset.num_views, self.store.manifest.num_rows(self.fieldset.modality)
            has_vectors = any(len(field.shape) == 1 for field in calibrated)
            num_sampled = NUM_CALIBRATED_VECTORS if has_vectors else NUM_CALIBRATED
            rows = spread(np.arange(num_rows), -(-num_sampled // (num_views + 1)))
            good, sample = self.sample(rows, [field.name for field in calibrated], num_views)
            if not good.any():
                raise DataError(
                    f"{self.fieldset.key}: none of {len(rows)} inputs under {self.store.manifest.media_root} could "
                    f"be decoded, and {calibrated[0].encoding.kind} measures its scales on them"
                )
            for field in calibrated:
                constants |= self._calibrated(field, rows[good], sample[field.name])
        return constants

    def vectors(self, rows: Rows, name: str) -> tuple[Mask, Array]:
        """Bool [n], which rows could be decoded, and a vector of a field of each of these, float [m, D]."""
        lengths = [field.name for field in self.fieldset.fields if field.name == "length"]
        good, sample = self.sample(rows, [name, *lengths], 0)
        return good, pooled(sample[name], sample.get("length"))

    def sample(self, rows: Rows, names: Sequence[str], num_views: int) -> tuple[Mask, Arrays]:
        """Bool [n], which rows could be decoded, and the encoder's own values for these, [m x views, ...]."""
        found = {name: [np.empty((0, *self.fieldset.field(name).shape), np.float32)] for name in names}
        mask = np.zeros(len(rows), bool)
        size = self._rows_per_batch
        batches = ((start, rows[start : start + size]) for start in range(0, len(rows), size))
        with closing(self._ahead(batches, num_views)) as ahead:
            for start, pending in ahead:
                decoded = pending.result()
                outputs = self._forward(decoded)
                mask[start + np.asarray(decoded.good, np.int64)] = True
                for name in names if decoded.good else ():
                    found[name].append(outputs[name])
        return mask, {name: np.concatenate(arrays) for name, arrays in found.items()}

    def largest_batch(self) -> int:
        """How many views to put through the encoder at once, as `batch_size.largest` has it."""
        rows = spread(np.arange(self.store.manifest.num_rows(self.fieldset.modality)), NUM_MEASURED)
        decoded = self._decoders.submit(rows, self.fieldset.num_views).result()
        if not decoded.views:
            raise DataError(
                f"{self.fieldset.key}: none of {len(rows)} inputs could be decoded, and a batch is made of some"
            )
        return batch_size.largest(self._forward.model, decoded.views, self.device, self.fieldset.batch_size)

    def precision_error(self) -> dict[str, dict[str, float]]:
        """By field, the cosine between what this precision gives and what float32 does: mean and least."""
        rows = spread(np.arange(self.store.manifest.num_rows(self.fieldset.modality)), NUM_COMPARED)
        names = [field.name for field in self.fieldset.fields if field.shape and field.name != PARAMETERS]
        _, low = self.sample(rows, names, 0)
        forward = self._forward
        forward.release()  # there may not be room for both
        try:
            self._forward = self._forward_of(in_float32(self._task.encoder))
            _, high = self.sample(rows, names, 0)
        finally:
            self._forward = forward
        return {name: cosine(low[name], high[name]) for name in names}

    def _forward_of(self, encoder: Encoder) -> Forward:
        device = self.device  # a reference to the worker would keep its weights until the garbage is collected
        return Forward(lambda: encoder.build(device), self.fieldset.key)

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

    def _ahead(self, batches: Iterable[tuple[int, range | Rows]], num_views: int) -> Generator[tuple[int, Pending]]:
        """Each batch's number, and its rows, which began to be decoded some batches ago."""
        ahead: deque[tuple[int, Pending]] = deque()
        most = self._decoders.num_ahead(self._rows_per_batch)
        try:
            for number, rows in batches:
                ahead.append((number, self._decoders.submit(rows, num_views)))
                if len(ahead) > most:
                    yield ahead.popleft()
            while ahead:
                yield ahead.popleft()
        finally:
            for _, pending in ahead:
                pending.cancel()

    def _wait(self, pending: Pending, watch: Stopwatch) -> Decoded:
        with watch.on("waiting_s"):
            decoded = pending.result()
        watch.timing.reading_s += decoded.reading_s
        watch.timing.decoding_s += decoded.decoding_s
        return decoded

    def _batches_of(self, shards: Iterable[int]) -> Iterator[tuple[int, range]]:
        """Shard and rows of each forward pass, a function of the manifest alone: equal stores are equal bytes.

        A batch never reaches over what the manifest gained later, since the rows before that may be kept.
        """
        starts, key = self.store.manifest.segment_starts(self.fieldset.modality), self.fieldset.key
        size = self._rows_per_batch
        for shard in shards:
            rows = self.store.shard_rows(key, shard)[self.store.kept_rows(key, shard) :]
            bounds = [rows.start, *(start for start in starts if rows.start < start < rows.stop), rows.stop]
            for first, stop in pairwise(bounds):
                yield from ((shard, range(start, min(start + size, stop))) for start in range(first, stop, size))

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
                stored = field.encode(outputs[taken(field)][:NUM_MEASURED], constants)
            except NotEncodableError:
                continue  # the store will say so, with every count
            figures = field.error(outputs[field.name][:NUM_MEASURED], field.decode(stored, constants, np))
            if figures:
                found[field.name] = figures
        return found


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


def cosine(one: Array, other: Array) -> dict[str, float]:
    """Mean and least cosine of the vectors of float [n, ..., D]; {} if none is finite and not all zero."""
    a, b = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (one, other))
    finite = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    lengths = np.linalg.norm(a[finite], axis=1) * np.linalg.norm(b[finite], axis=1)
    cosines = (a[finite] * b[finite]).sum(axis=1)[lengths > 0] / lengths[lengths > 0]
    return {"mean": float(cosines.mean()), "least": float(cosines.min())} if len(cosines) else {}


def spread(rows: Rows, most: int) -> Rows:
    """At most `most` of the rows, evenly spread."""
    chosen: Rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
    return chosen
