"""A shard as it fills up, and the thread that writes it while the next one does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.schema import Field
from contract.store import Quarantined, TargetStore
from pipeline.decoding import Decoded

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


@dataclass(kw_only=True)
class Shard:
    """One shard as it fills up: what the encodings take of its rows, [rows, ...] or [rows, views, ...]."""

    store: TargetStore
    key: str
    number: int
    num_rows: int
    values: Arrays
    start: int = 0
    quarantined: list[Quarantined] = dataclasses.field(default_factory=list)
    error: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    batch_size: int = 0

    @classmethod
    def empty(cls, store: TargetStore, key: str, number: int) -> Shard:
        """All zeros: what rows hold that can't be decoded."""
        fieldset = store.fieldsets[key]
        num_rows = len(store.shard_rows(key, number)) - store.kept_rows(key, number)
        views = (fieldset.views_per_row,) if fieldset.num_views else ()
        values = {}
        for field in fieldset.fields:
            dtype, shape = field.encoding.input(field.shape)
            values[field.name] = np.zeros((num_rows, *views, *shape), dtype)
        return cls(store=store, key=key, number=number, num_rows=num_rows, values=values)

    @property
    def is_full(self) -> bool:
        """Whether every row is there."""
        return self.start == self.num_rows

    def add(self, decoded: Decoded, outputs: Arrays, errors: Callable[[Arrays], dict[str, Any]]) -> None:
        """The next rows: what the encoder says of those that could be decoded."""
        if decoded.good:
            places = self.start + np.asarray(decoded.good)
            for field in self.store.fieldsets[self.key].fields:
                array = self.values[field.name]
                array[places] = outputs[taken(field)].reshape(len(places), *array.shape[1:])
            self.error = self.error or errors(outputs)
        self.quarantined += decoded.quarantined
        self.start += decoded.num_rows

    def write(self) -> None:
        """Encode, write and commit it."""
        self.store.write_shard(
            self.key, self.number, self.values, self.quarantined, self.error, batch_size=self.batch_size
        )


class Writing:
    """Writes in the background, one shard at a time: two would be twice the memory.

    Whatever ends the `with` block waits for the shard that is being written, so that nobody else begins to write to
    the store, or removes it, meanwhile.
    """

    def __init__(self) -> None:
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._running: Future[None] | None = None

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown()

    def begin(self, write: Callable[[], None]) -> None:
        """Wait for what is being written, and go on with this."""
        self.finish()
        self._running = self._writer.submit(write)

    def check(self) -> None:
        """Raise what went wrong, if something has already."""
        if self._running is not None and self._running.done():
            self.finish()

    def finish(self) -> None:
        """Wait; raises what went wrong."""
        running, self._running = self._running, None
        if running is not None:
            running.result()


def taken(field: Field) -> str:
    """The output that the field's encoding takes."""
    return f"{field.name}.{field.encoding.source}" if field.encoding.source else field.name
