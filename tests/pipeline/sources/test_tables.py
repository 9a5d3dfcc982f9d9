from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from contract.errors import ConfigError, DataError
from contract.manifest import Manifest
from pipeline.building import build
from pipeline.sources import tables
from pipeline.sources.files import HashedSplit
from pipeline.sources.tables import Tables

REAL = Path(os.environ.get("PRECEPT_REAL_DATA", "../shared/data")).absolute()
CAPTIONED = Tables(tables=("captions.csv",), images="images", captions=("caption",))


def photographs(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + number, 8)).save(root / "images" / name)
    return root


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        out.writeheader()
        out.writerows(rows)


def write_json_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def captions_of(manifest: Manifest, row: int) -> list[str]:
    pairs = manifest.positives("image", "text")
    texts: list[str] = manifest.column("text", "text", pairs[pairs[:, 0] == row, 1])
    return texts


ROWS = [
    {"image": "a.jpg", "caption": "A dog.", "label": "dog", "split": "train"},
    {"image": "b/c.jpg", "caption": "Two cats, asleep.", "label": "cat", "split": "validation"},
    {"image": "a.jpg", "caption": " A brown dog.\n", "label": "dog", "split": "train"},
    {"image": "d.jpg", "caption": "", "label": "", "split": "test"},
]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.csv", write_csv),
        ("t.tsv", write_csv),
        ("t.jsonl", write_json_lines),
        ("t.parquet", write_parquet),
    ],
)
def test_every_format_makes_the_same_manifest(
    tmp_path: Path, name: str, write: Callable[[Path, Sequence[Mapping[str, Any]]], None]
) -> None:
    photographs(tmp_path, "a.jpg", "b/c.jpg", "d.jpg")
    write(tmp_path / name, ROWS)
    source = Tables(tables=(name,), images="images", captions=("caption",), label="label", split="split")
    manifest = build(source, "tiny", tmp_path)
    assert manifest.ids("image").tolist() == ["a.jpg", "b/c.jpg", "d.jpg"]
    assert manifest.column("image", "file") == ["images/a.jpg", "images/b/c.jpg", "images/d.jpg"]
    assert manifest.column("image", "split") == ["train", "val", "test"]
    assert manifest.column("image", "label") == [1, 0, -1]
    assert manifest.num_classes == 2
    assert min(manifest.column("image", "size_bytes")) > 0
    assert manifest.ids("text").tolist() == ["a.jpg#0", "a.jpg#1", "b/c.jpg#0"]
    assert [captions_of(manifest, row) for row in range(3)] == [
        ["A dog.", "A brown dog."],
        ["Two cats, asleep."],
        [],
    ]
    assert manifest.column("text", "split") == ["train", "train", "val"]


def test_image_is_one_item_wherever_its_rows_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "SAMPLES_PER_BATCH", 7)
    names = [f"{number}.jpg" for number in range(20)]
    photographs(tmp_path, *names)
    rows = [{"image": names[k % 20], "caption": f"{k % 20}: {k // 20}"} for k in range(100)]
    write_csv(tmp_path / "captions.csv", rows)
    manifest = build(CAPTIONED, "tiny", tmp_path)
    assert manifest.ids("image").tolist() == names
    assert [captions_of(manifest, row) for row in range(20)] == [
        [f"{row}: {n}" for n in range(5)] for row in range(20)
    ]
    ids = dict(zip(manifest.column("text", "text"), manifest.ids("text").tolist(), strict=True))
    assert ids == {f"{row}: {n}": f"{row}.jpg#{n}" for row in range(20) for n in range(5)}


def test_names_that_differ_in_form_are_one_image(tmp_path: Path) -> None:
    photographs(tmp_path, "a.jpg")
    write_csv(tmp_path / "captions.csv", [{"image": n, "caption": n} for n in ("a.jpg", "./a.jpg", " .//a.jpg")])
    manifest = build(CAPTIONED, "tiny", tmp_path)
    assert manifest.ids("image").tolist() == ["a.jpg"]
    assert len(captions_of(manifest, 0)) == 3


@pytest.mark.parametrize(("batch", "place"), [(1, "line 4"), (100, "line 4")])
def test_image_with_two_splits_or_labels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, place: str
) -> None:
    monkeypatch.setattr(tables, "SAMPLES_PER_BATCH", batch)
    photographs(tmp_path, "a.jpg", "b.jpg")
    rows = [
        {"image": name, "split": split} for name, split in (("a.jpg", "val"), ("b.jpg", "val"), ("a.jpg", "test"))
    ]
    write_csv(tmp_path / "captions.csv", rows)
    message = rf"captions\.csv: {place}: images/a\.jpg stood in a row before, with another split, label or id"
    with pytest.raises(DataError, match=message):
        build(Tables(tables=("captions.csv",), images="images", split="split"), "tiny", tmp_path)


