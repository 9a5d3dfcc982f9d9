"""Whether items that are evaluated were trained on, in any of the run's stores.

An item was trained on if, in a training split,

    - the same dataset has its id,
    - any dataset has its file, or its part of that file,
    - another dataset of COCO has its photograph: an id that ends in the same twelve digits,
    - another dataset has its id, and a file of as many bytes.

Files that are equal byte for byte under other names are told, not refused: official splits have some.
"""

from __future__ import annotations

import filecmp
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contract import embeddings
from contract.embeddings import FIELDSET
from contract.errors import DataError, RunError, UserError
from contract.manifest import Manifest
from contract.storage import is_url, store_path
from contract.store import TargetStore
from contract.tables import UNKNOWN_SIZE
from eval.embedded import Embedded
from eval.runs import Student

NUM_EXAMPLES = 3
ENDING_BYTES = 4096
COLUMNS = ("id", "file", "part", "start_ms", "size_bytes")


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What the evaluated items were compared with.

    `stores` are those whose training splits were looked through, `missing` those that are not there any more;
    `copies` counts, by modality, items whose file is byte for byte one of training, under another name.
    """

    stores: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    copies: Mapping[str, int] = field(default_factory=dict)


def check(student: Student, split: Embedded) -> Overlap:
    """Raise `DataError` if an item of the split was trained on."""
    stores, missing = target_stores(student)
    copies: dict[str, int] = {}
    for store in stores:
        manifest = store.manifest
        for modality in set(manifest.modalities) & set(split.items):
            train = _training_items(student, manifest, modality)
            mine = split.manifest.items[modality].select(COLUMNS).take(pa.array(split.items[modality].rows))
            _require_apart(split, modality, mine, store, train)
            if found := _num_copies(split.manifest, mine, manifest, train):
                copies[modality] = copies.get(modality, 0) + found
    return Overlap(stores=tuple(str(store.path) for store in stores), missing=missing, copies=copies)


def target_stores(student: Student) -> tuple[list[TargetStore], tuple[str, ...]]:
    """The stores that the run was trained on, as far as they are still there; and the paths of the others."""
    found, missing = [], []
    for path in _recorded(student.run):
        store = _open(path, student.run)
        if store is None:
            missing.append(path)
        else:
            found.append(store)
    return found, tuple(missing)


def _recorded(run: Path) -> list[str]:
    path = run / "run.json"
    record: Mapping[str, Any] = json.loads(path.read_text())
    try:
        return [str(entry["path"]) for entry in record.get("stores", [])]
    except (TypeError, KeyError) as error:
        raise RunError(
            f"{path}: `stores` must be the stores that the run was trained on, each with its path; found "
            f"{record['stores']!r}"
        ) from error


def _open(path: str, run: Path) -> TargetStore | None:
    """A store by the path that the run knew it by: relative to this folder, or to the one that held runs/."""
    places = [path] if is_url(path) or Path(path).is_absolute() else [path, str(run.resolve().parent.parent / path)]
    for place in places:
        try:
            return TargetStore.open(store_path(place))
        except (UserError, OSError):
            continue
    return None


def _training_items(student: Student, manifest: Manifest, modality: str) -> pa.Table:
    """The items of the splits that were trained on."""
    splits = _train_splits(student, manifest.dataset)
    table = manifest.items[modality]
    is_trained = pc.is_in(table.column("split"), value_set=pa.array(splits, pa.string()))
    return table.select(COLUMNS).filter(is_trained)


def _train_splits(student: Student, dataset: str) -> list[str]:
    """What the run's student stores say; a dataset without items to embed has none, and was trained on `train`."""
    path = embeddings.path(student.run, dataset)
    if dataset == student.dataset:
        return sorted(student.train_splits)
    if not TargetStore.exists(path):
        return ["train"]
    fieldsets = TargetStore.open(path).fieldsets
    students = [fieldset for key, fieldset in fieldsets.items() if key.endswith(f"/{FIELDSET}")]
    return sorted({split for one in students for split in one.provenance.get("train_splits", ())}) or ["train"]


