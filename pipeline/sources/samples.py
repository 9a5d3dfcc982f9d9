"""Samples on their way into a manifest: an image or a sound each, its label, and the captions that describe it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from contract.errors import DataError
from contract.tables import NO_LABEL, TO_THE_END, UNKNOWN_SIZE
from pipeline.sources.files import Files, is_unicode

if TYPE_CHECKING:
    from pipeline.building import ManifestBuilder

SAMPLES_PER_BATCH = 1 << 14

T = TypeVar("T")


class Caption(NamedTuple):
    """What is said of an image or a sound; the language is a code such as `en`."""

    text: str
    language: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image or sound; the columns are those of `contract.tables.ITEMS`.

    Without `size_bytes` it is the size of the file. A part that stays as it is while its file grows gives its own.
    """

    id: str
    file: str
    split: str
    part: str = ""
    start_ms: int = 0
    length_ms: int = TO_THE_END
    label: int = NO_LABEL
    size_bytes: int | None = None
    captions: Sequence[Caption] = ()


class Described(NamedTuple):
    """Captions of the item in `row`, the sample `id`; `first` is the number of the first of them."""

    row: int
    id: str
    split: str
    first: int
    captions: Sequence[Caption]


def add_samples(builder: ManifestBuilder, modality: str, samples: Iterable[Sample]) -> None:
    """Add the samples and their captions, some ten thousand at a time.

    Caption n of the sample `id` is the text item `id#n`. A file that is not there stays an item, of `UNKNOWN_SIZE`;
    `DataError` if none of the files is there.
    """
    adding = Adding(builder, modality)
    for batch in batched(samples, SAMPLES_PER_BATCH):
        adding.add(batch)
    adding.finish()


class Adding:
    """What `add_samples` does, step by step, for a source that learns of a sample's captions in several places."""

    def __init__(self, builder: ManifestBuilder, modality: str) -> None:
        self._builder, self._modality = builder, modality
        self._files = Files(builder.root)
        self._missing = ""
        self._num_found = 0

    def add(self, batch: Sequence[Sample]) -> range:
        """Add samples and their captions; returns the samples' row numbers."""
        sizes = self._files.sizes([sample.file for sample in batch])
        self._num_found += sum(size != UNKNOWN_SIZE for size in sizes)
        self._missing = self._missing or next(
            (s.file for s, size in zip(batch, sizes, strict=True) if size == UNKNOWN_SIZE), ""
        )
        rows = self._builder.items(
            self._modality,
            id=[sample.id for sample in batch],
            file=[sample.file for sample in batch],
            part=[sample.part for sample in batch],
            start_ms=[sample.start_ms for sample in batch],
            length_ms=[sample.length_ms for sample in batch],
            label=[sample.label for sample in batch],
            split=[sample.split for sample in batch],
            size_bytes=[
                size if sample.size_bytes is None else sample.size_bytes
                for sample, size in zip(batch, sizes, strict=True)
            ],
        )
        self.describe([Described(row, s.id, s.split, 0, s.captions) for row, s in zip(rows, batch, strict=True)])
        return rows

    def describe(self, described: Sequence[Described]) -> None:
        """Add captions of samples that have been added."""
        numbered = [(one, number) for one in described for number in range(len(one.captions))]
        if not numbered:
            return
        texts = self._builder.items(
            "text",
            id=[f"{one.id}#{one.first + number}" for one, number in numbered],
            text=[one.captions[number].text for one, number in numbered],
            language=[one.captions[number].language for one, number in numbered],
            split=[one.split for one, _ in numbered],
        )
        pairs = [(one.row, text) for (one, _), text in zip(numbered, texts, strict=True)]
        self._builder.pairs(self._modality, "text", pairs)

    def finish(self) -> None:
        """Raise `DataError` if none of the files is there."""
        if self._missing and not self._num_found:
            raise DataError(
                f"dataset {self._builder.dataset}: none of its {self._modality} files is there: looked for "
                f"{self._builder.root / self._missing} and others"
            )


def caption(text: object, language: str, place: str) -> Caption:
    """The text without white space at its ends; `DataError` that names `place` for what is no text."""
    if not isinstance(text, str) or not is_unicode(text):
        raise DataError(f"{place}: a caption is a text, found {str(text)!r:.60}")
    return Caption(text.strip(), language)


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` of them, the last one shorter."""
    rest = iter(values)
    while batch := list(islice(rest, size)):
        yield batch
