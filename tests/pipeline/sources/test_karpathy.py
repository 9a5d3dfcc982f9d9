import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from contract.errors import DataError
from pipeline.sources.karpathy import Karpathy

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
    manifest = SOURCE.build("tiny", written(tmp_path, entries))
    assert manifest.ids("image").tolist() == ["a", "b", "c"]
    assert manifest.column("image", "file") == ["images/a.jpg", "images/b.jpg", "images/c.jpg"]
    assert manifest.column("text", "text", [1, 4]) == ["a.jpg 1", "b.jpg 2"]
    assert manifest.column("text", "split") == ["train"] * 2 + ["val"] * 3
    assert manifest.languages() == {"en": 5}
    assert manifest.positives("image", "text").tolist() == [[0, 0], [0, 1], [1, 2], [1, 3], [1, 4]]


def test_restval_is_training_data_and_filepath_a_folder(tmp_path: Path) -> None:
    entries = [entry("a.jpg", "restval", filepath="val2014"), entry("a2.jpg", filepath="train2014")]
    manifest = SOURCE.build("tiny", written(tmp_path, entries, folder="."))
    assert manifest.splits("image") == {"train": 2}
    assert manifest.column("image", "file") == ["val2014/a.jpg", "train2014/a2.jpg"]


def test_captions_keep_their_language(tmp_path: Path) -> None:
    one = entry("a.jpg", captions=0) | {"sentences": [{"raw": "Hund", "language": "de"}, {"raw": "dog"}]}
    assert SOURCE.build("tiny", written(tmp_path, [one])).languages() == {"de": 1, "en": 1}


def test_missing_photograph_stays_an_item_of_unknown_size(tmp_path: Path) -> None:
    root = written(tmp_path, [entry("a.jpg"), entry("b.jpg")])
    (root / "images/b.jpg").unlink()
    sizes = SOURCE.build("tiny", root).column("image", "size_bytes")
    assert sizes[0] > 0
    assert sizes[1] == -1


def test_replaced_photograph_changes_the_fingerprint(tmp_path: Path) -> None:
    root = written(tmp_path, [entry("a.jpg")])
    before = SOURCE.build("tiny", root).fingerprint
    assert SOURCE.build("tiny", root).fingerprint == before
    Image.new("RGB", (64, 64), "red").save(root / "images/a.jpg")
    assert SOURCE.build("tiny", root).fingerprint != before


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
        ('{"images": [{"filename": "a.jpg", "split": "val", "sentences": []}]}', "none of its 1 photographs"),
        ('{"images": [7]}', r"images\[0\]"),
    ],
)
def test_broken_annotations_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=message):
        SOURCE.build("tiny", tmp_path)


def test_two_photographs_of_one_name_are_refused(tmp_path: Path) -> None:
    root = written(tmp_path, [entry("a.jpg"), entry("a.jpg")])
    with pytest.raises(DataError, match="ids must be unique"):
        SOURCE.build("tiny", root).check()
