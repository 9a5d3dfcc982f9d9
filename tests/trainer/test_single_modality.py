"""Streams of one modality: stores without pairs, with labels or without, trained, validated, evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import embeddings
from contract.encodings import Float32, Int32
from contract.errors import ConfigError
from contract.manifest import Manifest, items_table
from contract.schema import Field, FieldSet
from contract.store import TargetStore
from trainer import checkpoint, runs, student_stores
from trainer.fit import fit
from trainer.recipes import Recipe
from trainer.resolve import resolve

Make = Callable[..., Recipe]

NUM_CLASSES, WIDTH, NUM_TOKENS = 4, 12, 5
SPLITS = ["train"] * 64 + ["val"] * 16 + ["test"] * 24
FIELDS = {"image": "patch_embeddings", "text": "token_embeddings", "audio": "patch_embeddings"}
ADAPTERS: dict[str, Any] = {m: {"kind": "transformer", "num_heads": 2, "dropout": 0.0} for m in FIELDS}
CHANGES: dict[str, Any] = {
    "student": {
        "kind": "transformer",
        "width": WIDTH,
        "embedding_dim": WIDTH,
        "num_heads": 2,
        "depth": 1,
        "pooling": "mean",
        "projection": "none",
        "dropout": 0.0,
        "adapters": ADAPTERS,
    },
    "objectives": {"regression": {"kind": "regression"}},
    "targets": {"targets": "targets"},
    "validation": {"metric": "any@1"},
    "epochs": 4,
    "batch_size": 16,
}
KD: dict[str, Any] = {"objectives": {"kd": {"kind": "kd_kl"}}, "targets": {"logits": "logits"}}


def make(
    path: Path,
    modalities: tuple[str, ...] = ("image",),
    *,
    splits: list[str] = SPLITS,
    labelled: bool = True,
    dataset: str = "tiny",
    teacher: str = "drawn",
) -> TargetStore:
    """Write a store without pairs, whose tokens and targets tell an item's class, and whose lengths differ."""
    rng = np.random.default_rng(0)
    labels = np.arange(len(splits)) % NUM_CLASSES
    items = {}
    for modality in modalities:
        columns: dict[str, Any] = {"id": [f"{modality}-{n:03}" for n in range(len(splits))], "split": splits}
        columns |= {"label": labels} if labelled else {}
        columns |= (
            {"text": [f"text {n}" for n in range(len(splits))], "language": ["en"] * len(splits)}
            if (modality == "text")
            else {}
        )
        items[modality] = items_table(columns)
    manifest = Manifest(
        dataset=dataset, protocol=dataset, items=items, pairs={}, num_classes=NUM_CLASSES if labelled else 0
    )
    store = TargetStore.create(path, manifest)
    for modality in modalities:
        centres = rng.normal(size=(NUM_CLASSES, NUM_TOKENS, WIDTH))
        noise = rng.normal(size=(2, len(splits), NUM_TOKENS, WIDTH))
        tokens, targets = (centres[labels] + noise[0]), np.tanh(centres[labels][..., ::-1] + 0.1 * noise[1])
        length = rng.integers(2, NUM_TOKENS + 1, len(splits))
        real = (np.arange(NUM_TOKENS) < length[:, None])[..., None]
        arrays: dict[str, Any] = {FIELDS[modality]: tokens, "targets": targets}
        shapes = {FIELDS[modality]: (NUM_TOKENS, WIDTH), "targets": (NUM_TOKENS, WIDTH)}
        if modality == "image":
            arrays["logits"], shapes["logits"] = 4 * np.eye(NUM_CLASSES)[labels], (NUM_CLASSES,)
        else:
            arrays = {name: np.where(real, values, 0) for name, values in arrays.items()}
        fields = [Field(name=name, shape=shape, encoding=Float32()) for name, shape in shapes.items()]
        arrays = {name: values.astype(np.float32) for name, values in arrays.items()}
        if modality != "image":
            fields.append(Field(name="length", shape=(), encoding=Int32()))
            arrays["length"] = length.astype(np.int32)
        fieldset = FieldSet(
            name="teacher",
            modality=modality,
            fields=tuple(fields),
            batch_size=8,
            rows_per_shard=256,
            provenance={"recipe": {"model": f"{teacher} {modality}"}},
        )
        store.add(fieldset)
        store.write_shard(fieldset.key, 0, arrays)
    return store


def streams(*modalities: str) -> list[dict[str, Any]]:
    return [{"pair": modality} for modality in modalities]


def validations(run: runs.Run) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [line["validation"] for line in lines if "validation" in line]


def losses(run: runs.Run, part: str) -> list[float]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [line["parts"][part] for line in lines if part in line.get("parts", {})]


@pytest.mark.parametrize("changes", [{}, KD], ids=["regression", "kd_kl"])
def test_labelled_images_alone_train_are_validated_by_neighbours_and_leave_a_student_store(
    recipe: Make, tmp_path: Path, changes: dict[str, Any]
) -> None:
    store = make(tmp_path / "tiny.zarr")
    found = recipe({**CHANGES, **changes, "epochs": 12, "streams": streams("image")})
    run = runs.begin(found, [store.path], tmp_path / "run")
    fit(run)
    name = "kd.image" if changes else "regression.image"
    of_steps = losses(run, name)
    assert np.mean(of_steps[-4:]) < 0.8 * np.mean(of_steps[:4])
    figures = validations(run)
    assert len(figures) == 12
    assert figures[-1]["any@1"] == figures[-1]["tiny/image val among train/any@1"]
    assert figures[-1]["tiny/image train among val/num_queries"] == 64
    assert "rsum" not in figures[-1]
    assert ("tiny/image/accuracy" in figures[-1]) == bool(changes)
    assert figures[-1]["any@1"] > 60  # of four classes, 25 by chance
    best = checkpoint.load(run.best)[1]
    assert best["best"] == max(one["any@1"] for one in figures)
    written = TargetStore.open(embeddings.path(run.path, "tiny"))
    assert written.manifest.num_rows("image") == 40
    assert written.load("image/student/embedding", range(40)).shape == (40, WIDTH)


