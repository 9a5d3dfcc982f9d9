"""What a frozen dual encoder scores on the same items: the ceiling of a student that learns from it.

A teacher can do the task where the target store of the run has its vectors of two modalities in one space, which is
what `about["space"]` of a field says (encoders/clip.py). It is read from the store that run.json names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from contract.store import TargetStore
from eval.embedded import Embedded, Items


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """A dual encoder: `name`, and the split with its vectors instead of the student's."""

    name: str
    split: Embedded


def teachers(stores: Sequence[TargetStore], split: Embedded, say: Callable[[str], None]) -> tuple[Teacher, ...]:
    """Those of the split's dataset; `say` is told of one that can't be ranked."""
    found = []
    for store in stores:
        if store.manifest.dataset != split.manifest.dataset:
            continue
        for fields in _spaces(store).values():
            name = " and ".join(dict.fromkeys(reference.split("/")[1] for reference in fields.values()))
            if len(set(fields) & set(split.items)) < 2:
                continue
            items = {
                m: _items(store, fields[m], m, split.split, split.items[m]) for m in split.items if m in fields
            }
            if any(one is None for one in items.values()):
                say(f"note: teacher {name} of {store.path} has no vectors of some of these items: it is left out")
                continue
            vectors = {modality: one for modality, one in items.items() if one is not None}
            found.append(Teacher(name=name, split=replace(split, items=vectors)))
    return tuple(found)


def _spaces(store: TargetStore) -> dict[str, dict[str, str]]:
    """{space: {modality: field}} of the fields that tell their space."""
    spaces: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for key, fieldset in store.fieldsets.items():
        for field in fieldset.fields:
            if "space" in field.about:
                spaces[str(field.about["space"])].setdefault(fieldset.modality, f"{key}/{field.name}")
    return dict(spaces)


def _items(store: TargetStore, reference: str, modality: str, split: str, wanted: Items) -> Items | None:
    """The same items with the teacher's vectors; None if the store lacks one of them."""
    key = reference.rpartition("/")[0]
    known = store.manifest.rows(modality, split)
    ids = np.array(store.manifest.column(modality, "id", known), dtype=np.str_)
    order = np.argsort(ids)
    rows = known[order[np.minimum(np.searchsorted(ids[order], wanted.ids), len(ids) - 1)]] if len(ids) else known
    is_there = store.manifest.column(modality, "id", rows) == wanted.ids.tolist()
    if not is_there or not store.complete(key) or not store.usable(modality, [key])[rows].all():
        return None
    return replace(wanted, embeddings=store.load(reference, rows, check=True).astype(np.float32, copy=False))
