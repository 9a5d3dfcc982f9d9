"""Where a run keeps what its student says: a student store for each dataset, written by `trainer`, read by `eval`.

RUN/embeddings/<dataset>.zarr     FieldSet `student`, field `embedding`, unit length; its splits val and test, which
                                  every run embeds at its end, and those that `trainer embed` was asked for
"""

from __future__ import annotations

from pathlib import Path

FIELDSET = "student"
FIELD = "embedding"
SPLITS = ("val", "test")


def path(run: Path, dataset: str) -> Path:
    """The student store of one dataset."""
    return run / "embeddings" / f"{dataset}.zarr"


def datasets(run: Path) -> list[str]:
    """The datasets that the run has embedded."""
    return sorted(store.stem for store in (run / "embeddings").glob("*.zarr"))
