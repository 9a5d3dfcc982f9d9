from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from contract import config
from contract.errors import DataError
from contract.manifest import Manifest
from pipeline.building import build
from pipeline.datasets import load
from pipeline.sources.coco import CaptionFile, CocoCaptions

TRAIN = {
    "COCO_train2014_000000000009.jpg": (9, ["A meal.", "Bread and fruit. \n"]),
    "COCO_train2014_25.jpg": (25, []),
}
VAL = {"COCO_val2014_000000391895.jpg": (391895, ["A man on a bike."])}


def write(path: Path, images: dict[str, tuple[int, list[str]]]) -> None:
    """A file of captions as COCO publishes it, with the captions in no particular order."""
    numbered = [(number, text) for number, texts in images.values() for text in texts]
    annotations = [{"image_id": number, "id": 70 + k, "caption": text} for k, (number, text) in enumerate(numbered)]
    described = [{"id": number, "file_name": name, "height": 8, "width": 8} for name, (number, _) in images.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"info": {}, "images": described, "licenses": [], "annotations": annotations[::-1]}))


def photographs(folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)


def coco2014(root: Path, images: str = ".") -> Path:
    write(root / "annotations/captions_train2014.json", TRAIN)
    write(root / "annotations/captions_val2014.json", VAL)
    photographs(root / images / "train2014", list(TRAIN))
    photographs(root / images / "val2014", list(VAL))
    return root


def built(root: Path, name: str = "coco2014") -> tuple[Manifest, list[str]]:
    said: list[str] = []
    return load(name).build(root, said.append), said


@pytest.mark.parametrize("images", [".", "images"])
def test_official_captions_are_read_in_the_order_of_their_numbers(tmp_path: Path, images: str) -> None:
    manifest, said = built(coco2014(tmp_path, images))
    assert manifest.ids("image").tolist() == [
        "train2014/COCO_train2014_000000000009",
        "train2014/COCO_train2014_25",
        "val2014/COCO_val2014_000000391895",
    ]
    assert manifest.column("image", "split") == ["train", "train", "val"]
    prefix = "" if images == "." else "images/"
    assert manifest.column("image", "file", [2]) == [f"{prefix}val2014/COCO_val2014_000000391895.jpg"]
    assert manifest.column("text", "text") == ["A meal.", "Bread and fruit.", "A man on a bike."]
    assert manifest.ids("text").tolist()[:2] == [f"train2014/COCO_train2014_000000000009#{n}" for n in (0, 1)]
    assert manifest.positives("image", "text").tolist() == [[0, 0], [0, 1], [2, 2]]
    assert said == []


def test_ids_are_those_of_karpathys_splits(tmp_path: Path) -> None:
    coco2014(tmp_path)
    entries = [
        {"filename": name, "filepath": name.split("_")[1], "split": split, "sentences": [{"raw": "x"}]}
        for names, split in ((TRAIN, "train"), (VAL, "restval"))
        for name in names
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    karpathy, _ = built(tmp_path, "coco")
    assert karpathy.ids("image").tolist() == built(tmp_path)[0].ids("image").tolist()
    assert karpathy.splits("image") == {"train": 3}


def test_2017_is_read_and_a_missing_part_of_it_is_said(tmp_path: Path) -> None:
    write(tmp_path / "captions_val2017.json", {"000000391895.jpg": (391895, ["A man on a bike."])})
    photographs(tmp_path / "val2017", ["000000391895.jpg"])
    manifest, said = built(tmp_path, "coco2017")
    assert manifest.ids("image").tolist() == ["val2017/000000391895"]
    assert manifest.splits("image") == {"val": 1}
    assert said == ["coco2017: no annotations/captions_train2017.json or captions_train2017.json: left out"]


def test_captions_in_another_language_join_the_same_images(tmp_path: Path) -> None:
    coco2014(tmp_path)
    write(tmp_path / "stair_captions_v1.2_val.json", {name: (n, ["自転車の男性"]) for name, (n, _) in VAL.items()})
    shipped = config.tree(load("coco2014").source)
    japanese = {"files": ["stair_captions_v1.2_val.json"], "images": ["val2014"], "split": "val", "language": "ja"}
    tree = shipped | {"annotations": [*shipped["annotations"], japanese]}
    manifest = build(config.parse(tree, CocoCaptions, source="test"), "coco2014", tmp_path)
    assert manifest.num_rows("image") == 3
    assert manifest.languages() == {"en": 3, "ja": 1}
    assert manifest.ids("text").tolist()[-1] == "val2014/COCO_val2014_000000391895#1"


def test_missing_photograph_stays_an_item_of_unknown_size(tmp_path: Path) -> None:
    coco2014(tmp_path)
    (tmp_path / "train2014/COCO_train2014_25.jpg").unlink()
    assert built(tmp_path)[0].column("image", "size_bytes")[1] == -1


def test_dataset_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"coco2014 is not on disk: looked for .*DIR holds annotations/captions_train"
    ):
        built(tmp_path)


def one(split: str = "val", folder: str = "val2014") -> CaptionFile:
    return CaptionFile(files=(f"{split}.json",), images=(folder,), split=split)


def test_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / f"{split}.json", VAL)
    photographs(tmp_path / "val2014", list(VAL))
    with pytest.raises(
        DataError, match=r"val\.json: val2014/.* is val here, and val2014/.* is train in a file before"
    ):
        build(CocoCaptions(annotations=(one("train"), one("val")), layout="it"), "tiny", tmp_path)


GOOD: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 1, "id": 7, "caption": "A dog."}],
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', "not COCO's JSON: JSONDecodeError"),
        ("[]", "not COCO's JSON, an object with the lists"),
        (json.dumps(GOOD | {"annotations": []}), "not COCO's JSON, an object with the lists"),
        (
            json.dumps(GOOD | {"images": [{"id": 1}]}),
            r"images\[0\] is not as it should be \(KeyError\('file_name'\)",
        ),
        (json.dumps(GOOD | {"images": GOOD["images"] * 2}), "1 of its images have the `id` of another"),
        (json.dumps(GOOD | {"images": ["a.jpg"]}), r"images\[0\] is not as it should be"),
        (json.dumps(GOOD | {"images": [{"id": [], "file_name": "a.jpg"}]}), r"images\[0\] is not as it should be"),
        (json.dumps(GOOD | {"images": [{"id": 1, "file_name": "../a.jpg"}]}), r"images\[0\]: .* points out of the"),
        (json.dumps(GOOD | {"annotations": [{"image_id": 2, "id": 7, "caption": "x"}]}), r"annotations\[0\] .*Key"),
        (
            json.dumps(GOOD | {"annotations": [{"image_id": 1, "id": 7}]}),
            r"annotations\[0\] .*KeyError\('caption'\)",
        ),
        (
            json.dumps(GOOD | {"annotations": [{"image_id": 1, "id": "x", "caption": "x"}]}),
            r"annotations\[0\] .*Value",
        ),
        (
            json.dumps(GOOD | {"annotations": [{"image_id": 1, "id": 7, "caption": None}]}),
            r"annotations\[0\]: a caption is",
        ),
    ],
)
def test_broken_annotations_are_named(tmp_path: Path, content: str, message: str) -> None:
    photographs(tmp_path / "val2014", ["a.jpg"])
    (tmp_path / "val.json").write_text(content)
    with pytest.raises(DataError, match=rf"val\.json: {message}"):
        build(CocoCaptions(annotations=(one(),), layout="it"), "tiny", tmp_path)
