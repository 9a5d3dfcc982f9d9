"""What a dataset gained: rows are only ever appended, and what was there before must be there still."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contract.errors import DataError
from contract.tables import ITEMS, Rows, as_mask

if TYPE_CHECKING:
    from contract.manifest import Manifest


def new_items(dataset: str, modality: str, present: pa.Table, newer: pa.Table) -> tuple[Rows, pa.Table]:
    """Row of `newer` -> row after growth, int64 [n], and the items that are new."""
    old_rows = pc.index_in(newer.column("id"), value_set=present.column("id"))
    is_new = as_mask(pc.is_null(old_rows))
    num_kept = len(is_new) - int(is_new.sum())
    if num_kept < present.num_rows:
        gone = present.filter(pc.invert(pc.is_in(present.column("id"), value_set=newer.column("id"))))
        raise DataError(
            f"dataset {dataset}: {gone.num_rows:,} of {present.num_rows:,} {modality} items are gone, such as "
            f"{gone.column('id')[0].as_py()!r}"
        )
    places = np.empty(len(is_new), np.int64)
    places[is_new] = present.num_rows + np.arange(int(is_new.sum()))
    places[~is_new] = old_rows.filter(pa.array(~is_new)).to_numpy()
    kept = newer.filter(pa.array(~is_new)).take(pa.array(np.argsort(places[~is_new])))
    for name in ITEMS.names:
        differs = np.flatnonzero(as_mask(pc.not_equal(kept.column(name), present.column(name))))
        if len(differs):
            row = int(differs[0])
            raise DataError(
                f"dataset {dataset}: {len(differs):,} {modality} items have another {name}, such as "
                f"{present.column('id')[row].as_py()!r}: {kept.column(name)[row].as_py()!r}, "
                f"not {present.column(name)[row].as_py()!r}"
            )
    return places, newer.filter(pa.array(is_new))


def new_pairs(manifest: Manifest, kind: str, present: pa.Table, newer: pa.Table) -> pa.Table:
    """The pairs of `newer` (rows after growth) that are not `present`, in the order of their rows."""
    names = newer.column_names
    in_order = [(name, "ascending") for name in names]
    gone = present.join(newer, keys=names, join_type="left anti").sort_by(in_order)
    if gone.num_rows:
        ends = [manifest.column(name, "id", [gone.column(name)[0].as_py()])[0] for name in names]
        raise DataError(
            f"dataset {manifest.dataset}: {gone.num_rows:,} of {present.num_rows:,} {kind} pairs are gone, such as "
            f"{' and '.join(map(repr, ends))}"
        )
    return newer.join(present, keys=names, join_type="left anti").sort_by(in_order).select(present.column_names)


def segments(sizes: tuple[int, ...], num_rows: int) -> tuple[int, ...]:
    """One segment more, if there are rows for it."""
    added = num_rows - sum(sizes)
    return (*sizes, added) if added or not sizes else sizes
