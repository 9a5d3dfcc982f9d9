"""Free queries: a text, a picture or a sound that is no item, encoded by the bundle that `trainer export` wrote."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from contract.bundle import DESCRIPTION, BundleError, Embedder
from contract.embeddings import FIELDSET, SPLITS
from contract.errors import DataError, MissingExtraError, RunError
from eval.runs import Student
from eval.search import COLUMNS, Found, Shown, search_by
from eval.vectors import Embeddings, Vectors

# Of a run, where its bundle lies.
BUNDLE = "export"
# The column of an item that a query fills; the others are those of an item that has nothing.
CONTENT = {"text": "text", "image": "file", "audio": "file"}
EMPTY = {"start_ms": 0, "length_ms": -1, "label": -1}


def search(
    student: Student,
    modality: str,
    content: str,
    *,
    split: str | None = None,
    language: str | None = None,
    k: int = 10,
    say: Callable[[str], None],
) -> Found:
    """The `k` nearest items of each modality to a text, or to the picture or sound in a file, its `content`.

    They are looked for in `split`, by default test, or val where there is no test; `say` is told which. Captions
    are of one `language` or all.
    """
    query = encode(student, modality, content)
    about = {name: EMPTY.get(name, "") for name in COLUMNS} | {CONTENT[modality]: content}
    item = Shown(modality=modality, about=about)
    return search_by(student, query, item, split=_split(student, split, say), language=language, k=k)


def encode(student: Student, modality: str, content: str) -> Embeddings:
    """The embedding, float32 [1, d], of a text, or of the picture or sound in a file."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtraError(
            "free queries need onnxruntime: `pip install onnxruntime`, or Precept with its extra `export`"
        )
    folder = student.run / BUNDLE
    write = f"`trainer export {student.run}`"
    if not (folder / DESCRIPTION).is_file():
        raise RunError(f"{student.run} has no bundle that encodes queries; {write} writes it")
    if modality != "text" and not Path(content).is_file():
        raise DataError(f"{content}: no such file")
    embedder = Embedder(folder)
    try:
        if embedder.description["weights"] != _weights(student):
            raise RunError(f"{folder} is of other weights than the run's embeddings; {write} writes it anew")
        found = embedder.embed(modality, [content])
    except BundleError as error:
        raise DataError(f"{error}") from error
    # Brought to unit length as every item's is.
    vectors = Vectors(name=content, num_rows=1, width=found.shape[1], load=lambda rows: found[rows])
    return vectors.read(np.array([0]))


def _weights(student: Student) -> str:
    """The fingerprint of the checkpoint that made the run's embeddings."""
    provenance = student.store.fieldsets[f"{student.modalities[0]}/{FIELDSET}"].provenance
    return str(provenance.get("recipe", {}).get("weights", ""))


def _split(student: Student, wanted: str | None, say: Callable[[str], None]) -> str:
    manifest = student.store.manifest
    known = {split for modality in student.modalities for split in manifest.splits(modality)}
    split = wanted or next((name for name in reversed(SPLITS) if name in known), None) or min(known)
    if split not in known:
        raise DataError(f"{student.store.path} has no split {split!r}; it has: {', '.join(sorted(known))}")
    if wanted is None:
        say(f"split: {split}")
    return split
