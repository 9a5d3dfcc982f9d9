"""Images with captions or labels in tables: JSON lines, CSV, TSV or Parquet, a row an image or one of its captions.

    captions.csv                          images/
      image,caption,split                   dogs/a.jpg
      dogs/a.jpg,A dog runs.,train          b.jpg
      dogs/a.jpg,A brown dog.,train
      b.jpg,Two cats.,val

An image is one item however many rows name it, and wherever they stand: its captions are numbered in their order.
What is kept in memory meanwhile is some thirty bytes an image, and no row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from posixpath import join
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import NonNegativeInt

from contract.errors import ConfigError, DataError
from contract.tables import NO_LABEL
from pipeline.sources.classes import Classes
from pipeline.sources.files import HashedSplit, check_inside, is_unicode, not_on_disk, relative, split_named
from pipeline.sources.rows import read_rows
from pipeline.sources.samples import SAMPLES_PER_BATCH, Adding, Caption, Described, Sample, batched, caption
from pipeline.sources.seen import Seen, keys

if TYPE_CHECKING:
    from pipeline.building import ManifestBuilder


@dataclass(frozen=True, kw_only=True)
class Tables:
    """`tables` are files under the data root, or patterns such as `shards/*.parquet`, by split if each holds one.

    `image` is the column with the file's name, relative to the folder `images`. `captions` are columns with a text
    or a list of texts, all in `language` or in that of the column `language_column`, or columns by language:
    `{en: caption_en, de: caption_de}`; an empty value is no caption. `label` is a column of numbers, or of names
    that the file `classes` lists or that are sorted. `split` is a column, or the shares that are set aside. `id` is
    a column with the image's id, which otherwise is its file name. `delimiter` and `quoted` are for CSV and TSV.
    """

    kind: Literal["tables"] = "tables"
    tables: tuple[str, ...] | dict[str, tuple[str, ...]]
    images: str = "."
    image: str = "image"
    captions: tuple[str, ...] | dict[str, str] = ()
    language: str = "en"
    language_column: str = ""
    label: str = ""
    classes: str = ""
    num_classes: NonNegativeInt = 0
    split: str | HashedSplit = field(default_factory=HashedSplit)
    id: str = ""
    delimiter: str = ""
    quoted: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        if isinstance(self.tables, dict) and self.split != HashedSplit():
            raise ConfigError("source: `tables` are given by split, and `split` too; give one of them")
        if isinstance(self.captions, dict) and self.language_column:
            raise ConfigError(
                "source: `captions` are given by language, and `language_column` too; give one of them"
            )
        if (self.classes or self.num_classes) and not self.label:
            raise ConfigError("source: `classes` or `num_classes` without `label`, the column of the labels")
        if self.classes and self.num_classes:
            raise ConfigError("source: `classes` says how many there are; leave out `num_classes`")

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Read the tables in their order."""
        tables = list(self._find(builder.dataset, root))
        classes = self._classes(root, [path for path, _ in tables])
        adding, seen = Adding(builder, "image"), Seen()
        for batch in batched(self._images(tables, classes), SAMPLES_PER_BATCH):
            _add(batch, adding, seen)
        adding.finish()
        builder.num_classes = classes.num

    def _find(self, dataset: str, root: Path) -> Iterator[tuple[Path, str]]:
        """Every table, with the split that its rows are of, if it says so."""
        by_split = self.tables if isinstance(self.tables, dict) else {"": self.tables}
        for split, patterns in by_split.items():
            for pattern in (relative(one, "source: tables") for one in patterns):
                found = [root / pattern] if (root / pattern).is_file() else sorted(root.glob(pattern))
                if not found:
                    raise not_on_disk(dataset, root, [pattern], f"that table and the images in {self.images}/")
                for path in found:
                    check_inside(root, path.relative_to(root).as_posix())
                    yield path, split_named(split, "source: tables") if split else ""

    def _classes(self, root: Path, tables: Sequence[Path]) -> Classes:
        if self.classes:
            return Classes.read(root, self.classes)
        if self.num_classes or not self.label:
            return Classes(num=self.num_classes)
        return Classes.found(row[self.label] for path in tables for _, row in self._rows(path, [self.label]))

    def _rows(self, path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        return read_rows(path, columns, delimiter=self.delimiter, quoted=self.quoted)

    def _images(self, tables: Sequence[tuple[Path, str]], classes: Classes) -> Iterator[tuple[str, Sample]]:
        """A sample for each row, with its place."""
        asked = [self.image, *self._caption_columns, self.language_column, self.label, self.id]
        asked += [self.split] if isinstance(self.split, str) else []
        columns = [name for name in dict.fromkeys(asked) if name]
        for path, split in tables:
            for place, row in self._rows(path, columns):
                yield place, self._sample(row, split, classes, place)

    def _sample(self, row: Mapping[str, Any], split: str, classes: Classes, place: str) -> Sample:
        name = relative(_text(row[self.image], self.image, place), place)
        id_ = _text(row[self.id], self.id, place) if self.id else name
        if isinstance(self.split, HashedSplit):
            split = split or self.split.of(id_)
        else:
            split = split_named(row[self.split], place)
        return Sample(
            id=id_,
            file=relative(join(self.images, name), place),
            split=split,
            label=classes.number(row[self.label], place) if self.label else NO_LABEL,
            captions=list(self._captions(row, place)),
        )

    @property
    def _caption_columns(self) -> Sequence[str]:
        return list(self.captions.values()) if isinstance(self.captions, dict) else self.captions

    def _captions(self, row: Mapping[str, Any], place: str) -> Iterator[Caption]:
        language = self.language
        if self.language_column:
            language = _text(row[self.language_column], self.language_column, place)
        columns = (
            self.captions.items() if isinstance(self.captions, dict) else [(language, c) for c in self.captions]
        )
        for language, column in columns:
            for value in _listed(row[column]):
                said = caption(value, language, place) if value is not None else None
                if said and said.text:
                    yield said


def _add(batch: Sequence[tuple[str, Sample]], adding: Adding, seen: Seen) -> None:
    """Add the images that are new, and the captions of those that have been seen."""
    named: dict[str, list[int]] = {}
    for number, (_, sample) in enumerate(batch):
        named.setdefault(sample.file, []).append(number)
    said = keys([_said(sample) for _, sample in batch])
    files = keys(list(named))
    facts = seen.find(files)
    is_new = facts["row"] < 0
    facts["said"][is_new] = said[[numbers[0] for numbers in named.values()]][is_new]
    for numbers, expected in zip(named.values(), facts["said"].tolist(), strict=True):
        for number in numbers:
            if said[number] != expected:
                place, sample = batch[number]
                raise DataError(f"{place}: {sample.file} stood in a row before, with another split, label or id")
    images = [_joined([batch[number][1] for number in numbers]) for numbers in named.values()]
    facts["row"][is_new] = adding.add([image for image, new in zip(images, is_new, strict=True) if new])
    adding.describe(
        [
            Described(int(fact["row"]), image.id, image.split, int(fact["num_captions"]), image.captions)
            for image, fact, new in zip(images, facts, is_new, strict=True)
            if not new
        ]
    )
    facts["num_captions"] += np.array([len(image.captions) for image in images], np.int32)
    seen.put(files, facts)


def _joined(rows: Sequence[Sample]) -> Sample:
    """The image that these rows name, with the captions of all."""
    if len(rows) == 1:
        return rows[0]
    return replace(rows[0], captions=[caption for sample in rows for caption in sample.captions])


def _said(sample: Sample) -> str:
    return f"{sample.id}\0{sample.split}\0{sample.label}"


def _text(value: object, column: str, place: str) -> str:
    """A value that has to be there, such as a file's name."""
    text = "" if value is None else str(value).strip()
    if not text or not is_unicode(text):
        raise DataError(f"{place}: `{column}` is empty, or no text: {value!r:.60}")
    return text


def _listed(value: object) -> Sequence[object]:
    """The captions of one value: a list, a text that is a JSON list of texts (as CSV has it), a text, or None."""
    if isinstance(value, str) and value.startswith("["):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
        return found if isinstance(found, list) and all(isinstance(text, str) for text in found) else [value]
    return value if isinstance(value, list) else [value]
