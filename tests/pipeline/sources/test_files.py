from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from contract.errors import ConfigError, DataError
from contract.manifest import UNKNOWN_SIZE
from pipeline.sources.files import (
    IMAGE_SUFFIXES,
    Files,
    HashedSplit,
    first_file,
    fullest_folder,
    relative,
    split_named,
    walk,
)


def written(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


@pytest.mark.parametrize(
    ("path", "short"),
    [("a.jpg", "a.jpg"), ("./a//b.jpg", "a/b.jpg"), ("a/./b.jpg", "a/b.jpg"), ("..a/b..jpg", "..a/b..jpg")],
)
def test_path_is_shortened(path: str, short: str) -> None:
    assert relative(path, "x.csv: line 2") == short


@pytest.mark.parametrize("path", ["/etc/passwd", "../a.jpg", "a/../../b.jpg", "a/..", "//a"])
def test_path_out_of_the_root_is_refused(path: str) -> None:
    with pytest.raises(DataError, match=r"x\.csv: line 2: .* points out of the data root"):
        relative(path, "x.csv: line 2")


@pytest.mark.parametrize("path", ["", ".", "a\0b", "\udcff.jpg"])
def test_path_that_names_no_file_is_refused(path: str) -> None:
    with pytest.raises(DataError, match=r"x\.csv: line 2: .* is not the name of a file"):
        relative(path, "x.csv: line 2")


def test_sizes_are_of_files_alone(tmp_path: Path) -> None:
    written(tmp_path, "a.jpg", "b/c.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    sizes = Files(tmp_path).sizes(["a.jpg", "b/c.jpg", "a.jpg", "missing/d.jpg", "b", "pipe.jpg"])
    assert sizes == [5, 7, 5, UNKNOWN_SIZE, UNKNOWN_SIZE, UNKNOWN_SIZE]


def test_folder_that_is_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "elsewhere/a.jpg", "root/b.jpg")
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"root/link is a link out of the data root, to .*elsewhere"):
        Files(tmp_path / "root").sizes(["link/a.jpg"])
    with pytest.raises(DataError, match=r"root/link is a link out of the data root"):
        list(walk(tmp_path / "root", ".", IMAGE_SUFFIXES))


def test_folder_that_is_a_link_within_the_root_is_no_second_copy(tmp_path: Path) -> None:
    written(tmp_path, "val/a.jpg")
    (tmp_path / "validation").symlink_to(tmp_path / "val")
    assert Files(tmp_path).sizes(["validation/a.jpg"]) == [9]
    with pytest.raises(DataError, match="validation is a link to a folder"):
        list(walk(tmp_path, ".", IMAGE_SUFFIXES))


def test_root_may_be_a_link(tmp_path: Path) -> None:
    written(tmp_path, "data/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert Files(tmp_path / "link").sizes(["a.jpg"]) == [10]
    assert list(walk(tmp_path / "link", ".", IMAGE_SUFFIXES)) == ["a.jpg"]


def test_walk_is_sorted_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    written(
        tmp_path, "b/2.JPEG", "b/1.png", "a.jpg", "c/x.heic", "c/README", ".hidden/d.jpg", "b/._1.png", "z.webp"
    )
    others: Counter[str] = Counter()
    assert list(walk(tmp_path, ".", IMAGE_SUFFIXES, others)) == ["a.jpg", "b/1.png", "b/2.JPEG", "z.webp"]
    assert others == {".heic": 1, "": 1}
    assert list(walk(tmp_path, "b", IMAGE_SUFFIXES)) == ["b/1.png", "b/2.JPEG"]


def test_file_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).touch()
    with pytest.raises(DataError, match="not UTF-8"):
        list(walk(tmp_path, ".", IMAGE_SUFFIXES))


def test_first_file_that_is_there_is_taken(tmp_path: Path) -> None:
    written(tmp_path, "b.json", "c.json")
    assert first_file("tiny", tmp_path, ["a.json", "b.json", "c.json"], "it") == tmp_path / "b.json"
    with pytest.raises(DataError, match=r"dataset tiny is not on disk: .*a\.json; .* where DIR holds all of it"):
        first_file("tiny", tmp_path, ["a.json"], "all of it")


def test_annotations_behind_a_link_out_of_the_root_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "elsewhere.json", "root/a.jpg")
    (tmp_path / "root/a.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(DataError, match="is a link out of the data root"):
        first_file("tiny", tmp_path / "root", ["a.json"], "it")


def test_fullest_folder_is_taken(tmp_path: Path) -> None:
    written(tmp_path, "x/a.jpg", "y/a.jpg", "y/b.jpg")
    assert fullest_folder("tiny", tmp_path, ["x", "y", "z"], ["a.jpg", "b.jpg"]) == "y"
    with pytest.raises(DataError, match=r"none of its 1 files is there: looked for .*x/c\.jpg, .*y/c\.jpg"):
        fullest_folder("tiny", tmp_path, ["x", "y"], ["c.jpg"])


def test_splits_are_known_by_their_usual_names() -> None:
    names = ["train", "Training", "VALID", "validation", "dev ", "test"]
    assert [split_named(name, "here") for name in names] == ["train", "train", "val", "val", "val", "test"]
    for wrong in ("holdout", "", None, 3):
        with pytest.raises(DataError, match=r"^here: .* is not a split; there are: train, training, val"):
            split_named(wrong, "here")


def test_hashed_split_follows_from_the_id_alone() -> None:
    ids = [f"{number}.jpg" for number in range(10_000)]
    splits = [HashedSplit(val=0.05, test=0.1).of(id_) for id_ in ids]
    counts = Counter(splits)
    assert 400 < counts["val"] < 600
    assert 900 < counts["test"] < 1100
    assert [row for row in range(40) if splits[row] == "test"] == [11, 12, 30, 38], "never to change"
    assert {HashedSplit().of(id_) for id_ in ids} == {"train"}
    larger = [HashedSplit(val=0.08, test=0.1).of(id_) for id_ in ids]
    assert all(new == "val" for old, new in zip(splits, larger, strict=True) if old == "val")


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0), (0.6, 0.6), (float("nan"), 0)])
def test_shares_that_are_none_are_refused(val: float, test: float) -> None:
    with pytest.raises(ConfigError, match="not shares of a whole"):
        HashedSplit(val=val, test=test)
