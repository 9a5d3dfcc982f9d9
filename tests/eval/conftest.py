from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from contract.encodings import Float32
from contract.manifest import Manifest, items_table, pairs_table
from contract.schema import Field, FieldSet
from contract.store import Quarantined, TargetStore
from eval.__main__ import retrieval

WIDTH = 16
LANGUAGES = ("en", "de")
NUM_IMAGES = {"val": 12, "test": 20}

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes a run whose student store holds images, two captions a language each, and sounds."""

    def make(
        name: str = "one",
        *,
        dataset: str = "toy",
        splits: Sequence[str] = ("val", "test"),
        modalities: Sequence[str] = ("image", "text", "audio"),
        seed: int = 0,
        finished: bool = True,
        left_out: Sequence[str] = (),
        quarantined: Sequence[int] = (),
        noise: float = 0.3,
    ) -> Path:
        run = tmp_path / "runs" / name
        manifest = toy_manifest(dataset, splits, modalities)
        store = TargetStore.create(run / "embeddings" / f"{dataset}.zarr", manifest)
        rng = np.random.default_rng(seed)
        meaning = rng.standard_normal((manifest.num_rows("image"), WIDTH))
        for modality in manifest.modalities:
            owners = np.arange(len(meaning)) if modality == "image" else manifest.positives(modality, "image")[:, 1]
            vectors = meaning[owners] + noise * rng.standard_normal((len(owners), WIDTH))
            bad = quarantined if modality == "image" else ()
            add_embeddings(store, modality, vectors, bad, is_complete=modality not in left_out)
        description = {"recipe": "shre", "stores": [], "created": "2026-01-01", "finished": finished}
        (run / "run.json").write_text(json.dumps(description))
        return run

    return make


def toy_manifest(dataset: str, splits: Sequence[str], modalities: Sequence[str]) -> Manifest:
    image_splits = [split for split in splits for _ in range(NUM_IMAGES[split])]
    num_images = len(image_splits)
    captions = [(image, language, n) for image in range(num_images) for language in LANGUAGES for n in range(2)]
    items = {
        "image": items_table({"id": [f"i{i:03}" for i in range(num_images)], "split": image_splits}),
        "text": items_table(
            {
                "id": [f"i{image:03}-{language}-{n}" for image, language, n in captions],
                "text": [f"caption {n} of {image}" for image, _, n in captions],
                "language": [language for _, language, _ in captions],
                "split": [image_splits[image] for image, _, _ in captions],
            }
        ),
        "audio": items_table({"id": [f"a{i:03}" for i in range(num_images)], "split": image_splits}),
    }
    pairs = [
        pairs_table("image", "text", [(image, row) for row, (image, _, _) in enumerate(captions)]),
        pairs_table("image", "audio", [(i, i) for i in range(num_images)]),
    ]
    return Manifest(
        dataset=dataset,
        protocol=f"{dataset} protocol",
        items={modality: items[modality] for modality in modalities},
        pairs={kind: table for kind, table in pairs if set(kind.split("-")) <= set(modalities)},
    )


def add_embeddings(
    store: TargetStore, modality: str, vectors: np.ndarray, quarantined: Sequence[int], *, is_complete: bool
) -> None:
    provenance = {
        "run": "one",
        "checkpoint": "best",
        "trained": ["image-text", "image-audio"],
        "train_splits": ["train"],
    }
    fieldset = FieldSet(
        name="student",
        modality=modality,
        fields=(Field(name="embedding", shape=(WIDTH,), encoding=Float32()),),
        batch_size=8,
        rows_per_shard=64,
        provenance=provenance,
    )
    store.add(fieldset)
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    for shard in range(store.num_shards(fieldset.key) if is_complete else 0):
        rows = store.shard_rows(fieldset.key, shard)
        entries = [
            Quarantined(row=row, id=f"i{row:03}", file="x.jpg", reason="cut short")
            for row in quarantined
            if row in rows
        ]
        store.write_shard(fieldset.key, shard, {"embedding": unit[rows.start : rows.stop]}, entries)


class Outcome(NamedTuple):
    exit_code: int
    out: str
    err: str


Call = Callable[..., Outcome]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs `eval retrieval ...` in the folder that holds `runs/`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, script: Callable[[], None] = retrieval) -> Outcome:
        monkeypatch.setattr("sys.argv", ["script", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            script()
        captured = capsys.readouterr()
        return Outcome(int(left.value.code or 0), captured.out, captured.err)

    return run


MakeLabelled = Callable[..., Path]


@pytest.fixture
def make_labelled(tmp_path: Path) -> MakeLabelled:
    """Makes a run whose student store holds labelled images around one direction for each class."""

    def make(
        name: str = "one",
        *,
        counts: Mapping[str, int] = {"train": 60, "val": 20, "test": 40},
        num_classes: int = 4,
        noise: float = 0.4,
        unlabelled: Sequence[int] = (),
        quarantined: Sequence[int] = (),
        vectors: np.ndarray | None = None,
        seed: int = 0,
    ) -> Path:
        run = tmp_path / "runs" / name
        splits = [split for split, count in counts.items() for _ in range(count)]
        rng = np.random.default_rng(seed)
        labels = np.arange(len(splits)) % num_classes
        if vectors is None:
            vectors = rng.standard_normal((num_classes, WIDTH))[labels]
            vectors = vectors + noise * rng.standard_normal(vectors.shape)
        labels[list(unlabelled)] = -1
        ids = [f"i{place:03}" for place in rng.permutation(len(splits))]
        items = items_table({"id": ids, "split": splits, "label": labels.tolist()})
        manifest = Manifest(
            dataset="labelled", protocol="labelled", items={"image": items}, num_classes=num_classes
        )
        store = TargetStore.create(run / "embeddings" / "labelled.zarr", manifest)
        add_embeddings(store, "image", vectors, quarantined, is_complete=True)
        (run / "run.json").write_text(json.dumps({"recipe": "shre", "finished": True}))
        return run

    return make
