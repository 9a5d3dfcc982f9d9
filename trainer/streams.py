"""Streams: the pairs a run draws, batch by batch, from one or several stores.

A stream is (store, pair kind or one modality, fields, split, weight). One of its batches is B anchors (images, in
image-text) in random order, each with one of its partners, and one stored view of either where it has several, at
random:

    anchor = permuted(place)      partner = drawn(anchor)      view = drawn(row)      keys: seed, stream, epoch, use

so that batch k of a run is a pure function of the seed and k, and no order is ever kept: a resumed run sees what it
would have seen. With several ranks, each takes its own B of every R B consecutive places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from contract.errors import ConfigError
from contract.manifest import NO_LABEL, Rows
from contract.store import TargetStore
from trainer.batch import StoredBatch, StoredTokens, Tokens
from trainer.captions import TEXT, Rewritten, captions
from trainer.permutation import drawn, permuted
from trainer.stored import Buffers, StoredField, Views
from trainer.students.adapters import InputShape, Origin
from trainer.words import Words


@dataclass(frozen=True, kw_only=True)
class Input:
    """Where one modality's tokens lie in a store: full field references, "" where no lengths are stored."""

    values: str
    length: str

    @property
    def key(self) -> str:
        """The FieldSet both are in."""
        return self.values.rpartition("/")[0]

    def read(
        self,
        store: TargetStore,
        rows: Rows,
        views: Views = 0,
        buffers: Buffers | None = None,
        *,
        check: bool = False,
    ) -> StoredTokens:
        """The tokens of these rows as they are stored."""
        values = StoredField(store=store, reference=self.values)
        arrays = values.read(rows, views, buffers, check=check)
        if not self.length:
            return StoredTokens(values=values, arrays=arrays, length=None)
        length = StoredField(store=store, reference=self.length)
        (lengths,) = length.read(rows, views, buffers, check=check).values()
        return StoredTokens(values=values, arrays=arrays, length=lengths)

    def load(self, store: TargetStore, rows: Rows, device: str = "cpu", *, check: bool = False) -> Tokens:
        """The evaluation view's tokens of these rows, cut to the longest of them: float [n, T, D]."""
        return self.read(store, rows, check=check).to(device)

    def shape(self, store: TargetStore) -> InputShape:
        """How many tokens, and how wide."""
        *tokens, width = store.field(self.values).shape
        field = self.values.rpartition("/")[2]
        origin = Origin(fieldset=store.fieldsets[self.key], field=field, name=f"{store.path}: {self.key}")
        return InputShape(num_tokens=tokens[0] if tokens else 1, width=width, origin=origin)


class Shown(NamedTuple):
    """The rows of a batch by modality, int64 [B], and which view of each."""

    rows: Mapping[str, Rows]
    views: Mapping[str, Views]


