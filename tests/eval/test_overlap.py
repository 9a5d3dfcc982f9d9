from __future__ import annotations

import json
from pathlib import Path

import pytest

from contract.errors import DataError, RunError
from contract.manifest import Manifest, items_table
from contract.store import TargetStore
from eval import embedded, overlap
from eval.runs import Student, open_student

TRAINING = ("train", "train", "val")


@pytest.fixture
def make_trained(make_run, tmp_path):
    """Makes a run of images of the split test and of the stores that it was trained on."""

    def make(dataset: str, items: dict[str, list], *others: tuple[str, dict[str, list]]) -> Student:
        run = make_run(dataset=dataset, modalities=("image", "text"))
        stores = [store_of(tmp_path, number, *other) for number, other in enumerate(others)]
        record = json.loads((run / "run.json").read_text()) | {"stores": [{"path": str(path)} for path in stores]}
        (run / "run.json").write_text(json.dumps(record))
        return replaced(open_student(run, None), items, tmp_path)

    return make


def store_of(folder: Path, number: int, dataset: str, items: dict[str, list]) -> Path:
    path = folder / "stores" / f"{number}.zarr"
    TargetStore.create(path, manifest_of(folder, dataset, {"split": list(TRAINING), **items}))
    return path


def manifest_of(folder: Path, dataset: str, items: dict[str, list]) -> Manifest:
    return Manifest(
        dataset=dataset,
        protocol=dataset,
        media_root=str(folder / "data"),
        items={"image": items_table(items)},
    )


def replaced(student: Student, items: dict[str, list], folder: Path) -> Student:
    """The student with other images in its manifest, all of the split test."""
    manifest = manifest_of(folder, student.dataset, {"split": ["test"] * len(items["id"]), **items})
    student.store.manifest = manifest
    return student


def split_of(student: Student) -> embedded.Embedded:
    manifest = student.store.manifest
    rows = manifest.rows("image", "test")
    found = embedded.Items(rows=rows, ids=manifest.ids("image"), embeddings=rows[:, None], num_quarantined=0)
    return embedded.Embedded(manifest=manifest, split="test", language="", items={"image": found})


def check(student: Student) -> overlap.Overlap:
    return overlap.check(student, split_of(student))


def test_items_of_the_training_split_are_an_error_that_counts_them(make_trained):
    student = make_trained("toy", {"id": ["a", "b", "c", "d"]}, ("toy", {"id": ["d", "b", "c"]}))
    with pytest.raises(DataError, match=r"2 of 4 image items of toy test .*0\.zarr, such as 'b', 'd'"):
        check(student)


def test_the_other_splits_of_a_store_are_no_training(make_trained):
    student = make_trained("toy", {"id": ["c"]}, ("toy", {"id": ["a", "b", "c"]}))
    assert len(check(student).stores) == 1


def test_every_store_of_the_run_is_looked_through(make_trained):
    student = make_trained("toy", {"id": ["a"]}, ("toy", {"id": ["x", "y", "z"]}), ("toy", {"id": ["x", "a", "z"]}))
    with pytest.raises(DataError, match=r"1\.zarr"):
        check(student)


def test_one_file_is_one_item_whatever_its_id_and_dataset(make_trained):
    student = make_trained(
        "toy", {"id": ["a"], "file": ["1.jpg"]}, ("other", {"id": list("xyz"), "file": ["0.jpg", "1.jpg", "2.jpg"]})
    )
    with pytest.raises(DataError, match="1 of 1 image items"):
        check(student)


def test_parts_of_one_file_are_different_items(make_trained):
    parts = ["npz:x[0]", "npz:x[1]", "npz:x[2]"]
    student = make_trained(
        "toy",
        {"id": ["a"], "file": ["x.npz"], "part": ["npz:x[3]"]},
        ("other", {"id": list("xyz"), "file": ["x.npz"] * 3, "part": parts}),
    )
    check(student)


def test_photographs_of_coco_are_known_in_another_year(make_trained):
    student = make_trained(
        "coco",
        {"id": ["val2014/COCO_val2014_000000391895"]},
        ("coco2017", {"id": ["train2017/000000391895", "train2017/000000000001", "val2017/000000000002"]}),
    )
    with pytest.raises(DataError, match="such as 'val2014/COCO_val2014_000000391895'"):
        check(student)


@pytest.mark.parametrize(("size", "is_same"), [(100, True), (101, False), (-1, False)])
def test_an_id_in_another_dataset_is_the_same_item_if_its_file_is_as_large(make_trained, size, is_same):
    student = make_trained(
        "flickr30k",
        {"id": ["1000092795"], "file": ["here/1.jpg"], "size_bytes": [size]},
        (
            "multi30k",
            {
                "id": ["1000092795", "2", "3"],
                "file": ["x/1.jpg", "x/2.jpg", "x/3.jpg"],
                "size_bytes": [100, 100, 1],
            },
        ),
    )
    if is_same:
        with pytest.raises(DataError, match="stand in the training split"):
            check(student)
    else:
        check(student)


def test_copies_of_training_files_are_counted(make_trained, tmp_path):
    (tmp_path / "data").mkdir()
    for name, content in (("1", b"one"), ("2", b"two"), ("copy", b"one"), ("new", b"new")):
        (tmp_path / "data" / name).write_bytes(content)
    student = make_trained(
        "toy",
        {"id": ["a", "b", "c"], "file": ["copy", "new", "gone"], "size_bytes": [3, 3, 3]},
        ("toy", {"id": ["x", "y", "z"], "file": ["1", "2", "3"], "size_bytes": [3, 3, 3]}),
    )
    assert check(student).copies == {"image": 1}


@pytest.mark.parametrize("stores", [None, "stores/a.zarr", [{"dataset": "toy"}]])
def test_a_record_that_does_not_name_its_stores_is_an_error(make_run, stores):
    run = make_run(modalities=("image", "text"))
    (run / "run.json").write_text(json.dumps({"finished": True, "stores": stores}))
    student = open_student(run, None)
    with pytest.raises(RunError, match="`stores` must be the stores that the run was trained on"):
        overlap.check(student, embedded.load(student, split=None, language="en", say=print))


def test_a_store_that_is_gone_is_told(make_run):
    run = make_run(modalities=("image", "text"))
    record = json.loads((run / "run.json").read_text()) | {"stores": [{"path": "stores/gone.zarr"}]}
    (run / "run.json").write_text(json.dumps(record))
    student = open_student(run, None)
    found = overlap.check(student, embedded.load(student, split=None, language="en", say=print))
    assert (found.stores, found.missing) == ((), ("stores/gone.zarr",))
