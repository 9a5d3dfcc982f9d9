"""The target store: what every program writes or reads, a Zarr v3 hierarchy and the records beside it.

    STORE/                            a Zarr group: open it with any Zarr reader
      image/  text/  audio/           a group per modality: row i of each array is item i of the manifest
        <fieldset>/                   a group per frozen encoder; its attributes are the schema and provenance
          <field>/c/<shard>/0...      shard files, each holding whole rows
      precept/                        not arrays: an empty Zarr node keeps other readers from looking inside
        manifest/                     which item each row is, splits, captions, pairs
        commits/<modality>/<fieldset>/<shard>.json   rows, checksums and quarantined inputs of a finished shard

A shard counts once its commit record stands; the record is written after the files, so a run that is killed
leaves a store in which `missing()` is exactly what remains to be done.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import google_crc32c
import numpy as np
import numpy.typing as npt

from contract import config
from contract.encoding import NotEncodableError
from contract.errors import ConfigError, DataError, StoreError
from contract.manifest import Manifest, Rows
from contract.schema import Field, FieldSet, chunk_rows, difference, row_bytes
from contract.shard import DamagedShardError, ShardLayout, ShardMap, allow_many_maps, replace_file, write_shard

FORMAT = 1

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """An input that could not be decoded: its row holds zeros, and nothing trains on it or is scored by it."""

    row: int
    id: str
    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class BadShard:
    """A committed shard that is not as it was written."""

    fieldset: str
    shard: int
    reason: str


class TargetStore:
    """A manifest and FieldSets over it; `fieldsets` maps "image/teacher" to its schema."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.fieldsets: dict[str, FieldSet] = {}
        self._maps: dict[tuple[str, str, int], ShardMap] = {}
        allow_many_maps()
        self._layouts: dict[tuple[str, str], ShardLayout] = {}

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> TargetStore:
        """A new store at `path`, or the one that is there if it holds the same manifest."""
        import zarr

        if (path / "precept/manifest/manifest.json").exists():
            store = cls.open(path)
            store.require_manifest(manifest)
            if store.manifest.media_root != manifest.media_root:
                manifest.describe(path / "precept/manifest")
            return cls.open(path)
        if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or _format(path) == FORMAT)):
            raise StoreError(f"{path} exists and is not a target store; give another --store")
        manifest.check()
        root = zarr.open_group(
            path, mode="a", attributes={"precept": {"format": FORMAT, "dataset": manifest.dataset}}
        )
        # An array node without elements: Zarr readers do not look for further nodes beneath an array.
        root.create_array("precept", shape=(0,), dtype="uint8", chunks=(1,), overwrite=True)
        for modality in manifest.modalities:
            root.require_group(modality)
        manifest.write(path / "precept/manifest")
        return cls.open(path)

    @classmethod
    def open(cls, path: Path, expect: Mapping[str, Mapping[str, Any]] | None = None) -> TargetStore:
        """Open a store; refuse one that contradicts `expect`.

        `expect` maps a field reference to the parts of its description that must hold, such as
        `{"image/teacher/logits": {"shape": [1000], "recipe": {"model": "mobilenetv2_100"}}}`.
        """
        if not (path / "precept/manifest/manifest.json").is_file():
            raise StoreError(f"{path}: no target store there; `pipeline precompute --dataset NAME` makes one")
        found = _format(path)
        if found != FORMAT:
            raise StoreError(f"{path}: store format {found}, this version of Precept reads format {FORMAT}")
        store = cls(path, Manifest.read(path / "precept/manifest"))
        for modality in store.manifest.modalities:
            for metadata in sorted((path / modality).glob("*/zarr.json")):
                tree = _read_json(metadata).get("attributes", {}).get("precept")
                if tree is not None:  # otherwise a FieldSet that is just being added, or never was to the end
                    fieldset = _parse_fieldset(tree, metadata)
                    store.fieldsets[fieldset.key] = fieldset
        store.require(expect or {})
        return store

    def require(self, expect: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise `StoreError` for the first expectation, as in `open`, that the store contradicts."""
        for reference, parts in expect.items():
            self._check_expectation(reference, parts)

    def require_manifest(self, manifest: Manifest) -> None:
        """Raise `StoreError` unless the store is one of this dataset in this state."""
        if self.manifest.fingerprint != manifest.fingerprint:
            raise StoreError(
                f"{self.path} holds another dataset or another state of it: "
                f"{_manifest_difference(self.manifest, manifest)}; give a new --store, or remove this one"
            )

    def add(self, fieldset: FieldSet) -> None:
        """Make room for a FieldSet; one of the same name must be equal to the one that is there."""
        import zarr

        self.require_fieldset(fieldset)
        present = self.fieldsets.get(fieldset.key)
        if present is not None and present.fingerprint == fieldset.fingerprint:
            return
        if fieldset.modality not in self.manifest.items:
            raise DataError(
                f"{fieldset.key}: dataset {self.manifest.dataset} has no {fieldset.modality} items, "
                f"only {', '.join(self.manifest.modalities)}"
            )
        num_rows = self.manifest.num_rows(fieldset.modality)
        # What is there already, if anything, never got a value.
        group = zarr.open_group(self.path / fieldset.modality, mode="a").create_group(fieldset.name, overwrite=True)
        for field in fieldset.fields:
            for name, (dtype, shape) in field.arrays.items():
                in_chunk = chunk_rows(row_bytes(dtype, shape), fieldset.rows_per_shard)
                group.create_array(
                    name,
                    shape=(num_rows, *shape),
                    dtype=dtype,
                    chunks=(in_chunk, *shape),
                    shards=(fieldset.rows_per_shard, *shape),
                    compressors=[{"name": "crc32c"}],
                    overwrite=True,
                )
        # The attributes come last: a group without them is not a FieldSet yet.
        group.update_attributes({"precept": _fieldset_tree(fieldset)})
        self.fieldsets[fieldset.key] = fieldset

    def require_fieldset(self, fieldset: FieldSet) -> None:
        """Raise `StoreError` if the store holds values of another FieldSet of that name."""
        present = self.fieldsets.get(fieldset.key)
        has_values = any((self.path / "precept/commits" / fieldset.key).glob("*.json"))
        if present is not None and has_values and present.fingerprint != fieldset.fingerprint:
            raise StoreError(
                f"{self.path}: {fieldset.key} was made by another encoder or setting: "
                f"{present.difference(fieldset)}; give another --store, or name the FieldSet differently"
            )

    def num_shards(self, key: str) -> int:
        """How many shards the FieldSet has when it is whole."""
        fieldset = self.fieldsets[key]
        return -(-self.manifest.num_rows(fieldset.modality) // fieldset.rows_per_shard)

    def shard_rows(self, key: str, shard: int) -> range:
        """The rows of one shard."""
        fieldset = self.fieldsets[key]
        start = shard * fieldset.rows_per_shard
        return range(start, min(start + fieldset.rows_per_shard, self.manifest.num_rows(fieldset.modality)))

    def write_shard(
        self, key: str, shard: int, values: Mapping[str, Array], quarantined: Sequence[Quarantined] = ()
    ) -> None:
        """Write every field of one shard, then its commit record.

        `values` maps each field's name to its logical values [rows of the shard, *shape]. Values that the encoding
        can't hold are an error that names the sample, and nothing is written.
        """
        fieldset, rows = self.fieldsets[key], self.shard_rows(key, shard)
        encoded: dict[str, Array] = {}
        for field in fieldset.fields:
            array = values[field.name]
            assert array.shape == (len(rows), *field.shape), f"{field.name}: {array.shape}, not {field.shape}"
            try:
                encoded |= field.encode(array)
            except NotEncodableError as error:
                name = self.manifest.column(fieldset.modality, "id", [rows[error.row]])[0]
                raise StoreError(f"{self.path}: {key}/{field.name} of sample {name!r}: {error}") from error
        self._maps.clear()
        # While its files are being replaced the shard is not committed, whatever was there before.
        path = self._commit_path(key, shard)
        path.unlink(missing_ok=True)
        files = {
            name: write_shard(self._shard_path(key, name, shard), array, self._layout(key, name))
            for name, array in encoded.items()
        }
        commit = {
            "fingerprint": fieldset.fingerprint,
            "items": self.manifest.rows_fingerprint(fieldset.modality, rows),
            "rows": len(rows),
            "files": files,
            "quarantined": [asdict(entry) for entry in quarantined],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(commit, indent=1) + "\n").encode())

    def missing(self, key: str) -> list[int]:
        """The shards that are yet to be written, or whose items changed, or whose files are gone or cut short."""
        return [shard for shard in range(self.num_shards(key)) if not self._is_committed(key, shard)]

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
                    f"(the first is {missing[0]}); run the same `pipeline precompute` again to finish it"
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
        self, reference: str, rows: Sequence[int] | Rows, out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Copy rows of a field's stored arrays, each [len(rows), ...], into `out` where it is given."""
        field, key = self.field(reference), reference.rpartition("/")[0]
        wanted = np.asarray(rows, dtype=np.int64)
        num_rows = self.manifest.num_rows(self.fieldsets[key].modality)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < num_rows):
            raise IndexError(f"{reference} has {num_rows} rows; row {wanted.min()} to {wanted.max()} was asked for")
        shards, offsets = np.divmod(wanted, self.fieldsets[key].rows_per_shard)
        order = np.argsort(shards, kind="stable")
        bounds = np.flatnonzero(np.diff(shards[order])) + 1
        groups = [group for group in np.split(order, bounds) if group.size]
        result = {}
        for name, (dtype, shape) in field.arrays.items():
            array = out[name] if out is not None else np.empty((len(wanted), *shape), dtype)
            for group in groups:
                self._map(key, name, int(shards[group[0]])).copy(offsets[group], array, group)
            result[name] = array
        return result

    def load(self, reference: str, rows: Sequence[int] | Rows) -> Array:
        """Rows of a field, decoded to its logical dtype, [len(rows), *shape]."""
        return cast(Array, self.field(reference).decode(self.read(reference, rows), np))

    def quarantined(self, key: str) -> list[Quarantined]:
        """The inputs of a FieldSet that could not be decoded, by row."""
        return [
            Quarantined(**entry)
            for shard in range(self.num_shards(key))
            for entry in self._commit(key, shard).get("quarantined", [])
        ]

    def usable(self, modality: str, keys: Iterable[str] | None = None) -> npt.NDArray[np.bool_]:
        """Bool [rows]: False for what is quarantined in any of these FieldSets, by default all of them."""
        mask = np.ones(self.manifest.num_rows(modality), dtype=bool)
        for key in self.fieldsets if keys is None else keys:
            if self.fieldsets[key].modality == modality:
                mask[[entry.row for entry in self.quarantined(key)]] = False
        return mask

    def verify(self) -> Iterator[tuple[str, int, BadShard | None]]:
        """Read every committed byte again; yields (FieldSet, shard, what is wrong with it or None)."""
        for key in self.fieldsets:
            for shard in range(self.num_shards(key)):
                if self._commit_path(key, shard).exists():
                    reason = self._damage(key, shard)
                    yield key, shard, BadShard(fieldset=key, shard=shard, reason=reason) if reason else None

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

    def _is_committed(self, key: str, shard: int) -> bool:
        fieldset = self.fieldsets[key]
        commit = self._commit(key, shard)
        rows = self.shard_rows(key, shard)
        return (
            commit.get("fingerprint") == fieldset.fingerprint
            and commit.get("items") == self.manifest.rows_fingerprint(fieldset.modality, rows)
            and all(
                _size(self._shard_path(key, name, shard)) == file["size_bytes"]
                for name, file in commit["files"].items()
            )
        )

    def _damage(self, key: str, shard: int) -> str:
        commit = self._commit(key, shard)
        if not commit:
            return f"{self._commit_path(key, shard)}: its commit record can't be read"
        for name, expected in commit["files"].items():
            path = self._shard_path(key, name, shard)
            try:
                content = path.read_bytes()
            except OSError as error:
                return f"{path}: {error.strerror}"
            if len(content) != expected["size_bytes"]:
                return f"{path} has {len(content)} bytes, not {expected['size_bytes']}"
            if google_crc32c.value(content) != expected["crc32c"]:
                return f"{path}: its checksum is not the one written down"
        return "" if self._is_committed(key, shard) else f"{self._commit_path(key, shard)}: not of this manifest"

    def _commit(self, key: str, shard: int) -> dict[str, Any]:
        """The shard's commit record; {} without one, and for one that can't be read: neither is a commit."""
        path = self._commit_path(key, shard)
        try:
            commit = _read_json(path)
        except StoreError:
            return {}
        whole = {"fingerprint", "items", "files", "quarantined"} <= commit.keys()
        return commit if whole and isinstance(commit["files"], dict) else {}

    def _map(self, key: str, name: str, shard: int) -> ShardMap:
        mapped = self._maps.get((key, name, shard))
        if mapped is None:
            try:
                mapped = ShardMap(
                    self._shard_path(key, name, shard),
                    self._layout(key, name),
                    len(self.shard_rows(key, shard)),
                )
            except DamagedShardError as error:
                raise StoreError(f"{error}; `pipeline verify {self.path}` lists what is damaged") from error
            self._maps[key, name, shard] = mapped
        return mapped

    def _layout(self, key: str, name: str) -> ShardLayout:
        if (key, name) not in self._layouts:
            fieldset = self.fieldsets[key]
            dtype, shape = {array: of for field in fieldset.fields for array, of in field.arrays.items()}[name]
            self._layouts[key, name] = ShardLayout(
                dtype=np.dtype(dtype).newbyteorder("<"),
                row_shape=shape,
                rows_per_shard=fieldset.rows_per_shard,
                rows_per_chunk=chunk_rows(row_bytes(dtype, shape), fieldset.rows_per_shard),
            )
        return self._layouts[key, name]

    def _shard_path(self, key: str, name: str, shard: int) -> Path:
        zeros = ["0"] * len(self._layout(key, name).row_shape)
        return self.path.joinpath(key, name, "c", str(shard), *zeros)

    def _commit_path(self, key: str, shard: int) -> Path:
        return self.path / "precept/commits" / key / f"{shard:06d}.json"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the store at `path` for one writer, before it is even there; a second one is refused."""
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{path}: another run is writing to it; wait for it, or stop it") from None
        yield


def newest_store(folder: Path) -> Path:
    """The store under `folder` that was written last; one in which nothing was ever computed does not count."""
    found = {path.parents[4] for path in folder.glob("*/precept/commits/*/*/*.json")}
    if not found:
        raise StoreError(f"no store under {folder}{os.sep}; make one with `pipeline precompute --dataset scenes`")
    return max(found, key=_last_change)


def _last_change(path: Path) -> float:
    return max(folder.stat().st_mtime for folder in (path / "precept/commits").glob("*/*"))


def _fieldset_tree(fieldset: FieldSet) -> dict[str, Any]:
    return config.tree(fieldset) | {"fingerprint": fieldset.fingerprint}


def _format(path: Path) -> int | None:
    """The format that a folder says it has as a target store; None if it says nothing of the kind."""
    if not (path / "zarr.json").is_file():
        return None
    about = _read_json(path / "zarr.json").get("attributes", {}).get("precept", {})
    found: int | None = about.get("format") if isinstance(about, dict) else None
    return found


def _parse_fieldset(tree: dict[str, Any], metadata: Path) -> FieldSet:
    written = tree.pop("fingerprint", None)
    try:
        fieldset = config.parse(tree, FieldSet, source=str(metadata))
    except ConfigError as error:
        raise StoreError(f"{error}; the store's metadata is damaged") from error
    if fieldset.fingerprint != written:
        raise StoreError(f"{metadata}: the metadata was changed after it was written (its fingerprint is another)")
    return fieldset


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: the store's metadata is missing or damaged: {error}") from error
    if not isinstance(tree, dict):
        raise StoreError(f"{path}: the store's metadata is damaged: {type(tree).__name__} where an object belongs")
    return tree


def _parts(found: Any, expected: Any) -> Any:
    """What `found` has of the keys that stand in `expected`, at every level."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        return {key: _parts(found.get(key), part) for key, part in expected.items()}
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _manifest_difference(found: Manifest, expected: Manifest) -> str:
    counts = [
        {
            "dataset": manifest.dataset,
            **{f"{name} items": manifest.num_rows(name) for name in manifest.modalities},
        }
        for manifest in (found, expected)
    ]
    return difference(counts[0], counts[1]) or "the same counts, but other ids, files, captions or splits"
