from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from contract.errors import ConfigError, DataError
from pipeline import datasets
from pipeline.building import build
from pipeline.sources.esc import Esc

REAL = Path(os.environ.get("PRECEPT_REAL_DATA", "../shared/data")).resolve() / "esc10"
HEADER = "filename,fold,target,category,esc10,src_file,take"
ROWS = [
    "1-100032-A-0.wav,1,0,dog,True,100032,A",
    "2-100038-A-14.wav,2,14,chirping_birds,False,100038,A",
    "3-17150-A-12.wav,3,12,crackling_fire,TRUE,17150,A",
    "4-116765-A-41.wav,4,41,chainsaw,True,116765,A",
    "5-9032-A-0.wav,5,0,dog,True,9032,A",
]


def written(root: Path, rows: list[str], header: str = HEADER, annotations: str = "meta/esc50.csv") -> Path:
    (root / "meta").mkdir(parents=True)
    (root / "audio").mkdir()
    (root / annotations).write_text("\n".join([header, *rows]) + "\n")
    for row in rows:
        soundfile.write(root / "audio" / row.split(",")[0], np.zeros(10), 8000)
    return root


def test_fold_five_is_the_test_split(tmp_path: Path) -> None:
    manifest = build(Esc(subset="esc50"), "esc50", written(tmp_path, ROWS))
    assert manifest.ids("audio").tolist()[0] == "1-100032-A-0"
    assert manifest.column("audio", "file")[0] == "audio/1-100032-A-0.wav"
    assert manifest.column("audio", "label") == [0, 14, 12, 41, 0]
    assert manifest.num_classes == 50
    assert manifest.column("audio", "split") == ["train", "train", "train", "train", "test"]


def test_esc10_is_a_part_of_esc50_with_labels_below_ten(tmp_path: Path) -> None:
    manifest = build(Esc(subset="esc10", test_fold=1, val_fold=4), "esc10", written(tmp_path, ROWS))
    assert manifest.column("audio", "label") == [0, 4, 9, 0]
    assert manifest.num_classes == 10
    assert manifest.column("audio", "split") == ["test", "train", "val", "train"]


def test_esc10_has_labels_of_its_own_in_a_csv_of_its_own(tmp_path: Path) -> None:
    rows = ["1-0-1-A.flac,1,9,Fire crackling", "2-0-1-A.flac,5,0,Dog bark"]
    root = written(tmp_path, rows, "filename,fold,target,category", "esc10.csv")
    manifest = build(Esc(subset="esc10"), "esc10", root)
    assert manifest.column("audio", "label") == [9, 0]


def test_one_fold_for_two_splits_is_refused() -> None:
    with pytest.raises(ConfigError, match="test_fold and val_fold are both 5"):
        Esc(subset="esc50", val_fold=5)


def test_fold_that_is_not_there_is_said(tmp_path: Path) -> None:
    lines: list[str] = []
    build(Esc(subset="esc50"), "esc50", written(tmp_path, ROWS[:3]), lines.append)
    assert lines == [
        f"{tmp_path}/meta/esc50.csv: has no sound in fold 5, which is set aside; its folds are 1, 2, 3: see "
        "`test_fold` and `val_fold`"
    ]


def test_missing_sound_stays_an_item_of_unknown_size(tmp_path: Path) -> None:
    root = written(tmp_path, ROWS)
    (root / "audio/1-100032-A-0.wav").unlink()
    assert build(Esc(subset="esc50"), "esc50", root).column("audio", "size_bytes")[:2] == [-1, 64]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.wav,6,0,dog,True,1,A", r"esc50.csv: line 3: fold '6' is none of 1 to 5"),
        ("a.wav,1,50,dog,True,1,A", r"esc50.csv: line 3: '50' is none of the 50 classes"),
        ("a.wav,1,dog,dog,True,1,A", r"esc50.csv: line 3: 'dog' is none of the 50 classes"),
        ("../a.wav,1,0,dog,True,1,A", r"line 3: '../a.wav' points out of the data root"),
        ("a.wav,1,0", "line 3 has 3 values, where the first line names 7 columns"),
        ("a.wav,1,0,dog,True,1,\xff", "line 3 is not UTF-8"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, row: str, message: str) -> None:
    root = written(tmp_path, ROWS[:1])
    (root / "meta/esc50.csv").write_bytes("\n".join([HEADER, ROWS[0], row]).encode("latin-1"))
    with pytest.raises(DataError, match=message):
        build(Esc(subset="esc50"), "esc50", root)


def test_esc10_column_that_is_neither_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: esc10 'maybe' is neither True nor False"):
        build(Esc(subset="esc10"), "esc10", written(tmp_path, ["1-1-A-0.wav,1,0,dog,maybe,1,A"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "there is no `filename`"), ("filename,fold\n", "there is no `target`"), (f"{HEADER}\n", "is empty")],
)
def test_csv_without_rows_or_columns_is_refused(tmp_path: Path, content: str, message: str) -> None:
    root = written(tmp_path, ROWS)
    (root / "meta/esc50.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        build(Esc(subset="esc50"), "esc50", root)


def test_folder_without_the_csv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"esc50 is not on disk: looked for .*meta/esc50.csv"):
        build(Esc(subset="esc50"), "esc50", tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL}; set PRECEPT_REAL_DATA")
def test_real_sounds_are_read() -> None:
    manifest = datasets.load("esc10").build(REAL)
    labels = np.bincount(manifest.column("audio", "label"))
    assert (len(labels), manifest.num_classes) == (10, 10)
    assert len(set(labels.tolist())) == 1
    assert min(manifest.column("audio", "size_bytes")) > 0
