from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from contract.errors import ConfigError, DataError
from contract.manifest import Manifest
from pipeline import datasets
from pipeline.building import build
from pipeline.sources.captioned_sounds import CaptionedSounds, SplitFiles

REAL = Path(os.environ.get("PRECEPT_REAL_DATA", "../shared/data")).resolve() / "audiocaps"
AUDIOCAPS = "audiocap_id,youtube_id,start_time,caption"
ONE_TABLE = CaptionedSounds(
    splits={"train": SplitFiles(tables=("t.csv",), folders=("sounds",))},
    id="{file}",
    sound=("{file}",),
    captions={"en": ("caption",)},
)


def written(root: Path, tables: dict[str, str], sounds: tuple[str, ...]) -> Path:
    for name, content in tables.items():
        (root / name).write_text(content)
    for sound in sounds:
        (root / sound).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / sound, np.zeros(10), 8000)
    return root


def build_audiocaps(root: Path, **settings: object) -> tuple[Manifest, list[str]]:
    dataset, lines = datasets.load("audiocaps"), list[str]()
    source = replace(dataset.source, **settings)  # type: ignore[arg-type]
    return build(source, "audiocaps", root, lines.append), lines


def test_rows_of_audiocaps_are_captions_of_clips(tmp_path: Path) -> None:
    tables = {
        "train.csv": f'{AUDIOCAPS}\n1,aaa,20,A dog barks\n2,-b_c,0,"Rain, then thunder"\n',
        "val.csv": f"{AUDIOCAPS}\n3,ddd,5,One\n5,eee,7,Wind\n4,ddd,5,Two\n",
        "test.csv": f"{AUDIOCAPS}\n6,fff,30,Waves\n7,fff,30,Waves\n",
    }
    sounds = ("audio/train/aaa.wav", "audio/Y-b_c.flac", "audio/ddd_5.ogg", "audio/Yeee_7.wav", "audio/7.mp3")
    manifest, lines = build_audiocaps(written(tmp_path, tables, sounds))
    assert manifest.ids("audio").tolist() == [
        "train/aaa_20",
        "train/-b_c_0",
        "val/ddd_5",
        "val/eee_7",
        "test/fff_30",
    ]
    assert manifest.column("audio", "file") == list(sounds)
    assert manifest.column("audio", "start_ms") == [0] * 5
    assert manifest.column("text", "text") == [
        "A dog barks",
        "Rain, then thunder",
        "One",
        "Two",
        "Wind",
        "Waves",
        "Waves",
    ]
    assert manifest.positives("audio", "text").tolist() == [[0, 0], [1, 1], [2, 2], [2, 3], [3, 4], [4, 5], [4, 6]]
    assert manifest.splits("audio") == {"train": 2, "val": 2, "test": 1}
    assert lines == []


def test_whole_sound_tracks_are_heard_from_the_start_time(tmp_path: Path) -> None:
    tables = {"test.csv": f"{AUDIOCAPS}\n1,aaa,20,A dog\n2,bbb,0.5,A cat\n"}
    manifest, _ = build_audiocaps(written(tmp_path, tables, ("aaa.wav", "bbb.wav")), clipped=False)
    assert manifest.column("audio", "start_ms") == [20_000, 500]
    assert manifest.column("audio", "length_ms") == [10_000, 10_000]


def test_missing_sounds_stay_and_are_counted(tmp_path: Path) -> None:
    tables = {"test.csv": f"{AUDIOCAPS}\n1,aaa,20,A dog\n2,bbb,0,A cat\n"}
    manifest, lines = build_audiocaps(written(tmp_path, tables, ("aaa.wav",)))
    assert manifest.column("audio", "size_bytes") == [64, -1]
    assert manifest.column("audio", "file") == ["aaa.wav", "bbb.wav"]
    assert lines == [
        f"there is no train split: looked for {tmp_path}/train.csv or {tmp_path}/dataset/train.csv or "
        f"{tmp_path}/csv_files/train.csv",
        f"there is no val split: looked for {tmp_path}/val.csv or {tmp_path}/dataset/val.csv or "
        f"{tmp_path}/csv_files/val.csv",
        "1 of 2 sounds are not there; the first would be called bbb or Ybbb or bbb_0 or Ybbb_0, with the suffix of "
        f"a sound, below {tmp_path}",
    ]


