"""How relevant items are to each other: from a table, or from the labels of the manifest.

    --grades grades.csv     image,text,grade
                            test-000000,test-000017#en-2,1.5

The header names two modalities; pairs that the table does not have are of grade 0. Without a table, items that
belong together have grade 2, items of one label 1; a caption or sound without a label has that of what it belongs
to.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from contract.errors import DataError
from contract.manifest import MODALITIES, NO_LABEL
from contract.ranking import Grades
from eval.embedded import Embedded

Rows = npt.NDArray[np.int64]
Double = npt.NDArray[np.float64]

BELONGS = 2.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Grades of pairs of two modalities, read from `file`; `ids` are a pair's, in the order of `modalities`."""

    file: Path
    modalities: tuple[str, str]
    ids: tuple[tuple[str, str], ...]
    grades: Double


def read(path: Path) -> Table:
    """Read a table of grades; `DataError` names the line that is not as it should be."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: can't be read as a table of grades: {error}") from error
    header = lines[0] if lines else []
    first, second, *rest = header if len(header) == 3 else ("", "", "")
    if rest != ["grade"] or first == second or not {first, second} <= set(MODALITIES):
        raise DataError(
            f"{path}: its header is {','.join(header)!r}; expected two modalities and `grade`, as in "
            "image,text,grade"
        )
    seen: dict[tuple[str, str], float] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            a, b, grade = line
            value = float(grade)
        except ValueError as error:
            raise DataError(f"{path}:{number}: expected two ids and a number, found {','.join(line)!r}") from error
        if not 0 <= value <= 100 or seen.setdefault((a, b), value) != value:
            raise DataError(
                f"{path}:{number}: grade {grade} of {a!r} and {b!r}: expected one number for each pair, from "
                "0 to 100"
            )
    if not any(seen.values()):
        raise DataError(f"{path}: it has no grade above 0: nothing is relevant to anything")
    return Table(file=path, modalities=(first, second), ids=tuple(seen), grades=np.array([*seen.values()]))


def require_known(table: Table, split: Embedded, say: Callable[[str], None]) -> None:
    """Raise `DataError` if no pair of the table is among the split's items; `say` is told of those that are not."""
    where = f"split {split.split} of {split.manifest.dataset}"
    if lacking := [modality for modality in table.modalities if modality not in split.items]:
        raise DataError(
            f"{table.file}: it grades {' and '.join(table.modalities)}; {where} has no {lacking[0]} items"
        )
    known = [set(split.items[modality].ids.tolist()) for modality in table.modalities]
    unknown = [ids for ids in table.ids if not (ids[0] in known[0] and ids[1] in known[1])]
    example = " and ".join(map(repr, unknown[0])) if unknown else ""
    if len(unknown) == len(table.ids):
        raise DataError(f"{table.file}: none of its pairs, such as {example}, is among the items of {where}")
    if unknown:
        say(
            f"note: {table.file}: {len(unknown):,} of {len(table.ids):,} pairs are not among the items of {where}, "
            f"such as {example}: left out"
        )


def grades(split: Embedded, first: str, second: str, positives: Rows, table: Table | None) -> Grades | None:
    """How relevant the items of `second` are to those of `first`; None where nothing is known beyond the pairs.

    `positives` int64 [p, 2] are positions in the items of both.
    """
    if table is not None:
        return _of_table(split, first, second, table)
    labels = [_labels(split, modality) for modality in (first, second)]
    if not all((found >= 0).any() for found in labels):
        return None
    return Grades(
        pairs=positives,
        grades=np.full(len(positives), BELONGS),
        query_labels=labels[0],
        gallery_labels=labels[1],
    )


def _of_table(split: Embedded, first: str, second: str, table: Table) -> Grades | None:
    if {first, second} != set(table.modalities):
        return None
    sides = (0, 1) if table.modalities == (first, second) else (1, 0)
    places: list[Mapping[str, int]] = [
        {name: place for place, name in enumerate(split.items[modality].ids.tolist())}
        for modality in (first, second)
    ]
    pairs = np.array(
        [[place.get(ids[side], -1) for side, place in zip(sides, places, strict=True)] for ids in table.ids],
        np.int64,
    )
    known = (pairs >= 0).all(axis=1)
    unlabelled = [np.full(len(split.items[modality].rows), NO_LABEL) for modality in (first, second)]
    return Grades(
        pairs=pairs[known], grades=table.grades[known], query_labels=unlabelled[0], gallery_labels=unlabelled[1]
    )


def _labels(split: Embedded, modality: str) -> Rows:
    """Each item's label, or that of the first labelled item it belongs to, int64 [n]."""
    own = np.array(split.manifest.column(modality, "label", split.items[modality].rows), dtype=np.int64)
    for other in split.items:
        if other == modality or (own >= 0).all():
            continue
        mine, theirs = split.positives(modality, other).T
        labels = np.array(split.manifest.column(other, "label", split.items[other].rows), dtype=np.int64)[theirs]
        wanted = (labels >= 0) & (own[mine] < 0)
        # The first of an item comes last here, and stays.
        own[mine[wanted][::-1]] = labels[wanted][::-1]
    return own
