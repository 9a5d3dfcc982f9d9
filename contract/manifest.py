"""What a dataset holds: items of each modality, and which of them belong together.

    manifest/
      manifest.json            dataset, protocol, media root, row counts, fingerprint
      items.<modality>.arrow   id, file, text, label, language, split, size_bytes: row i is item i
      pairs.<a>-<b>.arrow      two columns of row numbers, one row per pair

Tables are Arrow files that are memory-mapped, never lists of Python objects: a hundred million rows open at
once. Captions are text items of their own, so that nothing is padded to five captions an image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from contract import fingerprint
from contract.errors import DataError, StoreError
from contract.shard import replace_file

MODALITIES = ("image", "text", "audio")
SPLITS = ("train", "val", "test")
NO_LABEL = -1
UNKNOWN_SIZE = -1

ITEMS = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("text", pa.string()),
        ("label", pa.int32()),
        ("language", pa.string()),
        ("split", pa.string()),
        ("size_bytes", pa.int64()),
    ]
)

Rows = npt.NDArray[np.int64]


def pair_kind(first: str, second: str) -> str:
    """The name of the pairs of two modalities: image comes first, text last."""
    order = ("image", "audio", "text")
    return "-".join(sorted((first, second), key=order.index))


@dataclass(frozen=True, kw_only=True, eq=False)
class Manifest:
    """Items per modality and the pair table; immutable.

    `items` maps a modality to a table with the schema `ITEMS`; `pairs` maps a pair kind such as "image-text" to
    a table of two int64 columns, named after the modalities, that hold row numbers. `media_root` is where the
    files lie; it is not part of the fingerprint, since moving a dataset changes nothing in it.
    """

    dataset: str
    protocol: str
    items: Mapping[str, pa.Table]
    pairs: Mapping[str, pa.Table] = field(default_factory=dict)
    media_root: str = ""

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that have items, in the order image, text, audio."""
        return tuple(name for name in MODALITIES if name in self.items)

    @cached_property
    def fingerprint(self) -> str:
        """Over ids, files, sizes, captions, labels, languages, splits and pairs."""
        tables = {f"items.{name}": table for name, table in self.items.items()}
        tables |= {f"pairs.{name}": table for name, table in self.pairs.items()}
        parts = {name: _content(table) for name, table in tables.items()}
        return fingerprint.of_tree({"dataset": self.dataset, "tables": parts})

    def num_rows(self, modality: str) -> int:
        """How many items the modality has."""
        return int(self.items[modality].num_rows) if modality in self.items else 0

    def rows_fingerprint(self, modality: str, rows: range) -> str:
        """Over the content of one range of rows: equal as long as these items are, wherever the table ends."""
        return _content(self.items[modality].slice(rows.start, len(rows)))

    def column(self, modality: str, name: str, rows: Sequence[int] | Rows | None = None) -> list[Any]:
        """One column's values, of all rows or of those asked for."""
        values = self.items[modality].column(name)
        return list((values if rows is None else values.take(pa.array(rows, pa.int64()))).to_pylist())

    def ids(self, modality: str) -> npt.NDArray[np.str_]:
        """The ids, unicode [n]."""
        return np.array(self.column(modality, "id"), dtype=np.str_)

    def rows(self, modality: str, split: str | None = None, languages: Iterable[str] | None = None) -> Rows:
        """Ascending row numbers, int64 [n], of a split; of captions in these languages where text has any."""
        table = self.items[modality]
        mask = np.ones(table.num_rows, dtype=bool)
        if split is not None:
            mask &= _as_mask(pc.equal(table.column("split"), split))
        if languages is not None and modality == "text":
            wanted = pa.array([*languages, ""], pa.string())
            mask &= _as_mask(pc.is_in(table.column("language"), value_set=wanted))
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
            kept = _as_mask(pc.is_in(table.column("split"), value_set=pa.array(splits, pa.string())))
            new_rows[modality] = np.where(kept, np.cumsum(kept) - 1, -1)
            items[modality] = table.filter(pa.array(kept))
        pairs = {}
        for kind, table in self.pairs.items():
            columns = {name: new_rows[name][table.column(name).to_numpy()] for name in table.column_names}
            kept = np.all([column >= 0 for column in columns.values()], axis=0)
            pairs[kind] = pa.table({name: column[kept] for name, column in columns.items()})
        return replace(self, items=items, pairs=pairs)

    def check(self) -> None:
        """Raise `DataError` for what no dataset may be: empty, ids that repeat, pairs that point nowhere."""
        if not any(table.num_rows for table in self.items.values()):
            raise DataError(f"dataset {self.dataset}: its manifest is empty: no item of any modality")
        for modality, table in self.items.items():
            if not table.schema.equals(ITEMS):
                raise DataError(f"dataset {self.dataset}: {modality} items have columns {table.schema.names}")
            counts = table.column("id").value_counts()
            repeated = counts.filter(pc.greater(counts.field("counts"), 1))
            if len(repeated):
                raise DataError(
                    f"dataset {self.dataset}: {len(repeated)} {modality} ids stand there more than once, such as "
                    f"{repeated[0]['values'].as_py()!r}; ids must be unique"
                )
        for kind, table in self.pairs.items():
            for modality in table.column_names:
                rows = table.column(modality).to_numpy()
                if len(rows) and not (rows.min() >= 0 and rows.max() < self.num_rows(modality)):
                    raise DataError(f"dataset {self.dataset}: {kind} pairs name {modality} rows that don't exist")

    def write(self, folder: Path) -> None:
        """Write the tables, then manifest.json, which makes the folder complete."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in self._tables().items():
            partial = folder / f"{name}.arrow.partial"
            with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
                out.write_table(table)
            partial.replace(folder / f"{name}.arrow")
        self.describe(folder)

    def describe(self, folder: Path) -> None:
        """Write manifest.json alone; the tables beside it are these already."""
        description = {
            "dataset": self.dataset,
            "protocol": self.protocol,
            "media_root": self.media_root,
            "rows": {name: table.num_rows for name, table in self._tables().items()},
            "fingerprint": self.fingerprint,
        }
        replace_file(folder / "manifest.json", (json.dumps(description, indent=2) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Open what `write` wrote, memory-mapped."""
        path = folder / "manifest.json"
        try:
            description = json.loads(path.read_text())
            tables = {name: _open_table(folder / f"{name}.arrow", n) for name, n in description["rows"].items()}
            manifest = cls(
                dataset=description["dataset"],
                protocol=description["protocol"],
                media_root=description["media_root"],
                items={name[6:]: table for name, table in tables.items() if name.startswith("items.")},
                pairs={name[6:]: table for name, table in tables.items() if name.startswith("pairs.")},
            )
            # What was written down is trusted here, so that opening does not read every row; see `is_intact`.
            manifest.__dict__["fingerprint"] = description["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            raise StoreError(f"{path}: the manifest is missing or damaged: {error}") from error
        return manifest

    def is_intact(self) -> bool:
        """Whether the tables still have the fingerprint that was written down; reads every row."""
        return replace(self).fingerprint == self.fingerprint

    def _tables(self) -> dict[str, pa.Table]:
        items = {f"items.{name}": table for name, table in self.items.items()}
        return items | {f"pairs.{name}": table for name, table in self.pairs.items()}

    def _pairs(self, first: str, second: str) -> Rows | None:
        table = self.pairs.get(pair_kind(first, second)) if first != second else None
        if table is None:
            return None
        return np.stack([table.column(first).to_numpy(), table.column(second).to_numpy()], axis=1)


def items_table(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """A table with the schema `ITEMS` from some of its columns; those left out hold "", -1 or -1.

    `id` and `split` are required.
    """
    num_rows = len(columns["id"])
    empty = {"file": "", "text": "", "label": NO_LABEL, "language": "", "size_bytes": UNKNOWN_SIZE}
    filled = {name: columns[name] if name in columns else [empty[name]] * num_rows for name in ITEMS.names}
    return pa.table(filled, schema=ITEMS)


def pairs_table(first: str, second: str, rows: Sequence[tuple[int, int]] | Rows) -> tuple[str, pa.Table]:
    """The pair kind and the table for (row of first, row of second) pairs."""
    array = np.asarray(rows, dtype=np.int64).reshape(-1, 2)
    return pair_kind(first, second), pa.table({first: array[:, 0], second: array[:, 1]})


def _open_table(path: Path, num_rows: int) -> pa.Table:
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    if table.num_rows != num_rows:
        raise ValueError(f"{path.name} has {table.num_rows} rows, manifest.json says {num_rows}")
    return table


def _content(table: pa.Table) -> str:
    # Arrow's buffers of equal values may differ (offsets of a slice, validity): hash lengths and values instead.
    chunks: list[bytes] = []
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if pa.types.is_string(column.type):
            lengths = pc.binary_length(column).to_numpy(zero_copy_only=False).astype("<i8")
            chunks += [name.encode(), lengths.tobytes(), "".join(column.to_pylist()).encode()]
        else:
            values = column.to_numpy(zero_copy_only=False)
            chunks += [name.encode(), values.astype(values.dtype.newbyteorder("<")).tobytes()]
    return fingerprint.of_bytes(*chunks)


def _as_mask(values: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = values.to_numpy(zero_copy_only=False).astype(bool)
    return mask


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in values.value_counts().to_pylist()}


def _join(left: Rows, right: Rows) -> Rows:
    """(a, b) for every (m, a) in left and (m, b) in right, int64 [p, 2], without repeats."""
    joined = pa.table({"m": left[:, 0], "a": left[:, 1]}).join(
        pa.table({"m": right[:, 0], "b": right[:, 1]}), keys="m", join_type="inner"
    )
    rows = np.stack([joined.column("a").to_numpy(), joined.column("b").to_numpy()], axis=1)
    unique: Rows = np.unique(rows, axis=0)
    return unique