def test_any_at_1_is_the_mean_over_datasets(recipe: Make, tmp_path: Path) -> None:
    stores = [make(tmp_path / f"{name}.zarr", dataset=name) for name in ("ten", "hundred")]
    run = runs.begin(
        recipe({**CHANGES, "epochs": 1, "streams": streams("image")}),
        [store.path for store in stores],
        tmp_path / "run",
    )
    fit(run)
    (figures,) = validations(run)
    both = [figures[f"{name}/image val among train/any@1"] for name in ("ten", "hundred")]
    assert figures["any@1"] == pytest.approx(np.mean(both))
    assert sorted(embeddings.datasets(run.path)) == ["hundred", "ten"]


@pytest.mark.parametrize("modality", ["text", "audio"])
def test_texts_and_sounds_alone_train_whatever_their_lengths(recipe: Make, tmp_path: Path, modality: str) -> None:
    store = make(tmp_path / "tiny.zarr", (modality,))
    run = runs.begin(recipe({**CHANGES, "streams": streams(modality)}), [store.path], tmp_path / "run")
    fit(run)
    assert len(losses(run, f"regression.{modality}")) == 16
    assert f"tiny/{modality} val among train/any@1" in validations(run)[-1]


@pytest.mark.parametrize("lacking", ["val", "labels"])
def test_without_anything_to_validate_with_the_last_epoch_is_the_best(
    recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], lacking: str
) -> None:
    splits = ["train"] * 64 + ["test"] * 16 if lacking == "val" else SPLITS
    store = make(tmp_path / "tiny.zarr", splits=splits, labelled=lacking != "labels")
    run = runs.begin(recipe({**CHANGES, "streams": streams("image")}), [store.path], tmp_path / "run")
    fit(run)
    assert "no labelled items of a modality that is trained alone: no validation" in capsys.readouterr().err
    assert not validations(run)
    assert checkpoint.load(run.best)[1]["step"] == run.num_steps
    assert embeddings.path(run.path, "tiny").exists()


def test_metric_that_streams_of_one_modality_do_not_give_is_told_with_those_that_they_do(
    recipe: Make, tmp_path: Path
) -> None:
    store = make(tmp_path / "tiny.zarr")
    rsum = recipe({**CHANGES, "streams": streams("image"), "validation": {"metric": "rsum"}})
    with pytest.raises(ConfigError, match=r"'rsum' is no figure of this run; there are: .*any@1"):
        fit(runs.begin(rsum, [store.path], tmp_path / "run"))


def test_one_trunk_regresses_three_modalities_targets_of_three_teachers(recipe: Make, tmp_path: Path) -> None:
    store = make(tmp_path / "tiny.zarr", ("image", "text", "audio"))
    run = runs.begin(
        recipe({**CHANGES, "streams": streams("image", "text", "audio")}), [store.path], tmp_path / "run"
    )
    fit(run)
    assert all(len(losses(run, f"regression.{modality}")) > 0 for modality in FIELDS)
    last = validations(run)[-1]
    asked = [last[f"tiny/{modality} val among train/any@1"] for modality in FIELDS]
    assert last["any@1"] == pytest.approx(np.mean(asked))
    written = TargetStore.open(embeddings.path(run.path, "tiny"))
    assert set(written.fieldsets) == {f"{modality}/student" for modality in FIELDS}


def test_two_teachers_of_one_modality_are_refused(recipe: Make, tmp_path: Path) -> None:
    stores = [
        make(tmp_path / "a.zarr", dataset="a"),
        make(tmp_path / "b.zarr", dataset="b", teacher="another"),
    ]
    with pytest.raises(ConfigError, match="come from different encoders"):
        resolve(recipe({**CHANGES, "streams": streams("image")}), stores)


def test_objective_that_compares_two_modalities_is_refused_one(recipe: Make, tmp_path: Path) -> None:
    store = make(tmp_path / "tiny.zarr")
    contrast = {"objectives": {"infonce": {"kind": "infonce"}}, "targets": {}}
    run = runs.begin(recipe({**CHANGES, **contrast, "streams": streams("image")}), [store.path], tmp_path / "run")
    with pytest.raises(ConfigError, match="stream image is of one modality"):
        fit(run)


def test_training_images_are_embedded_on_request_and_neighbours_and_probe_read_them(
    recipe: Make, tmp_path: Path
) -> None:
    from eval import labelled
    from eval.neighbours import evaluate as neighbours
    from eval.probe import evaluate as probe

    store = make(tmp_path / "tiny.zarr")
    run = runs.begin(recipe({**CHANGES, "epochs": 12, "streams": streams("image")}), [store.path], tmp_path / "run")
    fit(run)
    student_stores.grow(runs.resume(run.path, []), ["train"], [])
    sources = [labelled.of_run(run.path, None, None)]
    both = neighbours(sources, bank="train", queries="test", ks=[1, 3], say=lambda _: None)
    assert [len(found.queries.ids) for found in both] == [24, 64]
    assert all(found.shares[0].any > 60 for found in both)
    (fitted,) = probe(sources, train="train", val="val", test="test", seed=0, say=lambda _: None)
    assert fitted.accuracy > 60
