"""Items of equal content: the same bytes in another file, and the same stretch of them where it is a sound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contract.manifest import Manifest
from contract.repeats import Hashes, hashes, is_among, mixed, repeated
from contract.tables import Rows, take
from pipeline.checking.inputs import NUM_HASHED

COLUMNS = ("id", "file", "part", "split", "start_ms", "length_ms")


def groups(manifest: Manifest, modality: str, contents: pa.Table) -> Iterator[list[dict[str, Any]]]:
    """The readable items of each content that more than one of them has, with `COLUMNS`, first come first."""
    rows = _doubtful(manifest, modality, contents)
    items = manifest.items[modality]
    columns = {name: take(items.column(name), rows).to_pylist() for name in COLUMNS}
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for place, content in enumerate(take(contents.column("hash"), rows).to_pylist()):
        item = {name: values[place] for name, values in columns.items()}
        found.setdefault((content, item["start_ms"], item["length_ms"]), []).append(item)
    return (group for group in found.values() if len(group) > 1)


def shared_captions(manifest: Manifest) -> int:
    """How many captions of the splits for evaluation stand word for word in another split too."""
    evaluated = [np.concatenate([np.empty(0, np.uint64), *_captions(manifest, split)]) for split in ("val", "test")]
    distinct, counts = np.unique(np.concatenate([np.unique(one) for one in evaluated]), return_counts=True)
    is_shared = counts > 1
    for block in _captions(manifest, "train"):
        is_shared |= np.isin(distinct, block)
    return sum(int(np.isin(one, distinct[is_shared]).sum()) for one in evaluated)


def _captions(manifest: Manifest, split: str) -> Iterator[Hashes]:
    """64 bits of each caption of a split, uint64 [n] at a time."""
    for batch in manifest.items["text"].select(["text", "split"]).to_batches():
        yield hashes(batch.filter(pc.equal(batch.column("split"), split)).column("text"))


def _doubtful(manifest: Manifest, modality: str, contents: pa.Table) -> Rows:
    """The rows of items whose content seems to be another one's too, int64 [n]."""
    values = repeated(keys for _, keys in _keys(manifest, modality, contents))
    found = (rows[is_among(keys, values)] for rows, keys in _keys(manifest, modality, contents))
    return np.concatenate([np.empty(0, np.int64), *found])


def _keys(manifest: Manifest, modality: str, contents: pa.Table) -> Iterator[tuple[Rows, Hashes]]:
    """Row numbers of readable items, int64 [n], and 64 bits of what each holds, uint64 [n], some at a time."""
    stretches, start = manifest.items[modality].select(["start_ms", "length_ms"]), 0
    for batch in contents.select(["hash", "reason"]).to_batches():
        begins, lengths = (
            column.to_numpy().astype(np.int64).view(np.uint64)
            for column in stretches.slice(start, batch.num_rows).columns
        )
        whole = np.frombuffer(batch.column("hash").buffers()[1], np.uint64)
        keys = whole.reshape(-1, NUM_HASHED // 8)[: batch.num_rows, 0] ^ mixed(begins ^ mixed(lengths))
        rows = np.flatnonzero(pc.equal(batch.column("reason"), "").to_numpy(zero_copy_only=False))
        yield start + rows, keys[rows]
        start += batch.num_rows
