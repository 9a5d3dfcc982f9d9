"""A tiny store in which one hidden vector per sample shows in its image, captions and sound."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import config
from contract.encodings import (
    BFloat16,
    Encoding,
    Float8,
    Float16,
    Float32,
    Int8,
    Int32,
    Lookup,
    Pixels,
    TopK,
)
from contract.manifest import Manifest, items_table, pairs_table
from contract.schema import Field, FieldSet
from contract.store import Quarantined, TargetStore
from encoders.ngrams import Ngrams
from trainer import runs
from trainer.batch import Batch
from trainer.fit import fit
from trainer.loader import Loader
from trainer.recipes import Recipe
from trainer.streams import Streams

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


@pytest.fixture(scope="session")
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
    labels: Sequence[int] | None = None,
    huge: Sequence[int] = (),
) -> TargetStore:
    """Write a store; the last shard of the FieldSets in `shards_left_out` is missing.

    The images in the rows `huge` have values that no standardised arithmetic holds. The texts' tokens are said to
    be hashed words, of which each caption has as many as it has tokens.
    """
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(len(splits), 6))
    manifest = make_manifest(dataset, splits, with_audio=with_audio, labels=labels)
    store = TargetStore.create(path, manifest)
    owners = {"image": np.arange(len(splits)), "audio": np.arange(len(splits))}
    owners["text"] = np.repeat(np.arange(len(splits)), 2 * NUM_CAPTIONS)
    for modality in manifest.modalities:
        num_tokens, width = shapes[modality]
        mixing = rng.normal(size=(6, num_tokens * width))
        values = {"image": "patch_embeddings", "text": "token_embeddings", "audio": "patch_embeddings"}[modality]
        tokens = (hidden @ mixing)[owners[modality]].reshape(-1, num_tokens, width)
        tokens = (tokens + 0.3 * rng.normal(size=tokens.shape)).astype(np.float32)
        if modality == "image":
            tokens[list(huge)] = 3e38
        arrays = {values: tokens}
        fields = [Field(name=values, shape=(num_tokens, width), encoding=Float32())]
        if modality == "image" and with_logits:
            fields.append(Field(name="logits", shape=(NUM_CLASSES,), encoding=Float32()))
            arrays["logits"] = (2 * hidden @ rng.normal(size=(6, NUM_CLASSES))).astype(np.float32)
        if modality != "image":
            fields.append(Field(name="length", shape=(), encoding=Int32()))
            arrays["length"] = rng.integers(3, num_tokens + 1, len(tokens)).astype(np.int32)
        provenance: dict[str, Any] = {"recipe": {"model": model}}
        if modality == "text":
            words = Ngrams(width=8 if model == "drawn" else 16, max_length=num_tokens)
            arrays["length"] = np.array([len(t) for t in words.tokens(manifest.column("text", "text"))], np.int32)
            provenance = {"recipe": words.recipe(), "encoder": config.tree(words)}
        fieldset = FieldSet(
            name="teacher",
            modality=modality,
            fields=tuple(fields),
            batch_size=8,
            rows_per_shard=32,
            provenance=provenance,
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


@pytest.fixture
def coded_store() -> Callable[..., TargetStore]:
    """Make a store with views in which a value tells where it lies; see `make_coded_store`."""
    return make_coded_store


def make_coded_store(
    path: Path,
    *,
    num_views: int = 3,
    num_target_views: int | None = None,
    target_seed: int = 0,
    shape: tuple[int, int] = (2, 3),
    rows_per_shard: int = 32,
) -> TargetStore:
    """Write a store whose every value is 10 row + view: images and sounds with views, texts with none.

    The images' targets are a FieldSet of their own, with as many views and of the same augmentation unless told
    otherwise.
    """
    store = TargetStore.create(path, make_manifest("tiny", SPLITS, with_audio=True))
    fields = {
        "image/eyes": Field(name="patch_embeddings", shape=shape, encoding=Float32()),
        "image/teacher": Field(name="logits", shape=(NUM_CLASSES,), encoding=Float32()),
        "audio/ears": Field(name="patch_embeddings", shape=(1, 4), encoding=Float32()),
        "text/words": Field(name="token_embeddings", shape=(2, 2), encoding=Float32()),
    }
    for key, field in fields.items():
        modality, name = key.split("/")
        views = {"image/teacher": num_views if num_target_views is None else num_target_views, "text/words": 0}
        seed = target_seed if name == "teacher" else 0
        fieldset = FieldSet(
            name=name,
            modality=modality,
            fields=(field,),
            num_views=views.get(key, num_views),
            batch_size=8,
            rows_per_shard=rows_per_shard,
            provenance={"recipe": {"model": name, "augmentation": {"seed": seed}}},
        )
        codes = 10 * np.arange(store.manifest.num_rows(modality))[:, None] + np.arange(fieldset.views_per_row)
        if not fieldset.num_views:
            codes = codes[:, 0]
        ones = np.ones(field.shape, np.float32)
        write(store, fieldset, {field.name: np.multiply.outer(codes, ones).astype(np.float32)})
    return store


@pytest.fixture
def large_store() -> Callable[[Path], TargetStore]:
    """Make a store of 300 MB; see `make_large_store`."""
    return make_large_store


def make_large_store(path: Path) -> TargetStore:
    """Write a store of 1,000 images of 302 kB each, with a small sound for every one of them."""
    rng = np.random.default_rng(0)
    store = TargetStore.create(path, make_manifest("large", ["train"] * 1000, with_audio=True))
    drawn = rng.normal(size=(64, 197, 768)).astype(np.float32)
    for modality, shape in {"image": (197, 768), "audio": (3, 5)}.items():
        field = Field(name="patch_embeddings", shape=shape, encoding=Float16())
        fieldset = FieldSet(
            name="teacher", modality=modality, fields=(field,), batch_size=8, rows_per_shard=64, provenance={}
        )
        store.add(fieldset)
        for shard in range(store.num_shards(fieldset.key)):
            num_rows = len(store.shard_rows(fieldset.key, shard))
            values = drawn[:num_rows, : shape[0], : shape[1]]
            store.write_shard(fieldset.key, shard, {field.name: values})
    return store


ENCODINGS: dict[str, Encoding] = {
    "float16": Float16(),
    "float32": Float32(),
    "bfloat16": BFloat16(),
    "float8": Float8(),
    "int8": Int8(),
    "pixels": Pixels(height=4, width=4),
    "lookup": Lookup(),
    "topk": TopK(k=3),
}


@pytest.fixture(params=ENCODINGS)
def encoded_store(request: pytest.FixtureRequest, tmp_path: Path) -> TargetStore:
    """A store with images and texts, of which the field that can be has the encoding."""
    return make_encoded_store(tmp_path / f"{request.param}.zarr", request.param)


def make_encoded_store(path: Path, kind: str) -> TargetStore:
    """Tokens are encoded as `kind`, or, where only some can be, the images', the texts' or the logits."""
    rng = np.random.default_rng(0)
    manifest = make_manifest("tiny", SPLITS, with_audio=False)
    store = TargetStore.create(path, manifest)
    encoding = ENCODINGS[kind]
    of: dict[str, Encoding] = {"patch_embeddings": Float32(), "token_embeddings": Float32(), "logits": Float32()}
    where = {"pixels": ["patch_embeddings"], "lookup": ["token_embeddings"], "topk": ["logits"]}
    of |= dict.fromkeys(where.get(kind, list(of)), encoding)
    fields = {
        "image": (
            Field(name="patch_embeddings", shape=(4, 6), encoding=of["patch_embeddings"]),
            Field(name="logits", shape=(NUM_CLASSES,), encoding=of["logits"]),
        ),
        "text": (
            Field(name="token_embeddings", shape=(5, 7), encoding=of["token_embeddings"]),
            Field(name="length", shape=(), encoding=Int32()),
        ),
    }
    given = {
        "patch_embeddings.weight": rng.normal(size=(6, 2, 2, 3)).astype(np.float32),
        "patch_embeddings.bias": rng.normal(size=6).astype(np.float32),
        "token_embeddings.table": rng.normal(size=(9, 7)).astype(np.float32),
    }
    for modality, parts in fields.items():
        num_rows = manifest.num_rows(modality)
        length = rng.integers(1, 5, num_rows)  # never the longest there can be: every batch is cut
        values: dict[str, Any] = {}
        constants: dict[str, Any] = {}
        for field in parts:
            dtype, shape = field.encoding.input(field.shape)
            values[field.name] = rng.normal(size=(num_rows, *shape)).astype(dtype)
            if field.encoding.calibrated:
                constants |= field.calibrate(values[field.name])
            else:
                constants |= {name: given[name] for name in field.constants}
        values["length"] = length.astype(np.int32)
        if kind == "pixels" and modality == "image":
            values["patch_embeddings"] = rng.integers(0, 256, (num_rows, 4, 4, 3)).astype(np.uint8)
        if kind == "lookup" and modality == "text":
            ids = rng.integers(0, 9, (num_rows, 5))
            values["token_embeddings"] = np.where(np.arange(5) < length[:, None], ids, -1).astype(np.int32)
        fieldset = FieldSet(
            name="teacher",
            modality=modality,
            fields=parts,
            batch_size=8,
            rows_per_shard=32,
            provenance={"recipe": {"model": kind}},
        )
        write(store, fieldset, {field.name: values[field.name] for field in parts}, constants)
    return store


def write(
    store: TargetStore, fieldset: FieldSet, values: dict[str, Any], constants: dict[str, Any] | None = None
) -> None:
    """Add a FieldSet and every shard of it."""
    store.add(fieldset, constants)
    for shard in range(store.num_shards(fieldset.key)):
        rows = store.shard_rows(fieldset.key, shard)
        store.write_shard(
            fieldset.key, shard, {name: array[rows.start : rows.stop] for name, array in values.items()}
        )


def make_manifest(
    dataset: str, splits: list[str], *, with_audio: bool, labels: Sequence[int] | None = None
) -> Manifest:
    """One image, four captions (two in English, two in German) and one sound per sample; images may have labels."""
    samples = range(len(splits))
    captions = [
        (sample, language, k) for sample in samples for language in ("en", "de") for k in range(NUM_CAPTIONS)
    ]
    label = {} if labels is None else {"label": labels}
    items = {
        "image": items_table({"id": [f"image-{s:03}" for s in samples], "split": splits, **label}),
        "text": items_table(
            {
                "id": [f"text-{s:03}-{language}-{k}" for s, language, k in captions],
                # Of three to five words.
                "text": [f"caption {k} of {s} !".rsplit(" ", (s + k) % 3)[0] for s, _, k in captions],
                "language": [language for _, language, _ in captions],
                "split": [splits[s] for s, _, _ in captions],
            }
        ),
    }
    pairs = [pairs_table("image", "text", [(s, row) for row, (s, _, _) in enumerate(captions)])]
    if with_audio:
        items["audio"] = items_table({"id": [f"audio-{s:03}" for s in samples], "split": splits})
        pairs.append(pairs_table("image", "audio", [(s, s) for s in samples]))
    num_classes = 0 if labels is None else max(labels) + 1
    return Manifest(dataset=dataset, protocol=dataset, items=items, pairs=dict(pairs), num_classes=num_classes)


class KilledError(Exception):
    pass


@pytest.fixture
def fit_until(monkeypatch: pytest.MonkeyPatch) -> Callable[[runs.Run, int], None]:
    """Train a run until the batch of a step is asked for, and end as if it had been killed there."""

    def train(run: runs.Run, step: int) -> None:
        def batches(streams: Streams, start: int, stop: int, device: str) -> Iterator[Batch]:
            yield from Loader(streams, start, step, device)
            raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr("trainer.fit.Loader", batches)
            with pytest.raises(KilledError):
                fit(run)

    return train
