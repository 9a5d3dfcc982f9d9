from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from contract.errors import ConfigError, DataError
from pipeline.building import build
from pipeline.sources.files import HashedSplit
from pipeline.sources.image_sound import ImageSound

REAL = Path(os.environ.get("PRECEPT_REAL_DATA", "../shared/data")).resolve()
CAPTIONED = ImageSound(captions={"en": ("caption",)}, start="start", length="length")


def written(root: Path, table: str, images: Sequence[str] = ("a", "b"), sounds: Sequence[str] = ("x", "y")) -> Path:
    root.mkdir(exist_ok=True)
    (root / "pairs.csv").write_text(table)
    for name in images:
        Image.new("RGB", (8, 8)).save(root / f"{name}.png")
    for name in sounds:
        soundfile.write(root / f"{name}.flac", np.zeros(10), 8000)
    return root


def test_images_and_stretches_of_sounds_are_items_once(tmp_path: Path) -> None:
    table = (
        "image,sound,start,length,caption\n"
        "a.png,x.flac,0.5,2,A road.\n"
        "a.png,x.flac,4,,A road.\n"
        "b.png,x.flac,0.5,2.0,\n"
        "a.png,x.flac,0.5,2,Cars.\n"
        "b.png,y.flac,,,Birds.\n"
    )
    manifest = build(CAPTIONED, "tiny", written(tmp_path, table))
    assert manifest.ids("image").tolist() == ["a.png", "b.png"]
    assert manifest.ids("audio").tolist() == ["x.flac@500+2000", "x.flac@4000", "y.flac@0"]
    assert manifest.column("audio", "start_ms") == [500, 4000, 0]
    assert manifest.column("audio", "length_ms") == [2000, -1, -1]
    assert manifest.pairs["image-audio"].num_rows == 4
    assert manifest.positives("image", "audio").tolist() == [[0, 0], [0, 1], [1, 0], [1, 2]]
    assert manifest.column("text", "text") == ["A road.", "Cars.", "Birds."]
    assert manifest.positives("image", "text").tolist() == [[0, 0], [0, 1], [1, 2]]
    assert manifest.positives("audio", "text").tolist() == [[0, 0], [1, 0], [0, 1], [2, 2]]