def test_several_captions_stand_in_one_row(tmp_path: Path) -> None:
    photographs(tmp_path, "a.jpg", "b.jpg")
    write_json_lines(tmp_path / "t.jsonl", [{"image": "a.jpg", "captions": ["one", "two"], "title": None}])
    write_parquet(tmp_path / "t.parquet", [{"image": "b.jpg", "captions": ["three", "four"], "title": "five"}])
    source = Tables(tables=("t.jsonl", "t.parquet"), images="images", captions=("captions", "title"))
    manifest = build(source, "tiny", tmp_path)
    assert [captions_of(manifest, row) for row in (0, 1)] == [["one", "two"], ["three", "four", "five"]]


def test_json_list_in_csv_is_a_list_of_captions(tmp_path: Path) -> None:
    photographs(tmp_path, "a.jpg", "b.jpg")
    rows = [
        {"image": "a.jpg", "caption": json.dumps(["A dog.", "A dog, running."])},
        {"image": "b.jpg", "caption": "[sic] a cat"},
    ]
    write_csv(tmp_path / "captions.csv", rows)
    manifest = build(CAPTIONED, "tiny", tmp_path)
    assert [captions_of(manifest, row) for row in (0, 1)] == [["A dog.", "A dog, running."], ["[sic] a cat"]]


def test_languages_are_columns_or_a_column(tmp_path: Path) -> None:
    photographs(tmp_path, "a.jpg")
    write_csv(tmp_path / "wide.csv", [{"image": "a.jpg", "caption_en": "dog", "caption_de": "Hund"}])
    write_csv(
        tmp_path / "long.csv",
        [{"image": "a.jpg", "t": t, "l": code} for t, code in (("dog", "en"), ("Hund", "de"))],
    )
    wide = Tables(tables=("wide.csv",), images="images", captions={"en": "caption_en", "de": "caption_de"})
    long = Tables(tables=("long.csv",), images="images", captions=("t",), language_column="l")
    for source in (wide, long):
        manifest = build(source, "tiny", tmp_path)
        assert manifest.column("text", "language") == ["en", "de"]
        assert manifest.column("text", "text") == ["dog", "Hund"]


