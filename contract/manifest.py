"""What a dataset holds: items of each modality, and which of them belong together.

    manifest/
      manifest.json            dataset, protocol, media root, segments with their checksums, fingerprint
      items.<modality>.arrow   one column for each name in `ITEMS`: row i is item i
      pairs.<a>-<b>.arrow      two columns of row numbers, one row per pair
      items.<modality>.1.arrow and so on: what was added later, a segment each time; rows are never moved

Tables are Arrow files that are memory-mapped, never lists of Python objects: a hundred million rows open at
once. Captions are text items of their own, so that nothing is padded to five captions an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from contract import fingerprint, growth, records, repeats, tables
from contract.errors import DataError
from contract.files import Content, checksum
from contract.tables import (
    ITEMS,
    NO_LABEL,
    UNKNOWN_SIZE,
    Rows,
    Segments,
    as_mask,
    content_fingerprint,
    items_table,
    pair_kind,
    pairs_table,
)

__all__ = [
    "ITEMS",
    "MODALITIES",
    "NO_LABEL",
    "SPLITS",
    "UNKNOWN_SIZE",
    "Manifest",
    "Rows",
    "Segments",
    "items_table",
    "pair_kind",
    "pairs_table",
]

MODALITIES = ("image", "text", "audio")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True, eq=False)
class Manifest:
    """Items per modality and the pair table; immutable.

    `items` maps a modality to a table with the schema `ITEMS`; `pairs` maps a pair kind such as "image-text" to
    a table of two int64 columns, named after the modalities, that hold row numbers. An item is a `text`, or a
    `file`, or a `part` of one (see contract/parts); of a sound, the `length_ms` milliseconds from `start_ms` on.
    `media_root` is where the files lie; it is not part of the fingerprint, since moving a dataset changes nothing
    in it. `num_classes` is the number of classes that labels are numbers of, 0 without labels. `segments` says in
    how many pieces, and of how many rows, each table came to be.
    """

    dataset: str
    protocol: str
    items: Mapping[str, pa.Table]
    pairs: Mapping[str, pa.Table] = field(default_factory=dict)
    media_root: str = ""
    num_classes: int = 0
    segments: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that have items, in the order image, text, audio."""
        return tuple(name for name in MODALITIES if name in self.items)

    @cached_property
    def fingerprint(self) -> str:
        """Over ids, files, sizes, captions, labels, languages, splits and pairs."""
        tables = {f"items.{name}": table for name, table in self.items.items()}
        tables |= {f"pairs.{name}": table for name, table in self.pairs.items()}
        parts = {name: content_fingerprint(table) for name, table in tables.items()}
        return fingerprint.of_tree({"dataset": self.dataset, "tables": parts})

    @cached_property
    def _rows_fingerprints(self) -> dict[tuple[str, range], str]:
        return {}

    def num_rows(self, modality: str) -> int:
        """How many items the modality has."""
        return int(self.items[modality].num_rows) if modality in self.items else 0

    def rows_fingerprint(self, modality: str, rows: range) -> str:
        """Over the content of one range of rows: equal as long as these items are, wherever the table ends."""
        known = self._rows_fingerprints
        if (modality, rows) not in known:
            table = self.items[modality].slice(rows.start, len(rows))
            # Nothing has looked into a store's tables yet: a damaged one must be an ArrowException and not a crash.
            table.validate(full=True)
            known[modality, rows] = content_fingerprint(table)
        return known[modality, rows]

    def column(self, modality: str, name: str, rows: Sequence[int] | Rows | None = None) -> list[Any]:
        """One column's values, of all rows or of those asked for."""
        values = self.items[modality].column(name)
        return list((values if rows is None else tables.take(values, rows)).to_pylist())

    def ids(self, modality: str) -> npt.NDArray[np.str_]:
        """The ids, unicode [n]."""
        return np.array(self.column(modality, "id"), dtype=np.str_)

    def rows(self, modality: str, split: str | None = None, languages: Iterable[str] | None = None) -> Rows:
        """Ascending row numbers, int64 [n], of a split; of captions in these languages where text has any."""
        table = self.items[modality]
        mask = np.ones(table.num_rows, dtype=bool)
        if split is not None:
            mask &= as_mask(pc.equal(table.column("split"), split))
        if languages is not None and modality == "text":
            wanted = pa.array([*languages, ""], pa.string())
            mask &= as_mask(pc.is_in(table.column("language"), value_set=wanted))
        return np.flatnonzero(mask).astype(np.int64)

    def splits(self, modality: str) -> dict[str, int]:
        """Row counts by split."""
        return _counts(self.items[modality].column("split"))

    def languages(self) -> dict[str, int]:
        """Caption counts by language; empty without text."""
        return _counts(self.items["text"].column("language")) if "text" in self.items else {}

    def positives(self, first: str, second: str) -> Rows:
        """Every (row of first, row of second) that belong together, int64 [p, 2].

        Taken from the pair table, whichever way round it is kept; without one, joined through the modality that
        both are paired with, so that a caption and a sound of one image are positives of each other.
        """
        direct = self._pairs(first, second)
        if direct is not None:
            return direct
        for middle in self.modalities:
            left, right = self._pairs(middle, first), self._pairs(middle, second)
            if middle not in (first, second) and left is not None and right is not None:
                return _join(left, right)
        return np.empty((0, 2), np.int64)

    def positives_among(self, first: str, second: str, rows: Mapping[str, Rows]) -> Rows:
        """The positives whose ends are both among `rows` (int64 [n] by modality), as positions in these, [p, 2]."""
        pairs, places = self.positives(first, second), []
        for side, modality in enumerate((first, second)):
            place = np.full(self.num_rows(modality), -1, dtype=np.int64)
            place[rows[modality]] = np.arange(len(rows[modality]))
            places.append(place[pairs[:, side]])
        positions: Rows = np.stack(places, axis=1)
        return positions[(positions >= 0).all(axis=1)]

    def select(self, splits: Sequence[str]) -> Manifest:
        """The items of these splits and the pairs among them, rows renumbered."""
        new_rows: dict[str, Rows] = {}
        items = {}
        for modality, table in self.items.items():
            kept = as_mask(pc.is_in(table.column("split"), value_set=pa.array(splits, pa.string())))
            new_rows[modality] = np.where(kept, np.cumsum(kept) - 1, -1)
            items[modality] = table.filter(pa.array(kept))
        pairs = {}
        for kind, table in self.pairs.items():
            columns = {name: new_rows[name][table.column(name).to_numpy()] for name in table.column_names}
            kept = np.all([column >= 0 for column in columns.values()], axis=0)
            pairs[kind] = pa.table({name: column[kept] for name, column in columns.items()})
        return replace(self, items=items, pairs=pairs, segments={})

    def check(self) -> None:
        """Raise `DataError` for what no dataset may be: empty, ids that repeat, pairs that point nowhere."""
        if "_was_checked" in self.__dict__:  # half a minute for a hundred million rows, which can't change
            return
        if not any(table.num_rows for table in self.items.values()):
            raise DataError(f"dataset {self.dataset}: its manifest is empty: no item of any modality")
        for modality, table in self.items.items():
            self._check_items(modality, table)
        for kind, table in self.pairs.items():
            for modality in table.column_names:
                bounds = pc.min_max(table.column(modality)).as_py()
                if table.num_rows and not 0 <= bounds["min"] <= bounds["max"] < self.num_rows(modality):
                    raise DataError(f"dataset {self.dataset}: {kind} pairs name {modality} rows that don't exist")
        self.__dict__["_was_checked"] = True

    def described_as(self, newer: Manifest) -> Manifest:
        """The same items and pairs, with what `newer` says about them and of the place their files lie in."""
        same = replace(self, protocol=newer.protocol, media_root=newer.media_root, num_classes=newer.num_classes)
        same.__dict__["fingerprint"] = self.fingerprint  # of the items and pairs alone, so not to be made again
        return same

    def grown(self, newer: Manifest) -> Manifest:
        """This manifest with what `newer` has beside it, in new segments: no row that is here moves.

        `DataError` if the newer one lacks an item or a pair, or has an item with another content.
        """
        lost = [f"{name} items" for name in self.items.keys() - newer.items.keys()]
        lost += [f"{kind} pairs" for kind in self.pairs.keys() - newer.pairs.keys()]
        if lost:
            raise DataError(f"dataset {self.dataset}: it has no {min(lost)} any more")
        places: dict[str, Rows] = {}  # row of the newer manifest -> row of the grown one
        items, pairs = {}, {}
        for modality, table in newer.items.items():
            present = self.items.get(modality, ITEMS.empty_table())
            places[modality], added = growth.new_items(self.dataset, modality, present, table)
            items[modality] = pa.concat_tables([present, added])
        for kind, table in newer.pairs.items():
            moved = pa.table({name: places[name][table.column(name).to_numpy()] for name in table.column_names})
            present = self.pairs.get(kind, moved.slice(0, 0))
            pairs[kind] = pa.concat_tables([present, growth.new_pairs(self, kind, present, moved)])
        grown = replace(newer, items=items, pairs=pairs)
        return replace(
            grown,
            segments={
                name: growth.segments(self._segments(name), table.num_rows)
                for name, table in grown._tables().items()
            },
        )

    def segment_starts(self, modality: str) -> list[int]:
        """The first row of each segment of a modality's items."""
        return [0, *np.cumsum(self._segments(f"items.{modality}")).tolist()[:-1]]

    def files(self, written: Segments | None = None) -> dict[str, bytes | Content]:
        """File name -> content: the segments of every table, and manifest.json, which makes them a manifest.

        Segments that are `written` already are only described.
        """
        files: dict[str, bytes | Content] = {}
        described: dict[str, list[Mapping[str, int]]] = {}
        for name, table in self._tables().items():
            described[name] = list((written or {}).get(name, []))
            start = 0
            for number, size in enumerate(self._segments(name)):
                if number >= len(described[name]):
                    content = tables.TableFile(table.slice(start, size))
                    files[tables.segment_file(name, number)] = content
                    described[name].append({"rows": size, "crc32c": content.crc32c})
                start += size
            assert start == table.num_rows, f"{name}: {start} rows in segments, {table.num_rows} in the table"
        description = {
            "dataset": self.dataset,
            "protocol": self.protocol,
            "media_root": self.media_root,
            "num_classes": self.num_classes,
            "tables": described,
            "fingerprint": self.fingerprint,
        }
        return files | {"manifest.json": records.dump(description)}

    @classmethod
    def read(cls, description: bytes, find: Callable[[str, int], Path]) -> Manifest:
        """Open what `files` wrote, memory-mapped; `find(file name, checksum)` tells where a table lies.

        ValueError, or what Arrow and the operating system raise, for one that is damaged.
        """
        tree = records.load(description)
        opened = {name: tables.open_table(name, segments, find) for name, segments in tree["tables"].items()}
        manifest = cls(
            dataset=tree["dataset"],
            protocol=tree["protocol"],
            media_root=tree["media_root"],
            num_classes=tree["num_classes"],
            items={name[6:]: table for name, table in opened.items() if name.startswith("items.")},
            pairs={name[6:]: table for name, table in opened.items() if name.startswith("pairs.")},
            segments={name: tuple(one["rows"] for one in segments) for name, segments in tree["tables"].items()},
        )
        # What was written down is trusted here, so that opening does not read every row; see `damaged_files`.
        manifest.__dict__["fingerprint"] = tree["fingerprint"]
        return manifest

    @staticmethod
    def segments_written(description: bytes) -> Segments:
        """What `manifest.json` says of the files of each table."""
        segments: Segments = records.load(description)["tables"]
        return segments

    @staticmethod
    def damaged_files(description: bytes, find: Callable[[str, int], Path]) -> list[str]:
        """The tables whose content is not the one that was written down; reads every byte."""
        return [
            file
            for name, segments in Manifest.segments_written(description).items()
            for file, one in ((tables.segment_file(name, n), one) for n, one in enumerate(segments))
            if _checksum(find, file, one["crc32c"]) != one["crc32c"]
        ]

    def _check_items(self, modality: str, table: pa.Table) -> None:
        where = f"dataset {self.dataset}: {modality} items"
        if not table.schema.equals(ITEMS):
            raise DataError(f"{where} have columns {table.schema.names}")
        for name in ITEMS.names:
            if table.column(name).null_count:
                raise DataError(f"{where} without a {name}")
        unknown = sorted(set(self.splits(modality)) - set(SPLITS))
        if unknown:
            raise DataError(f"{where} are of split {unknown[0]!r}; splits are {', '.join(SPLITS)}")
        largest = pc.max(table.column("label")).as_py()
        if table.num_rows and self.num_classes and largest >= self.num_classes:
            raise DataError(f"{where} have the label {largest}, where there are {self.num_classes} classes")
        outside = _outside(table.column("file"))
        if outside is not None:
            raise DataError(f"{where} lie outside the data root, such as {outside!r}; a file is named from there")
        repeated = repeats.repeated_strings(table.column("id"))
        if repeated is not None:
            raise DataError(
                f"dataset {self.dataset}: {repeated.number:,} {modality} ids stand there more than once, such as "
                f"{repeated.example!r}; ids must be unique"
            )

    def _tables(self) -> dict[str, pa.Table]:
        items = {f"items.{name}": table for name, table in self.items.items()}
        return items | {f"pairs.{name}": table for name, table in self.pairs.items()}

    def _segments(self, name: str) -> tuple[int, ...]:
        all_tables = self._tables()
        return self.segments.get(name, (all_tables[name].num_rows,) if name in all_tables else ())

    def _pairs(self, first: str, second: str) -> Rows | None:
        table = self.pairs.get(pair_kind(first, second)) if first != second else None
        if table is None:
            return None
        return np.stack([table.column(first).to_numpy(), table.column(second).to_numpy()], axis=1)


def _checksum(find: Callable[[str, int], Path], name: str, expected: int) -> int | None:
    try:
        return checksum(find(name, expected))
    except OSError:
        return None


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in values.value_counts().to_pylist()}


def _outside(files: pa.ChunkedArray) -> str | None:
    """The first path that does not stay in the folder that it starts from."""
    for block in tables.blocks(files):
        # Two plain searches cost a tenth of the pattern, which most paths never need.
        doubtful = block.filter(pc.or_(pc.starts_with(block, "/"), pc.match_substring(block, "..")))
        found = doubtful.filter(pc.match_substring_regex(doubtful, r"^/|(^|/)\.\.(/|$)"))
        if len(found):
            return str(found[0])
    return None


def _join(left: Rows, right: Rows) -> Rows:
    """(a, b) for every (m, a) in left and (m, b) in right, int64 [p, 2], without repeats."""
    joined = pa.table({"m": left[:, 0], "a": left[:, 1]}).join(
        pa.table({"m": right[:, 0], "b": right[:, 1]}), keys="m", join_type="inner"
    )
    rows = np.stack([joined.column("a").to_numpy(), joined.column("b").to_numpy()], axis=1)
    unique: Rows = np.unique(rows, axis=0)
    return unique
