"""Nearest neighbours in every modality, by exact scores: of an item among its own split, or of a vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from contract.embeddings import FIELDSET
from contract.errors import ConfigError, DataError
from contract.tables import as_mask
from eval import exact
from eval.runs import Student
from eval.vectors import Embeddings, stored

Rows = npt.NDArray[np.int64]

COLUMNS = ("id", "file", "part", "start_ms", "length_ms", "text", "language", "label")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An item: `about` has its columns of the manifest."""

    modality: str
    about: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """An item and its cosine; `belongs` says whether it is paired with the query, None where nothing says so."""

    item: Shown
    score: float
    belongs: bool | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The neighbours of an item, by modality, nearest first; a query that is no item has no id."""

    student: Student
    split: str
    item: Shown
    neighbours: Mapping[str, Sequence[Neighbour]]


def search(
    student: Student, item: str, *, modality: str | None, language: str | None, k: int, say: Callable[[str], None]
) -> Found:
    """The `k` nearest of each modality to the item of this id, among captions of one `language` or all.

    `modality` is the item's; where several have the id and none is given, the first is taken, and `say` is told.
    """
    if k < 1:
        raise ConfigError(f"--k {k}: at least one neighbour")
    own, row = _find(student, item, modality, say)
    split = student.store.manifest.column(own, "split", [row])[0]
    _check_language(student, split, language)
    query = stored(student.store, own, np.array([row])).read(np.array([0]))
    neighbours = {
        name: _nearest(student, query, name, split, language, k, (own, row)) for name in student.modalities
    }
    return Found(student=student, split=split, item=_shown(student, own, [row])[0], neighbours=neighbours)


def search_by(
    student: Student, query: Embeddings, item: Shown, *, split: str, language: str | None, k: int
) -> Found:
    """The `k` nearest of each modality in a split to a vector of `item`, float32 [1, d], unit length."""
    if k < 1:
        raise ConfigError(f"--k {k}: at least one neighbour")
    _check_language(student, split, language)
    neighbours = {name: _nearest(student, query, name, split, language, k, None) for name in student.modalities}
    return Found(student=student, split=split, item=item, neighbours=neighbours)


def _find(student: Student, item: str, modality: str | None, say: Callable[[str], None]) -> tuple[str, int]:
    """The modality and the row of the item, which has an embedding."""
    manifest = student.store.manifest
    if modality is not None and modality not in student.modalities:
        raise DataError(
            f"{student.store.path} has no embeddings of modality {modality!r}; --modality may be one of: "
            f"{', '.join(student.modalities)}"
        )
    found = {}
    for name in student.modalities if modality is None else [modality]:
        rows = np.flatnonzero(as_mask(pc.equal(manifest.items[name].column("id"), item)))
        if len(rows):
            found[name] = int(rows[0])
    if not found:
        held = [name for name in student.modalities if manifest.num_rows(name)]
        examples = [f"{manifest.column(name, 'id', [0])[0]!r} ({name})" for name in held]
        raise DataError(
            f"{student.store.path} has no {modality or 'item'} {item!r}; ids are such as {', '.join(examples)}"
        )
    name, row = next(iter(found.items()))
    if len(found) > 1:
        say(f"modality: {name} ({item!r} is an id of {' and '.join(found)} items; --modality says which)")
    if not student.store.usable(name, [f"{name}/{FIELDSET}"])[row]:
        raise DataError(f"{student.store.path}: {name} {item!r} could not be decoded, it has no embedding")
    return name, row


def _check_language(student: Student, split: str, language: str | None) -> None:
    if language is None:
        return
    if "text" not in student.modalities:
        raise DataError(f"{student.store.path} has no captions: leave out --language")
    manifest = student.store.manifest
    known = sorted(set(manifest.column("text", "language", manifest.rows("text", split))) - {""})
    if language not in known:
        raise DataError(
            f"{student.store.path}: split {split} has no captions in language {language!r}; "
            f"--language may be one of: {', '.join(known)}"
        )


def _nearest(
    student: Student,
    query: Embeddings,
    other: str,
    split: str,
    language: str | None,
    k: int,
    source: tuple[str, int] | None,
) -> tuple[Neighbour, ...]:
    """The nearest items of modality `other`; `source` is the query's modality and row, if it is an item."""
    store = student.store
    own, row = source or ("", -1)
    rows = store.manifest.rows(other, split, languages=None if language is None else [language])
    rows = rows[store.usable(other, [f"{other}/{FIELDSET}"])[rows]]
    if other == own:
        rows = rows[rows != row]
    if not len(rows):
        return ()
    gallery = stored(store, other, rows)
    ids = np.array(store.manifest.column(other, "id", rows), dtype=np.str_)
    nearest = exact.nearest(query, gallery, ids, min(k, len(rows)))
    pairs = store.manifest.positives(own, other) if own not in ("", other) else np.empty((0, 2), np.int64)
    positives = set(pairs[pairs[:, 0] == row, 1].tolist())
    return tuple(
        Neighbour(item=item, score=float(score), belongs=None if own in ("", other) else at in positives)
        for item, score, at in zip(
            _shown(student, other, rows[nearest[0]]),
            exact.scores(query, gallery, nearest)[0],
            rows[nearest[0]].tolist(),
            strict=True,
        )
    )


def _shown(student: Student, modality: str, rows: Sequence[int] | Rows) -> list[Shown]:
    columns = [student.store.manifest.column(modality, name, rows) for name in COLUMNS]
    return [
        Shown(modality=modality, about=dict(zip(COLUMNS, values, strict=True)))
        for values in zip(*columns, strict=True)
    ]
