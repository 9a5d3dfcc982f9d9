"""What goes wrong in a long run is one line, and nothing that was saved is lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract import config
from contract.errors import RunError, StoreError, UserError
from contract.store import TargetStore
from trainer import checkpoint, faults, runs
from trainer.batch import Batch
from trainer.fit import fit
from trainer.loader import Loader
from trainer.recipes import Recipe
from trainer.streams import Streams

Make = Callable[..., Recipe]
NewStore = Callable[..., TargetStore]

# More training images than the 256 from which inputs are standardised; image 3 is quarantined.
MANY = ["train"] * 520 + ["val"] * 16


def trainer(*arguments: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(config.SHIPPED), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trainer", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, **options)


def last_line(stderr: str) -> str:
    """What the user reads last; a progress bar before it stays on the same line."""
    return stderr.strip().splitlines()[-1].rpartition("\r")[2]


def test_loss_that_is_not_finite_names_part_step_and_samples_and_keeps_the_state_before(
    recipe: Make, new_store: NewStore, tmp_path: Path
) -> None:
    store = new_store(tmp_path / "tiny.zarr", splits=MANY, with_audio=False, huge=[10, 400])
    run = runs.begin(recipe({"accumulate": 2}), [store.path], tmp_path / "run")
    with pytest.raises(RunError) as caught:
        fit(run)
    message = str(caught.value)
    step = int(message.removeprefix("step ").partition(":")[0]) - 1
    assert f"step {step + 1}: kd.image is nan; outputs that are not finite: image/tokens of 'image-" in message
    assert ("'image-010'" in message) != ("'image-400'" in message)
    assert f"the state before it is {run.checkpoints.path(step)}" in message
    tensors, scalars = checkpoint.load(run.checkpoints.path(step))
    assert scalars["step"] == step
    assert all(torch.isfinite(tensor).all() for name, tensor in tensors.items() if "deviation" not in name)
    with pytest.raises(RunError) as again:
        fit(runs.resume(run.path, []))
    assert str(again.value) == message


def test_values_that_can_not_be_standardised_are_refused_before_the_first_step(
    recipe: Make, new_store: NewStore, tmp_path: Path
) -> None:
    store = new_store(tmp_path / "tiny.zarr", huge=[11])
    with pytest.raises(
        StoreError, match=r"tiny\.zarr: image/teacher/patch_embeddings has values as large as 3e\+38"
    ):
        fit(runs.begin(recipe(), [store.path], tmp_path / "run"))


def test_float16_gradient_that_no_scale_saves_is_said(recipe: Make, store: TargetStore, tmp_path: Path) -> None:
    # Weighted so that the gradient is more than float32 holds: each step lowers the scale, and in vain.
    wild = recipe({"precision": "float16", "objectives": {"kd": {"kind": "kd_kl", "weight": 1e38}}, "epochs": 10})
    with pytest.raises(RunError, match=r"step \d+: the gradient's norm is (inf|nan); the state before it"):
        fit(runs.begin(wild, [store.path], tmp_path / "run"))


def test_store_that_goes_while_it_is_read_is_one_line_and_the_run_goes_on_once_it_is_back(
    recipe: Make, new_store: NewStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path / "tiny.zarr")
    run = runs.begin(recipe(), [store.path], tmp_path / "run")

    def vanishing(streams: Streams, start: int, stop: int, device: str) -> Iterator[Batch]:
        for number, batch in enumerate(Loader(streams, start, stop, device)):
            if number == 5:
                shutil.move(tmp_path / "tiny.zarr", tmp_path / "moved.zarr")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr("trainer.fit.Loader", vanishing)
        with pytest.raises(StoreError, match=r"tiny\.zarr has gone while the run was reading it"):
            fit(run)
    with pytest.raises(StoreError, match=r"tiny\.zarr: no target store there"):
        runs.resume(run.path, [])
    resumed = runs.resume(run.path, [tmp_path / "moved.zarr"])
    fit(resumed)
    assert resumed.record["finished"]


def test_store_that_is_made_anew_under_a_run_is_said(recipe: Make, new_store: NewStore, tmp_path: Path) -> None:
    store = new_store(tmp_path / "tiny.zarr")
    run = runs.begin(recipe(), [store.path], tmp_path / "run")
    faults.require_unchanged(run)
    shutil.rmtree(tmp_path / "tiny.zarr")
    new_store(tmp_path / "tiny.zarr", model="another")
    with pytest.raises(StoreError, match=r"tiny\.zarr has changed while the run was reading it: .*image/teacher"):
        faults.require_unchanged(run)


@pytest.mark.parametrize(
    "too_much", [lambda: torch.empty(1 << 60), lambda: np.empty(1 << 55)], ids=["torch", "numpy"]
)
def test_too_little_memory_suggests_batch_and_accumulation(
    recipe: Make, store: TargetStore, tmp_path: Path, too_much: Callable[[], object]
) -> None:
    run = runs.begin(recipe({"accumulate": 3}), [store.path], tmp_path / "run")
    with (
        pytest.raises(RunError, match=r"batch_size 16 and accumulate 3: .*batch_size=8 --set accumulate=6"),
        faults.explained(run),
    ):
        too_much()


def test_field_that_the_store_lacks_is_told_with_those_it_has(
    recipe_file: Callable[..., Path], store: TargetStore, tmp_path: Path
) -> None:
    for change, message in (
        ("inputs.image=patches", "has no image field 'patches'; its image fields: image/teacher/patch_embeddings"),
        (
            "targets.logits=features",
            "has no image field 'features'; its image fields: image/teacher/patch_embeddings",
        ),
    ):
        done = trainer(
            "run", "--config", str(recipe_file()), "--store", str(store.path), "--set", change, cwd=tmp_path
        )
        assert done.returncode == StoreError.exit_code
        assert message in last_line(done.stderr)
        assert not (tmp_path / "runs").exists()


def test_checkpoint_of_another_recipe_is_refused(recipe: Make, store: TargetStore, tmp_path: Path) -> None:
    run, other = (
        runs.begin(
            recipe({"epochs": 1, "seed": seed, "student.width": 16 * (seed + 1)}),
            [store.path],
            tmp_path / str(seed),
        )
        for seed in (0, 1)
    )
    fit(run)
    other.create()
    shutil.copytree(run.path / "checkpoints", other.path / "checkpoints")
    with pytest.raises(
        RunError, match=r"step-00000004.safetensors is a checkpoint of another recipe .*width: 16, not 32"
    ):
        fit(runs.resume(other.path, []))


def test_config_that_was_edited_under_a_run_is_noticed(recipe: Make, store: TargetStore, tmp_path: Path) -> None:
    run = runs.begin(recipe({"epochs": 1}), [store.path], tmp_path / "run")
    fit(run)
    path = run.path / "config.yaml"
    path.write_text(path.read_text().replace("epochs: 1", "epochs: 3"))
    with pytest.raises(RunError, match=r"another recipe than the run's config.yaml: epochs: 1, not 3"):
        fit(runs.resume(run.path, []))


def test_full_disk_loses_nothing(recipe_file: Callable[..., Path], new_store: NewStore, tmp_path: Path) -> None:
    new_store(tmp_path / "tiny.zarr")
    recipe_file({"epochs": 2, "checkpoints": {"every_steps": 1, "keep": 2}})
    command = ("run", "--config", "tiny.yaml", "--store", "tiny.zarr", "--run", "run", "--resume")
    # The file's size is limited where the disk's is not: the third write of it fails the same way.
    whole = trainer(*command, "--set", "epochs=1", "--run", "other", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    size = (tmp_path / "other/best.safetensors").stat().st_size

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    done = trainer(*command, cwd=tmp_path, preexec_fn=limited)
    assert done.returncode == RunError.exit_code
    assert last_line(done.stderr).startswith("error: run: a file would be larger than this process may write")
    assert "`trainer run --run run --resume` goes on" in last_line(done.stderr)
    assert not list((tmp_path / "run").rglob("*.partial"))
    again = trainer(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "run/run.json").read_text())["finished"]


def test_folder_that_can_not_be_written_is_one_line(
    recipe_file: Callable[..., Path], store: TargetStore, tmp_path: Path
) -> None:
    (tmp_path / "runs").write_text("a file, where a folder is wanted")
    done = trainer("run", "--config", str(recipe_file()), "--store", str(store.path), cwd=tmp_path)
    assert done.returncode == UserError.exit_code
    assert last_line(done.stderr).startswith("error: [Errno ")
    assert "runs" in last_line(done.stderr)
    assert "Traceback" not in done.stderr