class Drawn(NamedTuple):
    """What a batch shows of its anchors, int64 [B] among the stream's; `others` shows them once more, if at all.

    `check` says whether to verify checksums; `key` is what draws over a caption's words depend on, beside its row.
    """

    anchors: Rows
    shown: Shown
    others: Shown | None
    check: bool
    key: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """One stream, resolved against its store.

    Anchor i of the `anchors` int64 [n] has the partners `partners[starts[i]:starts[i + 1]]`, if `pair` has two
    modalities. `num_views` are the views of each modality that training draws from, from `first_view` on, 0
    where it sees the evaluation view alone. `shows_others` says whether a batch shows its items twice;
    `first_place` is how many anchors the streams before have. `words` tell the ids of its captions' tokens, if
    some objective reads them; `rewritten` gives its captions where they are not read as they are stored. Its
    batches are for the recipe's `objectives` of these names, None: all. Of each modality `beside` the pair,
    anchor i has one row.
    """

    store: TargetStore
    pair: tuple[str, ...]
    split: str
    inputs: Mapping[str, Input]
    targets: Mapping[str, str]
    weight: float
    anchors: Rows
    starts: Rows
    partners: Rows
    num_views: Mapping[str, int]
    first_view: int = 1
    shows_others: bool = False
    first_place: int = 0
    words: Words | None = None
    rewritten: Rewritten | None = None
    objectives: tuple[str, ...] | None = None
    beside: Mapping[str, Rows] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """ "image-text" and so on."""
        return "-".join(self.pair)

    @property
    def keys(self) -> list[str]:
        """The FieldSets it reads."""
        references = [*self.targets.values(), *(input_.values for input_ in self.inputs.values())]
        return sorted({reference.rpartition("/")[0] for reference in references})

    @property
    def fields(self) -> list[tuple[str, str]]:
        """(modality whose rows are read, field reference) of everything in a batch."""
        inputs = [
            (modality, reference)
            for modality, input_ in self.inputs.items()
            for reference in (input_.values, input_.length)
            if reference
        ]
        return [*inputs, *((self.pair[0], reference) for reference in self.targets.values())]

    def rows(self, modality: str) -> Rows:
        """Those of a modality that its batches may show."""
        if modality in self.beside:
            return self.beside[modality]
        return self.anchors if modality == self.pair[0] else self.partners

    def num_batches(self, batch_size: int) -> int:
        """Whole batches, of all ranks together, in one pass over the anchors; a shorter stream is one batch."""
        return max(1, len(self.anchors) // batch_size)

    def draw(
        self,
        key: Sequence[int],
        position: int,
        batch_size: int,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        verify_every: int = 0,
    ) -> Drawn:
        """What one rank reads of the batch at `position` of the run.

        Checksums are verified in the first pass over the anchors and in every `verify_every`th after it (0: never).
        """
        epoch, number = divmod(position, self.num_batches(batch_size * num_ranks))
        size = min(batch_size * num_ranks, len(self.anchors))
        first, last = (number * size + size * place // num_ranks for place in (rank, rank + 1))
        picked = permuted(np.arange(first, last), len(self.anchors), (*key, epoch, 0))
        shown, others = self._shown(picked, (*key, epoch))
        check = bool(verify_every) and epoch % verify_every == 0
        return Drawn(picked, shown, others if self.shows_others else None, check, (*key, epoch))

    def _shown(self, picked: Rows, key: tuple[int, ...]) -> tuple[Shown, Shown]:
        """A partner and a view for each anchor, and others than these where it has several."""
        anchor, *partner = self.pair
        rows = {anchor: self.anchors[picked]}
        other_rows = dict(rows)
        for modality in partner:
            start, counts = self.starts[picked], self.starts[picked + 1] - self.starts[picked]
            which = drawn(picked, counts, (*key, 1))
            rows[modality] = self.partners[start + which]
            another = (which + 1 + drawn(picked, np.maximum(counts - 1, 1), (*key, 4))) % counts
            other_rows[modality] = self.partners[start + another]
        for modality, of_anchors in self.beside.items():
            rows[modality] = other_rows[modality] = of_anchors[picked]
        views: dict[str, Views] = dict.fromkeys(rows, 0)
        other_views = dict(views)
        for place, (modality, num) in enumerate(sorted(self.num_views.items())):
            if num:
                view = drawn(rows[modality], num, (*key, 2 + place))
                another = (view + 1 + drawn(rows[modality], max(num - 1, 1), (*key, 5 + place))) % num
                views[modality], other_views[modality] = self.first_view + view, self.first_view + another
        return Shown(rows, views), Shown(other_rows, other_views)

    def read(self, drawn: Drawn, buffers: Buffers | None = None) -> StoredBatch:
        """Read a batch from the store."""
        anchor = self.pair[0]
        targets = {}
        for name, reference in self.targets.items():
            field = StoredField(store=self.store, reference=reference)
            rows, views = drawn.shown.rows[anchor], drawn.shown.views[anchor]
            targets[name] = (field, field.read(rows, views, buffers, check=drawn.check))
        texts = self._texts(drawn.shown, drawn.key)
        inputs = self._tokens(drawn.shown, texts, buffers, drawn.check)
        others = {}
        if drawn.others is not None:
            other_texts = self._texts(drawn.others, drawn.key)
            others = self._tokens(drawn.others, other_texts, buffers and buffers.others, drawn.check)
        return StoredBatch(
            pair=self.pair,
            inputs=inputs,
            targets=targets,
            others=others,
            places=torch.from_numpy(drawn.anchors + self.first_place),
            peers=range(self.first_place, self.first_place + len(self.anchors)),
            words={TEXT: self.words.ids(texts, inputs[TEXT])} if self.words is not None and TEXT in inputs else {},
            objectives=self.objectives,
        )

    def will_need(self, drawn: Drawn) -> None:
        """Have everything of a batch read ahead from the disk."""
        for modality, reference in self.fields:
            for shown in filter(None, (drawn.shown, drawn.others)):
                self.store.will_need(reference, shown.rows[modality], views=shown.views[modality])

    def _texts(self, shown: Shown, key: tuple[int, ...]) -> list[str]:
        """The captions that are shown; none where nobody asks for them."""
        if TEXT not in self.pair or (self.words is None and self.rewritten is None):
            return []
        texts = captions(self.store, shown.rows[TEXT])
        return texts if self.rewritten is None else self.rewritten.texts(texts, shown.rows[TEXT], (*key, 8))

    def _tokens(
        self, shown: Shown, texts: Sequence[str], buffers: Buffers | None, check: bool
    ) -> dict[str, StoredTokens]:
        return {
            modality: self.rewritten.tokens(texts)
            if modality == TEXT and self.rewritten is not None
            else self.inputs[modality].read(
                self.store, shown.rows[modality], shown.views[modality], buffers, check=check
            )
            for modality in shown.rows
        }


class Streams:
    """Every stream of a run, in alternation by weight.

    `stores` holds each store once, with the input of every modality that the student embeds of it. An epoch has as
    many steps as one pass over all streams has batches, shared out by weight and evenly mixed. `batch_size` is that
    of one rank.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        stores: Sequence[tuple[TargetStore, Mapping[str, Input]]],
        batch_size: int,
        seed: int,
        *,
        verify_every: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        first_places = accumulate((len(stream.anchors) for stream in streams), initial=0)
        self.streams = tuple(
            replace(stream, first_place=first) for stream, first in zip(streams, first_places, strict=False)
        )
        self.stores = tuple(stores)
        self.batch_size = batch_size
        self.seed = seed
        self._verify_every, self._rank, self._num_ranks = verify_every, rank, num_ranks
        num_batches = sum(stream.num_batches(batch_size * num_ranks) for stream in streams)
        total = sum(stream.weight for stream in streams)
        self._shares = [max(1, round(stream.weight / total * num_batches)) for stream in streams]

    def shared(self, rank: int, num_ranks: int) -> Streams:
        """What one of several ranks reads of them: its share of every batch."""
        if self.batch_size % num_ranks:
            raise ConfigError(
                f"batch_size {self.batch_size} can't be shared evenly by {num_ranks} workers; change one of the two"
            )
        for stream in self.streams:
            if len(stream.anchors) < num_ranks:
                raise ConfigError(
                    f"{stream.kind} of {stream.store.path} has {len(stream.anchors)} pairs for {num_ranks} workers"
                )
        return Streams(
            self.streams,
            self.stores,
            self.batch_size // num_ranks,
            self.seed,
            verify_every=self._verify_every,
            rank=rank,
            num_ranks=num_ranks,
        )

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

    def draw(self, step: int) -> tuple[Stream, Drawn]:
        """What is read at step 0, 1, ... of the run, and of which stream."""
        epoch, turn = divmod(step, self.steps_per_epoch)
        number, position = self._turns[turn]
        stream = self.streams[number]
        drawn = stream.draw(
            (self.seed, number),
            position + epoch * self._shares[number],
            self.batch_size,
            rank=self._rank,
            num_ranks=self._num_ranks,
            verify_every=self._verify_every,
        )
        return stream, drawn

    def read(self, step: int) -> StoredBatch:
        """The batch of a step, as it is stored, in tensors of its own."""
        stream, drawn = self.draw(step)
        return stream.read(drawn)

    def sample(self, modality: str, num_rows: int) -> Tokens:
        """Tokens of up to `num_rows` of the modality's training items, evenly spread over its first stream."""
        stream = next(stream for stream in self.streams if modality in stream.inputs)
        rows = np.unique(stream.rows(modality))
        spread = np.linspace(0, len(rows) - 1, min(num_rows, len(rows))).astype(np.int64)
        return stream.inputs[modality].load(stream.store, rows[spread])

    def shapes(self) -> dict[str, InputShape]:
        """What each modality's adapter reads."""
        return {
            modality: input_.shape(stream.store)
            for stream in self.streams
            for modality, input_ in stream.inputs.items()
        }

    def target_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one row of each target."""
        return {
            name: stream.store.field(reference).shape
            for stream in self.streams
            for name, reference in stream.targets.items()
        }

    def anchor_targets(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The same by the modality that a target is of, {modality: {name: shape}}."""
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for stream in self.streams:
            shapes = {name: stream.store.field(reference).shape for name, reference in stream.targets.items()}
            found.setdefault(stream.pair[0], {}).update(shapes)
        return found

    @property
    def words(self) -> Words | None:
        """The words of its captions, if some objective reads them."""
        return next((stream.words for stream in self.streams if stream.words is not None), None)

    def labels(self) -> Tensor:
        """The class of each anchor by its place, int64 [num_places], -1 for none; no two datasets share a class."""
        first: dict[str, int] = {}
        found, num_classes = [], 0
        for stream in self.streams:
            manifest = stream.store.manifest
            if manifest.dataset not in first:
                first[manifest.dataset] = num_classes
                num_classes += manifest.num_classes
            labels = manifest.items[stream.pair[0]]["label"].to_numpy()[stream.anchors].astype(np.int64)
            found.append(np.where(labels == NO_LABEL, -1, labels + first[manifest.dataset]))
        return torch.from_numpy(np.concatenate(found))

    @property
    def num_places(self) -> int:
        """Anchors of all streams together."""
        return sum(len(stream.anchors) for stream in self.streams)
