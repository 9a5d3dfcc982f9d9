from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contract.encodings import Float16
from contract.manifest import Manifest
from contract.schema import Field, FieldSet
from contract.store import TargetStore
from eval import embedded, teacher
from eval.runs import open_student


@pytest.fixture
def split(make_run):
    return embedded.load(open_student(make_run(), None), split="test", language="en", say=print)


def store_of(path: Path, manifest: Manifest, spaces: dict[str, str], *, vectors: int | None = None) -> TargetStore:
    """A target store whose teacher tells each item by the number of its image, in these spaces by modality."""
    store = TargetStore.create(path, manifest)
    for modality, space in spaces.items():
        field = Field(name="embedding", shape=(64,), encoding=Float16(), about={"space": space})
        fieldset = FieldSet(name="clip", modality=modality, fields=(field,), batch_size=8, provenance={})
        store.add(fieldset)
        images = np.arange(manifest.num_rows("image"))
        owners = images if modality == "image" else manifest.positives(modality, "image")[:, 1]
        for shard in range(store.num_shards(fieldset.key) if vectors is None else vectors):
            rows = store.shard_rows(fieldset.key, shard)
            store.write_shard(fieldset.key, shard, {"embedding": 7 * np.eye(64)[owners[rows.start : rows.stop]]})
    return store


def found(store: TargetStore, split: embedded.Embedded) -> tuple[teacher.Teacher, ...]:
    def say(line: str) -> None:
        raise AssertionError(line)

    return teacher.teachers([store], split, say)


def test_a_dual_encoder_is_ranked_on_the_same_items(split, tmp_path):
    store = store_of(tmp_path / "t.zarr", split.manifest, {"image": "a", "text": "a"})
    (one,) = found(store, split)
    assert (one.name, set(one.split.items)) == ("clip", {"image", "text"})
    for modality in ("image", "text"):
        assert (one.split.items[modality].ids == split.items[modality].ids).all()
    image, text = (one.split.items[modality].embeddings.argmax(axis=1) for modality in ("image", "text"))
    owners = split.positives("text", "image")[:, 1]
    assert (text == image[owners]).all()


@pytest.mark.parametrize("spaces", [{"image": "a"}, {"image": "a", "text": "b"}, {}])
def test_a_teacher_without_one_space_for_two_modalities_is_not_there(split, tmp_path, spaces):
    assert found(store_of(tmp_path / "t.zarr", split.manifest, spaces), split) == ()


def test_a_store_of_another_dataset_has_no_teacher_for_this_one(make_run, split, tmp_path):
    other = open_student(make_run("two", dataset="other"), None).store.manifest
    assert found(store_of(tmp_path / "t.zarr", other, {"image": "a", "text": "a"}), split) == ()


def test_a_teacher_that_is_not_finished_is_told(split, tmp_path):
    store = store_of(tmp_path / "t.zarr", split.manifest, {"image": "a", "text": "a"}, vectors=0)
    said: list[str] = []
    assert teacher.teachers([store], split, said.append) == ()
    assert "teacher clip" in said[0]
