"""The target store: what every program writes or reads, a Zarr v3 hierarchy and the records beside it.

    STORE/                            a Zarr group: open it with any Zarr reader
      image/  text/  audio/           a group per modality: row i of each array is item i of the manifest
        <fieldset>/                   a group per frozen encoder; its attributes are the schema and provenance
          <field>/c/<shard>/0...      shard files, each holding whole rows
          <field>.<constant>/         what is the same for every row: scales, an embedding table
      precept/                        not arrays: an empty Zarr node keeps other readers from looking inside
        manifest/                     which item each row is, splits, captions, pairs
        commits/<modality>/<fieldset>/<shard>.json   rows, checksums and quarantined inputs of a finished shard
        gates/<modality>/<fieldset>.json             what the teacher scored before the run
        copies/  checksums.json       everything but shards and commits a second time, to mend it with

A shard counts once its commit record stands; the record is written after the files, so a run that is killed
leaves a store in which `missing()` is exactly what remains to be done.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from contract import config, hierarchy, kept, records
from contract.arrays import FieldSetArrays, Shard, Which, constant_files
from contract.commits import COMMITS, Quarantined
from contract.errors import ConfigError, DataError, StoreError
from contract.files import PARTIAL, Content
from contract.kept import advice
from contract.ledger import Ledger
from contract.manifest import Manifest, Rows, Segments
from contract.maps import Maps
from contract.schema import Field, FieldSet, difference
from contract.shard import Array, DamagedShardError
from contract.storage import Storage, StorePath, storage

FORMAT = 3
MANIFEST = "precept/manifest/"
DESCRIPTION = f"{MANIFEST}manifest.json"
GATES = "precept/gates/"

__all__ = ["BadShard", "Quarantined", "TargetStore", "newest_store", "writing"]


@dataclass(frozen=True, kw_only=True)
class BadShard:
    """A shard that is not as it was written."""

    fieldset: str
    shard: int
    reason: str


class TargetStore:
    """A manifest and FieldSets over it; `fieldsets` maps "image/teacher" to its schema."""

    def __init__(self, files: Storage, manifest: Manifest) -> None:
        self.files = files
        self.manifest = manifest
        self.fieldsets: dict[str, FieldSet] = {}
        self._arrays: dict[str, FieldSetArrays] = {}
        self._ledgers: dict[str, Ledger] = {}
        self._maps: Maps[Which, Shard] = Maps(files.most_maps)

    @property
    def path(self) -> StorePath:
        """Where it lies: a path, or a URL."""
        return self.files.path

    @classmethod
    def create(cls, path: StorePath, manifest: Manifest) -> TargetStore:
        """A new store, or the one that is there if its dataset is this one, perhaps with fewer items.

        What the dataset gained is appended; no row moves.
        """
        files = storage(path)
        # Commits without a manifest are a store whose manifest is gone: `open` says so.
        if _read(files, DESCRIPTION) is not None or files.keys_under(COMMITS.rstrip("/")):
            store = cls.open(path)
            store.require_intact_manifest()
            return cls.open(path) if store._become(manifest) else store
        if _format(files) != FORMAT and _is_taken(files):
            raise StoreError(f"{path} exists and is not a target store; give another --store")
        manifest.check()
        metadata = hierarchy.of_store({"format": FORMAT, "dataset": manifest.dataset}, manifest.modalities)
        # Before anything else, so that what a killed run leaves is known for a store that it began.
        files.write("zarr.json", metadata["zarr.json"])
        kept.keep(files, metadata | _manifest_files(manifest))
        return cls.open(path)

    @staticmethod
    def exists(path: StorePath) -> bool:
        """Whether a store lies there, perhaps a damaged one."""
        return _read(storage(path), DESCRIPTION) is not None

    @classmethod
    def open(cls, path: StorePath, expect: Mapping[str, Mapping[str, Any]] | None = None) -> TargetStore:
        """Open a store; refuse one that contradicts `expect`.

        `expect` maps a field reference to the parts of its description that must hold, such as
        `{"image/teacher/logits": {"shape": [1000], "recipe": {"model": "mobilenetv2_100"}}}`.
        """
        files = storage(path)
        description = _read(files, DESCRIPTION)
        found = _format(files)
        if description is None and found is None and not files.keys_under(COMMITS.rstrip("/")):
            raise StoreError(f"{path}: no target store there; `pipeline precompute --dataset NAME` makes one")
        if found != FORMAT:
            raise StoreError(
                f"{path}: {'store format ' + str(found) if found else 'its zarr.json is missing or damaged'}, this "
                f"version of Precept reads format {FORMAT}; {advice(path)} if it was of that format"
            )
        try:
            manifest = Manifest.read(description or b"", _finder(files))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            at = files.locate(DESCRIPTION)
            files.distrust(MANIFEST)
            raise StoreError(f"{at}: the manifest is missing or damaged: {error}; {advice(path)}") from error
        store = cls(files, manifest)
        for modality in manifest.modalities:
            for key in _fieldset_keys(files, modality):
                store._open_fieldset(key)
        store.require(expect or {})
        return store

    def require(self, expect: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise `StoreError` for the first expectation, as in `open`, that the store contradicts."""
        for reference, parts in expect.items():
            self._check_expectation(reference, parts)

    def require_intact_manifest(self) -> None:
        """Raise `StoreError` if a manifest table is not the one that was written; reads every byte of them."""
        description = self.files.read(DESCRIPTION)
        damaged = Manifest.damaged_files(description, _finder(self.files))
        if damaged:
            self.files.distrust(MANIFEST)
            raise StoreError(
                f"{self.files.locate(MANIFEST + damaged[0])}: its checksum is not the one written down; "
                f"{advice(self.path)}"
            )

    def adopt(self, manifest: Manifest) -> None:
        """Take on, in memory alone, what `manifest` has beside this store's; `StoreError` if it is not a growth."""
        if manifest.fingerprint == self.manifest.fingerprint:
            self.manifest = self.manifest.described_as(manifest)
            return
        manifest.check()
        try:
            if manifest.dataset != self.manifest.dataset:
                raise DataError(f"it holds dataset {self.manifest.dataset}, not {manifest.dataset}")
            grown = self.manifest.grown(manifest)
        except DataError as error:
            raise StoreError(
                f"{self.path} holds another dataset or another state of it: {error}; give a new --store, or remove "
                "this one"
            ) from error
        self.manifest = grown

    def add(self, fieldset: FieldSet, constants: Mapping[str, Array] | None = None) -> None:
        """Make room for a FieldSet; one of the same name must be equal to the one that is there.

        `constants` are its fields', by name; they are written once.
        """
        self.require_fieldset(fieldset)
        if self.holds(fieldset):
            return
        if fieldset.modality not in self.manifest.items:
            raise DataError(
                f"{fieldset.key}: dataset {self.manifest.dataset} has no {fieldset.modality} items, "
                f"only {', '.join(self.manifest.modalities)}"
            )
        arrays = {name: np.asarray(array) for name, array in (constants or {}).items()}
        wanted = {name for field in fieldset.fields for name in field.constants}
        assert arrays.keys() == wanted, f"{fieldset.key}: constants {sorted(arrays)}, not {sorted(wanted)}"
        if fieldset.key in self.fieldsets:  # another one, which never got a value
            kept.drop(self.files, self.files.keys_under(fieldset.key))
        files, digests = constant_files(fieldset, arrays)
        tree = config.tree(fieldset) | {"fingerprint": fieldset.fingerprint, "constants": digests}
        num_rows = self.manifest.num_rows(fieldset.modality)
        # The group comes last: without it, the arrays are not a FieldSet yet.
        kept.keep(self.files, files | hierarchy.of_fieldset(fieldset, num_rows, arrays, records.seal(tree)))
        self._open_fieldset(fieldset.key)

    def holds(self, fieldset: FieldSet) -> bool:
        """Whether this very FieldSet is there, perhaps without any value yet."""
        present = self.fieldsets.get(fieldset.key)
        return present is not None and present.fingerprint == fieldset.fingerprint

    def require_fieldset(self, fieldset: FieldSet) -> None:
        """Raise `StoreError` if the store holds values of another FieldSet of that name."""
        present = self.fieldsets.get(fieldset.key)
        if present is None or present.fingerprint == fieldset.fingerprint:
            return
        if self.files.keys_under(f"{COMMITS}{fieldset.key}"):
            raise StoreError(
                f"{self.path}: {fieldset.key} was made by another encoder or setting: "
                f"{present.difference(fieldset)}; give another --store, or name the FieldSet differently"
            )

    def num_shards(self, key: str) -> int:
        """How many shards the FieldSet has when it is whole."""
        return self._ledgers[key].count(self.manifest)

    def shard_rows(self, key: str, shard: int) -> range:
        """The rows of one shard."""
        return self._ledgers[key].rows(self.manifest, shard)

    def kept_rows(self, key: str, shard: int) -> int:
        """How many rows of a missing shard are there all the same, since it was the last one before growth."""
        return len(self._ledgers[key].before_growth(self.manifest, shard)[0])

    def write_shard(
        self,
        key: str,
        shard: int,
        values: Mapping[str, Array],
        quarantined: Sequence[Quarantined] = (),
        error: Mapping[str, Mapping[str, float]] | None = None,
        *,
        batch_size: int = 0,
    ) -> None:
        """Write every field of one shard, then its commit record.

        `values` maps each field's name to what its encoding takes of the rows that are not `kept_rows`:
        [rows, ...], or [rows, views, ...] for a FieldSet with views. Values that the encoding can't hold are an
        error that counts them by field and names a sample, and nothing is written.
        """
        self._ledgers[key].write(self.manifest, shard, values, quarantined, error or {}, batch_size)

    def discard(self, key: str, shard: int) -> None:
        """Remove a shard's commit record: it is missing from now on."""
        self._ledgers[key].discard(shard)

    def missing(self, key: str) -> list[int]:
        """The shards that are yet to be written, or whose items changed, or whose files are gone or cut short."""
        return self._ledgers[key].missing(self.manifest)

    def complete(self, key: str) -> bool:
        """Whether every shard is there."""
        return not self.missing(key)

    def require_complete(self, keys: Iterable[str]) -> None:
        """Raise `StoreError` unless every shard of these FieldSets is there."""
        for key in keys:
            missing = self.missing(key)
            if missing:
                raise StoreError(
                    f"{self.path} is incomplete: {key} lacks {len(missing)} of {self.num_shards(key)} shards "
                    f"(the first is {missing[0]}); run the same `pipeline precompute` again to finish it, or "
                    f"`pipeline repair {self.path}`"
                )

    def find(self, modality: str, name: str) -> str:
        """The full reference of a field name: "image/teacher/logits" for "logits" or "teacher/logits"."""
        candidates = [
            f"{key}/{field.name}"
            for key, fieldset in self.fieldsets.items()
            if fieldset.modality == modality
            for field in fieldset.fields
        ]
        found = [reference for reference in candidates if reference.endswith(f"/{name}") or reference == name]
        if len(found) == 1:
            return found[0]
        known = ", ".join(candidates) or "none"
        if not found:
            raise StoreError(f"{self.path} has no {modality} field {name!r}; its {modality} fields: {known}")
        raise StoreError(
            f"{self.path} has more than one {modality} field {name!r}: {', '.join(found)}; "
            f"name one with its FieldSet, such as {found[0].partition('/')[2]}"
        )

    def field(self, reference: str) -> Field:
        """The schema of a field, by its full reference."""
        key, _, name = reference.rpartition("/")
        try:
            return self.fieldsets[key].field(name)
        except KeyError:
            known = [f"{key}/{field.name}" for key, fieldset in self.fieldsets.items() for field in fieldset.fields]
            raise StoreError(f"{self.path} has no field {reference!r}; it has: {', '.join(known)}") from None

    def read(
        self,
        reference: str,
        rows: Sequence[int] | Rows,
        out: Mapping[str, Array] | None = None,
        *,
        views: int | Rows = 0,
        check: bool = False,
    ) -> dict[str, Array]:
        """Copy rows of a field's stored arrays, each [len(rows), ...], into `out` where it is given.

        `views` says which view of each row, int64 [len(rows)] or one for all. With `check`, the checksums of what
        is read are verified; a row that is damaged is named.
        """
        field, key = self.field(reference), reference.rpartition("/")[0]
        flat = self._flat(reference, rows, views)
        result = {}
        for name, (dtype, shape) in field.arrays.items():
            array = out[name] if out is not None else np.empty((len(flat), *shape), dtype)
            try:
                self._arrays[key].read(name, flat, array, check=check)
            except DamagedShardError as error:
                raise self._damaged(key, error) from error
            result[name] = array
        return result

    def will_need(self, reference: str, rows: Sequence[int] | Rows, *, views: int | Rows = 0) -> None:
        """Have the kernel read these rows ahead, so that a later `read` does not wait for the disk."""
        field, key = self.field(reference), reference.rpartition("/")[0]
        flat = self._flat(reference, rows, views)
        try:
            for name in field.arrays:
                self._arrays[key].will_need(name, flat)
        except DamagedShardError as error:
            raise self._damaged(key, error) from error

    def constants(self, key: str) -> dict[str, Array]:
        """The constants of a FieldSet's fields, by name, once their checksums have been found right."""
        return self._arrays[key].constants

    def load(
        self, reference: str, rows: Sequence[int] | Rows, *, views: int | Rows = 0, check: bool = False
    ) -> Array:
        """Rows of a field, decoded to its logical dtype, [len(rows), *shape]; `check` verifies their checksums."""
        stored = self.read(reference, rows, views=views, check=check)
        return cast(Array, self.field(reference).decode(stored, self.constants(reference.rpartition("/")[0]), np))

    def quarantined(self, key: str) -> list[Quarantined]:
        """The inputs of a FieldSet that could not be decoded, by row."""
        found = self._ledgers[key].commits(self.manifest).values()
        return [entry for commit in found for entry in commit.quarantined]

    def losses(self, key: str) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
        """What the FieldSet's encodings cost: mean figures by field, and counts of clipped values by field."""
        figures: dict[str, dict[str, list[float]]] = {}
        clipped: Counter[str] = Counter()
        for commit in self._ledgers[key].commits(self.manifest).values():
            clipped.update(commit.clipped)
            for name, errors in commit.error.items():
                for figure, value in errors.items():
                    figures.setdefault(name, {}).setdefault(figure, []).append(value)
        means = {name: {f: float(np.mean(v)) for f, v in values.items()} for name, values in figures.items()}
        return means, dict(clipped)

    def halved(self, key: str) -> dict[int, int]:
        """The shards on which memory ran out, and how many views then went through the encoder at a time."""
        found = self._ledgers[key].commits(self.manifest)
        return {shard: commit.batch_size for shard, commit in found.items() if commit.batch_size}

    def gate(self, key: str) -> dict[str, Any] | None:
        """The figure that the teacher was let through with, as `write_gate` wrote it; None if it was not scored."""
        content = _read(self.files, _gate_key(key))
        try:
            found = {} if content is None else records.load(content)
        except records.DamagedRecordError as error:
            at = self.files.locate(_gate_key(key))
            raise StoreError(f"{at}: {error}; {advice(self.path)}") from error
        # Of another encoder, which had this name before it and never got a value.
        present = self.fieldsets.get(key)
        is_its_own = found.pop("fingerprint", "") == (present.fingerprint if present else None)
        return found if is_its_own else None

    def write_gate(self, fieldset: FieldSet, figure: Mapping[str, Any]) -> None:
        """Keep what the teacher scored: `what`, `value`, `chance` and `num_samples`."""
        content = records.dump({**figure, "fingerprint": fieldset.fingerprint})
        kept.keep(self.files, {_gate_key(fieldset.key): content})

    def usable(self, modality: str, keys: Iterable[str] | None = None) -> npt.NDArray[np.bool_]:
        """Bool [rows]: False for what is quarantined in any of these FieldSets, by default all of them."""
        mask = np.ones(self.manifest.num_rows(modality), dtype=bool)
        for key in self.fieldsets if keys is None else keys:
            if self.fieldsets[key].modality == modality:
                mask[[entry.row for entry in self.quarantined(key)]] = False
        return mask

    def verify(self) -> Iterator[tuple[str, int, BadShard | None]]:
        """Read every byte of every shard again; yields (FieldSet, shard, what is wrong with it or None)."""
        for key, ledger in self._ledgers.items():
            for shard, reason in ledger.faults(self.manifest):
                yield key, shard, BadShard(fieldset=key, shard=shard, reason=reason) if reason else None

    def _become(self, manifest: Manifest) -> bool:
        """Write down what the dataset gained, and where its files lie now; whether there was anything to write."""
        before, written = self.manifest, Manifest.segments_written(self.files.read(DESCRIPTION))
        self.adopt(manifest)
        contents: dict[str, bytes | Content] = {}
        for modality in self.manifest.modalities:
            if modality not in before.items:
                contents |= {f"{modality}/zarr.json": hierarchy.of_store({}, [modality])[f"{modality}/zarr.json"]}
        for key, fieldset in self.fieldsets.items():
            num_rows = self.manifest.num_rows(fieldset.modality)
            for at in (f"{key}/{name}/zarr.json" for name in fieldset.arrays):
                if hierarchy.read(self.files, at, "shape")["shape"][0] != num_rows:
                    contents[at] = hierarchy.resized(self.files.read(at), num_rows)
        # manifest.json comes last, and makes the tables beside it the store's.
        contents |= _manifest_files(self.manifest, written)
        if list(contents) == [DESCRIPTION] and contents[DESCRIPTION] == self.files.read(DESCRIPTION):
            return False
        kept.keep(self.files, contents)
        return True

    def _open_fieldset(self, key: str) -> None:
        at = f"{key}/zarr.json"
        sealed = hierarchy.read(self.files, at).get("attributes", {}).get("precept")
        if sealed is None:  # somebody else's group
            return
        try:
            tree = records.unseal(sealed)
            digests, written = tree.pop("constants"), tree.pop("fingerprint")
            fieldset = config.parse(tree, FieldSet, source=self.files.locate(at))
        except (records.DamagedRecordError, ConfigError, KeyError) as error:
            raise StoreError(f"{self.files.locate(at)}: {error}; {advice(self.path)}") from error
        assert fieldset.fingerprint == written, f"{key}: the fingerprint is made otherwise than it was"
        self.fieldsets[key] = fieldset
        num_shards = -(-self.manifest.num_rows(fieldset.modality) // fieldset.rows_per_shard)
        self._arrays[key] = FieldSetArrays(self.files, fieldset, digests, self._maps, num_shards)
        self._ledgers[key] = Ledger(self.files, self._arrays[key])

    def _check_expectation(self, reference: str, parts: Mapping[str, Any]) -> None:
        field, key = self.field(reference), reference.rpartition("/")[0]
        provenance = self.fieldsets[key].provenance
        found = {"shape": list(field.shape), "encoding": field.encoding.kind, **field.about, **provenance}
        for name, expected in parts.items():
            if name not in found:
                raise StoreError(f"{self.path}: {reference} says nothing of {name!r}, only of {', '.join(found)}")
            wrong = difference(_parts(found.get(name), expected), expected, name)
            if wrong:
                raise StoreError(f"{self.path}: {reference} is not what is expected: {wrong}")

    def _flat(self, reference: str, rows: Sequence[int] | Rows, views: int | Rows) -> Rows:
        """Rows of the stored arrays, int64 [n]."""
        fieldset = self.fieldsets[reference.rpartition("/")[0]]
        wanted = np.asarray(rows, dtype=np.int64)
        num_rows = self.manifest.num_rows(fieldset.modality)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < num_rows):
            raise IndexError(f"{reference} has {num_rows} rows; row {wanted.min()} to {wanted.max()} was asked for")
        if fieldset.num_views == 0:
            assert not np.any(views), f"{reference} has no views"
            return wanted
        if np.size(views) and not (np.min(views) >= 0 and np.max(views) < fieldset.views_per_row):
            raise IndexError(f"{reference} has {fieldset.views_per_row} views; there is no {np.max(views)}")
        flat: Rows = wanted * fieldset.views_per_row + views
        return flat

    def _damaged(self, key: str, error: DamagedShardError) -> StoreError:
        """In words, with the sample where the fault is in a row."""
        where = ""
        if error.row is not None:
            fieldset = self.fieldsets[key]
            row = error.row // fieldset.views_per_row
            sample = self.manifest.column(fieldset.modality, "id", [row])[0]
            where = f" (shard {row // fieldset.rows_per_shard}, row {row} or one near it, sample {sample!r})"
        return StoreError(f"{error}{where}; {advice(self.path)}")


