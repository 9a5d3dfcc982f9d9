"""Training as a whole, on a tiny store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import config, embeddings
from contract.errors import RunError, StoreError
from contract.store import TargetStore
from trainer import checkpoint, runs
from trainer.fit import fit
from trainer.recipes import Recipe

Make = Callable[..., Recipe]
NewStore = Callable[..., TargetStore]
FitUntil = Callable[[runs.Run, int], None]

INFONCE: dict[str, Any] = {"objectives": {"infonce": {"kind": "infonce"}}, "targets": {}}


def lines(run: runs.Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def parts(run: runs.Run) -> list[tuple[int, dict[str, float]]]:
    return [(line["step"], line["parts"]) for line in lines(run) if "parts" in line]


def scores(run: runs.Run) -> list[tuple[int, float]]:
    return [(line["epoch"], line["score"]) for line in lines(run) if "score" in line]


@pytest.mark.parametrize("changes", [{}, INFONCE], ids=["shre", "infonce"])
def test_loss_falls_and_retrieval_beats_random(
    recipe: Make, store: TargetStore, tmp_path: Path, changes: dict[str, Any]
) -> None:
    long = recipe({**changes, "epochs": 30, "validation": {"every_epochs": 10, "metric": "R@1"}})
    run = runs.begin(long, [store.path], tmp_path / "run")
    fit(run)
    by_name: dict[str, list[float]] = {}
    for _, values in parts(run):
        for name, value in values.items():
            by_name.setdefault(name, []).append(value)
    assert all(np.mean(values[-4:]) < 0.7 * np.mean(values[:4]) for values in by_name.values())
    figures = [line["validation"] for line in lines(run) if "validation" in line][-1]
    assert {name.split("/")[1] for name in figures if name.startswith("tiny/") and name.endswith("/R@1")} == {
        f"{a}-to-{b}" for a in ("image", "text", "audio") for b in ("image", "text", "audio") if a != b
    }
    assert figures["tiny/text-to-image/num_queries"] == 32
    # Random: 10% among 16 images (R@1 6%); text-audio was never trained.
    assert figures["tiny/text-to-image/R@1"] > 40
    assert figures["tiny/image-to-audio/R@1"] > 40
    assert figures["tiny/text-to-audio/R@1"] > 20


@pytest.mark.parametrize("step", [5, 8, 15])
def test_resumed_run_equals_uninterrupted_run(
    recipe: Make, store: TargetStore, tmp_path: Path, fit_until: FitUntil, step: int
) -> None:
    whole = runs.begin(recipe(), [store.path], tmp_path / "whole")
    fit(whole)
    fit_until(runs.begin(recipe(), [store.path], tmp_path / "killed"), step)
    resumed = runs.resume(tmp_path / "killed", [])
    fit(resumed)
    assert parts(resumed) == parts(whole)
    assert scores(resumed) == scores(whole)
    for file in (whole.best, *whole.checkpoints.all()):
        expected, state = checkpoint.load(file)
        found, resumed_state = checkpoint.load(resumed.path / file.relative_to(whole.path))
        assert resumed_state == state
        assert found.keys() == expected.keys()
        assert all((found[tensor] == expected[tensor]).all() for tensor in expected)
    found = [
        TargetStore.open(embeddings.path(run.path, "tiny")).load("text/student/embedding", range(8))
        for run in (whole, resumed)
    ]
    np.testing.assert_array_equal(found[0], found[1])


def test_run_that_was_killed_before_its_first_checkpoint_begins_again(
    recipe: Make, store: TargetStore, tmp_path: Path, fit_until: FitUntil
) -> None:
    fit_until(runs.begin(recipe(), [store.path], tmp_path / "run"), 2)
    resumed = runs.resume(tmp_path / "run", [])
    fit(resumed)
    assert [step for step, _ in parts(resumed)] == list(range(1, 17))


def test_run_leaves_its_record_recipe_and_student_store(recipe: Make, store: TargetStore, tmp_path: Path) -> None:
    run = runs.begin(recipe({"epochs": 1}), [store.path], tmp_path / "run")
    fit(run)
    record = json.loads((run.path / "run.json").read_text())
    assert record["finished"]
    assert record["recipe"] == "tiny"
    assert record["trained"] == {"tiny": ["image-text", "image-audio"]}
    assert record["stores"][0]["fingerprints"]["image/teacher"] == store.fieldsets["image/teacher"].fingerprint
    assert config.load(run.path / "config.yaml", Recipe) == run.recipe
    assert {path.name for path in run.path.iterdir()} == {
        "best.safetensors",
        "checkpoints",
        "config.yaml",
        "embeddings",
        "environment.json",
        "metrics.jsonl",
        "run.json",
    }
    written = TargetStore.open(embeddings.path(run.path, "tiny"))
    provenance = written.fieldsets["audio/student"].provenance
    assert provenance["checkpoint"] == "best"
    assert provenance["trained"] == ["image-audio", "image-text"]
    assert provenance["train_splits"] == ["train"]


def test_best_is_the_epoch_of_the_best_validation(recipe: Make, store: TargetStore, tmp_path: Path) -> None:
    run = runs.begin(recipe({"epochs": 6}), [store.path], tmp_path / "run")
    fit(run)
    per_epoch = run.streams.steps_per_epoch
    epoch, score = max(scores(run), key=lambda entry: (entry[1], -entry[0]))
    best, last = checkpoint.load(run.best)[1], checkpoint.load(run.checkpoints.path(6 * per_epoch))[1]
    assert (best["step"], best["best"]) == (epoch * per_epoch, score)
    assert (last["step"], last["best"]) == (6 * per_epoch, score)


def test_without_validation_pairs_the_last_epoch_is_the_best(
    recipe: Make, new_store: NewStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = new_store(tmp_path / "tiny.zarr", splits=["train"] * 40)
    run = runs.begin(recipe({"epochs": 2}), [store.path], tmp_path / "run")
    fit(run)
    assert "no validation" in capsys.readouterr().err
    assert checkpoint.load(run.best)[1]["step"] == 2 * run.streams.steps_per_epoch
    assert not embeddings.path(run.path, "tiny").exists()


def test_damaged_row_is_noticed_in_the_first_epoch_unless_checksums_are_not_verified(
    recipe: Make, coded_store: NewStore, tmp_path: Path
) -> None:
    # Rows of more than 32 kB, so that each is a chunk with a checksum of its own.
    store = coded_store(tmp_path / "tiny.zarr", num_views=0, shape=(2, 6000))
    short = {"epochs": 1, "objectives": {"infonce": {"kind": "infonce"}}, "targets": {}}
    damaged = runs.begin(recipe(short), [store.path], tmp_path / "damaged")
    stream, drawn = damaged.streams.draw(0)
    assert stream.kind == "image-text"
    row = int(drawn.shown.rows["image"][-1])
    shard, offset = divmod(row, 32)
    path = store.path / f"image/eyes/patch_embeddings/c/{shard}/0/0"  # type: ignore[operator]
    content = bytearray(path.read_bytes())
    content[offset * (2 * 6000 * 4 + 4) + 1000] ^= 1
    path.write_bytes(content)
    message = rf"{path}: .*shard {shard}, row {row} .*'image-{row:03}'.*`pipeline repair {store.path}`"
    with pytest.raises(StoreError, match=message):
        fit(damaged)
    unverified = runs.begin(recipe({**short, "verify_every_epochs": 0}), [store.path], tmp_path / "unverified")
    fit(unverified)
    assert unverified.record["finished"]


def test_loss_that_is_not_finite_stops_with_the_part_and_the_step(
    recipe: Make, store: TargetStore, tmp_path: Path
) -> None:
    wild = recipe({"optimizer.learning_rate": 1e30, "schedule": {"kind": "multi_step", "epochs": []}})
    with pytest.raises(RunError, match=r"step \d+: (kd|rank)\.[a-z-]+ is (nan|inf)"):
        fit(runs.begin(wild, [store.path], tmp_path / "run"))


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_student_trains_in_every_precision(
    recipe: Make, store: TargetStore, tmp_path: Path, kind: str, precision: str
) -> None:
    run = runs.begin(
        recipe({"epochs": 1, "student.kind": kind, "precision": precision}), [store.path], tmp_path / "run"
    )
    fit(run)
    assert run.record["finished"]
