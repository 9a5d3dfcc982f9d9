from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from contract.errors import ConfigError, DataError
from pipeline import datasets
from pipeline.building import build
from pipeline.sources.files import HashedSplit
from pipeline.sources.speech_folder import SpeechFolder

REAL = Path(os.environ.get("PRECEPT_REAL_DATA", "../shared/data")).resolve() / "fsdd"


def written(root: Path, files: Sequence[str]) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / file, np.zeros(10), 8000)
    return root


def noted(source: SpeechFolder, root: Path) -> list[str]:
    lines: list[str] = []
    build(source, "tiny", root, lines.append)
    return lines


def test_folders_are_labels_in_sorted_order(tmp_path: Path) -> None:
    root = written(tmp_path, ["dog/2.wav", "cat/1.flac", "cat/sub.wav", "bird/x.mp3"])
    manifest = build(SpeechFolder(), "tiny", root)
    assert manifest.ids("audio").tolist() == ["bird/x", "cat/1", "cat/sub", "dog/2"]
    assert manifest.column("audio", "label") == [0, 1, 1, 2]
    assert (manifest.num_classes, manifest.splits("audio")) == (3, {"train": 4})
    assert min(manifest.column("audio", "size_bytes")) > 0


def test_free_spoken_digits_hold_out_the_first_five_of_each(tmp_path: Path) -> None:
    root = written(tmp_path, [f"recordings/{d}_theo_{n}.wav" for d in (0, 9) for n in (4, 5, 10)])
    manifest = datasets.load("fsdd").build(root)
    assert manifest.column("audio", "label") == [0, 0, 0, 9, 9, 9]
    assert manifest.ids("audio").tolist()[0] == "recordings/0_theo_10"
    assert manifest.column("audio", "split") == ["train", "test", "train"] * 2
    assert manifest.num_classes == 10


def test_speech_commands_are_split_by_their_lists(tmp_path: Path) -> None:
    files = [f"{word}/{speaker}_nohash_0.wav" for word in ("bed", "zero") for speaker in ("0a", "1b", "2c")]
    root = written(tmp_path, [*files, "_background_noise_/running_tap.wav"])
    (root / "validation_list.txt").write_text("bed/1b_nohash_0.wav\nbed/7f_nohash_1.wav\n")
    (root / "testing_list.txt").write_text("zero/2c_nohash_0.wav\n")
    dataset = datasets.load("speech_commands")
    manifest = dataset.build(root)
    assert manifest.column("audio", "label") == [1, 1, 1, 34, 34, 34]
    assert manifest.column("audio", "split") == ["train", "val", "train", "train", "train", "test"]
    lines: list[str] = []
    dataset.build(root, lines.append)
    assert lines == [
        "left out: 1 sounds that are not called {label}/{speaker}_nohash_{number}, the first "
        "_background_noise_/running_tap.wav",
        "1 sounds that are in `lists` are not there, the first bed/7f_nohash_1.wav",
    ]


def test_split_is_read_from_the_path(tmp_path: Path) -> None:
    root = written(tmp_path, ["validation/dog/1.wav", "train/dog/1.wav"])
    manifest = build(SpeechFolder(pattern="{split}/{label}/{name}"), "tiny", root)
    assert manifest.splits("audio") == {"train": 1, "val": 1}
    written(tmp_path, ["noise/dog/1.wav"])
    with pytest.raises(DataError, match=r"noise/dog/1.wav: 'noise' is not a split"):
        build(SpeechFolder(pattern="{split}/{label}/{name}"), "tiny", root)


def test_shares_are_set_aside_by_speaker(tmp_path: Path) -> None:
    files = [f"{label}_{speaker:03d}_{n}.wav" for label in "ab" for speaker in range(40) for n in range(2)]
    source = SpeechFolder(
        pattern="{label}_{speaker}_{number}", split=HashedSplit(val=0.2, test=0.2), split_by=("speaker",)
    )
    manifest = build(source, "tiny", written(tmp_path, files))
    splits: dict[str, set[str]] = {}
    for id_, split in zip(manifest.ids("audio").tolist(), manifest.column("audio", "split"), strict=True):
        splits.setdefault(id_.split("_")[1], set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert set().union(*splits.values()) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "{speaker}_{number}"}, r"expected \{label\} in it"),
        ({"pattern": "{label}/{label}"}, "each once"),
        ({"pattern": "{label}/{0}"}, "other names"),
        ({"held_out": {"test": {"speaker": ("theo",)}}}, r"has no \{speaker\}"),
        ({"split_by": ("speaker",)}, r"has no \{speaker\}"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SpeechFolder(**settings)


def test_class_that_is_not_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cow/1.wav: 'cow' is none of the 2 classes, such as 'cat', 'dog'"):
        build(SpeechFolder(classes=("cat", "dog")), "tiny", written(tmp_path, ["cat/1.wav", "cow/1.wav"]))


def test_folder_without_a_matching_sound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no sound in .* is called \{label\}/\{name\}, such as 1.wav"):
        build(SpeechFolder(), "tiny", written(tmp_path, ["1.wav"]))
    with pytest.raises(DataError, match="tiny is not on disk"):
        build(SpeechFolder(folders=("recordings",)), "tiny", tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("../dog/1.wav\n", r"list.txt: line 1: '../dog/1.wav' points out of the data root"),
        ("dog/1.wav\n/dog/2.wav\n", r"list.txt: line 2: '/dog/2.wav' points out"),
    ],
)
def test_broken_list_is_named(tmp_path: Path, lines: str, message: str) -> None:
    root = written(tmp_path, ["dog/1.wav"])
    (root / "list.txt").write_text(lines)
    with pytest.raises(DataError, match=message):
        build(SpeechFolder(lists={"val": "list.txt"}), "tiny", root)


def test_sound_in_two_lists_is_refused(tmp_path: Path) -> None:
    root = written(tmp_path, ["dog/1.wav"])
    for name in ("a.txt", "b.txt"):
        (root / name).write_text("dog/1.wav\n")
    with pytest.raises(DataError, match=r"b.txt: line 1: dog/1.wav is listed for val too"):
        build(SpeechFolder(lists={"val": "a.txt", "test": "b.txt"}), "tiny", root)
    with pytest.raises(DataError, match=r"c.txt: no such file, which lists the val sounds"):
        build(SpeechFolder(lists={"val": "c.txt"}), "tiny", root)


def test_link_out_of_the_data_root_is_refused(tmp_path: Path) -> None:
    written(tmp_path, ["elsewhere/dog/1.wav"])
    (tmp_path / "root").mkdir()
    (tmp_path / "root/dog").symlink_to(tmp_path / "elsewhere/dog")
    with pytest.raises(DataError, match="link out of the data root"):
        build(SpeechFolder(), "tiny", tmp_path / "root")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL}; set PRECEPT_REAL_DATA")
def test_real_digits_are_read() -> None:
    manifest = datasets.load("fsdd").build(REAL)
    assert np.bincount(manifest.column("audio", "label")).tolist() == [30] * 10
