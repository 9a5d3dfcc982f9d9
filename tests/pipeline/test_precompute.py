"""The run: equal values whatever the engine, and nothing lost when it is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from contract.store import TargetStore

WIDE_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 576, "depth": 1, "num_heads": 4, "num_classes": 7}


def command(large_project, *more: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", *large_project.arguments(*more)]


def run(large_project, *more: str) -> None:
    subprocess.run(command(large_project, *more), cwd=large_project.folder, check=True, capture_output=True)


def content(store: Path) -> dict[str, bytes]:
    """Every file of a store; the command line, which names the store, taken out of the metadata."""
    files = {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}
    return {
        name: b"\n".join(line for line in data.splitlines() if b'"command"' not in line) if "json" in name else data
        for name, data in files.items()
    }


@pytest.fixture(scope="module")
def whole(large_project) -> Path:
    """A store computed without interruption."""
    run(large_project, "--store", "whole.zarr")
    return large_project.folder / "whole.zarr"


def test_stored_rows_equal_direct_calls_of_timm(large_project, whole: Path) -> None:
    store = TargetStore.open(whole)
    rows = [0, 511, 512, 1099]
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **WIDE_VIT).eval()
    model.load_state_dict(load_file(large_project.folder / "teacher.safetensors"))
    images = [
        Image.open(large_project.data / f"images/{row}.png").resize((17, 17), 3).crop((0, 0, 16, 16))
        for row in rows
    ]
    batch = torch.stack([torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255 for image in images])
    with torch.inference_mode():
        batch = (batch - 0.5) / 0.5
        logits, patches = model(batch), model.patch_embed(batch)
    np.testing.assert_allclose(store.load("image/teacher/logits", rows), logits, atol=5e-3)
    np.testing.assert_allclose(store.load("image/teacher/patch_embeddings", rows), patches, atol=5e-3)


@pytest.mark.parametrize("num_commits", [1, 2])
def test_killed_run_continues_to_the_same_bytes(large_project, whole: Path, num_commits: int) -> None:
    name = f"killed-{num_commits}.zarr"
    commits = large_project.folder / name / "precept/commits/image/teacher"
    process = subprocess.Popen(
        command(large_project, "--store", name),
        cwd=large_project.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list(commits.glob("*.json"))) < num_commits and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert TargetStore.open(large_project.folder / name).missing("image/teacher")
    run(large_project, "--store", name)
    assert content(large_project.folder / name) == content(whole)


def test_ray_stores_the_same_values(large_project, whole: Path) -> None:
    run(large_project, "--store", "ray.zarr", "--engine", "ray")
    ray, local = TargetStore.open(large_project.folder / "ray.zarr"), TargetStore.open(whole)
    rows = range(1100)
    for name in ("patch_embeddings", "features", "logits"):
        reference = f"image/teacher/{name}"
        np.testing.assert_allclose(ray.load(reference, rows), local.load(reference, rows), atol=2e-3)
    texts = range(2200)
    np.testing.assert_array_equal(
        ray.load("text/tokens/token_embeddings", texts), local.load("text/tokens/token_embeddings", texts)
    )
    assert ray.fieldsets["image/teacher"].fingerprint == local.fieldsets["image/teacher"].fingerprint


def test_error_inside_an_actor_leaves_as_one_line(large_project) -> None:
    broken = large_project.folder / "broken.safetensors"
    broken.write_bytes(b"no weights")
    more = ["--store", "broken.zarr", "--engine", "ray", "--set", f"encoders.image.teacher.checkpoint={broken}"]
    result = subprocess.run(command(large_project, *more), cwd=large_project.folder, capture_output=True, text=True)
    assert result.returncode == 3
    assert "error: checkpoint" in result.stderr
    assert "Traceback" not in result.stderr