def test_tables_may_be_given_by_split_and_by_pattern(tmp_path: Path) -> None:
    photographs(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    for name, image in (("train-1.csv", "b.jpg"), ("train-0.csv", "a.jpg"), ("val.csv", "c.jpg")):
        write_csv(tmp_path / name, [{"image": image}])
    by_split = {"train": ("train-*.csv",), "validation": ("val.csv",)}
    manifest = build(Tables(tables=by_split, images="images"), "tiny", tmp_path)
    assert manifest.ids("image").tolist() == ["a.jpg", "b.jpg", "c.jpg"]
    assert manifest.column("image", "split") == ["train", "train", "val"]


def test_ids_and_splits_stay_when_images_are_added_and_the_folder_is_moved(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(40)]
    splits = {}
    for root, some in ((tmp_path / "x", names[::2]), (tmp_path / "y", names)):
        photographs(root, *some)
        write_csv(root / "captions.csv", [{"image": name, "caption": name} for name in some])
        source = Tables(
            tables=("captions.csv",),
            images="images",
            captions=("caption",),
            split=HashedSplit(val=0.2, test=0.2),
        )
        manifest = build(source, "tiny", root)
        splits[root.name] = dict(
            zip(manifest.ids("image").tolist(), manifest.column("image", "split"), strict=True)
        )
        assert set(splits[root.name].values()) == {"train", "val", "test"}
    assert splits["x"].items() <= splits["y"].items()


def test_id_column_names_the_images(tmp_path: Path) -> None:
    photographs(tmp_path, "a.jpg")
    write_parquet(tmp_path / "t.parquet", [{"image": "a.jpg", "key": 17, "caption": "A dog."}])
    source = Tables(tables=("t.parquet",), images="images", captions=("caption",), id="key")
    manifest = build(source, "tiny", tmp_path)
    assert (manifest.ids("image").tolist(), manifest.ids("text").tolist()) == (["17"], ["17#0"])


def test_labels_are_numbers_or_names_in_the_order_of_a_file(tmp_path: Path) -> None:
    photographs(tmp_path, "a.jpg", "b.jpg")
    rows = [{"image": "a.jpg", "name": "bee", "number": 3}, {"image": "b.jpg", "name": "ant", "number": 0}]
    write_csv(tmp_path / "captions.csv", rows)
    (tmp_path / "classes.txt").write_text("bee\nwasp\nant\n")
    common: dict[str, Any] = {"tables": ("captions.csv",), "images": "images"}
    for more, labels, num_classes in (
        ({"label": "name"}, [1, 0], 2),
        ({"label": "name", "classes": "classes.txt"}, [0, 2], 3),
        ({"label": "number"}, [3, 0], 4),
        ({"label": "number", "num_classes": 10}, [3, 0], 10),
    ):
        manifest = build(Tables(**common, **more), "tiny", tmp_path)
        assert (manifest.column("image", "label"), manifest.num_classes) == (labels, num_classes)
    with pytest.raises(DataError, match=r"captions\.csv: line 2: '3' is none of the 3 classes"):
        build(Tables(**common, label="number", num_classes=3), "tiny", tmp_path)


def test_missing_image_stays_an_item_of_unknown_size(tmp_path: Path) -> None:
    photographs(tmp_path, "a.jpg")
    write_csv(
        tmp_path / "captions.csv", [{"image": "a.jpg", "caption": "A dog."}, {"image": "b.jpg", "caption": "?"}]
    )
    assert build(CAPTIONED, "tiny", tmp_path).column("image", "size_bytes")[1] == -1


def test_table_whose_images_are_all_missing_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "captions.csv", [{"image": "a.jpg", "caption": "A dog."}])
    with pytest.raises(DataError, match=r"none of its image files is there: looked for .*/images/a\.jpg"):
        build(CAPTIONED, "tiny", tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"image": "../a.jpg", "caption": "x"}', r"line 1: '\.\./a\.jpg' points out of the data root"),
        ('{"image": "/a.jpg", "caption": "x"}', r"line 1: '/a\.jpg' points out of the data root"),
        ('{"image": null, "caption": "x"}', r"line 1: `image` is empty, or no text: None"),
        ('{"image": "a.jpg", "caption": 3}', r"line 1: a caption is a text, found '3'"),
        ('{"image": "a.jpg", "caption": "\\ud800"}', r"line 1: a caption is a text"),
        ('{"image": "a.jpg", "caption": {"en": "x"}}', r"line 1: a caption is a text"),
        ('{"image": "a.jpg"}', r"line 1: there is no `caption`; there are: 'image'"),
        ("", "manifest is empty"),
    ],
)
def test_broken_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    photographs(tmp_path, "a.jpg")
    (tmp_path / "t.jsonl").write_text(row)
    with pytest.raises(DataError, match=message):
        build(Tables(tables=("t.jsonl",), images="images", captions=("caption",)), "tiny", tmp_path)


def test_wrong_split_name_is_named(tmp_path: Path) -> None:
    photographs(tmp_path, "a.jpg")
    write_csv(tmp_path / "captions.csv", [{"image": "a.jpg", "split": "holdout"}])
    with pytest.raises(DataError, match=r"captions\.csv: line 2: 'holdout' is not a split"):
        build(Tables(tables=("captions.csv",), images="images", split="split"), "tiny", tmp_path)


def test_table_that_is_not_there_is_looked_for_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset tiny is not on disk: looked for .*/captions\.csv"):
        build(CAPTIONED, "tiny", tmp_path)


def test_images_behind_a_link_out_of_the_root_are_refused(tmp_path: Path) -> None:
    photographs(tmp_path / "elsewhere", "a.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/images").symlink_to(tmp_path / "elsewhere/images")
    write_csv(tmp_path / "root/captions.csv", [{"image": "a.jpg", "caption": "A dog."}])
    with pytest.raises(DataError, match="root/images is a link out of the data root"):
        build(CAPTIONED, "tiny", tmp_path / "root")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tables": {"train": ("t.csv",)}, "split": "split"}, "`tables` are given by split, and `split` too"),
        ({"captions": {"en": "a"}, "language_column": "l"}, "`language_column` too"),
        ({"num_classes": 3}, "without `label`"),
        ({"label": "l", "num_classes": 3, "classes": "c.txt"}, "leave out `num_classes`"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tables(**{"tables": ("t.csv",), **settings})


@pytest.mark.skipif(not (REAL / "imagenet_sample").is_dir(), reason="needs the real data")
def test_real_imagenet_sample_is_read() -> None:
    source = Tables(
        tables=("labels.csv",),
        images="images",
        image="filename",
        label="index",
        num_classes=1000,
        captions=("name",),
    )
    manifest = build(source, "imagenet_sample", REAL / "imagenet_sample")
    assert manifest.num_rows("image") == manifest.num_rows("text") == 200
    assert manifest.column("image", "label") == list(range(0, 1000, 5))
    assert min(manifest.column("image", "size_bytes")) > 1000
    assert manifest.column("text", "text", [0]) == ["tench, Tinca tinca"]
