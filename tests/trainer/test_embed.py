from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from contract import embeddings
from contract.errors import ConfigError, DataError, RunError
from contract.store import TargetStore
from trainer import runs, student_stores
from trainer.cli import app
from trainer.device import Device
from trainer.embed import embed, write_student_store
from trainer.fit import fit
from trainer.recipes import Recipe
from trainer.resolve import resolve
from trainer.state import State

Make = Callable[..., Recipe]
NewStore = Callable[..., TargetStore]

CPU = Device(name="cpu", precision="float32")


@pytest.fixture
def finished(recipe: Make, store: TargetStore, tmp_path: Path) -> runs.Run:
    """A run of one epoch, with its student store of val and test."""
    run = runs.begin(recipe({"epochs": 1}), [store.path], tmp_path / "run")
    fit(run)
    return run


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


def test_training_split_is_added_and_nothing_that_was_there_changes(
    finished: runs.Run, store: TargetStore, tmp_path: Path
) -> None:
    path = embeddings.path(finished.path, "tiny")
    before = TargetStore.open(path)
    rows = range(before.manifest.num_rows("text"))
    assert student_stores.grow(finished, ["train"], []) == [path]
    after = TargetStore.open(path)
    assert after.manifest.splits("text") == {"val": 64, "test": 64, "train": 192}
    for modality in ("image", "text", "audio"):
        assert after.complete(f"{modality}/student")
        assert sorted(after.manifest.column(modality, "id")) == sorted(store.manifest.column(modality, "id"))
    assert after.manifest.column("text", "id", rows) == before.manifest.column("text", "id")
    np.testing.assert_array_equal(*(one.load("text/student/embedding", rows) for one in (before, after)))
    # The captions of an image stand beside it, as they did in the store that they come from.
    pairs = {tuple(ids) for ids in zip(*pair_ids(after), strict=True)}
    assert pairs == set(zip(*pair_ids(store), strict=True))
    assert {entry.id for entry in after.quarantined("image/student")} == {"image-003"}


def pair_ids(store: TargetStore) -> list[list[str]]:
    pairs = store.manifest.positives("image", "text")
    return [store.manifest.column(name, "id", rows) for name, rows in zip(("image", "text"), pairs.T, strict=True)]


def test_embeddings_of_the_training_split_are_the_best_checkpoints(finished: runs.Run, store: TargetStore) -> None:
    student_stores.grow(finished, ["train"], [])
    state = State(finished.recipe, finished.streams, CPU)
    state.restore_student(finished.best)
    ((_, inputs),) = finished.streams.stores
    written = TargetStore.open(embeddings.path(finished.path, "tiny"))
    ids = written.manifest.column("audio", "id", written.manifest.rows("audio", "train"))
    rows = np.array([store.manifest.column("audio", "id").index(name) for name in ids])
    found = written.load("audio/student/embedding", written.manifest.rows("audio", "train"))
    np.testing.assert_allclose(found, embed(state.student, store, "audio", inputs["audio"], rows, CPU), atol=1e-6)


def test_embedding_that_was_killed_is_continued_without_naming_the_split_again(finished: runs.Run) -> None:
    (path,) = student_stores.grow(finished, ["train"], [])
    TargetStore.open(path).discard("image/student", 0)
    assert not TargetStore.open(path).complete("image/student")
    student_stores.grow(finished, [], [])
    assert TargetStore.open(path).complete("image/student")
    assert TargetStore.open(path).manifest.splits("image") == {"val": 16, "test": 16, "train": 48}


def test_another_dataset_of_the_same_encoders_is_embedded_beside_the_runs_own(
    finished: runs.Run, new_store: NewStore, tmp_path: Path
) -> None:
    other = new_store(tmp_path / "other.zarr", dataset="other", seed=1, with_logits=False)
    (path,) = student_stores.grow(finished, ["train", "test"], [other.path])
    assert path == embeddings.path(finished.path, "other")
    written = TargetStore.open(path)
    assert written.manifest.splits("image") == {"train": 48, "test": 16}
    # Nothing of it was trained on, so all of it may be evaluated on.
    assert written.fieldsets["image/student"].provenance["train_splits"] == []


def test_dataset_of_another_encoder_is_refused(finished: runs.Run, new_store: NewStore, tmp_path: Path) -> None:
    other = new_store(tmp_path / "other.zarr", dataset="other", model="another")
    with pytest.raises(ConfigError, match=r"come from different encoders: recipe\.model: 'another', not 'drawn'"):
        student_stores.grow(finished, ["test"], [other.path])


def test_split_that_is_not_there_is_named(finished: runs.Run, new_store: NewStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no split 'dev'; its splits: test, train, val"):
        student_stores.grow(finished, ["dev"], [])
    other = new_store(tmp_path / "other.zarr", dataset="other", splits=["train"] * 40)
    with pytest.raises(DataError, match=r"has no split 'test'; its splits: train"):
        student_stores.grow(finished, ["test"], [other.path])
    with pytest.raises(DataError, match=r"has no items in val or test; its splits: train; see --split"):
        student_stores.grow(finished, [], [other.path])


def test_a_dataset_is_the_runs_own_store_or_the_one_that_precompute_made(
    finished: runs.Run, new_store: NewStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = new_store(tmp_path / "stores" / "other.zarr", dataset="other", seed=1)
    assert student_stores.of_dataset(finished, "tiny") == finished.streams.stores[0][0].path
    assert TargetStore.open(student_stores.of_dataset(finished, "other")).manifest.fingerprint == (
        other.manifest.fingerprint
    )
    with pytest.raises(
        DataError, match=r"--dataset nowhere: the run's datasets are tiny, and .*nowhere\.zarr is no"
    ):
        student_stores.of_dataset(finished, "nowhere")


def test_unfinished_run_embeds_nothing(recipe: Make, store: TargetStore, tmp_path: Path) -> None:
    run = runs.begin(recipe(), [store.path], tmp_path / "run")
    with pytest.raises(RunError, match=r"run is not finished; `trainer run --run .*run --resume` finishes it"):
        student_stores.grow(run, ["train"], [])


def test_command_embeds_and_prints_the_student_store(finished: runs.Run) -> None:
    done = CliRunner().invoke(app, ["embed", "--run", str(finished.path), "--split", "train"])
    assert done.stdout == f"{embeddings.path(finished.path, 'tiny')}\n"
    assert TargetStore.open(done.stdout.strip()).manifest.splits("image")["train"] == 48
