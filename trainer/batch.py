"""A batch: as it is read, as an objective sees it, and the student's passes over it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.ranks import ALONE, Lazily, Ranks
from trainer.stored import Arrays, Buffers, StoredField


class Tokens(NamedTuple):
    """`values` float [B, T, D], and how many of each row's T tokens are real: int32 [B], None when all are.

    `masked`, bool [B, T], says which of them the student must not see; None when it sees all.
    """

    values: Tensor
    length: Tensor | None = None
    masked: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class StoredTokens:
    """One modality's tokens as they are stored, on the host."""

    values: StoredField
    arrays: Arrays
    length: Tensor | None

    def to(self, device: str, buffers: Buffers | None = None) -> Tokens:
        """The tokens on a device, cut to the longest row of them, and only then decoded."""
        arrays = _moved(self.arrays, device)
        if self.length is not None:
            longest = max(1, int(self.length.max())) if len(self.length) else 1
            arrays = {name: array[:, :longest] for name, array in arrays.items()}
        values = self.values.decode(arrays, buffers)
        if values.ndim == 2:  # one vector per item is a sequence of one token
            values = values[:, None]
        return Tokens(values, None if self.length is None else self.length.to(device, non_blocking=True))


@dataclass(frozen=True, kw_only=True)
class StoredBatch:
    """A batch as it is stored, on the host; its tensors may be buffers that another batch will be read into."""

    pair: tuple[str, ...]
    inputs: Mapping[str, StoredTokens]
    targets: Mapping[str, tuple[StoredField, Arrays]]
    others: Mapping[str, StoredTokens]
    places: Tensor
    peers: range
    words: Mapping[str, Tensor]
    objectives: tuple[str, ...] | None

    def to(self, device: str, buffers: Buffers | None = None) -> Batch:
        """The batch on a device, decoded there; on the host in `buffers`, where they are given."""
        others = buffers and buffers.others
        return Batch(
            pair=self.pair,
            inputs={modality: tokens.to(device, buffers) for modality, tokens in self.inputs.items()},
            targets={
                name: field.decode(_moved(arrays, device), buffers)
                for name, (field, arrays) in self.targets.items()
            },
            others={modality: tokens.to(device, others) for modality, tokens in self.others.items()},
            places=self.places.to(device, non_blocking=True),
            peers=self.peers,
            words=_moved(self.words, device),
            objectives=self.objectives,
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B pairs of two modalities: row i of either belongs to row i of the other; the other rows are its negatives.

    `pair` is (anchor, partner), such as ("image", "text"), or one modality alone; `targets` are the anchor's, float
    [B, ...]. `others` show the same items once more, where an objective asks for it: another stored view, another
    caption. `places` int64 [B] number the anchors among those of all streams; those of the batch's stream are
    `peers`. `words` int64 [B, T] are the ids of a modality's tokens, -1 past the end, where an objective asks for
    them. `objectives` names those of the recipe that the batch is for, None: all.
    """

    pair: tuple[str, ...]
    inputs: Mapping[str, Tokens]
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    others: Mapping[str, Tokens] = field(default_factory=dict)
    places: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    peers: range = range(0)
    words: Mapping[str, Tensor] = field(default_factory=dict)
    objectives: tuple[str, ...] | None = None

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.inputs[self.pair[0]].values)

    @property
    def both(self) -> tuple[str, str]:
        """Anchor and partner; `ConfigError` for a batch of one modality."""
        if len(self.pair) != 2:
            raise ConfigError(
                f"stream {self.pair[0]} is of one modality, and an objective of its batches compares two: name the "
                "`objectives` that the stream is for, or give it pairs, such as image-text"
            )
        return self.pair[0], self.pair[1]


@dataclass(frozen=True, kw_only=True)
class WholeBatch(Batch):
    """The batch of all ranks together; what is looked up of it is gathered then. `total` is its number of rows."""

    total: int

    @property
    def num_rows(self) -> int:
        """B."""
        return self.total


def whole(batch: Batch, ranks: Ranks) -> Batch:
    """The batch of which every rank has a part, as objectives see it."""
    if ranks.num == 1:
        return batch
    tensors = {f"targets/{name}": target for name, target in batch.targets.items()}
    for kind, sides in (("inputs", batch.inputs), ("others", batch.others)):
        for modality, tokens in sides.items():
            tensors[f"{kind}/{modality}"] = tokens.values
            if tokens.length is not None:
                tensors[f"{kind}/{modality}/length"] = tokens.length
    # Shorter rows are padded with zeros: ids are counted from 1 on the way, and past the end they are 0.
    tensors |= {f"words/{modality}": words + 1 for modality, words in batch.words.items()}
    found = ranks.gathered(tensors)

    def tokens_of(name: str) -> Tokens:
        length = f"{name}/length"
        return Tokens(found[name], found.get(length))

    def words_of(name: str) -> Tensor:
        return found[name] - 1

    return WholeBatch(
        pair=batch.pair,
        inputs=Lazily({modality: partial(tokens_of, f"inputs/{modality}") for modality in batch.inputs}),
        targets=Lazily({name: partial(found.__getitem__, f"targets/{name}") for name in batch.targets}),
        others=Lazily({modality: partial(tokens_of, f"others/{modality}") for modality in batch.others}),
        # Few numbers, which those that need them all look up: gathered at once.
        places=ranks.gathered({"places": batch.places})["places"],
        peers=batch.peers,
        words=Lazily({modality: partial(words_of, f"words/{modality}") for modality in batch.words}),
        objectives=batch.objectives,
        total=ranks.total(batch.num_rows),
    )


class Passed(Mapping[str, Tensor]):
    """The named outputs of a pass, of the whole batch; each is gathered when it is first looked up."""

    def __init__(self, own: Mapping[str, Tensor], ranks: Ranks) -> None:
        self._own, self._ranks = own, ranks
        self._whole = ranks.gathered(own)

    def __getitem__(self, name: str) -> Tensor:
        return self._whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)

    @cached_property
    def shared(self) -> Mapping[str, Tensor]:
        """The same, for what each rank computes a share of: their gradients are the sums over all ranks."""
        return self._ranks.gathered(self._own, summed=True)


class Side(NamedTuple):
    """One side of pairs to be fused: a modality's tokens in a pass, and the row of each pair, int64 [P]."""

    modality: str
    passed: Passed
    rows: Tensor


class Forward:
    """The passes that objectives may ask for over one batch, each computed once.

    `batch` are the rows of this rank; outputs are those of the whole batch, by name, for each modality m:
    "m/embedding" float32 [B, D] of unit length, "m/features" [B, D] before that, "m/tokens" [B, T, W] and "m/mask"
    bool [B, T], True for real ones; where the student has classes, "m/logits" [B, C].
    """

    def __init__(self, student: Any, batch: Batch, ranks: Ranks = ALONE) -> None:
        self._student = student
        self._batch = batch
        self._ranks = ranks
        self._passes = count()
        self._known: dict[tuple[int, bool], Passed] = {}

    @property
    def main(self) -> Passed:
        """The student's outputs for the batch."""
        return self.of(self._student)

    @property
    def other(self) -> Passed:
        """The student's outputs for what else is shown of the same items."""
        return self.of(self._student, other=True)

    def of(self, student: nn.Module, *, other: bool = False) -> Passed:
        """The outputs of another student, such as a momentum copy, for the batch or what else it shows."""
        key = id(student), other
        if key not in self._known:
            self._known[key] = self._pass(student, self._batch.others if other else self._batch.inputs)
        return self._known[key]

    def masked(self, masks: Mapping[str, Tensor]) -> Passed:
        """The student's outputs for these modalities with tokens hidden from it: bool [B, T], True for hidden."""
        rows = self._ranks.share(len(next(iter(masks.values()))))
        inputs = {
            modality: self._batch.inputs[modality]._replace(masked=mask[rows][:, : self._width(modality)])
            for modality, mask in masks.items()
        }
        return self._pass(self._student, inputs)

    def fused(self, reader: Side, read: Side) -> Passed:
        """Of P pairs, what the reader's tokens make of the other's: "tokens" [P, T, W], "mask", "pooled" [P, W].

        Each rank fuses its share of the pairs.
        """
        own = self._ranks.share(len(reader.rows))
        sides = [
            side.passed.shared[f"{side.modality}/{name}"][side.rows[own]]
            for side in (reader, read)
            for name in ("tokens", "mask")
        ]
        with self._ranks.drawing(next(self._passes)):
            named: Mapping[str, Tensor] = self._student.fusion(*sides)
        return Passed(named, self._ranks)

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Of the anchors and of their partners: float32 [B, D] each, unit length."""
        anchor, partner = self._batch.both
        return self.main[f"{anchor}/embedding"], self.main[f"{partner}/embedding"]

    def _width(self, modality: str) -> int:
        return self._batch.inputs[modality].values.shape[1]

    def _pass(self, student: nn.Module, inputs: Mapping[str, Tokens]) -> Passed:
        """Every pass goes through here: the rank's rows in, the named outputs of the whole batch out."""
        with self._ranks.drawing(next(self._passes)):
            own: Mapping[str, Tensor] = student(inputs)
        return Passed(own, self._ranks)


def _moved(arrays: Mapping[str, Tensor], device: str) -> Arrays:
    return {name: array.to(device, non_blocking=True) for name, array in arrays.items()}
