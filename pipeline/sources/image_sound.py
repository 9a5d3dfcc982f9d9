"""Images and sounds that belong together, in a table of pairs: CSV, TSV, JSON lines or Parquet.

    pairs.csv                               images/       sounds/
      image,sound,start,length,caption        a.jpg         street.flac
      a.jpg,street.flac,0.5,2,A busy road.    b.jpg
      b.jpg,street.flac,4,,

Images and sounds may stand in several rows: each image is one item, and each stretch of a sound. `start` and
`length` are seconds. A row's captions say what its image shows and what its sound is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import join
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from contract.errors import ConfigError, DataError
from contract.tables import TO_THE_END
from pipeline.sources.files import HashedSplit, check_inside, not_on_disk, relative, split_named
from pipeline.sources.rows import read_rows
from pipeline.sources.samples import SAMPLES_PER_BATCH, Adding, Caption, Sample, batched, caption
from pipeline.sources.seen import Facts, Seen, keys
from pipeline.sources.sounds import milliseconds

if TYPE_CHECKING:
    from pipeline.building import ManifestBuilder


@dataclass(frozen=True, kw_only=True)
class ImageSound:
    """`pairs` are tables under the data root, by split if each holds one; the rest are columns.

    The files are relative to the folders `images` and `sounds`. Without `start`, sounds begin at 0, and without
    `length` they go on to their end, as they do where a value is empty. `captions` are columns by language, such as
    `{en: [caption]}`. `split` is a column, or shares that are set aside by the names of the images, or of the
    sounds, if that is what `split_by` says: take the one that stands in several rows.
    """

    kind: Literal["image_sound"] = "image_sound"
    pairs: tuple[str, ...] | dict[str, tuple[str, ...]] = ("pairs.csv",)
    images: str = "."
    sounds: str = "."
    image: str = "image"
    sound: str = "sound"
    start: str = ""
    length: str = ""
    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    split: str | HashedSplit = field(default_factory=HashedSplit)
    split_by: Literal["image", "sound"] = "image"

    def __post_init__(self) -> None:
        """Refuse two ways to say the split."""
        if isinstance(self.pairs, dict) and self.split != HashedSplit():
            raise ConfigError("source: `pairs` are given by split, and `split` too; give one of them")

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Read the tables in their order."""
        adding = _Adding(builder)
        for batch in batched(self._rows(builder.dataset, root), SAMPLES_PER_BATCH):
            adding.add(batch)
        adding.finish()

    def _rows(self, dataset: str, root: Path) -> Iterator[_Row]:
        columns = [self.image, self.sound, self.start, self.length]
        columns += [column for some in self.captions.values() for column in some]
        columns += [self.split] if isinstance(self.split, str) else []
        wanted = [name for name in dict.fromkeys(columns) if name]
        for path, split in self._tables(dataset, root):
            for place, values in read_rows(path, wanted):
                yield self._row(values, split, place)

    def _tables(self, dataset: str, root: Path) -> Iterator[tuple[Path, str]]:
        """Every table, with the split that its rows are of, if it says so."""
        by_split = self.pairs if isinstance(self.pairs, dict) else {"": self.pairs}
        for name, files in by_split.items():
            for file in files:
                path = root / relative(file, "source: pairs")
                if not path.is_file():
                    raise not_on_disk(dataset, root, [file], f"{file}, {self.images}/ and {self.sounds}/")
                check_inside(root, file)
                yield path, split_named(name, "source: pairs") if name else ""

    def _row(self, values: Mapping[str, Any], split: str, place: str) -> _Row:
        image, sound = (_file(values, column, place) for column in (self.image, self.sound))
        start_ms, length_ms = self._stretch(values, place)
        if isinstance(self.split, str):
            split = split_named(values[self.split], place)
        else:
            split = split or self.split.of(image if self.split_by == "image" else sound)
        stretch = f"{start_ms}+{length_ms}" if length_ms != TO_THE_END else f"{start_ms}"
        return _Row(
            place=place,
            image=Sample(id=image, file=relative(join(self.images, image), place), split=split),
            sound=Sample(
                id=f"{sound}@{stretch}" if self.start or self.length else sound,
                file=relative(join(self.sounds, sound), place),
                split=split,
                start_ms=start_ms,
                length_ms=length_ms,
            ),
            captions=list(self._captions(values, place)),
        )

    def _stretch(self, values: Mapping[str, Any], place: str) -> tuple[int, int]:
        """Start and length in milliseconds."""
        start, length = (values[column] if column else None for column in (self.start, self.length))
        start_ms = 0 if _is_empty(start) else milliseconds(start, f"{place}: {self.start}")
        length_ms = TO_THE_END if _is_empty(length) else milliseconds(length, f"{place}: {self.length}")
        if length_ms == 0:
            raise DataError(f"{place}: {self.length}: a sound of 0 seconds")
        return start_ms, length_ms

    def _captions(self, values: Mapping[str, Any], place: str) -> Iterator[Caption]:
        for language, columns in self.captions.items():
            for column in columns:
                value = values[column]
                for text in value if isinstance(value, list) else [value]:
                    said = caption(text, language, f"{place}: {column}") if text is not None else None
                    if said and said.text:
                        yield said


