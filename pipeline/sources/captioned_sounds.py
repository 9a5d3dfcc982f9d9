"""Sounds with captions in a table and their files in folders: AudioCaps, Clotho, and others.

    train.csv     audiocap_id,youtube_id,start_time,caption        AudioCaps: a row a caption
    audio/        vfY_TJq7n_U.wav or Yrqu8iB22I_Y_5.flac ...

    clotho_captions_development.csv     file_name,caption_1,...,caption_5
    development/                        Distorted AM Radio noise.wav ...

A sound is one item however many rows it has. One that is not there stays an item: YouTube loses some every year.
What is kept in memory is the table of one split and the names of the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import PositiveFloat

from contract.errors import ConfigError, DataError
from contract.tables import TO_THE_END
from pipeline.sources.files import check_inside, is_unicode, not_on_disk, relative, split_named
from pipeline.sources.rows import read_rows
from pipeline.sources.samples import SAMPLES_PER_BATCH, Adding, Caption, Sample, batched, caption
from pipeline.sources.sounds import SOUND_SUFFIXES, SoundFinder, milliseconds

if TYPE_CHECKING:
    from pipeline.building import ManifestBuilder

NUM_NAMED = 4
COLUMN = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True, kw_only=True)
class SplitFiles:
    """The tables and the folders that are looked for under the data root: the first table, all of the folders."""

    tables: tuple[str, ...]
    folders: tuple[str, ...] = (".",)


@dataclass(frozen=True, kw_only=True)
class CaptionedSounds:
    """`sound` is what a row's file may be called, with its suffix or without: in order, `{column}` being a value.

    Rows with the same `id`, made of columns too, are about one sound. `captions` are columns by language, such as
    `{en: [caption_1, caption_2], ko: [kor_1]}`. Files that are not `clipped` are longer recordings, of which the
    sound is `length_s` seconds from what the column `start` says on.
    """

    kind: Literal["captioned_sounds"] = "captioned_sounds"
    splits: dict[str, SplitFiles]
    sound: tuple[str, ...]
    id: str
    captions: dict[str, tuple[str, ...]]
    start: str = ""
    length_s: PositiveFloat = 10.0
    clipped: bool = True
    layout: str = "the tables and the sounds"

    def __post_init__(self) -> None:
        """Refuse stretches of sounds without a start."""
        if not self.clipped and not self.start:
            raise ConfigError("source: sounds that are not `clipped` need `start`, the column with the seconds")
        if not self.sound:
            raise ConfigError("source: `sound` is empty; give what the files are called, such as '{file_name}'")

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Read the table of each split that there is, find its sounds."""
        tables = {name: _table(root, files.tables) for name, files in self.splits.items()}
        if not any(tables.values()):
            names = [name for files in self.splits.values() for name in files.tables]
            raise not_on_disk(builder.dataset, root, names, self.layout)
        adding, searches = Adding(builder, "audio"), dict[tuple[str, ...], _Search]()
        for name, table in tables.items():
            folders = self.splits[name].folders
            if table is None:
                looked = " or ".join(str(root / one) for one in self.splits[name].tables)
                builder.note(f"there is no {split_named(name, 'source: splits')} split: looked for {looked}")
                continue
            if folders not in searches:
                searches[folders] = _Search(root, folders)
            # Even if no sound is there at all, the captions are: what is missing is counted and not refused.
            for batch in batched(self._samples(table, name, searches[folders]), SAMPLES_PER_BATCH):
                adding.add(batch)
        for search in searches.values():
            search.report(builder)

    def _samples(self, table: Path, name: str, search: _Search) -> Iterator[Sample]:
        split = split_named(name, "source: splits")
        for id_, rows in self._sounds(table).items():
            named = (_filled(template, row) for template in self.sound for row in rows)
            file = search.file(list(dict.fromkeys(named)), rows[0].place)
            start_ms, length_ms = (0, TO_THE_END) if self.clipped else self._stretch(rows)
            captions = [one for row in rows for one in self._captions(row)]
            yield Sample(
                id=f"{name}/{id_}",
                file=file,
                split=split,
                start_ms=start_ms,
                length_ms=length_ms,
                captions=captions,
            )

    def _sounds(self, table: Path) -> dict[str, list[_Row]]:
        """The table's rows by the id of their sound."""
        columns = [column for text in (self.id, *self.sound) for column in COLUMN.findall(text)]
        columns += [column for some in self.captions.values() for column in some]
        columns += [] if self.clipped else [self.start]
        sounds: dict[str, list[_Row]] = {}
        for place, values in read_rows(table, list(dict.fromkeys(columns))):
            row = _Row(place, values)
            sounds.setdefault(_filled(self.id, row), []).append(row)
        if not sounds:
            raise DataError(f"{table}: has no rows")
        return sounds

    def _stretch(self, rows: Sequence[_Row]) -> tuple[int, int]:
        """Start and length in milliseconds."""
        starts = {milliseconds(row.values[self.start], f"{row.place}: {self.start}") for row in rows}
        if len(starts) > 1:
            raise DataError(f"{rows[-1].place}: this sound has several starts; put {{{self.start}}} into `id`")
        return starts.pop(), round(self.length_s * 1000)

    def _captions(self, row: _Row) -> Iterator[Caption]:
        for language, columns in self.captions.items():
            for column in columns:
                value = row.values[column]
                for text in value if isinstance(value, list) else [value]:
                    said = caption(text, language, f"{row.place}: {column}")
                    if said.text:
                        yield said


class _Row(NamedTuple):
    """A row of a table, and its place for error messages."""

    place: str
    values: Mapping[str, Any]


class _Search:
    """Finds sounds in some folders, and counts those that are not there."""

    def __init__(self, root: Path, folders: Sequence[str]) -> None:
        self._finder, self._folder = SoundFinder(root, folders), folders[0] if folders else "."
        self._num, self._num_missing, self._first_missing = 0, 0, ""

    def file(self, names: Sequence[str], place: str) -> str:
        """The sound of the first of these names that is there, or else where the first would be."""
        file = self._finder.find(names)
        self._num += 1
        if file is None:
            self._num_missing += 1
            self._first_missing = self._first_missing or " or ".join(names[:NUM_NAMED])
            name = names[0] if PurePosixPath(names[0]).suffix.lower() in SOUND_SUFFIXES else f"{names[0]}.wav"
            file = relative(f"{self._folder}/{relative(name, place)}", place)
        return file

    def report(self, builder: ManifestBuilder) -> None:
        """Note how many are not there."""
        if self._num_missing:
            builder.note(
                f"{self._num_missing:,} of {self._num:,} sounds are not there; the first would be called "
                f"{self._first_missing}, with the suffix of a sound, below {builder.root / self._folder}"
            )


def _table(root: Path, names: Sequence[str]) -> Path | None:
    for name in names:
        if (root / relative(name, "source: splits")).is_file():
            check_inside(root, name)
            return root / name
    return None


def _filled(template: str, row: _Row) -> str:
    """The template with the row's values for its columns."""
    for column in COLUMN.findall(template):
        value = str(row.values[column] if row.values[column] is not None else "")
        if not value.strip() or not is_unicode(value):
            raise DataError(f"{row.place}: `{column}` is empty, or no text: {value!r:.60}")
        template = template.replace(f"{{{column}}}", value)
    return template
