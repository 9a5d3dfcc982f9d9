"""Streams: the pairs a run draws, batch by batch, from one or several stores.

A stream is (store, pair kind, fields, split, weight). One of its batches is B anchors (images, in image-text)
from a random permutation, each with one of its partners drawn at random:

    permutation = rng(seed, stream, epoch)      partners = rng(seed, stream, epoch, batch)

so that batch k of a run is a pure function of the seed and k: a resumed run sees what it would have seen.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch

from contract.store import TargetStore
from trainer.batch import Batch, Tokens
from trainer.students.adapters import InputShape

Rows = npt.NDArray[np.int64]

NUM_PREFETCHED = 3


@dataclass(frozen=True, kw_only=True)
class Input:
    """Where one modality's tokens lie in a store: full field references, "" where no lengths are stored."""

    values: str
    length: str

    @property
    def key(self) -> str:
        """The FieldSet both are in."""
        return self.values.rpartition("/")[0]

    def load(self, store: TargetStore, rows: Rows) -> Tokens:
        """The tokens of these rows, cut to the longest of them: float [n, T, D]."""
        values = torch.from_numpy(store.load(self.values, rows))
        if values.ndim == 2:  # one vector per item is a sequence of one token
            values = values[:, None]
        if not self.length:
            return Tokens(values)
        length = torch.from_numpy(store.load(self.length, rows))
        longest = max(1, int(length.max())) if len(length) else 1
        return Tokens(values[:, :longest], length)

    def shape(self, store: TargetStore) -> InputShape:
        """How many tokens, and how wide."""
        *tokens, width = store.field(self.values).shape
        return InputShape(num_tokens=tokens[0] if tokens else 1, width=width)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """One stream, resolved against its store.

    Anchor i of the `anchors` int64 [n] has the partners `partners[starts[i]:starts[i + 1]]`.
    """

    store: TargetStore
    pair: tuple[str, str]
    split: str
    inputs: Mapping[str, Input]
    targets: Mapping[str, str]
    weight: float
    anchors: Rows
    starts: Rows
    partners: Rows

    @property
    def kind(self) -> str:
        """ "image-text" and so on."""
        return "-".join(self.pair)

    @property
    def keys(self) -> list[str]:
        """The FieldSets it reads."""
        references = [*self.targets.values(), *(input_.values for input_ in self.inputs.values())]
        return sorted({reference.rpartition("/")[0] for reference in references})

    def num_batches(self, batch_size: int) -> int:
        """Whole batches in one pass over the anchors; a stream shorter than a batch is one batch."""
        return max(1, len(self.anchors) // batch_size)

    def rows(self, key: Sequence[int], position: int, batch_size: int) -> tuple[Rows, Rows]:
        """The anchors' and the partners' rows, int64 [B] each, of the batch at `position` of the run."""
        epoch, number = divmod(position, self.num_batches(batch_size))
        order = _permutation((*key, epoch), len(self.anchors))
        drawn = order[number * batch_size : (number + 1) * batch_size]
        counts = self.starts[drawn + 1] - self.starts[drawn]
        which = np.random.default_rng([*key, epoch, number]).integers(0, counts)
        return self.anchors[drawn], self.partners[self.starts[drawn] + which]

    def load(self, anchors: Rows, partners: Rows) -> Batch:
        """Read a batch from the store."""
        first, second = self.pair
        rows = {first: anchors, second: partners}
        return Batch(
            pair=self.pair,
            inputs={modality: self.inputs[modality].load(self.store, rows[modality]) for modality in self.pair},
            targets={
                name: torch.from_numpy(self.store.load(reference, anchors))
                for name, reference in self.targets.items()
            },
        )


class Streams:
    """Every stream of a run, in alternation by weight.

    `stores` holds each store once, with the input of every modality that the student embeds of it. An epoch has as
    many steps as one pass over all streams has batches, shared out by weight and evenly mixed.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        stores: Sequence[tuple[TargetStore, Mapping[str, Input]]],
        batch_size: int,
        seed: int,
    ) -> None:
        self.streams = tuple(streams)
        self.stores = tuple(stores)
        self.batch_size = batch_size
        self.seed = seed
        num_batches = sum(stream.num_batches(batch_size) for stream in streams)
        total = sum(stream.weight for stream in streams)
        self._shares = [max(1, round(stream.weight / total * num_batches)) for stream in streams]

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, of all streams together."""
        return sum(self._shares)

    @cached_property
    def _turns(self) -> list[tuple[int, int]]:
        """(stream, its how-many-th batch) for each step of an epoch: each stream's turns are evenly spaced."""
        turns = [
            ((number + 0.5) / share, stream, number)
            for stream, share in enumerate(self._shares)
            for number in range(share)
        ]
        return [(stream, number) for _, stream, number in sorted(turns)]

    def load(self, step: int) -> Batch:
        """The batch of step 0, 1, ... of the run."""
        epoch, turn = divmod(step, self.steps_per_epoch)
        number, position = self._turns[turn]
        stream = self.streams[number]
        position += epoch * self._shares[number]
        return stream.load(*stream.rows((self.seed, number), position, self.batch_size))

    def prefetched(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of these steps; one background thread reads ahead."""
        ready: queue.Queue[Batch | Exception] = queue.Queue(NUM_PREFETCHED)
        stopped = threading.Event()

        def put(item: Batch | Exception) -> None:
            while not stopped.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def read() -> None:
            try:
                for step in range(start, stop):
                    put(self.load(step))
                    if stopped.is_set():
                        return
            except Exception as error:
                put(error)

        thread = threading.Thread(target=read, name="prefetch", daemon=True)
        thread.start()
        try:
            for _ in range(start, stop):
                item = ready.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join()

    def sample(self, modality: str, num_rows: int) -> Tokens:
        """Tokens of up to `num_rows` of the modality's training items, evenly spread over its first stream."""
        stream = next(stream for stream in self.streams if modality in stream.pair)
        rows = stream.anchors if modality == stream.pair[0] else np.unique(stream.partners)
        spread = np.linspace(0, len(rows) - 1, min(num_rows, len(rows))).astype(np.int64)
        return stream.inputs[modality].load(stream.store, rows[spread])

    def shapes(self) -> dict[str, InputShape]:
        """What each modality's adapter reads."""
        return {
            modality: input_.shape(stream.store)
            for stream in self.streams
            for modality, input_ in stream.inputs.items()
        }

    def num_classes(self, target: str) -> int:
        """Width of a target that every stream has."""
        stream = self.streams[0]
        return stream.store.field(stream.targets[target]).shape[0]


@lru_cache(maxsize=8)
def _permutation(key: tuple[int, ...], num_rows: int) -> Rows:
    return np.random.default_rng(key).permutation(num_rows)
