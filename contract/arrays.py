"""The files of one FieldSet: its stored arrays, shard by shard, and its constants.

A row here is one view of one item: row = item x views + view.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from contract import commits, copying, hierarchy, recoded
from contract.commits import Commit
from contract.errors import StoreError
from contract.kept import advice
from contract.maps import Maps
from contract.recoded import RecodedShard
from contract.schema import FieldSet, chunk_shape, row_bytes
from contract.shard import (
    LARGE_ROW_BYTES,
    Array,
    DamagedShardError,
    Rows,
    ShardLayout,
    ShardMap,
    shard_content,
)
from contract.storage import Storage
from contract.window import Window

Shard = ShardMap | RecodedShard
Which = tuple[str, str, int]  # FieldSet, array, number of the shard
# Linux lets a process have some 65,000 maps; where those of a FieldSet's arrays would be more than this, the others
# are read shard by shard.
MOST_SHARDS = 8192


class FieldSetArrays:
    """Reads and writes the arrays of `fieldset`; `digests` are those of its constants."""

    def __init__(
        self,
        files: Storage,
        fieldset: FieldSet,
        digests: Mapping[str, int],
        maps: Maps[Which, Shard],
        num_shards: int,
    ) -> None:
        self.fieldset = fieldset
        self.digests = digests
        self._files = files
        self._fieldset_key = fieldset.key
        self._rows_per_shard = fieldset.rows_per_shard * fieldset.views_per_row
        self._maps = maps
        self._num_shards = num_shards
        self._recoded: dict[str, Any] = {}
        self._commits: dict[int, Commit] = {}
        self._windows: dict[str, Window | None] = {}

    def read(self, name: str, rows: Rows, out: Array, *, check: bool = False) -> None:
        """Copy `rows` int64 [n] of an array into `out` [n, ...]; with `check`, verify the checksums.

        `DamagedShardError` names a row of the array where it can.
        """
        assert len(out) == len(rows), f"{name}: {len(rows)} rows into {len(out)}"
        if not check and self._gather(name, rows, out):
            return
        is_worth_it = out.nbytes >= copying.WORTH_SHARING_BYTES and self._layout(name).row_bytes >= LARGE_ROW_BYTES
        parts = copying.shares(len(rows)) if is_worth_it else [slice(None)]
        copying.together(lambda part: self._copy(name, rows[part], out[part], check), parts)

    def _copy(self, name: str, rows: Rows, out: Array, check: bool) -> None:
        for number, offsets, positions in self._by_shard(rows):
            try:
                self._shard_of(name, number, offsets).copy(offsets, out, positions, check=check)
            except DamagedShardError as error:
                self._files.distrust(self._shard_key(name, number))
                self.forget(number)  # by the next time it may have been mended
                if error.row is not None:
                    error.row += number * self._rows_per_shard
                raise

    def _gather(self, name: str, rows: Rows, out: Array) -> bool:
        """Copy small rows in one operation, whichever shards they lie in; False where that can't be done."""
        window = self._window(name)
        if window is None:
            return False
        numbers, offsets = np.divmod(rows, self._rows_per_shard)
        if numbers.max(initial=0) >= self._num_shards:  # the dataset has grown since the store was opened
            return False
        for number in np.unique(numbers[offsets >= window.num_rows[numbers]]).tolist():
            shard = self._shard_of(name, number, offsets[numbers == number])  # has looked at the file
            window.put(number, self._local(self._shard_key(name, number), ""), shard.num_rows)
        chunks, places = np.divmod(offsets, self._layout(name).rows_per_chunk)
        out[...] = window.rows[numbers, chunks, places]
        return True

    def will_need(self, name: str, rows: Rows) -> None:
        """Have the kernel read these rows ahead."""
        for number, offsets, _ in self._by_shard(rows):
            self._shard_of(name, number, offsets).will_need(offsets)

    def head(self, name: str, number: int, commit: Commit) -> Array:
        """The rows of a shard that are there by its commit record, [rows, ...], their checksums verified."""
        shard = self._open(name, number, commit)
        rows, layout = np.arange(shard.num_rows), self._layout(name)
        out = np.empty((shard.num_rows, *layout.row_shape), layout.dtype)
        shard.copy(rows, out, rows, check=True)
        return out

    def write(self, number: int, encoded: Mapping[str, Array]) -> dict[str, dict[str, int]]:
        """Write each array's rows [n, ...] as one shard; what its commit record says of the files."""
        found = {}
        for name, array in encoded.items():
            parts, digest = shard_content(array, self._layout(name))
            self._files.write(self._shard_key(name, number), *parts)
            found[name] = {"size_bytes": sum(part.nbytes for part in parts), "crc32c": digest}
        return found

    def require_writable(self) -> None:
        """Raise `StoreError` if another program has encoded an array anew."""
        for name in self.fieldset.arrays:
            if self._other_encoding(name) is not None:
                raise StoreError(
                    f"{self._files.locate(self._key(name))}: it was encoded anew by another program, so it can be "
                    "read and not written; compute into another --store"
                )

    def remember(self, found: Mapping[int, Commit]) -> None:
        """Commit records that have just been read need not be read again when their shards are opened."""
        self._commits = {**found, **self._commits}

    def forget(self, number: int) -> None:
        """Let go of what is held of a shard, since it has been replaced."""
        self._commits.pop(number, None)
        for window in list(self._windows.values()):
            if window is not None:
                window.forget(number)
        for name in self.fieldset.arrays:
            self._maps.forget((self._fieldset_key, name, number))

    def sizes(self, number: int, commit: Commit) -> dict[str, int | None]:
        """The files that hold a shard, and their sizes in bytes; None if another program wrote them."""
        items = self._items(number, commit)
        found: dict[str, int | None] = {}
        for name, file in commit.files.items():
            other = self._other_encoding(name)
            if other is None:
                found[self._shard_key(name, number)] = file["size_bytes"]
            else:
                found |= dict.fromkeys(recoded.chunk_keys(other, items))
        return found

    def fault(self, number: int, commit: Commit) -> str:
        """What is wrong with the files of a shard, "" if nothing is; reads every byte."""
        for name, expected in commit.files.items():
            try:
                digest = self._digest(name, number, commit)
            except DamagedShardError as error:
                return str(error)
            if digest != expected["crc32c"]:
                return f"{self._files.locate(self._shard_key(name, number))}: it holds other rows"
        return ""

    @cached_property
    def constants(self) -> dict[str, Array]:
        """By name, once their checksums have been found right."""
        return {name: self._constant(name) for field in self.fieldset.fields for name in field.constants}

    def _constant(self, name: str) -> Array:
        metadata = hierarchy.read(self._files, f"{self._key(name)}/zarr.json", "shape", "data_type")
        try:
            layout = _whole(np.dtype(metadata["data_type"]), tuple(metadata["shape"]))
            key = f"{self._key(name)}/{_place(0, len(layout.row_shape) - 1)}"
            shard = ShardMap(self._local(key, str(self.digests[name])), layout, 1, self._files.locate(key))
            if shard.digest() != self.digests[name]:
                raise DamagedShardError(f"{self._files.locate(key)}: it holds other values")
        except (DamagedShardError, TypeError) as error:
            self._files.distrust(f"{self._key(name)}/")
            raise StoreError(f"{error}; {advice(self._files.path)}") from error
        out = np.empty((1, *layout.row_shape), layout.dtype)
        shard.copy(np.zeros(1, np.int64), out, np.zeros(1, np.int64))
        array: Array = out[0]
        return array

    def _by_shard(self, rows: Rows) -> list[tuple[int, Rows, Rows]]:
        """(shard, rows counted from its first, their positions) for each shard that has any."""
        order = np.argsort(rows, kind="stable")
        shards, offsets = np.divmod(rows[order], self._rows_per_shard)
        starts = np.flatnonzero(np.diff(shards, prepend=-1)).tolist()
        bounds = pairwise([*starts, len(rows)])
        return [(int(shards[start]), offsets[start:stop], order[start:stop]) for start, stop in bounds]

    def _window(self, name: str) -> Window | None:
        """For an array of small rows in plain files of this machine, room to map all of its shards."""
        if name not in self._windows:
            num_windows = sum(window is not None for window in list(self._windows.values()))
            is_possible = (
                self._layout(name).row_bytes < LARGE_ROW_BYTES
                and isinstance(self._files.path, Path)
                and (num_windows + 1) * self._num_shards <= MOST_SHARDS
                and self._other_encoding(name) is None
            )
            self._windows.setdefault(name, Window(self._layout(name), self._num_shards) if is_possible else None)
        return self._windows[name]

    def _shard_of(self, name: str, number: int, offsets: Rows) -> Shard:
        """The shard that holds these rows, which count from its first."""
        shard = self._shard(name, number)
        if shard.num_rows < self._rows_per_shard and offsets.max() >= shard.num_rows:
            self.forget(number)
            shard = self._shard(name, number)  # another process may have finished it meanwhile
            if offsets.max() >= shard.num_rows:
                at = self._files.locate(commits.place(self.fieldset.key, number))
                raise DamagedShardError(f"{at}: it is of {shard.num_rows} rows; the others are not computed yet")
        return shard

    def _shard(self, name: str, number: int) -> Shard:
        return self._maps.get((self._fieldset_key, name, number), self._open_committed)

    def _open_committed(self, which: Which) -> Shard:
        _, name, number = which
        return self._open(name, number, self._commit(number))

    def _commit(self, number: int) -> Commit:
        """The record of a shard, as it was when the first of its arrays was opened."""
        commit = self._commits.get(number)
        if commit is None:
            commit = commits.read(self._files, self.fieldset.key, number)
            if commit is None or commit.fingerprint != self.fieldset.fingerprint:
                at = self._files.locate(commits.place(self.fieldset.key, number))
                raise DamagedShardError(
                    f"{at}: no commit record of this shard is there, or it is damaged or of another encoder"
                )
            self._commits[number] = commit
        return commit

    def _open(self, name: str, number: int, commit: Commit) -> Shard:
        views, layout, other = self.fieldset.views_per_row, self._layout(name), self._other_encoding(name)
        if other is not None:
            return RecodedShard(other, layout, number * self.fieldset.rows_per_shard, commit.rows * views, views)
        key = self._shard_key(name, number)
        path = self._local(key, str(commit.files[name]))
        return ShardMap(path, layout, commit.rows * views, self._files.locate(key))

    def _digest(self, name: str, number: int, commit: Commit) -> int:
        """Of what the store holds now; this machine's copy of a remote shard is no witness."""
        if isinstance(self._files.path, Path) or self._other_encoding(name) is not None:
            return self._open(name, number, commit).digest()
        key, num_rows = self._shard_key(name, number), commit.rows * self.fieldset.views_per_row
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shard"
            try:
                path.write_bytes(self._files.read(key))
            except FileNotFoundError as error:
                raise DamagedShardError(f"{self._files.locate(key)} is missing") from error
            return ShardMap(path, self._layout(name), num_rows, self._files.locate(key)).digest()

    def _local(self, key: str, version: str) -> Path:
        try:
            return self._files.local(key, version)
        except FileNotFoundError as error:
            raise DamagedShardError(f"{self._files.locate(key)} is missing") from error

    def _other_encoding(self, name: str) -> Any:
        """The zarr.Array, if another program has encoded it anew; None for one that we have written."""
        if name not in self._recoded:
            metadata = hierarchy.read(self._files, f"{self._key(name)}/zarr.json", "shape", "data_type")
            at = self._files.locate(f"{self._key(name)}/zarr.json")
            if not hierarchy.is_of(metadata, self.fieldset, name):
                raise StoreError(
                    f"{at}: {metadata['data_type']} {metadata['shape']} is not what the FieldSet says of it; "
                    f"{advice(self._files.path)}"
                )
            if hierarchy.is_plain(metadata, self.fieldset, name):
                self._recoded[name] = None
            else:
                try:
                    self._recoded[name] = recoded.open_array(self._files, self._key(name))
                except Exception as error:  # zarr-python's own, of many kinds
                    reason = " ".join(str(error).split())
                    raise StoreError(f"{at}: {reason}; {advice(self._files.path)}") from error
        return self._recoded[name]

    def _items(self, number: int, commit: Commit) -> range:
        first = number * self.fieldset.rows_per_shard
        return range(first, first + commit.rows)

    def _layout(self, name: str) -> ShardLayout:
        return self._layouts[name]

    @cached_property
    def _layouts(self) -> dict[str, ShardLayout]:
        found = {}
        for name, (dtype, shape) in self.fieldset.arrays.items():
            rows, views = chunk_shape(
                row_bytes(dtype, shape), self.fieldset.views_per_row, self.fieldset.rows_per_shard
            )
            found[name] = ShardLayout(
                dtype=np.dtype(dtype).newbyteorder("<"),
                row_shape=shape,
                rows_per_shard=self._rows_per_shard,
                rows_per_chunk=rows * views,
            )
        return found

    def _key(self, name: str) -> str:
        return f"{self.fieldset.key}/{name}"

    def _shard_key(self, name: str, number: int) -> str:
        num_axes = len(self.fieldset.arrays[name][1]) + (1 if self.fieldset.num_views else 0)
        return f"{self._key(name)}/{_place(number, num_axes)}"


def constant_files(fieldset: FieldSet, constants: Mapping[str, Array]) -> tuple[dict[str, bytes], dict[str, int]]:
    """The shard file of each constant by key, and their digests by name."""
    files, digests = {}, {}
    for name, array in constants.items():
        parts, digests[name] = shard_content(array[None], _whole(array.dtype, array.shape))
        files[f"{fieldset.key}/{name}/{_place(0, array.ndim - 1)}"] = b"".join(part.data for part in parts)
    return files, digests


def _whole(dtype: np.dtype[Any], shape: tuple[int, ...]) -> ShardLayout:
    """The layout of an array that is one chunk."""
    return ShardLayout(dtype=dtype.newbyteorder("<"), row_shape=shape, rows_per_shard=1, rows_per_chunk=1)


def _place(shard: int, num_inner: int) -> str:
    """The name of a shard's file in its array: the other axes are never cut."""
    return "/".join(["c", str(shard), *["0"] * num_inner])
