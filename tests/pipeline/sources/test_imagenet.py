from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from timm.data import ImageNetInfo

from contract.errors import DataError
from contract.manifest import Manifest
from pipeline.datasets import load

REAL = Path(os.environ.get("PRECEPT_REAL_DATA", "../shared/data")).absolute()
WNIDS = ImageNetInfo("imagenet-1k").label_names()
TRAIN = {"n01440764": 0, "n03255030": WNIDS.index("n03255030")}


def images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name, "JPEG")


def imagenet(root: Path, *, flat: bool) -> Path:
    images(root, *(f"train/{wnid}/{wnid}_{n}.JPEG" for wnid in TRAIN for n in (18, 2)))
    for number, wnid in ((1, "n03255030"), (293, "n01440764")):
        images(root, f"val/{'' if flat else wnid + '/'}ILSVRC2012_val_{number:08d}.JPEG")
    return root


def built(root: Path) -> Manifest:
    return load("imagenet").build(root)


def labels(manifest: Manifest) -> dict[str, int]:
    return dict(zip(manifest.ids("image").tolist(), manifest.column("image", "label"), strict=True))


EXPECTED = {
    "train/n01440764_18": 0,
    "train/n01440764_2": 0,
    "train/n03255030_18": TRAIN["n03255030"],
    "train/n03255030_2": TRAIN["n03255030"],
    "val/ILSVRC2012_val_00000001": TRAIN["n03255030"],
    "val/ILSVRC2012_val_00000293": 0,
}


def test_folders_of_classes_have_imagenets_numbers(tmp_path: Path) -> None:
    manifest = built(imagenet(tmp_path, flat=False))
    assert labels(manifest) == EXPECTED
    assert manifest.num_classes == 1000
    assert manifest.splits("image") == {"train": 4, "val": 2}
    assert manifest.column("image", "file", [0]) == ["train/n01440764/n01440764_18.JPEG"]


def test_labels_of_validation_images_come_from_kaggles_csv(tmp_path: Path) -> None:
    (imagenet(tmp_path, flat=True) / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nILSVRC2012_val_00000293,n01440764 1 2 3 4 n01440764 5 6 7 8 \n"
        "ILSVRC2012_val_00000001,n03255030 111 108 230 173 \n"
    )
    assert labels(built(tmp_path)) == EXPECTED


def test_labels_of_validation_images_come_from_the_development_kit(tmp_path: Path) -> None:
    kit = imagenet(tmp_path, flat=True) / "devkit/data"
    kit.mkdir(parents=True)
    numbers = ["1000"] + ["7"] * 291 + ["449"]
    (kit / "ILSVRC2015_clsloc_validation_ground_truth.txt").write_text("\n".join(numbers) + "\n")
    with pytest.raises(
        DataError, match=r"map_clsloc\.txt: not there, and the numbers in .* are not in the wnids' order"
    ):
        built(tmp_path)
    (kit / "map_clsloc.txt").write_text(
        "n02119789 1 kit_fox\nn09999999 7 x\nn01440764 449 tench\nn03255030 1000 dumbbell\n"
    )
    manifest = built(tmp_path)
    assert labels(manifest)["val/ILSVRC2012_val_00000293"] < labels(manifest)["val/ILSVRC2012_val_00000001"]


def test_validation_images_without_labels_are_refused(tmp_path: Path) -> None:
    imagenet(tmp_path, flat=True)
    with pytest.raises(
        DataError, match=r"looked for .*/LOC_val_solution\.csv, .* the labels of the validation images"
    ):
        built(tmp_path)
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nILSVRC2012_val_00000001,n03255030 1\n"
    )
    with pytest.raises(DataError, match=r"00000293\.JPEG: it is in no class's folder, and no list says its class"):
        built(tmp_path)


def test_other_wnids_are_numbered_in_their_order(tmp_path: Path) -> None:
    images(tmp_path, "train/n99999999/a.JPEG", "train/n00004475/b.JPEG")
    manifest = built(tmp_path)
    assert manifest.num_classes == 2
    assert labels(manifest) == {"train/b": 0, "train/a": 1}


def test_dataset_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"imagenet is not on disk: looked for .*/train, .*/val, .*train/ and val/"):
        built(tmp_path)


@pytest.mark.skipif(not (REAL / "imagenet_sample").is_dir(), reason="needs the real data")
def test_real_photographs_get_the_numbers_that_their_list_gives(tmp_path: Path) -> None:
    expected = {}
    for line in (REAL / "imagenet_sample/labels.csv").read_text().splitlines()[1:]:
        name, number, wnid = line.split(",")[:3]
        (tmp_path / f"train/{wnid}").mkdir(parents=True)
        shutil.copy(REAL / "imagenet_sample/images" / name, tmp_path / f"train/{wnid}/{name}")
        expected[f"train/{Path(name).stem}"] = int(number)
    assert labels(built(tmp_path)) == expected