class _Row(NamedTuple):
    place: str
    image: Sample
    sound: Sample
    captions: Sequence[Caption]


class _Adding:
    """Adds what rows hold that no row before had: images, sounds, captions, and pairs of them."""

    def __init__(self, builder: ManifestBuilder) -> None:
        self._builder = builder
        self._images, self._sounds = Adding(builder, "image"), Adding(builder, "audio")
        self._seen = {name: Seen() for name in ("image", "audio", "text", "pairs")}

    def add(self, rows: Sequence[_Row]) -> None:
        images = self._media("image", self._images, [(row.place, row.image) for row in rows])
        sounds = self._media("audio", self._sounds, [(row.place, row.sound) for row in rows])
        self._pairs("image", "audio", list(zip(images, sounds, strict=True)))
        captioned = [(number, one) for number, row in enumerate(rows) for one in row.captions]
        texts = self._texts([(rows[number].image, one) for number, one in captioned])
        for modality, those in (("image", images), ("audio", sounds)):
            of_rows = [those[number] for number, _ in captioned]
            self._pairs(modality, "text", list(zip(of_rows, texts, strict=True)))

    def finish(self) -> None:
        """Raise `DataError` if no image or no sound is there."""
        self._images.finish()
        self._sounds.finish()

    def _media(self, modality: str, adding: Adding, placed: Sequence[tuple[str, Sample]]) -> list[int]:
        """The row numbers of these images or sounds; `DataError` for one that is in two splits."""
        samples = [sample for _, sample in placed]
        facts = _facts_of(
            self._seen[modality],
            [sample.id for sample in samples],
            lambda new: adding.add([samples[n] for n in new]),
            [sample.split for sample in samples],
        )
        in_two_splits = np.flatnonzero(facts["said"] != keys([sample.split for sample in samples]))
        if len(in_two_splits):
            place, sample = placed[in_two_splits[0]]
            raise DataError(
                f"{place}: {sample.file} is {sample.split} here and stood in a row of another split: give a column "
                "as `split`, or say with `split_by` which of image and sound stands in several rows"
            )
        return _rows(facts)

    def _texts(self, captions: Sequence[tuple[Sample, Caption]]) -> list[int]:
        """The row numbers of these captions of images."""

        def add(new: Sequence[int]) -> range:
            first = self._builder.num_rows("text")
            return self._builder.items(
                "text",
                id=[f"{captions[n][0].id}#{first + number}" for number, n in enumerate(new)],
                text=[captions[n][1].text for n in new],
                language=[captions[n][1].language for n in new],
                split=[captions[n][0].split for n in new],
            )

        names = [f"{image.id}\0{said.language}\0{said.text}" for image, said in captions]
        return _rows(_facts_of(self._seen["text"], names, add))

    def _pairs(self, first: str, second: str, pairs: Sequence[tuple[int, int]]) -> None:
        def add(new: Sequence[int]) -> range:
            self._builder.pairs(first, second, [pairs[n] for n in new])
            return range(len(new))

        _facts_of(self._seen["pairs"], [f"{first} {a} {second} {b}" for a, b in pairs], add)


def _facts_of(
    seen: Seen, names: Sequence[str], add: Callable[[Sequence[int]], range], said: Sequence[str] = ()
) -> Facts:
    """What is known of each name, `FACTS` [n]; names not seen before get the rows that `add` has for their numbers.

    What the table says of these is kept with them, from `said`, so that what it said first is known later.
    """
    first = {name: number for number, name in reversed(list(enumerate(names)))}
    places = {name: place for place, name in enumerate(first)}
    wanted, numbers = keys(list(first)), np.array(list(first.values()), np.int64)
    facts = seen.find(wanted)
    new = np.flatnonzero(facts["row"] < 0)
    new = new[np.argsort(numbers[new])]  # in the order of the table
    if len(new):
        facts["row"][new] = add(numbers[new].tolist())
        if said:
            facts["said"][new] = keys([said[number] for number in numbers[new]])
        seen.put(wanted[new], facts[new])
    found: Facts = facts[[places[name] for name in names]]
    return found


def _rows(facts: Facts) -> list[int]:
    rows: list[int] = facts["row"].tolist()
    return rows


def _file(values: Mapping[str, Any], column: str, place: str) -> str:
    value = values[column]
    return relative(value.strip() if isinstance(value, str) else "", f"{place}: {column}")


def _is_empty(value: object) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())
