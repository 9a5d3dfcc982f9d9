"""`pipeline verify` finds what is damaged, and `pipeline repair` makes that again and nothing else."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from contract.manifest import Manifest, items_table
from contract.schema import Field, FieldSet
from contract.store import TargetStore

REPAIR = ("repair", "stores/tiny.zarr", "--engine", "local")
VERIFY = ("verify", "stores/tiny.zarr")


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_only_damaged_shards_are_computed_again(large) -> None:
    whole = large.restore()
    flip_byte(large.store / "image/teacher/patch_embeddings/c/0/0/0/0")
    (large.store / "image/teacher/logits/c/2/0/0").unlink()
    message = large.error_of(*VERIFY)
    assert "2 of 4 shards are damaged or missing" in message
    assert "image/teacher shard 0: stores/tiny.zarr/image/teacher/patch_embeddings/c/0/0/0/0" in message
    assert "image/teacher shard 2: stores/tiny.zarr/image/teacher/logits/c/2/0/0 is missing" in message
    written = {file: file.stat().st_mtime_ns for file in large.store.rglob("*") if file.is_file()}

    exit_code, out, err = large.call(*REPAIR)
    assert exit_code == 0, err
    assert "image/teacher: 344 rows in" in out  # 256 of the first shard, 88 of the last
    assert "text/tokens" not in out
    assert out.endswith("stores/tiny.zarr is whole\n")
    assert large.content() == whole
    touched = {str(file.relative_to(large.store)) for file in written if _mtime(file) != written[file]}
    fields = [f"image/teacher/{name}/c/" for name in ("patch_embeddings", "features", "logits", "view_parameters")]
    assert {f"{name[: name.index('/c/')]}/c/" for name in touched if "/c/" in name} == set(fields)
    assert not [name for name in touched if "/c/1/" in name or "000001" in name or "text/" in name]

    exit_code, out, _ = large.call(*REPAIR)
    assert (exit_code, out) == (0, "stores/tiny.zarr is whole\n")
    assert large.call(*VERIFY).exit_code == 0


@pytest.mark.parametrize("damage", [flip_byte, cut_short, Path.unlink], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize(
    "name",
    [
        "zarr.json",
        "image/teacher/zarr.json",
        "image/teacher/features/zarr.json",
        "image/teacher/patch_embeddings.scale/c/0",
        "precept/manifest/manifest.json",
        "precept/manifest/items.image.arrow",
        "precept/copies/precept/manifest/items.text.arrow",
        "precept/checksums.json",
        "precept/commits/image/teacher/000000.json",
        "text/tokens/token_embeddings/c/0/0/0",
    ],
)
def test_whatever_is_damaged_is_named_and_mended(
    small: Any, small_whole: dict[str, bytes], name: str, damage: Callable[[Path], None]
) -> None:
    damage(small.store / name)
    assert name in small.error_of(*VERIFY)
    exit_code, _, err = small.call(*REPAIR)
    assert exit_code == 0, err
    assert small.content() == small_whole
    assert small.call(*REPAIR).out == "stores/tiny.zarr is whole\n"


def test_other_weights_are_refused_and_nothing_is_discarded(project) -> None:
    project.precompute()
    (project.store / "image/teacher/logits/c/0/0").unlink()
    before = project.content()
    weights = load_file(project.folder / "teacher.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, project.folder / "teacher.safetensors")
    message = project.error_of(*REPAIR)
    assert "1 shards of image/teacher are damaged or missing, and can't be computed again as they were" in message
    assert "recipe.weights: " in message
    assert project.content() == before
    (project.folder / "teacher.safetensors").unlink()
    assert "teacher.safetensors: no such file" in project.error_of(*REPAIR)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: path.unlink(), "images/3.png (missing, not "),
        (lambda path: path.write_bytes(b"other"), "images/3.png (5 bytes, not "),
    ],
    ids=["missing", "replaced"],
)
def test_photographs_that_are_not_what_they_were_are_refused(project, change: Any, told: str) -> None:
    project.precompute()
    (project.store / "image/teacher/logits/c/0/0").unlink()
    before = project.content()
    change(project.data / "images/3.png")
    message = project.error_of(*REPAIR)
    assert "1 of the files to be read again are not as they were" in message
    assert told in message
    assert project.content() == before


def test_moved_photographs_are_found_again_by_precompute(project) -> None:
    project.precompute()
    whole = project.content()
    (project.store / "image/teacher/logits/c/0/0").unlink()
    project.data.rename(project.folder / "data/elsewhere")
    assert "--data-root DIR" in project.error_of(*REPAIR)
    project.precompute("--data-root", "data/elsewhere")
    now = project.content()
    assert {name for name in whole if now[name] != whole[name]} == {
        "precept/checksums.json",
        "precept/copies/precept/manifest/manifest.json",
        "precept/manifest/manifest.json",
    }


@pytest.mark.parametrize(
    ("provenance", "told"),
    [
        ({"command": "pipeline import a.h5"}, "this command makes them again: pipeline import a.h5"),
        ({"run": "runs/one"}, "no encoder made them, but runs/one"),
    ],
)
def test_what_no_encoder_made_is_left_to_what_did(project, provenance: dict[str, str], told: str) -> None:
    items = items_table({"id": ["a", "b"], "split": ["train", "train"]})
    store = TargetStore.create(project.store, Manifest(dataset="d", protocol="d", items={"image": items}))
    fieldset = FieldSet(
        name="x", modality="image", fields=(Field(name="y", shape=(2,)),), batch_size=1, provenance=provenance
    )
    store.add(fieldset)
    store.write_shard("image/x", 0, {"y": np.ones((2, 2), np.float32)})
    assert project.call(*REPAIR).exit_code == 0
    cut_short(project.store / "image/x/y/c/0/0")
    assert told in project.error_of(*REPAIR)


def test_unfinished_run_is_finished(project) -> None:
    project.precompute()
    whole = project.content()
    shutil.rmtree(project.store / "precept/commits/text")
    assert "text/tokens: 60 rows" in project.call(*REPAIR).out
    assert project.content() == whole


@pytest.fixture(scope="module")
def small_once(tmp_path_factory: pytest.TempPathFactory, make_project: Any) -> Any:
    project = make_project(tmp_path_factory.mktemp("small"), 12)
    project.precompute("--set", "encoders.image.teacher.encodings.patch_embeddings.kind=int8")
    project.keep("whole.zarr")
    return project


@pytest.fixture
def small(small_once: Any, small_whole: dict[str, bytes]) -> Any:
    """Twelve photographs with their whole store, made of int8."""
    return small_once


@pytest.fixture
def small_whole(small_once: Any) -> dict[str, bytes]:
    """Its content."""
    return small_once.restore()


def _mtime(file: Path) -> int:
    return file.stat().st_mtime_ns


def test_items_of_a_tar_are_computed_again(project) -> None:
    with tarfile.open(project.data / "shard.tar", "w") as shard:
        for number in range(30):
            shard.add(project.data / f"images/{number}.png", f"{number:02}.png")
    about = {"name": "tiny", "title": "Tiny", "homepage": "none", "licence": "none"}
    project.write("tiny.yaml", about | {"source": {"kind": "webdataset"}})
    del project.encoders["text"]
    project.configure()
    project.precompute()
    whole = project.content()
    flip_byte(project.store / "image/teacher/logits/c/0/0")
    assert project.call(*REPAIR).exit_code == 0
    assert project.content() == whole


def test_functions_that_a_store_names_are_run_only_when_asked(project) -> None:
    (project.folder / "mine.py").write_text(MINE)
    preprocessing = {"input_size": [3, 8, 8], "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear"}
    teacher = {"kind": "custom", "factory": "mine:make", "preprocessing": preprocessing}
    project.encoders = {"image": {"teacher": teacher}}
    project.configure()
    project.precompute()
    whole = project.content()
    flip_byte(project.store / "image/teacher/features/c/0/0")
    message = project.error_of(*REPAIR)
    assert "were made by code that the store names: mine:make; if it is yours, `pipeline repair" in message
    assert project.call(*REPAIR, "--run-code").exit_code == 0
    assert project.content() == whole


MINE = """
import torch

class Mean(torch.nn.Module):
    def forward(self, images):
        return {"features": images.mean(dim=(2, 3))}

def make():
    return Mean()
"""
