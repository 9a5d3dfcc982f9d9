"""What a bundle's models are worth: against the run's own embeddings, and int8 against float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from contract import bundle, embeddings
from contract.bundle import Embedder
from contract.errors import RunError
from contract.manifest import Manifest
from contract.store import TargetStore
from contract.tables import TO_THE_END
from trainer.runs import Run

if TYPE_CHECKING:
    from trainer.export.bundle import Model

# Of the run's own items, how many of each modality are embedded by the bundle.
NUM_ITEMS = 32
# Less than this cosine with the run's own embedding is another model, or another file.
LEAST_COSINE = 0.99


@dataclass(frozen=True, kw_only=True, eq=False)
class Checked:
    """A model and its figures.

    `own` is its largest difference from the run's embeddings of `num_items` items, whose files lie here (0: none
    do). `int8` are the cosines of the quantized model's embeddings with its own, None without one; sizes are of the
    files.
    """

    model: Model
    size_bytes: int
    own: float
    num_items: int
    int8: npt.NDArray[np.float64] | None
    int8_size_bytes: int

    def __str__(self) -> str:
        about = self.model.about
        told = f"{about['model']}: {self.size_bytes / 1e6:.1f} MB, within {self.model.difference:.0e} of torch, "
        if self.num_items:
            told += f"within {self.own:.0e} of the run's embeddings of {self.num_items} items"
        else:
            told += "none of the run's items are here to compare it with"
        if self.int8 is not None:
            told += f"; {about['int8']}: {self.int8_size_bytes / 1e6:.1f} MB, cosine at least {self.int8.min():.4f}"
        return told


def check(run: Run, folder: Path, model: Model) -> Checked:
    """Embed some of the run's own items with the model; `RunError` where it says what the run did not."""
    items, wanted = _items(run, model.modality)
    try:
        found = Embedder(folder).embed(model.modality, items)
    except bundle.BundleError as error:
        raise RunError(str(error)) from error
    cosines = _cosines(found, wanted)
    if len(items) and cosines.min() < LEAST_COSINE:
        raise RunError(
            f"{run.path}: the exported model's embedding of {items[int(cosines.argmin())]} has a cosine of only "
            f"{cosines.min():.3f} with the run's own; have the dataset's files changed since?"
        )
    quantized = folder / model.about["int8"] if "int8" in model.about else None
    return Checked(
        model=model,
        size_bytes=(folder / model.about["model"]).stat().st_size,
        own=float(np.abs(found - wanted).max(initial=0)),
        num_items=len(items),
        int8=None if quantized is None else _quantized(folder, model, items),
        int8_size_bytes=0 if quantized is None else quantized.stat().st_size,
    )


def _quantized(folder: Path, model: Model, items: list[str]) -> npt.NDArray[np.float64]:
    """Cosines, [n], of int8 with float32: of the items, or of what stands in for them."""
    both = [Embedder(folder, int8=int8) for int8 in (False, True)]
    if items:
        return _cosines(*(one.embed(model.modality, items) for one in both))
    tensors = zip(model.portable.inputs, model.portable.example(NUM_ITEMS), strict=True)
    inputs = {name: tensor.numpy() for name, tensor in tensors}
    return _cosines(*(one.run(model.modality, inputs) for one in both))


def _cosines(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Of rows [n, D] of unit length."""
    cosines: npt.NDArray[np.float64] = np.einsum("nd,nd->n", one, other, dtype=np.float64)
    return cosines


def _items(run: Run, modality: str) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Of items that the run has embedded, captions or paths of files that lie here, and embeddings [n, D]."""
    key = f"{modality}/{embeddings.FIELDSET}"
    for dataset in embeddings.datasets(run.path):
        store = TargetStore.open(embeddings.path(run.path, dataset))
        if key not in store.fieldsets or store.missing(key):
            continue
        usable = np.flatnonzero(store.usable(modality, [key]))
        rows = (
            usable[np.unique(np.linspace(0, len(usable) - 1, NUM_ITEMS).astype(np.int64))]
            if len(usable)
            else usable
        )
        found = _present(store.manifest, modality, rows.tolist())
        if found:
            return list(found.values()), store.load(f"{key}/{embeddings.FIELD}", list(found))
    return [], np.empty((0, run.recipe.student.embedding_dim), np.float32)


def _present(manifest: Manifest, modality: str, rows: list[int]) -> dict[int, str]:
    """By row, the captions, and the files that lie here and are one item as a whole."""
    found = {}
    for row, item in zip(rows, manifest.items[modality].take(rows).to_pylist(), strict=True):
        path = Path(manifest.media_root) / item["file"]
        if item["text"]:
            found[row] = str(item["text"])
        elif _is_whole(item) and path.is_file():
            found[row] = str(path)
    return found


def _is_whole(item: Mapping[str, Any]) -> bool:
    return not item["part"] and not item["start_ms"] and bool(item["length_ms"] == TO_THE_END)
