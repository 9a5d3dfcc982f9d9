"""The lines of docs/api.md, run as they stand: from a store to a student that is taken away."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import ConfigError, RunError
from eval import api as evaluation
from pipeline.__main__ import main as pipeline
from trainer import api as training

DOCS = Path(__file__).resolve().parents[1] / "docs"
SMALL = """
name: scenes
title: A few scenes
homepage: docs/scenes.md
licence: Apache-2.0
source: {kind: scenes, seed: 0, num_train: 96, num_val: 16, num_test: 24}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small stores/scenes.zarr."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "small.yaml").write_text(SMALL)
    arguments = [
        "--dataset",
        "small.yaml",
        "--config",
        "scenes",
        "--engine",
        "local",
        "--set",
        "gate.num_samples=0",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["pipeline", "precompute", *arguments])
        with pytest.raises(SystemExit) as left:
            pipeline()
    assert not left.value.code
    return folder


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    """The Python of docs/api.md, block by block."""
    return re.findall(r"```python\n(.*?)```", (DOCS / "api.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def told(folder: Path, blocks: list[str]) -> dict[str, Any]:
    """What the names in the blocks stand for after all of them have run."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks:
            exec(block, names)
    return names


def test_ten_lines_go_from_a_store_to_figures(blocks: list[str], told: dict[str, Any], folder: Path) -> None:
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 10
    assert set(told["batch"].inputs) == set(told["batch"].pair)
    assert (folder / told["run"] / "embeddings/scenes.zarr").is_dir()
    assert 0 <= told["report"]["directions"]["text-to-image"]["R@10"] <= 100
    assert (folder / told["run"] / "reports/retrieval-scenes-test.json").is_file()


def test_embeddings_are_those_of_the_split(told: dict[str, Any]) -> None:
    assert len(told["ids"]) == len(told["images"]) == 24
    assert told["cosines"].shape == (24, len(told["texts"]))
    np.testing.assert_allclose(np.linalg.norm(told["images"], axis=1), 1, atol=1e-5)


def test_a_free_query_finds_what_its_item_finds(
    told: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run, store = told["run"], training.open_store("stores/scenes.zarr")
    row = store.manifest.column("image", "id").index(told["ids"][3])
    file = Path(store.manifest.media_root) / store.manifest.column("image", "file", [row])[0]
    free = evaluation.search(run, image=file, k=5)
    assert (free.item.about["file"], free.split) == (str(file), "test")
    own = evaluation.search(run, id=told["ids"][3], k=5)
    assert free.neighbours["image"][0].item.about["id"] == told["ids"][3]
    for modality in ("text", "audio"):
        ids = [[one.item.about["id"] for one in found.neighbours[modality]] for found in (free, own)]
        assert ids[0] == ids[1]
    assert {one.belongs for found in free.neighbours.values() for one in found} == {None}


def test_training_a_finished_run_again_returns_it(
    told: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    again = training.train("stores/scenes.zarr", "shre", run=told["run"], epochs=2, batch_size=64)
    assert again == told["run"]
    with pytest.raises(ConfigError, match="begun with another recipe: epochs"):
        training.train("stores/scenes.zarr", "shre", run=told["run"], epochs=3, batch_size=64)


def test_a_mistake_is_the_commands_own_line(
    told: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="unknown key `epoch`; did you mean `epochs`"):
        training.train("stores/scenes.zarr", epoch=3)
    with pytest.raises(ConfigError, match="search: give one of id, text, image, audio, not id and text"):
        evaluation.search(told["run"], id="one", text="two")
    with pytest.raises(RunError, match="nowhere: no run there"):
        evaluation.retrieval("nowhere")
