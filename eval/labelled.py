"""Labelled items and their vectors: a student's embeddings of a run, or any vector field of a target store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from contract.embeddings import FIELD, FIELDSET
from contract.errors import ConfigError, DataError
from contract.manifest import MODALITIES, NO_LABEL
from contract.storage import store_path
from contract.store import TargetStore
from eval.runs import open_student

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Where vectors are read: `field` is a full reference, such as "image/student/embedding".

    `run` is the run whose student made them, None for a frozen encoder's; `name` says whose they are.
    """

    name: str
    store: TargetStore
    field: str
    run: Path | None = None

    @property
    def modality(self) -> str:
        """Of the items."""
        return self.field.partition("/")[0]

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return self.store.manifest.dataset


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """A split's items that have a label: `ids` str [n], `labels` int64 [n], `vectors` float32 [n, d].

    `num_unlabelled` items have none, `num_quarantined` could not be decoded; both are left out.
    """

    split: str
    ids: npt.NDArray[np.str_]
    labels: Rows
    vectors: npt.NDArray[np.float32]
    num_unlabelled: int
    num_quarantined: int


def of_run(run: Path, dataset: str | None, modality: str | None) -> Source:
    """The embeddings of a finished run, by default of the first modality that has labels."""
    student = open_student(run, dataset)
    modality = modality or _labelled_modality(student.store, student.modalities)
    if modality not in student.modalities:
        raise DataError(
            f"{student.store.path} has no embeddings of {modality!r} items, only of {', '.join(student.modalities)}"
        )
    name = f"student {run.name} ({student.recipe})"
    return Source(name=name, store=student.store, field=f"{modality}/{FIELDSET}/{FIELD}", run=run)


def of_store(path: str, field: str) -> Source:
    """A field of a target store, such as "image/features" or "image/teacher/features"."""
    store = TargetStore.open(store_path(path))
    store.require_intact_manifest()
    modality, slash, name = field.partition("/")
    if not slash or modality not in MODALITIES:
        raise ConfigError(f"--field {field}: name the modality too, as in image/{field.rpartition('/')[2]}")
    reference = store.find(modality, name)
    shape = store.field(reference).shape
    if len(shape) != 1:
        raise ConfigError(
            f"--field {field}: {store.path} has {reference} of shape {list(shape)}, and a vector for each item is "
            "expected"
        )
    store.require_complete([reference.rpartition("/")[0]])
    return Source(name=reference, store=store, field=reference)


def require_alike(sources: Sequence[Source]) -> None:
    """Raise `ConfigError` unless all are of one dataset and modality, so that one table can hold them."""
    for other in sources[1:]:
        first = sources[0]
        if (other.dataset, other.modality) != (first.dataset, first.modality):
            raise ConfigError(
                f"{other.store.path} {other.field} is of {other.modality} items of {other.dataset}, and "
                f"{first.store.path} {first.field} of {first.modality} items of {first.dataset}; measure them "
                "apart, or choose with --dataset and --modality"
            )


def has_labels(source: Source, split: str) -> bool:
    """Whether any item of the split has a label; False without such a split."""
    manifest, modality = source.store.manifest, source.modality
    return bool(set(manifest.column(modality, "label", manifest.rows(modality, split))) - {NO_LABEL})


def load(source: Source, split: str) -> Labelled:
    """Read the labelled items of a split."""
    store, modality = source.store, source.modality
    of_split = store.manifest.rows(modality, split)
    if not len(of_split):
        raise _no_split(source, split)
    usable = of_split[store.usable(modality, [source.field.rpartition("/")[0]])[of_split]]
    labels = np.array(store.manifest.column(modality, "label", usable), dtype=np.int64)
    rows, labels = usable[labels != NO_LABEL], labels[labels != NO_LABEL]
    if not len(rows):
        raise DataError(
            f"{store.path}: no {modality} item of split {split} has a label; labels come with the manifest"
        )
    ids = np.array(store.manifest.column(modality, "id", rows), dtype=np.str_)
    vectors = store.load(source.field, rows, check=True).astype(np.float32, copy=False)
    if len(bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
        raise DataError(
            f"{store.path}: {source.field} of {len(bad):,} of {len(ids):,} items of split {split} has values that "
            f"are not finite, such as that of {str(ids[bad[0]])!r}"
        )
    return Labelled(
        split=split,
        ids=ids,
        labels=labels,
        vectors=vectors,
        num_unlabelled=len(usable) - len(rows),
        num_quarantined=len(of_split) - len(usable),
    )


def notes(items: Labelled) -> list[str]:
    """What was left out, a line each."""
    left_out = {"without a label": items.num_unlabelled, "that could not be decoded": items.num_quarantined}
    return [f"{items.split}: items {what}, left out: {number:,}" for what, number in left_out.items() if number]


def require_classes(source: Source, items: Labelled) -> None:
    """Raise `DataError` where all items are of one class, so that there is nothing to tell apart."""
    if len(np.unique(items.labels)) < 2:
        raise DataError(
            f"{source.store.path}: all {len(items.labels):,} labelled {source.modality} items of split "
            f"{items.split} have the label {items.labels[0]}: there are no classes to tell apart"
        )


def _labelled_modality(store: TargetStore, modalities: tuple[str, ...]) -> str:
    for modality in modalities:
        if set(store.manifest.column(modality, "label")) - {NO_LABEL}:
            return modality
    raise DataError(f"{store.path}: no item of {', '.join(modalities)} has a label; labels come with the manifest")


def _no_split(source: Source, split: str) -> DataError:
    counts = source.store.manifest.splits(source.modality)
    known = ", ".join(f"{name} ({count:,} items)" for name, count in counts.items())
    remedy = "" if source.run is None else f"; `trainer embed --run {source.run} --split {split}` adds it"
    return DataError(f"{source.store.path} has no {source.modality} items of split {split!r}, only {known}{remedy}")
