"""Evaluation from a notebook: a run's embeddings, its figures, and searches in it.

    from eval import api as evaluation

docs/api.md shows all of it. Mistakes raise children of `contract.errors.UserError`, whose text is the line that a
command would print. Nothing is written but by `retrieval`, whose reports lie in RUN/reports as the command's do.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from contract.embeddings import FIELD, FIELDSET
from contract.errors import ConfigError, DataError
from contract.ranking import KS
from eval.runs import open_student

if TYPE_CHECKING:
    from eval.search import Found


def retrieval(
    run: str | Path,
    *,
    dataset: str | None = None,
    split: str | None = None,
    language: str = "en",
    protocol: str | None = None,
    ks: Sequence[int] = KS,
) -> dict[str, Any]:
    """Rank a split in every direction: the JSON report, such as ["directions"]["text-to-image"]["R@10"]."""
    from eval import report
    from eval.retrieval import evaluate

    student = open_student(Path(run), dataset)
    measured = evaluate(student, split=split, language=language, index=None, say=_say, protocol=protocol, ks=ks)
    report.write(measured, Path(run) / "reports")
    return report.as_tree(measured)


def embeddings(
    run: str | Path, modality: str, *, dataset: str | None = None, split: str = "test"
) -> tuple[list[str], npt.NDArray[np.float32]]:
    """The ids of a split's items, and their embeddings float32 [n, D]; items that were not decoded are left out."""
    student = open_student(Path(run), dataset)
    store, key = student.store, f"{modality}/{FIELDSET}"
    if modality not in student.modalities:
        raise DataError(f"{store.path} has no {modality} embeddings, only {', '.join(student.modalities)}")
    rows = store.manifest.rows(modality, split)
    rows = rows[store.usable(modality, [key])[rows]]
    return store.manifest.column(modality, "id", rows), store.load(f"{key}/{FIELD}", rows)


def search(
    run: str | Path,
    *,
    id: str | None = None,
    text: str | None = None,
    image: str | Path | None = None,
    audio: str | Path | None = None,
    dataset: str | None = None,
    language: str | None = None,
    k: int = 10,
) -> Found:
    """The `k` nearest items of each modality to an item, or to a text, a picture or a sound of one's own.

    The last three are encoded by the run's bundle, which `trainer.api.export` writes.
    """
    from eval import queries
    from eval import search as searching

    asked = {"id": id, "text": text, "image": image, "audio": audio}
    given = {name: str(value) for name, value in asked.items() if value is not None}
    if len(given) != 1:
        raise ConfigError(f"search: give one of {', '.join(asked)}, not {' and '.join(given) or 'none'}")
    ((name, content),) = given.items()
    student = open_student(Path(run), dataset)
    if name == "id":
        return searching.search(student, content, modality=None, language=language, k=k, say=_say)
    return queries.search(student, name, content, language=language, k=k, say=_say)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