def writing(path: StorePath) -> AbstractContextManager[None]:
    """Hold the store at `path` for one writer, before it is even there; a second one is refused."""
    return storage(path).writing()


def newest_store(folder: Path) -> Path:
    """The store under `folder` that was written last; one in which nothing was ever computed does not count."""
    found = {path.parents[4] for path in folder.glob("*/precept/commits/*/*/*.json")}
    if not found:
        raise StoreError(f"no store under {folder}{os.sep}; make one with `pipeline precompute --dataset scenes`")
    return max(found, key=_last_change)


def _last_change(path: Path) -> float:
    return max(folder.stat().st_mtime for folder in (path / "precept/commits").glob("*/*"))


def _read(files: Storage, key: str) -> bytes | None:
    try:
        return files.read(key)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _finder(files: Storage) -> Callable[[str, int], Path]:
    return lambda name, checksum: files.local(f"{MANIFEST}{name}", str(checksum))


def _manifest_files(manifest: Manifest, written: Segments | None = None) -> dict[str, bytes | Content]:
    return {f"{MANIFEST}{name}": content for name, content in manifest.files(written).items()}


def _gate_key(key: str) -> str:
    return f"{GATES}{key}.json"


def _fieldset_keys(files: Storage, modality: str) -> list[str]:
    """ "image/teacher" for each group under image/."""
    return sorted(
        f"{modality}/{name.split('/')[-2]}" for name in files.children(modality) if name.endswith("/zarr.json")
    )


def _is_taken(files: Storage) -> bool:
    """Whether something lies where a new store is to be made."""
    if isinstance(files.path, Path):
        if not files.path.is_dir():
            return files.path.exists()
        return not all(entry.name.endswith(PARTIAL) for entry in files.path.iterdir())
    return not all(key.startswith("precept/") for key in files.keys_under(""))  # the writer's lock, for one


def _format(files: Storage) -> int | None:
    """The format that a place says it has as a target store; None if it says nothing of the kind."""
    try:
        about = json.loads(_read(files, "zarr.json") or b"").get("attributes", {}).get("precept", {})
    except (ValueError, AttributeError):
        return None
    found: int | None = about.get("format") if isinstance(about, dict) else None
    return found


def _parts(found: Any, expected: Any) -> Any:
    """What `found` has of the keys that stand in `expected`, at every level."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        return {key: _parts(found.get(key), part) for key, part in expected.items()}
    return found
