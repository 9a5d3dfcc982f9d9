from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from contract.errors import DataError
from pipeline.building import build
from pipeline.sources.scenes import Scenes
from pipeline.sources.scenes.draw import draw

SMALL = Scenes(num_train=24, num_val=6, num_test=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    build(SMALL, "scenes", folder)
    return folder


def test_same_seed_same_bytes(folder: Path, tmp_path: Path) -> None:
    build(SMALL, "scenes", tmp_path)
    assert _contents(tmp_path) == _contents(folder)


def test_other_seed_other_bytes(folder: Path, tmp_path: Path) -> None:
    build(Scenes(seed=1, num_train=24, num_val=6, num_test=10), "scenes", tmp_path)
    ours, others = _contents(folder), _contents(tmp_path)
    assert ours.keys() == others.keys()
    assert all(ours[name] != others[name] for name in ours)


def test_manifest_pairs_images_with_their_captions_and_sounds(folder: Path) -> None:
    manifest = build(SMALL, "scenes", folder)
    manifest.check()
    assert (manifest.dataset, manifest.protocol, manifest.media_root) == ("scenes", "scenes", str(folder))
    assert manifest.splits("image") == manifest.splits("audio") == {"train": 24, "val": 6, "test": 10}
    assert manifest.languages() == {"en": 200, "de": 200, "es": 200}
    images, captions = manifest.ids("image"), manifest.ids("text")
    labels, of_captions = (manifest.column(modality, "label") for modality in ("image", "text"))
    for image, text in manifest.positives("image", "text"):
        assert captions[text].startswith(f"{images[image]}#")
        assert of_captions[text] == labels[image]
    assert list(captions[:5]) == [f"{images[0]}#en-{k}" for k in range(5)]
    assert len(manifest.positives("image", "text")) == 600
    assert np.array_equal(images, manifest.ids("audio"))
    assert manifest.positives("image", "audio").tolist() == [[row, row] for row in range(40)]
    assert sorted(images)[:2] == ["test-000000", "test-000001"]


def test_files_are_what_the_manifest_says(folder: Path) -> None:
    manifest = build(SMALL, "scenes", folder)
    scenes = {sample.id: sample.scene for sample in SMALL.samples()}
    for id_, file, label in zip(
        manifest.ids("image"), manifest.column("image", "file"), manifest.column("image", "label"), strict=True
    ):
        assert np.array_equal(np.asarray(Image.open(folder / file)), draw(scenes[str(id_)]))
        assert label == scenes[str(id_)].label
    for file, size_bytes in zip(
        manifest.column("audio", "file"), manifest.column("audio", "size_bytes"), strict=True
    ):
        wave, rate = soundfile.read(folder / file)
        assert (wave.shape, rate) == ((16_000,), 16_000)
        assert (folder / file).stat().st_size == size_bytes


def test_finished_folder_is_not_written_again(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert build(SMALL, "scenes", folder).fingerprint == build(SMALL, "scenes", folder).fingerprint
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_killed_rendering_is_completed_by_the_same_command(tmp_path: Path) -> None:
    config = "Scenes(num_train=300, num_val=6, num_test=10)"
    code = "from pathlib import Path; from pipeline.sources.scenes import Scenes; "
    code += f"from pipeline.building import build; build({config}, 'scenes', Path({str(tmp_path / 'killed')!r}))"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        while len(list(tmp_path.glob("killed/sounds/*.flac"))) < 5:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed" / "scenes.json").exists()
    scenes = Scenes(num_train=300, num_val=6, num_test=10)
    build(scenes, "scenes", tmp_path / "killed")
    build(scenes, "scenes", tmp_path / "whole")
    assert _contents(tmp_path / "killed") == _contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Scenes(seed=5, num_train=24, num_val=6, num_test=10), "seed 0, asked for seed 5"),
        (Scenes(num_train=25, num_val=6, num_test=10), "num_train 24, asked for num_train 25"),
    ],
)
def test_folder_with_other_parameters_is_refused(folder: Path, other: Scenes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(other, "scenes", folder)


def test_folder_of_another_generator_version_is_refused(folder: Path, tmp_path: Path) -> None:
    found = json.loads((folder / "scenes.json").read_text())
    (tmp_path / "scenes.json").write_text(json.dumps(found | {"version": 0}))
    with pytest.raises(DataError, match="version 0, asked for version 1"):
        build(SMALL, "scenes", tmp_path)


def test_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match="other files"):
        build(SMALL, "scenes", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_damaged_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scenes.json").write_text('{"seed": 0')
    with pytest.raises(DataError, match="damaged"):
        build(SMALL, "scenes", tmp_path)


def test_deleted_image_is_named(tmp_path: Path) -> None:
    build(SMALL, "scenes", tmp_path)
    (tmp_path / "images" / "val-000003.png").unlink()
    with pytest.raises(DataError, match=r"val-000003\.png"):
        build(SMALL, "scenes", tmp_path)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