def test_columns_and_folders_have_other_names(tmp_path: Path) -> None:
    for folder in ("frames", "audio"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "frames/a.png")
    soundfile.write(tmp_path / "audio/x.flac", np.zeros(10), 8000)
    row = {"frame": "a.png", "clip": "x.flac", "de": ["Hund", "Bellen"], "at": 1.25, "part": "validation"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    source = ImageSound(
        pairs=("rows.jsonl",),
        images="frames",
        sounds="audio",
        image="frame",
        sound="clip",
        start="at",
        captions={"de": ("de",)},
        split="part",
    )
    manifest = build(source, "tiny", tmp_path)
    assert manifest.column("image", "file") == ["frames/a.png"]
    assert manifest.column("audio", "file") == ["audio/x.flac"]
    assert manifest.column("audio", "start_ms") == [1250]
    assert manifest.languages() == {"de": 2}
    assert manifest.splits("audio") == {"val": 1}


def test_tables_are_given_by_split(tmp_path: Path) -> None:
    root = written(tmp_path, "image,sound\na.png,x.flac\n")
    (root / "other.csv").write_text("image,sound\nb.png,y.flac\n")
    manifest = build(ImageSound(pairs={"train": ("pairs.csv",), "test": ("other.csv",)}), "tiny", root)
    assert manifest.column("image", "split") == manifest.column("audio", "split") == ["train", "test"]
    assert manifest.ids("audio").tolist() == ["x.flac", "y.flac"]
    with pytest.raises(ConfigError, match="`pairs` are given by split, and `split` too"):
        ImageSound(pairs={"train": ("pairs.csv",)}, split="split")


def test_both_sides_of_a_pair_are_in_one_split(tmp_path: Path) -> None:
    names = [f"{n:02d}" for n in range(40)]
    rows = "".join(f"{name}.png,{name}.flac\n{name}.png,x.flac\n" for name in names)
    root = written(tmp_path, f"image,sound\n{rows}", names, [*names, "x"])
    with pytest.raises(DataError, match=r"x.flac is .* here and stood in a row of another split: .*`split_by`"):
        build(ImageSound(split=HashedSplit(val=0.3)), "tiny", root)
    rows = "".join(f"{name}.png,{name[0]}.flac\n" for name in names)
    written(tmp_path, f"image,sound\n{rows}", names, "0123")
    manifest = build(ImageSound(split=HashedSplit(val=0.5), split_by="sound"), "tiny", root)
    splits = [np.array(manifest.column(modality, "split")) for modality in ("image", "audio")]
    pairs = manifest.positives("image", "audio")
    assert (splits[0][pairs[:, 0]] == splits[1][pairs[:, 1]]).all()


def test_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    root = written(tmp_path, "image,sound,split\na.png,x.flac,train\nb.png,y.flac,val\na.png,y.flac,val\n")
    with pytest.raises(
        DataError, match=r"pairs.csv: line 4: a.png is val here and stood in a row of another split"
    ):
        build(ImageSound(split="split"), "tiny", root)


def test_missing_files_stay_items_of_unknown_size(tmp_path: Path) -> None:
    root = written(tmp_path, "image,sound\na.png,x.flac\ngone.png,y.flac\n")
    manifest = build(ImageSound(), "tiny", root)
    assert [size > 0 for size in manifest.column("image", "size_bytes")] == [True, False]
    for sound in ("x", "y"):
        (root / f"{sound}.flac").unlink()
    with pytest.raises(DataError, match=r"none of its audio files is there: looked for .*x.flac"):
        build(ImageSound(), "tiny", root)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("../a.png,x.flac,0,1,said", "line 2: image: '../a.png' points out of the data root"),
        ("a.png,/x.flac,0,1,said", "line 2: sound: '/x.flac' points out of the data root"),
        (",x.flac,0,1,said", "line 2: image: '' is not the name of a file"),
        ("a.png,x.flac,now,1,said", "line 2: start: expected seconds, found 'now'"),
        ("a.png,x.flac,0,-1,said", "line 2: length: expected seconds, found '-1'"),
        ("a.png,x.flac,0,0,said", "line 2: length: a sound of 0 seconds"),
        ("a.png,x.flac", "line 2 has 2 values, where the first line names 5 columns"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, row: str, message: str) -> None:
    root = written(tmp_path, f"image,sound,start,length,caption\n{row}\n")
    with pytest.raises(DataError, match=rf"pairs.csv: {message}"):
        build(CAPTIONED, "tiny", root)


@pytest.mark.parametrize(
    ("table", "message"), [("", "there is no `image`"), ("image,sound\n", "its manifest is empty")]
)
def test_empty_table_is_refused(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(ImageSound(), "tiny", written(tmp_path, table))


def test_folder_without_the_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiny is not on disk: looked for .*pairs.csv"):
        build(ImageSound(), "tiny", tmp_path)


def test_table_larger_than_a_batch_is_as_small_ones_are(tmp_path: Path) -> None:
    rows = [{"image": f"{n % 7}.png", "sound": f"{n % 11}.flac", "said": f"{n % 5}"} for n in range(40_000)]
    root = written(tmp_path, "", [str(n) for n in range(7)], [str(n) for n in range(11)])
    with (root / "pairs.csv").open("w") as file:
        table = csv.DictWriter(file, ["image", "sound", "said"])
        table.writeheader()
        table.writerows(rows)
    manifest = build(ImageSound(captions={"en": ("said",)}), "tiny", root)
    assert (manifest.num_rows("image"), manifest.num_rows("audio"), manifest.num_rows("text")) == (7, 11, 35)
    assert {kind: pairs.num_rows for kind, pairs in manifest.pairs.items()} == {
        "image-audio": 77,
        "image-text": 35,
        "audio-text": 55 * 7,
    }


@pytest.mark.skipif(not (REAL / "flickr8k_tts").is_dir(), reason=f"no {REAL}/flickr8k_tts; set PRECEPT_REAL_DATA")
def test_real_photographs_and_their_spoken_captions_are_read(tmp_path: Path) -> None:
    spoken: list[dict[str, Any]] = json.loads((REAL / "flickr8k_tts/pairs.json").read_text())
    for row in spoken:
        shutil.copy(REAL / "flickr8k/images" / row["image"], tmp_path)
        shutil.copy(REAL / "flickr8k_tts" / row["audio"], tmp_path)
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in spoken))
    source = ImageSound(pairs=("pairs.jsonl",), sound="audio", captions={"en": ("text",)})
    manifest = build(source, "flickr8k_tts", tmp_path)
    assert {modality: manifest.num_rows(modality) for modality in manifest.modalities} == {
        modality: len(spoken) for modality in ("image", "text", "audio")
    }
    assert min(manifest.column("audio", "size_bytes") + manifest.column("image", "size_bytes")) > 0