def test_clotho_has_five_captions_and_a_folder_for_each_split(tmp_path: Path) -> None:
    header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
    tables = {
        f"clotho_captions_{split}.csv": f"{header}\nDoor (1) [x].wav,{split} 1,b,c,d,e\n"
        for split in ("development", "validation", "evaluation")
    }
    sounds = tuple(f"{split}/Door (1) [x].wav" for split in ("development", "validation", "evaluation"))
    manifest = datasets.load("clotho").build(written(tmp_path, tables, sounds))
    assert manifest.column("audio", "file") == list(sounds)
    assert manifest.ids("audio").tolist() == [f"{split}/Door (1) [x].wav" for split in ("train", "val", "test")]
    assert manifest.column("text", "text")[:6] == ["development 1", "b", "c", "d", "e", "validation 1"]
    assert manifest.splits("text") == {"train": 5, "val": 5, "test": 5}


def test_captions_have_the_language_of_their_column(tmp_path: Path) -> None:
    table = "file,caption,kor\na.wav,A dog,개가 짖는다\nb.wav,A cat,\n"
    root = written(tmp_path, {"t.csv": table}, ("sounds/a.wav", "sounds/b.wav"))
    manifest = build(replace(ONE_TABLE, captions={"en": ("caption",), "ko": ("kor",)}), "tiny", root)
    assert manifest.languages() == {"en": 2, "ko": 1}
    assert manifest.column("text", "text") == ["A dog", "개가 짖는다", "A cat"]


def test_first_folder_goes_before_the_others(tmp_path: Path) -> None:
    splits = {"train": SplitFiles(tables=("t.csv",), folders=("new", "old"))}
    root = written(tmp_path, {"t.csv": "file,caption\na,x\nb,y\n"}, ("new/a.mp3", "old/a.wav", "old/sub/b.flac"))
    manifest = build(replace(ONE_TABLE, splits=splits), "tiny", root)
    assert manifest.column("audio", "file") == ["new/a.mp3", "old/sub/b.flac"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "there is no `file`"),
        ("file,caption\n", "t.csv: has no rows"),
        ("file\na.wav\n", "there is no `caption`; there are: 'file'"),
        ("file,caption\na.wav,said\n,said\n", "t.csv: line 3: `file` is empty"),
        ("file,caption\n../a.wav,said\n", r"t.csv: line 2: '../a.wav' points out of the data root"),
        ("file,caption\na.wav\n", "line 2 has 1 values, where the first line names 2 columns"),
        ('file,caption\na.wav,"said\n', "line 2"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(ONE_TABLE, "tiny", written(tmp_path, {"t.csv": table}, ("sounds/b.wav",)))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("soon", "t.csv: line 2: start: expected seconds, found 'soon'"),
        ("-1", "expected seconds, found '-1'"),
        ("nan", "expected seconds, found 'nan'"),
        ("1e300", "expected seconds, found '1e300'"),
        ("3\na.wav,said,4", "line 3: this sound has several starts; put {start} into `id`"),
    ],
)
def test_broken_start_is_named(tmp_path: Path, start: str, message: str) -> None:
    root = written(tmp_path, {"t.csv": f"file,caption,start\na.wav,said,{start}\n"}, ("sounds/a.wav",))
    with pytest.raises(DataError, match=message):
        build(replace(ONE_TABLE, start="start", clipped=False), "tiny", root)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="need `start`"):
        replace(ONE_TABLE, clipped=False)
    with pytest.raises(ConfigError, match="`sound` is empty"):
        replace(ONE_TABLE, sound=())


def test_folder_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiny is not on disk: looked for .*t.csv"):
        build(ONE_TABLE, "tiny", tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL}; set PRECEPT_REAL_DATA")
def test_real_captions_are_read_without_their_sounds() -> None:
    manifest = datasets.load("audiocaps").build(REAL)
    assert (manifest.splits("audio"), manifest.splits("text")) == (
        {"val": 495, "test": 975},
        {"val": 2475, "test": 4875},
    )
    assert set(manifest.column("audio", "size_bytes")) == {-1}
