from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from contract.store import TargetStore
from trainer.device import Device
from trainer.embed import embed, write_student_store
from trainer.recipes import Recipe
from trainer.resolve import resolve
from trainer.state import State
from trainer.validate import validation_sets

Make = Callable[..., Recipe]
NewStore = Callable[..., TargetStore]

CPU = Device(name="cpu", precision="float32")


def test_student_store_holds_the_embedding_of_every_item_of_the_splits(
    recipe: Make, store: TargetStore, tmp_path: Path
) -> None:
    streams = resolve(recipe(), [store])
    student = State(recipe(), streams, CPU).student
    ((_, inputs),) = streams.stores
    assert write_student_store(tmp_path / "s.zarr", student, recipe().student.embedding_dim, store, inputs, {}, CPU)
    written = TargetStore.open(tmp_path / "s.zarr")
    assert written.manifest.splits("text") == {"val": 64, "test": 64}
    for modality, input_ in inputs.items():
        rows = np.flatnonzero(np.isin(store.manifest.column(modality, "split"), ["val", "test"]))
        assert written.complete(f"{modality}/student")
        assert written.manifest.column(modality, "id") == store.manifest.column(modality, "id", rows)
        found = written.load(f"{modality}/student/embedding", range(len(rows)))
        np.testing.assert_allclose(found, embed(student, store, modality, input_, rows, CPU), atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_quarantined_item_stays_quarantined_in_the_student_store(
    recipe: Make, new_store: NewStore, tmp_path: Path
) -> None:
    # Image row 3 is the quarantined one; here it is the second row of the student store.
    splits = ["train", "train", "val", "test"] + ["train"] * 40
    store = new_store(tmp_path / "tiny.zarr", splits=splits)
    streams = resolve(recipe(), [store])
    ((_, inputs),) = streams.stores
    student = State(recipe(), streams, CPU).student
    write_student_store(tmp_path / "s.zarr", student, recipe().student.embedding_dim, store, inputs, {}, CPU)
    written = TargetStore.open(tmp_path / "s.zarr")
    (entry,) = written.quarantined("image/student")
    assert (entry.row, entry.id, entry.reason) == (1, "image-003", "not an image")
    assert written.usable("image").tolist() == [True, False]
    assert not written.load("image/student/embedding", [1]).any()


def test_embedding_leaves_the_student_in_training_mode(recipe: Make, store: TargetStore) -> None:
    streams = resolve(recipe(), [store])
    student = State(recipe(), streams, CPU).student
    ((_, inputs),) = streams.stores
    first, second = (embed(student, store, "text", inputs["text"], np.arange(9), CPU) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert student.training


def test_validation_ranks_usable_rows_of_the_split_only(recipe: Make, new_store: NewStore, tmp_path: Path) -> None:
    splits = ["train", "train", "val", "val", "val"] + ["train"] * 40
    store = new_store(tmp_path / "tiny.zarr", splits=splits)
    streams = resolve(recipe(), [store])
    found = validation_sets(streams, ("en",))["tiny"]
    assert found.rows["image"].tolist() == [2, 4]
    assert found.rows["audio"].tolist() == [2, 3, 4]
    assert found.pairs["text", "image"].tolist() == [[0, 0], [1, 0], [4, 1], [5, 1]]
    assert ("text", "audio") in found.pairs
    assert ("text", "audio") not in found.trained


def test_modality_without_usable_validation_rows_is_left_out(
    recipe: Make, new_store: NewStore, tmp_path: Path
) -> None:
    streams = resolve(recipe({"languages": ["de"]}), [new_store(tmp_path / "tiny.zarr")])
    found = validation_sets(streams, ("fr",))["tiny"]
    assert set(found.rows) == {"image", "audio"}
    assert "image-to-audio" in found.retrieve(State(recipe(), streams, CPU).student, CPU)
