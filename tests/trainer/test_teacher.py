from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from contract.errors import StoreError
from contract.store import TargetStore
from trainer import fit, runs, teacher
from trainer.recipes import Recipe
from trainer.resolve import resolve
from trainer.streams import Streams

KEY = "image/teacher"
Make = Callable[..., Recipe]
NewStore = Callable[..., TargetStore]


def labelled(store: TargetStore, labels: np.ndarray, num_classes: int = 8) -> TargetStore:
    """The store with these labels of its images, in memory, once its streams have been resolved."""
    images = store.manifest.items["image"]
    column = images.schema.get_field_index("label")
    items = {
        **store.manifest.items,
        "image": images.set_column(column, "label", pa.array(labels, pa.int32())),
    }
    store.manifest = replace(store.manifest, items=items, num_classes=num_classes)
    return store


def said(store: TargetStore) -> np.ndarray:
    """The class that the stored logits name."""
    classes: np.ndarray = store.load(f"{KEY}/logits", range(store.manifest.num_rows("image"))).argmax(axis=1)
    return classes


def streams(recipe: Make, store: TargetStore) -> Streams:
    return resolve(recipe(), [store])


def test_accuracy_is_that_of_the_stored_targets(recipe: Make, new_store: NewStore, tmp_path: Path) -> None:
    store = new_store(tmp_path / "tiny.zarr")
    labels = said(store)
    labels[:24] = (labels[:24] + 1) % 8  # half of the 48 training images; image 3 of them is quarantined
    resolved = streams(recipe, store)
    labelled(store, labels)
    (found,) = teacher.restored(resolved)
    assert (found.reference, found.num_samples) == (f"{KEY}/logits", 47)
    assert found.accuracy == pytest.approx(24 / 47)
    assert not found.is_surprising


def test_items_without_labels_of_the_teachers_classes_are_not_scored(
    recipe: Make, new_store: NewStore, tmp_path: Path
) -> None:
    store = new_store(tmp_path / "tiny.zarr")
    resolved = streams(recipe, store)
    assert not list(teacher.restored(resolved))
    labelled(store, said(store), num_classes=9)
    assert not list(teacher.restored(resolved))
    labelled(store, np.full(80, -1))
    assert not list(teacher.restored(resolved))


@pytest.mark.parametrize(("gate", "surprising"), [(0.95, True), (0.2, False)])
def test_targets_far_below_what_the_gate_said_are_refused(
    recipe: Make, new_store: NewStore, tmp_path: Path, gate: float, surprising: bool
) -> None:
    store = new_store(tmp_path / "tiny.zarr")
    resolved = streams(recipe, store)
    figure = {"what": "top-1 accuracy", "value": gate, "chance": 1 / 8, "num_samples": 200}
    store.write_gate(store.fieldsets[KEY], figure)
    labelled(store, (said(store) + 1) % 8)
    (found,) = teacher.restored(resolved)
    assert found.accuracy == 0
    assert found.is_surprising == surprising


def test_run_on_such_targets_stops_before_its_first_step(recipe: Make, new_store: NewStore, tmp_path: Path) -> None:
    store = new_store(tmp_path / "tiny.zarr")
    figure = {"what": "top-1 accuracy", "value": 0.95, "chance": 1 / 8, "num_samples": 200}
    store.write_gate(store.fieldsets[KEY], figure)
    run = runs.begin(recipe(), [store.path], tmp_path / "run")
    (stream, *_) = run.streams.streams
    labelled(stream.store, (said(stream.store) + 1) % 8)
    with pytest.raises(StoreError, match=r"top-1 accuracy 0.0% on 47 \(gate: 95.0%\): the stored targets are not"):
        fit.fit(run)
    assert not run.checkpoints.all()
