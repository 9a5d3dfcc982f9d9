from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from contract.encodings import Float32
from contract.manifest import Manifest, items_table, pairs_table
from contract.schema import Field, FieldSet
from contract.store import TargetStore
from eval.retrieval import Measured, evaluate
from eval.runs import open_student

WIDTH = 8
NUM_SCENES = 12
NUM_CAPTIONS = 2
RATE_HZ = 8_000

Toy = Callable[..., Measured]


@pytest.fixture
def toy(tmp_path: Path, toy_in: Toy) -> Toy:
    """Makes a run over scenes that have an image, two captions and a sound each, and measures it."""
    return lambda **options: toy_in(tmp_path, **options)


@pytest.fixture(scope="session")
def toy_in() -> Toy:
    """The same in a folder that is given."""
    return _measure


def _measure(
    folder: Path,
    *,
    name: str = "one",
    num_scenes: int = NUM_SCENES,
    modalities: Sequence[str] = ("image", "text", "audio"),
    captions: Sequence[str] = (),
    ids: Sequence[str] = (),
    files: Mapping[int, str] | None = None,
    vectors: Mapping[str, np.ndarray] | None = None,
    noise: float = 0.4,
    seed: int = 0,
) -> Measured:
    """`captions`, `ids` and `files` replace the first captions, image ids and image files."""
    root = folder / "media"
    manifest = toy_manifest(root, num_scenes, captions, ids, files or {})
    items = {modality: manifest.items[modality] for modality in modalities}
    pairs = {kind: table for kind, table in manifest.pairs.items() if set(kind.split("-")) <= set(modalities)}
    manifest = Manifest(
        dataset="toy", protocol="toy protocol", items=items, pairs=pairs, media_root=str(root), num_classes=3
    )
    run = folder / "runs" / name
    store = TargetStore.create(run / "embeddings" / "toy.zarr", manifest)
    rng = np.random.default_rng(seed)
    meaning = rng.standard_normal((num_scenes, WIDTH))
    for modality in modalities:
        owners = np.arange(num_scenes).repeat(NUM_CAPTIONS if modality == "text" else 1)
        found = meaning[owners] + noise * rng.standard_normal((len(owners), WIDTH))
        add_embeddings(store, modality, (vectors or {}).get(modality, found))
    description = {"recipe": "shre", "stores": [], "created": "2026-01-01", "finished": True}
    (run / "run.json").write_text(json.dumps(description))
    return evaluate(open_student(run, None), split="test", language="en", index=None, say=lambda line: None)


def toy_manifest(
    root: Path, num_scenes: int, captions: Sequence[str], ids: Sequence[str], files: Mapping[int, str]
) -> Manifest:
    """Its media are drawn into `root`: image 1 is a part of a file, sound 1 a stretch of a longer one."""
    root.mkdir(exist_ok=True)
    scenes, split = range(num_scenes), ["test"] * num_scenes
    for scene in scenes:
        (root / f"{scene}.png").write_bytes(picture(scene))
        soundfile.write(root / f"{scene}.flac", tone(scene, 6.0 if scene < 2 else 0.2), RATE_HZ)
    container = b"before" + picture(1) + b"after"
    (root / "container.bin").write_bytes(container)
    texts = [f"caption {n} of scene {scene}" for scene in scenes for n in range(NUM_CAPTIONS)]
    texts[: len(captions)] = captions
    image_ids = [f"i{scene:03}" for scene in scenes]
    image_ids[: len(ids)] = ids
    part = {1: f"bytes:6+{len(container) - 11}"}
    return Manifest(
        dataset="toy",
        protocol="toy protocol",
        items={
            "image": items_table(
                {
                    "id": image_ids,
                    "split": split,
                    "file": [files.get(s, "container.bin" if s == 1 else f"{s}.png") for s in scenes],
                    "part": [part.get(scene, "") if scene not in files else "" for scene in scenes],
                    "label": [scene % 3 for scene in scenes],
                }
            ),
            "text": items_table(
                {
                    "id": [f"t{scene:03}-{n}" for scene in scenes for n in range(NUM_CAPTIONS)],
                    "split": [name for name in split for _ in range(NUM_CAPTIONS)],
                    "text": texts,
                    "language": ["en"] * len(texts),
                }
            ),
            "audio": items_table(
                {
                    "id": [f"a{scene:03}" for scene in scenes],
                    "split": split,
                    "file": [f"{scene}.flac" for scene in scenes],
                    "start_ms": [1000 if scene == 1 else 0 for scene in scenes],
                    "length_ms": [500 if scene == 1 else -1 for scene in scenes],
                }
            ),
        },
        pairs=dict(
            [
                pairs_table(
                    "image", "text", [(s, NUM_CAPTIONS * s + n) for s in scenes for n in range(NUM_CAPTIONS)]
                ),
                pairs_table("image", "audio", [(scene, scene) for scene in scenes]),
            ]
        ),
    )


def add_embeddings(store: TargetStore, modality: str, vectors: np.ndarray) -> None:
    provenance: dict[str, Any] = {
        "run": "one",
        "checkpoint": "best",
        "trained": ["image-text", "image-audio"],
        "train_splits": ["train"],
    }
    fieldset = FieldSet(
        name="student",
        modality=modality,
        fields=(Field(name="embedding", shape=(vectors.shape[1],), encoding=Float32()),),
        batch_size=8,
        rows_per_shard=4096,
        provenance=provenance,
    )
    store.add(fieldset)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    store.write_shard(
        fieldset.key, 0, {"embedding": (vectors / np.where(norms == 0, 1, norms)).astype(np.float32)}, []
    )


def picture(scene: int, size: tuple[int, int] = (24, 18)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (20 * scene % 256, 90, 160)).save(file, "PNG")
    return file.getvalue()


def tone(scene: int, duration_s: float) -> np.ndarray:
    times = np.arange(int(RATE_HZ * duration_s)) / RATE_HZ
    return 0.5 * np.sin(2 * np.pi * (200 + 20 * scene) * times)
