"""A run of the embedded dataset, taken away and used by a program that has neither Precept nor torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from safetensors.numpy import load_file

from contract.errors import RunError, StoreError
from contract.schema import FieldSet
from contract.store import TargetStore
from pipeline.__main__ import main as pipeline
from trainer import runs
from trainer.api import train
from trainer.export import bundle, check, source
from trainer.export.portable import portable
from trainer.runs import Run

pytest.importorskip("onnxscript")

SMALL = """
name: scenes
title: A few scenes
homepage: docs/scenes.md
licence: Apache-2.0
source: {kind: scenes, seed: 0, num_train: 64, num_val: 16, num_test: 16}
"""
EXAMPLE = Path(__file__).resolve().parents[3] / "examples/embed_folder.py"
# A machine on which nothing of Precept, and no library of models, is installed.
BARE = """
import sys
names = "contract encoders pipeline trainer eval torch transformers timm pydantic zarr pyarrow soxr".split()
sys.modules.update(dict.fromkeys(names))
sys.path.insert(0, sys.argv[1])
"""
EMBED = """
import json
import numpy as np
from embed import Embedder
embedder = Embedder()
items = json.load(open(sys.argv[2]))
np.savez(sys.argv[3], **{modality: embedder.embed(modality, files) for modality, files in items.items()})
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, the current one, with a small store and a run of it."""
    folder = tmp_path_factory.mktemp("project")
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
        train("stores/scenes.zarr", "shre", run="runs/one", epochs=1, batch_size=64)
        yield folder


@pytest.fixture(scope="module")
def run(project: Path) -> Run:
    return runs.resume(project / "runs/one", [])


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def exported(run: Run, said: list[str]) -> Path:
    """The bundle of the run."""
    return bundle.write(run, None, int8=True, say=said.append)


def test_a_program_without_precept_embeds_as_the_run_did(exported: Path, run: Run, tmp_path: Path) -> None:
    store = TargetStore.open(run.path / "embeddings/scenes.zarr")
    items = {
        modality: [one["text"] or str(Path(store.manifest.media_root) / one["file"]) for one in table.to_pylist()]
        for modality, table in store.manifest.items.items()
    }
    (tmp_path / "items.json").write_text(json.dumps(items))
    arguments = [str(exported), str(tmp_path / "items.json"), str(tmp_path / "found.npz")]
    subprocess.run([sys.executable, "-I", "-c", BARE + EMBED, *arguments], check=True, cwd=tmp_path)
    found = np.load(tmp_path / "found.npz")
    assert set(found) == {"image", "text", "audio"}
    for modality, files in items.items():
        expected = store.load(f"{modality}/student/embedding", range(len(files)))
        np.testing.assert_allclose(found[modality], expected, rtol=0, atol=1e-4, err_msg=modality)


def test_models_take_batches_of_any_size(exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported / "image.onnx", providers=["CPUExecutionProvider"])
    assert [(one.name, one.shape) for one in session.get_inputs()] == [("pixels", ["batch", 64, 64, 3])]
    assert [(one.name, one.shape) for one in session.get_outputs()] == [("embedding", ["batch", 512])]
    for n in (1, 2, 7):
        (found,) = session.run(None, {"pixels": np.zeros((n, 64, 64, 3), np.uint8)})
        assert found.shape == (n, 512)


def test_what_was_compared_is_said_and_on_the_card(exported: Path, said: list[str]) -> None:
    assert [line.partition(":")[0] for line in said] == ["image.onnx", "text.onnx", "audio.onnx"]
    assert all("of the run's embeddings of 32 items" in line and "cosine at least 0.9" in line for line in said)
    card = (exported / "README.md").read_text()
    for part in (
        "licence: Apache-2.0",
        "train 64",
        "image-text, image-audio",
        "kd (kd_kl)",
        "apache-2.0",
        "32 items",
    ):
        assert part in card, part


def test_int8_models_are_smaller(exported: Path) -> None:
    for modality in ("image", "text", "audio"):
        sizes = [(exported / f"{modality}{kind}.onnx").stat().st_size for kind in (".int8", "")]
        assert sizes[0] < 0.7 * sizes[1]


def test_no_file_tells_where_it_was_made(exported: Path) -> None:
    for path in exported.rglob("*.onnx"):
        assert str(Path(torch.__file__).parent).encode() not in path.read_bytes()


def test_timm_loads_the_frozen_encoder(exported: Path, run: Run) -> None:
    found = timm.create_model(f"local-dir:{exported / 'frozen/image'}", pretrained=True).eval()
    built = source.find(run.streams, "image").encoder.build("cpu")._outputs._model  # type: ignore[attr-defined]
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(found(images), built(images))
    assert found.pretrained_cfg["mean"] == built.pretrained_cfg["mean"]


def test_the_students_weights_are_safetensors(exported: Path, run: Run) -> None:
    names = set(load_file(exported / "student.safetensors"))
    assert {"adapters.by_modality.image.project.weight", "hidden.1.weight"} <= names


def test_the_example_finds_pictures_for_a_text(exported: Path, project: Path, tmp_path: Path) -> None:
    store = TargetStore.open(project / "stores/scenes.zarr")
    arguments = [str(exported), f"{store.manifest.media_root}/images", "a red circle"]
    script = BARE.replace("sys.path.insert(0, sys.argv[1])", "") + EXAMPLE.read_text()
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, *arguments], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    scores = [float(line.split()[0]) for line in done.stdout.splitlines()]
    assert len(scores) == 10
    assert scores == sorted(scores, reverse=True)
    assert np.load(tmp_path / "embeddings.npy").shape == (96, 512)
    assert len(EXAMPLE.read_text().splitlines()) <= 21


def test_a_folder_of_something_else_is_not_replaced(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(RunError, match="exists and is no bundle"):
        bundle.write(run, tmp_path, int8=False, say=print)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_unfinished_run_is_not_exported(run: Run, tmp_path: Path) -> None:
    unfinished = replace(run, record=run.record | {"finished": False})
    with pytest.raises(RunError, match=r"is not finished; `trainer run --run .* --resume` finishes it"):
        bundle.write(unfinished, tmp_path / "out", int8=False, say=print)
    assert not (tmp_path / "out").exists()


def test_a_file_that_has_changed_is_found_out(run: Run, exported: Path, project: Path) -> None:
    images = Path(TargetStore.open(project / "stores/scenes.zarr").manifest.media_root) / "images"
    changed, other = sorted(images.glob("test-*"))[0], sorted(images.glob("train-*"))[0]
    found = source.find(run.streams, "image")
    model = bundle.Model(
        source=found,
        portable=portable(found.encoder, found.field, found.has_length, found.name),
        about=json.loads((exported / "bundle.json").read_text())["modalities"]["image"],
        difference=0.0,
        loading="",
    )
    kept = changed.read_bytes()
    try:
        shutil.copyfile(other, changed)
        with pytest.raises(RunError, match=r"embedding of .* has a cosine of only .*files changed since"):
            check.check(run, exported, model)
    finally:
        changed.write_bytes(kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": None}, "image/teacher was not filled by an encoder that Precept knows"),
        ({"recipe": {"kind": "timm", "weights": "0"}}, "image/teacher: its encoder is not the one that filled"),
    ],
)
def test_another_encoder_than_the_stores_is_refused_and_nothing_is_written(
    run: Run, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    store = run.streams.streams[0].store
    fieldset: FieldSet = store.fieldsets["image/teacher"]
    provenance = {key: value for key, value in ({**fieldset.provenance, **changes}).items() if value is not None}
    store.fieldsets["image/teacher"] = replace(fieldset, provenance=provenance)
    try:
        with pytest.raises(StoreError, match=message):
            bundle.write(run, tmp_path / "out", int8=False, say=print)
    finally:
        store.fieldsets["image/teacher"] = fieldset
    assert list(tmp_path.iterdir()) == []