def _require_apart(split: Embedded, modality: str, mine: pa.Table, store: TargetStore, train: pa.Table) -> None:
    mask = np.zeros(mine.num_rows, bool)
    for own, theirs in _keys(split.manifest, mine, store.manifest, train):
        same = pc.and_(pc.is_in(own, value_set=theirs), pc.not_equal(own, ""))
        mask |= same.to_numpy(zero_copy_only=False)
    if not mask.any():
        return
    examples = mine.column("id").filter(pa.array(mask)).slice(0, NUM_EXAMPLES).to_pylist()
    raise DataError(
        f"{int(mask.sum()):,} of {len(mask):,} {modality} items of {split.manifest.dataset} {split.split} stand in "
        f"the training split of {store.path}, such as {', '.join(map(repr, examples))}: a student can't be "
        "evaluated on what it was trained on"
    )


def _keys(manifest: Manifest, mine: pa.Table, other: Manifest, train: pa.Table) -> Iterator[tuple[Any, Any]]:
    """What makes two items the same: pairs of columns, "" where an item has no such key."""
    yield _file_keys(manifest, mine), _file_keys(other, train)
    if manifest.dataset == other.dataset:
        yield mine.column("id"), train.column("id")
        return
    yield _sized_ids(mine), _sized_ids(train)
    if manifest.dataset.startswith("coco") and other.dataset.startswith("coco"):
        yield _photographs(mine), _photographs(train)


def _file_keys(manifest: Manifest, items: pa.Table) -> pa.ChunkedArray:
    """Where an item lies."""
    root = str(Path(manifest.media_root).resolve())
    start = pc.cast(items.column("start_ms"), pa.string())
    key = pc.binary_join_element_wise(root, items.column("file"), items.column("part"), start, "\n")
    return pc.if_else(pc.equal(items.column("file"), ""), "", key)


def _sized_ids(items: pa.Table) -> pa.ChunkedArray:
    size = items.column("size_bytes")
    key = pc.binary_join_element_wise(items.column("id"), pc.cast(size, pa.string()), "\n")
    return pc.if_else(pc.equal(size, UNKNOWN_SIZE), "", key)


def _photographs(items: pa.Table) -> pa.ChunkedArray:
    """COCO's number of a photograph: val2014/COCO_val2014_000000391895 and val2017/000000391895 are one."""
    ids = items.column("id")
    is_numbered = pc.match_substring_regex(ids, r"(^|[/_])\d{12}$")
    return pc.if_else(is_numbered, pc.utf8_slice_codeunits(ids, -12), "")


def _num_copies(manifest: Manifest, mine: pa.Table, other: Manifest, train: pa.Table) -> int:
    """How many items have the bytes of an item of training; files that can't be read are no copies."""
    sizes = pc.is_in(mine.column("size_bytes"), value_set=train.column("size_bytes"))
    mine = mine.filter(pc.and_(sizes, _is_whole_file(mine)))
    sizes = pc.is_in(train.column("size_bytes"), value_set=mine.column("size_bytes"))
    train = train.filter(pc.and_(sizes, _is_whole_file(train)))
    trained = defaultdict(list)
    for key, path in _endings(other, train):
        trained[key].append(path)
    return sum(
        any(filecmp.cmp(path, known, shallow=False) for known in trained[key])
        for key, path in _endings(manifest, mine)
    )


def _is_whole_file(items: pa.Table) -> pa.ChunkedArray:
    has_size = pc.and_(
        pc.not_equal(items.column("size_bytes"), UNKNOWN_SIZE), pc.not_equal(items.column("file"), "")
    )
    return pc.and_(pc.equal(items.column("part"), ""), has_size)


def _endings(manifest: Manifest, items: pa.Table) -> Iterator[tuple[bytes, Path]]:
    """Each file with its last bytes, by which few that differ are alike."""
    for name in items.column("file").to_pylist():
        path = Path(manifest.media_root) / name
        try:
            with path.open("rb") as file:
                file.seek(-min(ENDING_BYTES, path.stat().st_size), os.SEEK_END)
                yield file.read(), path
        except OSError:
            continue
