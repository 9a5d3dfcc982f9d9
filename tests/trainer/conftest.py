"""A tiny store in which one hidden vector per sample shows in its image, captions and sound."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import config
from contract.encoding import Float32, Int32
from contract.manifest import Manifest, items_table, pairs_table
from contract.schema import Field, FieldSet
from contract.store import Quarantined, TargetStore
from trainer.recipes import Recipe

NUM_CLASSES = 8
NUM_CAPTIONS = 2  # in each of two languages
SHAPES = {"image": (4, 6), "audio": (3, 5), "text": (5, 7)}
SPLITS = ["train"] * 48 + ["val"] * 16 + ["test"] * 16

RECIPE = {
    "name": "tiny",
    "inputs": {"image": "patch_embeddings", "text": "token_embeddings", "audio": "patch_embeddings"},
    "targets": {"logits": "logits"},
    "student": {
        "kind": "mlp",
        "width": 32,
        "embedding_dim": 24,
        "num_heads": 2,
        "adapters": {
            "image": {"kind": "mlp"},
            "text": {"kind": "transformer", "num_heads": 2},
            "audio": {"kind": "mlp"},
        },
    },
    "objectives": {"kd": {"kind": "kd_kl"}, "rank": {"kind": "ranking"}},
    "optimizer": {"learning_rate": 0.003},
    "schedule": {"kind": "cosine"},
    "batch_size": 16,
    "epochs": 4,
    "log_every_steps": 1,
}


def merged(tree: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """`tree` with the "a.b" keys of `changes` replaced."""
    copy: dict[str, Any] = json.loads(json.dumps(tree))
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = copy
        for parent in parents:
            node = node[parent]
        node[last] = value
    return copy


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """Make the tiny recipe, with changes such as `{"student.width": 16}`."""

    def make(changes: dict[str, Any] | None = None) -> Recipe:
        return config.parse(merged(RECIPE, changes or {}), Recipe, source="test")

    return make


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny recipe, with changes, to a file."""

    def write(changes: dict[str, Any] | None = None) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(json.dumps(merged(RECIPE, changes or {})))
        return path

    return write


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> TargetStore:
    """A whole store of images, captions and sounds, shared by the tests; image row 3 is quarantined."""
    return make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr")


@pytest.fixture
def new_store() -> Callable[..., TargetStore]:
    """Make a store of one's own at a path; see `make_store`."""
    return make_store


def make_store(
    path: Path,
    *,
    seed: int = 0,
    dataset: str = "tiny",
    shards_left_out: tuple[str, ...] = (),
    with_audio: bool = True,
    with_logits: bool = True,
    splits: list[str] = SPLITS,
    model: str = "drawn",
    shapes: dict[str, tuple[int, int]] = SHAPES,
) -> TargetStore:
    """Write a store; the last shard of the FieldSets in `shards_left_out` is missing."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(len(splits), 6))
    manifest = make_manifest(dataset, splits, with_audio=with_audio)
    store = TargetStore.create(path, manifest)
    owners = {"image": np.arange(len(splits)), "audio": np.arange(len(splits))}
    owners["text"] = np.repeat(np.arange(len(splits)), 2 * NUM_CAPTIONS)
    for modality in manifest.modalities:
        num_tokens, width = shapes[modality]
        mixing = rng.normal(size=(6, num_tokens * width))
        values = {"image": "patch_embeddings", "text": "token_embeddings", "audio": "patch_embeddings"}[modality]
        tokens = (hidden @ mixing)[owners[modality]].reshape(-1, num_tokens, width)
        tokens = (tokens + 0.3 * rng.normal(size=tokens.shape)).astype(np.float32)
        arrays = {values: tokens}
        fields = [Field(name=values, shape=(num_tokens, width), encoding=Float32())]
        if modality == "image" and with_logits:
            fields.append(Field(name="logits", shape=(NUM_CLASSES,), encoding=Float32()))
            arrays["logits"] = (2 * hidden @ rng.normal(size=(6, NUM_CLASSES))).astype(np.float32)
        if modality != "image":
            fields.append(Field(name="length", shape=(), encoding=Int32()))
            arrays["length"] = rng.integers(3, num_tokens + 1, len(tokens)).astype(np.int32)
        fieldset = FieldSet(
            name="teacher",
            modality=modality,
            fields=tuple(fields),
            batch_size=8,
            rows_per_shard=32,
            provenance={"recipe": {"model": model}},
        )
        store.add(fieldset)
        num_written = store.num_shards(fieldset.key) - (fieldset.key in shards_left_out)
        for shard in range(num_written):
            rows = store.shard_rows(fieldset.key, shard)
            faults = [Quarantined(row=3, id="image-003", file="", reason="not an image")]
            store.write_shard(
                fieldset.key,
                shard,
                {name: array[rows.start : rows.stop] for name, array in arrays.items()},
                faults if modality == "image" and shard == 0 else (),
            )
    return store


def make_manifest(dataset: str, splits: list[str], *, with_audio: bool) -> Manifest:
    """One image, four captions (two in English, two in German) and one sound per sample."""
    samples = range(len(splits))
    captions = [
        (sample, language, k) for sample in samples for language in ("en", "de") for k in range(NUM_CAPTIONS)
    ]
    items = {
        "image": items_table({"id": [f"image-{s:03}" for s in samples], "split": splits}),
        "text": items_table(
            {
                "id": [f"text-{s:03}-{language}-{k}" for s, language, k in captions],
                "text": [f"caption {k} of {s}" for s, _, k in captions],
                "language": [language for _, language, _ in captions],
                "split": [splits[s] for s, _, _ in captions],
            }
        ),
    }
    pairs = [pairs_table("image", "text", [(s, row) for row, (s, _, _) in enumerate(captions)])]
    if with_audio:
        items["audio"] = items_table({"id": [f"audio-{s:03}" for s in samples], "split": splits})
        pairs.append(pairs_table("image", "audio", [(s, s) for s in samples]))
    return Manifest(dataset=dataset, protocol=dataset, items=items, pairs=dict(pairs))
