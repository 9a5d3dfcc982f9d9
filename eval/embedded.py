"""A split as a student embedded it: the items of each modality that are evaluated, and who belongs to whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contract.embeddings import FIELD, FIELDSET
from contract.errors import DataError
from contract.manifest import Manifest
from eval.runs import Student

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Items:
    """One modality's items: `rows` int64 [n] in the manifest, `ids` str [n], `embeddings` float32 [n, d].

    `num_quarantined` items of the split could not be decoded and are left out.
    """

    rows: Rows
    ids: npt.NDArray[np.str_]
    embeddings: npt.NDArray[np.float32]
    num_quarantined: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """A split's items by modality; `language` is that of the captions, "" without captions."""

    manifest: Manifest
    split: str
    language: str
    items: Mapping[str, Items]

    def positives(self, first: str, second: str) -> Rows:
        """Every (item of first, item of second) that belong together, int64 [p, 2], as positions in `items`."""
        rows = {modality: items.rows for modality, items in self.items.items()}
        return self.manifest.positives_among(first, second, rows)


def load(student: Student, *, split: str | None, language: str, say: Callable[[str], None]) -> Embedded:
    """Read a split's embeddings; without a `split` it is test, or val where nothing is in test."""
    split = split or _default_split(student, say)
    _check_split(student, split)
    if split in student.train_splits:
        raise DataError(
            f"{student.run} was trained on split {split!r} of {student.dataset}: it can't be evaluated on it"
        )
    if "text" in student.modalities:
        _check_language(student, split, language)
    else:
        language = ""
    _check_widths(student)
    items = {modality: _items(student, modality, split, language) for modality in student.modalities}
    return Embedded(
        manifest=student.store.manifest,
        split=split,
        language=language,
        items={modality: found for modality, found in items.items() if len(found.rows)},
    )


def _items(student: Student, modality: str, split: str, language: str) -> Items:
    store, key = student.store, f"{modality}/{FIELDSET}"
    of_split = store.manifest.rows(modality, split, languages=[language])
    rows = of_split[store.usable(modality, [key])[of_split]]
    ids = np.array(store.manifest.column(modality, "id", rows), dtype=np.str_)
    embeddings = store.load(f"{key}/{FIELD}", rows, check=True)
    # Without an array of flags as large as the embeddings; a sum of finite values may overflow.
    finite = np.isfinite(embeddings.min(axis=1)) & np.isfinite(embeddings.max(axis=1))
    if not finite.all():
        raise DataError(
            f"{store.path}: the embeddings of {int((~finite).sum()):,} of {len(ids):,} {modality} items of split "
            f"{split} have values that are not finite, such as that of {str(ids[np.argmin(finite)])!r}: train again"
        )
    return Items(rows=rows, ids=ids, embeddings=embeddings, num_quarantined=len(of_split) - len(rows))


def _default_split(student: Student, say: Callable[[str], None]) -> str:
    if "test" in _splits(student):
        return "test"
    say(f"split: val ({student.dataset} has no test split here)")
    return "val"


def _check_split(student: Student, split: str) -> None:
    known = _splits(student)
    if split not in known:
        counts = ", ".join(f"{name} ({count:,} items)" for name, count in known.items())
        raise DataError(f"{student.store.path} has no split {split!r}; it has: {counts or 'nothing'}")


def _splits(student: Student) -> dict[str, int]:
    counts: dict[str, int] = {}
    for modality in student.modalities:
        for name, count in student.store.manifest.splits(modality).items():
            counts[name] = counts.get(name, 0) + count
    return counts


def _check_widths(student: Student) -> None:
    """Raise `DataError` unless the embeddings of every modality are vectors of one width."""
    shapes = {
        modality: student.store.field(f"{modality}/{FIELDSET}/{FIELD}").shape for modality in student.modalities
    }
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        found = ", ".join(f"{modality} {list(shape)}" for modality, shape in shapes.items())
        raise DataError(
            f"{student.store.path}: embeddings must be vectors of one width, and have the shapes {found}"
        )


def _check_language(student: Student, split: str, language: str) -> None:
    manifest = student.store.manifest
    if len(manifest.rows("text", split, languages=[language])) or not len(manifest.rows("text", split)):
        return
    known = sorted(set(manifest.column("text", "language", manifest.rows("text", split))))
    raise DataError(
        f"{student.store.path}: split {split} has no captions in language {language!r}; "
        f"--language may be one of: {', '.join(known)}"
    )
