import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from contract.errors import DataError
from pipeline.building import build
from pipeline.datasets import load
from pipeline.sources.karpathy import Karpathy

REAL = Path(os.environ.get("PRECEPT_REAL_DATA", "../shared/data")).absolute()
SOURCE = Karpathy(annotations=("dataset.json",), images=("images", "."), layout="dataset.json and images/")


def entry(name: str, split: str = "train", captions: int = 2, **more: Any) -> dict[str, Any]:
    sentences = [{"raw": f"{name} {number}"} for number in range(captions)]
    return {"filename": name, "split": split, "sentences": sentences} | more


def written(root: Path, entries: list[dict[str, Any]], folder: str = "images") -> Path:
    for one in entries:
        path = root / folder / one.get("filepath", "") / one["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    (root / "dataset.json").write_text(json.dumps({"images": entries}))
    return root


def test_photographs_captions_and_pairs_are_read(tmp_path: Path) -> None:
    entries = [entry("a.jpg"), entry("b.jpg", "val", captions=3), entry("c.jpg", "test", captions=0)]
    manifest = build(SOURCE, "tiny", written(tmp_path, entries))
    assert manifest.ids("image").tolist() == ["a", "b", "c"]
    assert manifest.column("image", "file") == ["images/a.jpg", "images/b.jpg", "images/c.jpg"]
    assert manifest.column("text", "text", [1, 4]) == ["a.jpg 1", "b.jpg 2"]
    assert manifest.column("text", "split") == ["train"] * 2 + ["val"] * 3
    assert manifest.languages() == {"en": 5}
    assert manifest.positives("image", "text").tolist() == [[0, 0], [0, 1], [1, 2], [1, 3], [1, 4]]


def test_restval_is_training_data_and_filepath_a_folder(tmp_path: Path) -> None:
    entries = [entry("a.jpg", "restval", filepath="val2014"), entry("a2.jpg", filepath="train2014")]
    manifest = build(SOURCE, "tiny", written(tmp_path, entries, folder="."))
    assert manifest.splits("image") == {"train": 2}
    assert manifest.column("image", "file") == ["val2014/a.jpg", "train2014/a2.jpg"]


def test_photographs_of_coco_2014_are_found_under_their_names_of_2017(tmp_path: Path) -> None:
    names = ["COCO_val2014_000000391895.jpg", "COCO_val2014_000000000042.jpg", "COCO_val2014_000000000073.jpg"]
    entries = [entry(name, "restval", filepath="val2014") for name in names]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    for file in ("train2017/000000391895.jpg", "val2017/000000000042.jpg"):
        (tmp_path / file).parent.mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / file)
    manifest = load("coco").build(tmp_path)
    assert manifest.ids("image").tolist() == [f"val2014/{Path(name).stem}" for name in names]
    found = ["train2017/000000391895.jpg", "val2017/000000000042.jpg", f"val2014/{names[2]}"]
    assert manifest.column("image", "file") == found
    assert [size > 0 for size in manifest.column("image", "size_bytes")] == [True, True, False]
    (tmp_path / "val2014").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val2014" / names[0])
    assert load("coco").build(tmp_path).column("image", "file") == [f"val2014/{name}" for name in names]


def test_captions_keep_their_language(tmp_path: Path) -> None:
    one = entry("a.jpg", captions=0) | {"sentences": [{"raw": "Hund", "language": "de"}, {"raw": "dog"}]}
    assert build(SOURCE, "tiny", written(tmp_path, [one])).languages() == {"de": 1, "en": 1}


def test_missing_photograph_stays_an_item_of_unknown_size(tmp_path: Path) -> None:
    root = written(tmp_path, [entry("a.jpg"), entry("b.jpg")])
    (root / "images/b.jpg").unlink()
    sizes = build(SOURCE, "tiny", root).column("image", "size_bytes")
    assert sizes[0] > 0
    assert sizes[1] == -1


def test_replaced_photograph_changes_the_fingerprint(tmp_path: Path) -> None:
    root = written(tmp_path, [entry("a.jpg")])
    before = build(SOURCE, "tiny", root).fingerprint
    assert build(SOURCE, "tiny", root).fingerprint == before
    Image.new("RGB", (64, 64), "red").save(root / "images/a.jpg")
    assert build(SOURCE, "tiny", root).fingerprint != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not Karpathy's JSON"),
        ("[]", "not Karpathy's JSON"),
        ('{"images": []}', "is empty"),
        ('{"images": [{"filename": "a.jpg"}]}', r"images\[0\] .*KeyError\('split'\)"),
        ('{"images": [{"filename": "a.jpg", "split": "dev", "sentences": []}]}', "KeyError.'dev'"),
        ('{"images": [{"filename": "../a.jpg", "split": "val", "sentences": []}]}', "points out of the data root"),
        (
            '{"images": [{"filename": "/etc/a.jpg", "split": "val", "sentences": []}]}',
            "points out of the data root",
        ),
        ('{"images": [{"filename": "a.jpg", "split": "val", "sentences": []}]}', "none of its 1 files"),
        ('{"images": [7]}', r"images\[0\]"),
        ('{"images": [{"filename": 7, "split": "val", "sentences": []}]}', r"images\[0\] is not as it should be"),
        (
            '{"images": [{"filename": "a.jpg", "split": "val", "sentences": [{"raw": null}]}]}',
            r"images\[0\]: a caption is a text, found 'None'",
        ),
        ("[" * 100_000, "not Karpathy's JSON"),
    ],
)
def test_broken_annotations_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=message):
        build(SOURCE, "tiny", tmp_path)


def test_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    root = written(tmp_path, [entry("a.jpg")])
    (root / "dataset.json").write_bytes(b"\xef\xbb\xbf" + (root / "dataset.json").read_bytes())
    assert build(SOURCE, "tiny", root).ids("image").tolist() == ["a"]


def test_photographs_behind_a_link_out_of_the_root_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "elsewhere", [entry("a.jpg")])
    root = written(tmp_path / "root", [entry("b.jpg")])
    (root / "dataset.json").write_bytes((tmp_path / "elsewhere/dataset.json").read_bytes())
    (root / "images/b.jpg").unlink()
    (root / "images").rmdir()
    (root / "images").symlink_to(tmp_path / "elsewhere/images")
    with pytest.raises(DataError, match="root/images is a link out of the data root"):
        build(SOURCE, "tiny", root)


@pytest.mark.skipif(not (REAL / "flickr8k").is_dir(), reason="needs the real data")
def test_real_flickr8k_is_read_with_all_its_files() -> None:
    manifest = load("flickr8k").build(REAL / "flickr8k")
    assert manifest.splits("image") == {"train": 5998, "val": 500}
    assert manifest.num_rows("text") == 5 * 6498
    assert min(manifest.column("image", "size_bytes")) > 0
    assert manifest.column("image", "file", [0]) == ["images/2513260012_03d33305cf.jpg"]


def test_two_photographs_of_one_name_are_refused(tmp_path: Path) -> None:
    root = written(tmp_path, [entry("a.jpg"), entry("a.jpg")])
    with pytest.raises(DataError, match="ids must be unique"):
        build(SOURCE, "tiny", root).check()
