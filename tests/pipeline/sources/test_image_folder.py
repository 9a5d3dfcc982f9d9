from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from contract.errors import DataError
from contract.manifest import Manifest
from pipeline.building import build
from pipeline.datasets import load
from pipeline.sources.files import HashedSplit
from pipeline.sources.image_folder import ImageFolder


def images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)
    return root


def built(root: Path, **settings: Any) -> Manifest:
    return build(ImageFolder(**settings), "tiny", root)


def test_folders_of_splits_and_classes_are_recognised(tmp_path: Path) -> None:
    images(
        tmp_path, "train/dog/b.JPEG", "train/cat/x/a.png", "validation/dog/c.jpg", "Test/newt/d.webp", "test/e.jpg"
    )
    manifest = load("image_folder").build(tmp_path)
    assert manifest.ids("image").tolist() == manifest.column("image", "file")
    found = zip(*(manifest.column("image", name) for name in ("file", "split", "label")), strict=True)
    assert list(found) == [
        ("Test/newt/d.webp", "test", 2),
        ("test/e.jpg", "test", -1),
        ("train/cat/x/a.png", "train", 0),
        ("train/dog/b.JPEG", "train", 1),
        ("validation/dog/c.jpg", "val", 1),
    ]
    assert manifest.num_classes == 3
    assert min(manifest.column("image", "size_bytes")) > 0


def test_folders_of_classes_are_recognised(tmp_path: Path) -> None:
    images(tmp_path, "dog/a.jpg", "cat/b.jpg", "10/c.jpg", "9/d.jpg", "e.jpg")
    manifest = built(tmp_path)
    assert manifest.column("image", "file") == ["10/c.jpg", "9/d.jpg", "cat/b.jpg", "dog/a.jpg", "e.jpg"]
    assert manifest.column("image", "label") == [0, 1, 2, 3, -1]
    assert manifest.splits("image") == {"train": 5}


@pytest.mark.parametrize(
    "names", [("a.jpg", "b.png"), ("all/a.jpg", "all/b.jpg"), ("train/a.jpg", "train/x/b.jpg")]
)
def test_images_in_no_classes_have_no_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    manifest = built(images(tmp_path, *names))
    assert manifest.column("image", "label") == [-1, -1]
    assert manifest.num_classes == 0


def test_layout_can_be_named(tmp_path: Path) -> None:
    images(tmp_path, "bus/a.jpg", "train/b.jpg")
    with pytest.raises(DataError, match="bus is or holds an image, beside the splits train; `layout: splits`"):
        built(tmp_path)
    assert built(tmp_path, layout="splits").column("image", "file") == ["train/b.jpg"]
    assert built(tmp_path, layout="classes").column("image", "label") == [0, 1]
    assert built(tmp_path, layout="flat").column("image", "label") == [-1, -1]
    with pytest.raises(DataError, match=r"bus: no folder of a split in it; there are: a\.jpg"):
        built(tmp_path, layout="splits", folder="bus")


def test_image_beside_the_splits_is_not_left_out_silently(tmp_path: Path) -> None:
    images(tmp_path, "train/a.jpg", "cover.png")
    (tmp_path / "labels.csv").touch()
    with pytest.raises(DataError, match=r"cover\.png is or holds an image, beside the splits train"):
        built(tmp_path)


def test_shares_are_set_aside_of_the_training_images(tmp_path: Path) -> None:
    images(tmp_path, *(f"train/{n}.png" for n in range(50)), *(f"test/{n}.png" for n in range(5)))
    splits = built(tmp_path, split=HashedSplit(val=0.3)).splits("image")
    assert splits.pop("test") == 5
    assert sum(splits.values()) == 50
    assert 5 < splits["val"] < 25


def test_ids_and_splits_stay_when_images_are_added_and_the_folder_is_moved(tmp_path: Path) -> None:
    names = [f"x/{number}.png" for number in range(40)]
    few = built(images(tmp_path / "a", *names[::2]), split=HashedSplit(val=0.3))
    many = built(images(tmp_path / "b/pictures", *names), split=HashedSplit(val=0.3))
    below = built(tmp_path / "b", folder="pictures", split=HashedSplit(val=0.3))
    found = [
        dict(zip(m.ids("image").tolist(), m.column("image", "split"), strict=True)) for m in (few, many, below)
    ]
    assert found[0].items() <= found[1].items()
    assert found[1] == found[2]
    assert below.column("image", "file", [0]) == ["pictures/x/0.png"]


def test_class_file_gives_the_order(tmp_path: Path) -> None:
    images(tmp_path, "cat/a.jpg", "dog/b.jpg")
    (tmp_path / "classes.txt").write_text("dog\nbird\ncat\n")
    manifest = built(tmp_path, classes="classes.txt")
    assert (manifest.column("image", "label"), manifest.num_classes) == ([2, 0], 3)
    (tmp_path / "classes.txt").write_text("dog\nbird\n")
    with pytest.raises(DataError, match=r"cat/a\.jpg: 'cat' is none of the 2 classes"):
        built(tmp_path, classes="classes.txt")


def test_files_that_are_no_images_are_said(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "x/b.jpg")
    (tmp_path / "x/c.heic").touch()
    (tmp_path / "README").touch()
    (tmp_path / ".DS_Store").touch()
    said: list[str] = []
    build(ImageFolder(), "tiny", tmp_path, said.append)
    assert said == [
        f"{tmp_path}: 2 files are no images by their suffix and are left out: 1 without a suffix, 1 .heic"
    ]


def test_folder_without_an_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.heic").touch()
    with pytest.raises(DataError, match=r"no image in it; there are: 1 \.heic"):
        built(tmp_path)
    with pytest.raises(DataError, match=r"tiny is not on disk: looked for .*/none"):
        built(tmp_path, folder="none")


def test_links_are_refused(tmp_path: Path) -> None:
    images(tmp_path, "elsewhere/a.jpg", "root/dog/b.jpg")
    (tmp_path / "root/cat").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="root/cat is a link out of the data root"):
        built(tmp_path / "root")
    with pytest.raises(DataError, match="root/cat is a link out of the data root"):
        built(tmp_path / "root", folder="cat")
    with pytest.raises(DataError, match="out of the data root"):
        built(tmp_path / "root", folder="../elsewhere")
