"""Pair scores: what a cross-encoder says of every query and its candidates; written by `trainer`, read by `eval`.

RUN/scores/<dataset>-<split>-<queries>-to-<gallery>.npz     (-<language> before the suffix where captions take part)
    queries      int64 [q]        rows of the student store, each once
    candidates   int64 [q, k]     rows of the student store: the k nearest of each query by its embedding
    scores       float32 [q, k]   of each pair; higher is better
    about        JSON: dataset, split, language, queries, gallery, k, and the student whose candidates they are
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract import fingerprint, npz
from contract.embeddings import FIELD, FIELDSET
from contract.errors import RunError
from contract.files import replacing
from contract.schema import difference
from contract.store import TargetStore

Rows = npt.NDArray[np.int64]

ARRAYS = {"queries": ("int64", 1), "candidates": ("int64", 2), "scores": ("float32", 2)}
REMEDY = "have the trainer write the scores again"


@dataclass(frozen=True, kw_only=True)
class Direction:
    """Which ranking the scores are of; `language` is that of the captions, "" where none take part."""

    dataset: str
    split: str
    queries: str
    gallery: str
    language: str = ""

    @property
    def name(self) -> str:
        """The file's name, without suffix."""
        language = f"-{self.language}" if self.language else ""
        return f"{self.dataset}-{self.split}-{self.queries}-to-{self.gallery}{language}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Of one direction: `query_rows` int64 [q], `candidate_rows` int64 [q, k], `scores` float32 [q, k]."""

    query_rows: Rows
    candidate_rows: Rows
    scores: npt.NDArray[np.float32]

    @property
    def k(self) -> int:
        """Candidates of each query."""
        return int(self.scores.shape[1])


def path(run: Path, direction: Direction) -> Path:
    """Where the scores of a direction lie."""
    return run / "scores" / f"{direction.name}.npz"


def write(run: Path, direction: Direction, scores: Scores, student: TargetStore) -> Path:
    """Write the scores of a direction, of candidates that `student`'s embeddings chose, in one step."""
    destination = path(run, direction)
    destination.parent.mkdir(parents=True, exist_ok=True)
    _check(scores, direction, student, destination)
    about = asdict(direction) | {"k": scores.k, "student": _identity(scores, direction, student)}
    with replacing(destination) as file:
        np.savez(
            file,
            queries=scores.query_rows,
            candidates=scores.candidate_rows,
            scores=scores.scores,
            about=np.array(json.dumps(about)),
        )
    return destination


def read(run: Path, direction: Direction, student: TargetStore) -> Scores:
    """Read the scores of a direction; `RunError` if they are of another student, or not what was written."""
    source = path(run, direction)
    if not source.is_file():
        known = ", ".join(sorted(file.stem for file in source.parent.glob("*.npz")))
        raise RunError(
            f"{source}: no such file; a cross-encoder's run writes the scores of its candidates there; "
            f"there are: {known or 'none'}"
        )
    about, scores = _load(source)
    whose = about.pop("student", None)
    if wrong := difference(about, asdict(direction) | {"k": scores.k}):
        raise RunError(f"{source}: the scores are of something else: {wrong}; {REMEDY}")
    _check(scores, direction, student, source)
    if wrong := difference(whose, _identity(scores, direction, student), "student"):
        raise RunError(f"{source}: the scores are of another student or other items: {wrong}; {REMEDY}")
    return scores


def _identity(scores: Scores, direction: Direction, student: TargetStore) -> dict[str, Any]:
    """Fingerprints of the items that were scored and of their embeddings: a student store that grew is the same."""
    sides = {direction.queries: scores.query_rows, direction.gallery: scores.candidate_rows}
    found = {}
    for modality, of_side in sides.items():
        rows = np.unique(of_side)
        embeddings = student.load(f"{modality}/{FIELDSET}/{FIELD}", rows)
        found[modality] = {
            "ids": fingerprint.of_tree(student.manifest.column(modality, "id", rows)),
            "embeddings": fingerprint.of_bytes(np.ascontiguousarray(embeddings).data),
        }
    return found


def _load(source: Path) -> tuple[dict[str, Any], Scores]:
    try:
        arrays = npz.read(source)
        about = dict(json.loads(str(arrays["about"])))
        arrays = {name: arrays[name] for name in ARRAYS}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{source} is damaged, or no file of scores: {error}; {REMEDY}") from error
    for name, (dtype, num_dimensions) in ARRAYS.items():
        found = arrays[name]
        if found.dtype != dtype or found.ndim != num_dimensions:
            raise RunError(
                f"{source}: `{name}` is {found.dtype} {list(found.shape)}, and {dtype} with {num_dimensions} "
                f"dimensions is expected; {REMEDY}"
            )
    return about, Scores(query_rows=arrays["queries"], candidate_rows=arrays["candidates"], scores=arrays["scores"])


def _check(scores: Scores, direction: Direction, student: TargetStore, file: Path) -> None:
    """Raise `RunError` for arrays that no cross-encoder can have written of this student store."""
    num_queries, k = len(scores.query_rows), scores.k
    if scores.candidate_rows.shape != (num_queries, k) or scores.scores.shape != (num_queries, k) or not k:
        raise RunError(
            f"{file}: {num_queries} queries with candidates {list(scores.candidate_rows.shape)} and scores "
            f"{list(scores.scores.shape)}; both are [queries, k], k at least 1"
        )
    for modality, rows in ((direction.queries, scores.query_rows), (direction.gallery, scores.candidate_rows)):
        num_rows = student.manifest.num_rows(modality)
        if rows.size and not (rows.min() >= 0 and rows.max() < num_rows):
            raise RunError(
                f"{file}: {modality} rows {rows.min()} to {rows.max()}, and {student.path} has {num_rows}"
            )
    if len(np.unique(scores.query_rows)) < num_queries:
        raise RunError(f"{file}: a query stands there more than once")
    ordered = np.sort(scores.candidate_rows, axis=1)
    for bad, what in (
        ((ordered[:, 1:] == ordered[:, :-1]).any(axis=1), "has a candidate more than once"),
        (~np.isfinite(scores.scores).all(axis=1), "has a score that is not finite"),
    ):
        if bad.any():
            row = int(scores.query_rows[np.argmax(bad)])
            name = student.manifest.column(direction.queries, "id", [row])[0]
            raise RunError(
                f"{file}: query {name!r} {what} ({int(bad.sum()):,} of {num_queries:,} queries); {REMEDY}"
            )
