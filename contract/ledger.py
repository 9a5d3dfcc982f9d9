"""Which shards of a FieldSet are finished, and the way there: a shard counts once its commit record stands.

What stands in the files is looked up each time, since other processes write shards of the same store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from contract import commits
from contract.arrays import FieldSetArrays
from contract.commits import Commit, Quarantined
from contract.encodings import NotEncodableError
from contract.errors import StoreError
from contract.kept import advice
from contract.manifest import Manifest
from contract.shard import Array
from contract.storage import Storage


class Ledger:
    """The shards of one FieldSet over the items of a manifest, which may grow from one call to the next."""

    def __init__(self, files: Storage, arrays: FieldSetArrays) -> None:
        self._files = files
        self._arrays = arrays
        self._fieldset = arrays.fieldset

    def count(self, manifest: Manifest) -> int:
        """How many there are when the FieldSet is whole."""
        return -(-manifest.num_rows(self._fieldset.modality) // self._fieldset.rows_per_shard)

    def rows(self, manifest: Manifest, shard: int) -> range:
        """The rows of one."""
        start = shard * self._fieldset.rows_per_shard
        return range(start, min(start + self._fieldset.rows_per_shard, manifest.num_rows(self._fieldset.modality)))

    def commits(self, manifest: Manifest) -> dict[int, Commit]:
        """The commit records that can be read, by shard."""
        found = commits.read_all(self._files, self._fieldset.key)
        return {shard: commit for shard, commit in found.items() if shard < self.count(manifest)}

    def missing(self, manifest: Manifest) -> list[int]:
        """Those without a commit record, or with one of other items, or whose files are not all there in full."""
        known = self.commits(manifest)
        expected = {
            shard: self._arrays.sizes(shard, commit)
            for shard, commit in known.items()
            if self._is_of(commit, manifest, self.rows(manifest, shard))
        }
        keys = [key for sizes in expected.values() for key in sizes]
        found = dict(zip(keys, self._files.sizes(keys), strict=True))
        whole = {
            shard
            for shard, sizes in expected.items()
            if all(found[key] >= 0 and size in (None, found[key]) for key, size in sizes.items())
        }
        self._arrays.remember({shard: known[shard] for shard in whole})
        return [shard for shard in range(self.count(manifest)) if shard not in whole]

    def faults(self, manifest: Manifest) -> Iterator[tuple[int, str]]:
        """(shard, what is wrong with it or "") for each; reads every byte."""
        found = self.commits(manifest)
        for shard in range(self.count(manifest)):
            yield shard, self._fault(manifest, shard, found.get(shard))

    def before_growth(self, manifest: Manifest, shard: int) -> tuple[range, Commit | None]:
        """The rows that the shard held before the manifest grew, if they are still whole, and their commit."""
        rows, old = self.rows(manifest, shard), commits.read(self._files, self._fieldset.key, shard)
        if old is None or old.rows >= len(rows) or not self._is_of(old, manifest, rows[: old.rows]):
            return range(0), None
        return (range(0), None) if self._arrays.fault(shard, old) else (rows[: old.rows], old)

    def write(
        self,
        manifest: Manifest,
        shard: int,
        values: Mapping[str, Array],
        quarantined: Sequence[Quarantined],
        error: Mapping[str, Mapping[str, float]],
        batch_size: int = 0,
    ) -> None:
        """Write the values of the rows that were not there before growth: the files, then the commit record."""
        fieldset, rows = self._fieldset, self.rows(manifest, shard)
        self._arrays.require_writable()
        before, old = self.before_growth(manifest, shard)
        encoded, clipped = self._encode(manifest, rows[len(before) :], values)
        if old is None:
            self.discard(shard)  # while its files are being replaced, it is not committed
        else:
            # The old rows lie at the same places in the new files, so the old record stays true of them meanwhile.
            encoded = {
                name: np.concatenate([self._arrays.head(name, shard, old), new]) for name, new in encoded.items()
            }
            quarantined = (*old.quarantined, *quarantined)
            clipped.update(old.clipped)
        commit = Commit(
            fingerprint=fieldset.fingerprint,
            items=self._items(manifest, rows),
            rows=len(rows),
            constants=self._arrays.digests,
            files=self._arrays.write(shard, encoded),
            quarantined=tuple(quarantined),
            clipped=dict(sorted(clipped.items())),
            error=(old.error if old else {}) or error,
            batch_size=batch_size or (old.batch_size if old else 0),
        )
        self._files.write(commits.place(fieldset.key, shard), commit.dump())
        self._arrays.forget(shard)

    def discard(self, shard: int) -> None:
        """Remove the commit record."""
        self._files.delete(commits.place(self._fieldset.key, shard))
        self._arrays.forget(shard)

    def _encode(
        self, manifest: Manifest, rows: range, values: Mapping[str, Array]
    ) -> tuple[dict[str, Array], Counter[str]]:
        """The stored arrays [rows x views, ...] by name, and how many values of each field were clipped."""
        fieldset, views, constants = self._fieldset, self._fieldset.views_per_row, self._arrays.constants
        encoded: dict[str, Array] = {}
        clipped: Counter[str] = Counter()
        faults = []
        for field in fieldset.fields:
            array = values[field.name]
            row_shape = field.encoding.input(field.shape)[1]
            expected = (len(rows), *((views,) if fieldset.num_views else ()), *row_shape)
            assert array.shape == expected, f"{field.name}: {array.shape}, not {expected}"
            flat = array.reshape(len(rows) * views, *row_shape)
            try:
                encoded |= field.encode(flat, constants)
            except NotEncodableError as error:
                name = manifest.column(fieldset.modality, "id", [rows[error.row // views]])[0]
                faults.append(f"{field.name} of sample {name!r} and perhaps others: {error}")
                continue
            if count := field.num_clipped(flat, constants):
                clipped[field.name] = count
        if faults:
            raise StoreError(
                f"{self._files.path}: {fieldset.key}, rows {rows.start} to {rows.stop - 1}, can't be stored: "
                f"{'; '.join(faults)}; choose another encoding under `encodings`, or mend the encoder"
            )
        return encoded, clipped

    def _is_of(self, commit: Commit, manifest: Manifest, rows: range) -> bool:
        """Whether it is of this FieldSet as it is now, and of the items that the manifest has in these rows."""
        return (
            commit.fingerprint == self._fieldset.fingerprint
            and commit.constants == self._arrays.digests
            and commit.files.keys() == self._fieldset.arrays.keys()
            and commit.rows == len(rows)
            and commit.items == self._items(manifest, rows)
        )

    def _items(self, manifest: Manifest, rows: range) -> str:
        try:
            return manifest.rows_fingerprint(self._fieldset.modality, rows)
        except pa.ArrowException as error:
            raise StoreError(
                f"{self._files.path}: a table of {self._fieldset.modality} items is damaged: {error}; "
                f"{advice(self._files.path)}"
            ) from error

    def _fault(self, manifest: Manifest, shard: int, commit: Commit | None) -> str:
        key = commits.place(self._fieldset.key, shard)
        if commit is None:
            there = self._files.sizes([key]) != [-1]
            return f"{self._files.locate(key)}: " + ("it is damaged" if there else "there is no commit record")
        rows = self.rows(manifest, shard)
        if commit.rows < len(rows):
            return f"{self._files.locate(key)}: it is of {commit.rows} of its {len(rows)} rows"
        if not self._is_of(commit, manifest, rows):
            return f"{self._files.locate(key)}: it is of other items, constants or settings"
        return self._arrays.fault(shard, commit)
