"""HDF5 files of stores, and stores of HDF5 files: ours and other people's."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from contract.encodings import BFloat16, Float8, Float16, Float32, Int8, Int32, Lookup, Pixels, TopK
from contract.errors import ConfigError, DataError, StoreError, UserError
from contract.manifest import Manifest, items_table, pairs_table
from contract.schema import Field, FieldSet
from contract.store import Quarantined, TargetStore
from pipeline.hdf5 import layout
from pipeline.hdf5.contents import dataset_name, parse_names
from pipeline.hdf5.export import export
from pipeline.hdf5.import_ import Imported, import_

NUM_IMAGES, NUM_TEXTS, NUM_VIEWS = 21, 42, 2
IMAGE_FIELDS = (
    Field(name="zebra", shape=(6,), encoding=Float16(), about={"grid": [2, 3], "classes": ["grün", "blue"]}),
    Field(name="exact", shape=(2, 3), encoding=Float32()),
    Field(name="masked", shape=(4,), encoding=Float32(non_finite=True)),
    Field(name="brain", shape=(4,), encoding=BFloat16()),
    Field(name="tiny", shape=(4,), encoding=Float8()),
    Field(name="scaled", shape=(4,), encoding=Int8()),
    Field(name="logits", shape=(9,), encoding=TopK(k=3), about={"temperature": 1.0}),
    Field(name="patches", shape=(4, 5), encoding=Pixels(height=4, width=4)),
    Field(name="length", shape=(), encoding=Int32()),
)
TEXT_FIELDS = (Field(name="tokens", shape=(3, 2), encoding=Lookup()),)
VIEW_FIELDS = (Field(name="features", shape=(5,)), Field(name="parameters", shape=(2,), encoding=Float32()))


def manifest() -> Manifest:
    images, texts = range(NUM_IMAGES), range(NUM_TEXTS)
    split = [{8: "val", 9: "test"}.get(row % 10, "train") for row in images]
    kind, pairs = pairs_table("image", "text", [(row // 2, row) for row in texts])
    return Manifest(
        dataset="tiny",
        protocol="karpathy",
        media_root="data/tiny",
        num_classes=7,
        items={
            "image": items_table(
                {
                    "id": [f"größe-{row}" for row in images],
                    "file": [f"{row}.png" for row in images],
                    "part": [f"bytes:{row}+9" if row % 2 else "" for row in images],
                    "start_ms": [row * 1000 for row in images],
                    "length_ms": [500 if row % 3 else -1 for row in images],
                    "label": [row % 6 for row in images],
                    "split": split,
                    "size_bytes": [row * 2**33 for row in images],
                }
            ),
            "text": items_table(
                {
                    "id": [f"{row // 2}#{row % 2}" for row in texts],
                    "text": ["" if row == 3 else f"ein Bild, 写真 {row}" for row in texts],
                    "language": ["de" if row % 2 else "" for row in texts],
                    "split": [split[row // 2] for row in texts],
                }
            ),
        },
        pairs={kind: pairs},
    )


def fill(store: TargetStore, fieldset: FieldSet, bad: tuple[int, ...] = ()) -> None:
    """Random values and constants for a FieldSet; the rows in `bad` hold zeros and are quarantined."""
    rng = np.random.default_rng(0)
    shapes = {"scale": (4,), "table": (11, 2), "weight": (5, 2, 2, 3), "bias": (5,)}
    constants = {
        name: rng.uniform(0.01, 1, shapes[name.rpartition(".")[2]]).astype(np.float32)
        for field in fieldset.fields
        for name in field.constants
    }
    store.add(fieldset, constants)
    views = (fieldset.views_per_row,) if fieldset.num_views else ()
    for shard in range(store.num_shards(fieldset.key)):
        rows = store.shard_rows(fieldset.key, shard)
        values: dict[str, np.ndarray] = {}
        for field in fieldset.fields:
            dtype, row_shape = field.encoding.input(field.shape)
            shape = (len(rows), *views, *row_shape)
            array = rng.normal(size=shape) if dtype == "float32" else rng.integers(0, 9, shape)
            values[field.name] = array.astype(dtype)
            values[field.name][[row - rows.start for row in bad if row in rows]] = 0
            if field.name == "masked":
                values[field.name][1] = -np.inf
        entries = [
            Quarantined(row=row, id=f"größe-{row}", file=f"{row}.png", reason="no image")
            for row in bad
            if row in rows
        ]
        store.write_shard(fieldset.key, shard, values, entries)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> TargetStore:
    """A finished store with every encoding, views, captions, pairs and two quarantined images."""
    store = TargetStore.create(tmp_path_factory.mktemp("original") / "tiny.zarr", manifest())
    made = {"batch_size": 4, "rows_per_shard": 8, "provenance": {"recipe": {"model": "vit"}, "command": "none"}}
    augmented = made | {"provenance": {"recipe": {"model": "vit", "augmentation": {"seed": 3}}}}
    fill(store, FieldSet(name="teacher", modality="image", fields=IMAGE_FIELDS, **made), bad=(4, 20))
    fill(store, FieldSet(name="views", modality="image", fields=VIEW_FIELDS, num_views=NUM_VIEWS, **augmented))
    fill(store, FieldSet(name="tokens", modality="text", fields=TEXT_FIELDS, **made))
    return store


@pytest.fixture(scope="module")
def exported(original: TargetStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The HDF5 file of that store."""
    path = tmp_path_factory.mktemp("exported") / "tiny.h5"
    export(original, path)
    return path


def all_values(store: TargetStore, reference: str) -> np.ndarray:
    """Every decoded value, [rows, ...] or [rows, views, ...]; zeros where a row is quarantined."""
    fieldset = store.fieldsets[reference.rpartition("/")[0]]
    rows = np.arange(store.manifest.num_rows(fieldset.modality))
    views = [store.load(reference, rows, views=view) for view in range(fieldset.views_per_row)]
    values = np.stack(views, axis=1) if fieldset.num_views else views[0]
    values[[entry.row for entry in store.quarantined(fieldset.key)]] = 0
    return values


def references(store: TargetStore) -> list[str]:
    return [f"{key}/{field.name}" for key, fieldset in store.fieldsets.items() for field in fieldset.fields]


def test_export_holds_decoded_values_of_every_encoding(original: TargetStore, exported: Path) -> None:
    with h5py.File(exported) as file:
        for reference in references(original):
            values = all_values(original, reference)
            np.testing.assert_array_equal(file[reference][:], values.astype(file[reference].dtype))
            np.testing.assert_array_equal(file[reference][:].astype(values.dtype), values)
        dtypes = {field.name: file[f"image/teacher/{field.name}"].dtype.name for field in IMAGE_FIELDS}
        assert {name for name, dtype in dtypes.items() if dtype == "float16"} == {"zebra"}
        assert {name for name, dtype in dtypes.items() if dtype == "int32"} == {"length"}
        assert set(dtypes.values()) == {"float16", "float32", "int32"}
        assert file["image/views/features"].shape == (NUM_IMAGES, NUM_VIEWS + 1, 5)


def test_plain_h5py_reads_items_pairs_and_what_was_told(exported: Path) -> None:
    with h5py.File(exported) as file:
        assert file["image/id"].asstr()[5] == "größe-5"
        assert file["text/text"].asstr()[2] == "ein Bild, 写真 2"
        assert file["text/language"].asstr()[1] == "de"
        assert file["image/label"].dtype == np.int32
        assert file["image/size_bytes"][3] == 3 * 2**33
        assert np.flatnonzero(file["image/teacher/quarantined"][:]).tolist() == [4, 20]
        assert not file["text/tokens/quarantined"][:].any()
        assert file["pairs/image-text"][5].tolist() == [2, 5]
        assert list(file["pairs/image-text"].attrs["modalities"]) == ["image", "text"]
        assert (file.attrs["dataset"], file.attrs["precept_format"]) == ("tiny", 1)
        assert json.loads(file["image/teacher"].attrs["provenance"])["recipe"] == {"model": "vit"}
        assert json.loads(file["image/teacher/zebra"].attrs["about"])["classes"] == ["grün", "blue"]


def test_a_row_of_an_export_is_one_read(exported: Path) -> None:
    with h5py.File(exported) as file:
        assert file["image/views/features"].chunks is None
        assert file["image/views/features"].compression is None


def test_export_is_refused_before_anything_is_written(original: TargetStore, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "there.h5").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"there\.h5 exists; remove it"):
        export(original, tmp_path / "there.h5")
    assert (tmp_path / "there.h5").read_bytes() == b"mine"
    with pytest.raises(DataError, match="there is no folder"):
        export(original, tmp_path / "nowhere/x.h5")
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(StoreError, match=r"MB are to be written and 0\.0 MB are free"):
        export(original, tmp_path / "x.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["there.h5"]


def test_export_of_a_damaged_or_incomplete_store_is_refused_and_leaves_nothing(
    original: TargetStore, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(original.path, tmp_path / "copy.zarr"))
    shard = next(path for path in (copy / "image/teacher/exact/c/1").rglob("*") if path.is_file())
    content = bytearray(shard.read_bytes())
    content[9] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="checksum of a row is wrong"):
        export(TargetStore.open(copy), tmp_path / "x.h5")
    shard.unlink()
    with pytest.raises(StoreError, match="image/teacher lacks 1 of 3 shards"):
        export(TargetStore.open(copy), tmp_path / "x.h5")
    empty = TargetStore.create(tmp_path / "empty.zarr", manifest())
    with pytest.raises(StoreError, match="has no FieldSet yet"):
        export(empty, tmp_path / "x.h5")
    assert {path.name for path in tmp_path.iterdir()} == {"copy.zarr", "empty.zarr"}


def test_names_that_the_layout_has_taken_are_refused(tmp_path: Path) -> None:
    store = TargetStore.create(tmp_path / "x.zarr", manifest())
    fill(store, FieldSet(name="text", modality="text", fields=TEXT_FIELDS, batch_size=1, provenance={}))
    with pytest.raises(StoreError, match="text/text would stand where the file has a dataset of its own"):
        export(store, tmp_path / "x.h5")


def test_what_a_killed_export_left_is_replaced(original: TargetStore, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.h5.partial").write_bytes(b"half")
    assert "dataset tiny, 12 fields" in export(original, tmp_path / "tiny.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.h5"]
    with h5py.File(tmp_path / "tiny.h5") as ours, h5py.File(exported) as theirs:
        np.testing.assert_array_equal(ours["image/teacher/logits"][:], theirs["image/teacher/logits"][:])


def run(path: Path, store: Path, *names: str, dataset: str | None = None) -> tuple[Imported, list[str]]:
    """An import, and what was said before it."""
    said: list[str] = []
    return import_(path, store, parse_names(names), dataset, command="pipeline import", say=said.append), said


def test_store_of_an_export_equals_the_original(original: TargetStore, exported: Path, tmp_path: Path) -> None:
    imported, said = run(exported, tmp_path / "again.zarr")
    store = TargetStore.open(tmp_path / "again.zarr")
    assert said == []
    assert imported.num_rows == 2 * NUM_IMAGES + NUM_TEXTS
    ours, theirs = store.manifest, original.manifest
    assert ours.fingerprint == theirs.fingerprint
    for name in ("dataset", "protocol", "media_root", "num_classes"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert references(store) == references(original)
    for reference in references(original):
        np.testing.assert_array_equal(all_values(store, reference), all_values(original, reference))
        assert store.field(reference).about == original.field(reference).about
        assert store.field(reference).shape == original.field(reference).shape
    assert store.fieldsets["image/views"].num_views == NUM_VIEWS
    assert store.fieldsets["image/views"].provenance["recipe"]["augmentation"] == {"seed": 3}
    assert store.fieldsets["image/teacher"].batch_size == 4
    assert store.fieldsets["image/teacher"].provenance["exported"]["recipe"] == {"model": "vit"}
    assert [(e.row, e.id, e.file, e.reason) for e in store.quarantined("image/teacher")] == [
        (4, "größe-4", "4.png", "quarantined in tiny.h5"),
        (20, "größe-20", "20.png", "quarantined in tiny.h5"),
    ]
    store.require({"image/teacher/logits": {"exported": {"recipe": {"model": "vit"}}}})
    assert all(damage is None for _, _, damage in store.verify())


def test_export_of_an_import_is_the_same_file_again(exported: Path, tmp_path: Path) -> None:
    store = run(exported, tmp_path / "again.zarr")[0].store
    export(store, tmp_path / "again.h5")
    with h5py.File(exported) as first, h5py.File(tmp_path / "again.h5") as second:
        names: list[str] = []
        first.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
        assert len(names) == 10 + 9 + 1 + 2 + 1 + 10 + 1 + 1 + 1
        for name in names:
            assert first[name].dtype == second[name].dtype
            np.testing.assert_array_equal(first[name][:], second[name][:])


NAMES = (
    "image/id=names",
    "image/clip/features=clip/feats",
    "image/clip/count=clip/count",
    "text/text=captions",
    "text/minilm/features=sentences",
    "pairs/image-text=index",
)


def write_dump(path: Path, **changes: Any) -> None:
    """Features of 5,000 images (two shards) and 3 captions as somebody might have dumped them."""
    rng = np.random.default_rng(0)
    datasets = {
        "names": np.array([f"é{row}".encode() for row in range(5000)]),
        "clip/feats": rng.normal(size=(5000, 8)).astype(np.float16),
        "clip/count": rng.integers(-9, 9, 5000),
        "captions": ["a dog", "ein Hund", "un chien"],
        "sentences": rng.normal(size=(3, 4)),
        "index": [[0, 0], [1, 1], [4999, 2]],
        "notes": np.zeros((2, 2)),
    }
    with h5py.File(path, "w") as file:
        for name, values in (datasets | changes).items():
            compressed = name.startswith("clip") and np.ndim(values) > 0
            file.create_dataset(name, data=values, compression="gzip" if compressed else None)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """That file: names of fixed length, float16 and int64 compressed in chunks, float64."""
    write_dump(tmp_path / "dump.h5")
    return tmp_path / "dump.h5"


def test_somebody_elses_dump_becomes_a_store(dump: Path, tmp_path: Path) -> None:
    imported, said = run(dump, tmp_path / "x.zarr", *NAMES)
    store = TargetStore.open(tmp_path / "x.zarr")
    with h5py.File(dump) as file:
        np.testing.assert_array_equal(all_values(store, "image/clip/features"), file["clip/feats"][:].astype("f4"))
        np.testing.assert_array_equal(all_values(store, "image/clip/count"), file["clip/count"][:])
        np.testing.assert_array_equal(all_values(store, "text/minilm/features"), file["sentences"][:].astype("f4"))
    assert store.field("image/clip/features").encoding == Float16()
    assert store.field("text/minilm/features").encoding == Float32()
    assert store.manifest.dataset == "dump"
    assert store.manifest.column("image", "id", [0, 4999]) == ["é0", "é4999"]
    assert store.manifest.column("text", "text") == ["a dog", "ein Hund", "un chien"]
    assert store.manifest.column("text", "id") == ["0", "1", "2"]
    assert store.manifest.positives("image", "text").tolist() == [[0, 0], [1, 1], [4999, 2]]
    assert store.manifest.splits("image") == {"train": 5000}
    assert said == [
        "every image item is in the split train, since nothing is named image/split",
        "text ids are row numbers, since nothing is named text/id",
        "every text item is in the split train, since nothing is named text/split",
        "text/minilm/features=sentences is float64 and is stored as float32",
        "left aside, since no --map names them: notes",
    ]
    assert imported.num_rows == 5003
    provenance = store.fieldsets["image/clip"].provenance
    assert provenance["recipe"]["datasets"] == {"features": "clip/feats", "count": "clip/count"}
    assert (provenance["file"], provenance["command"]) == ("dump.h5", "pipeline import")


def test_dump_that_says_more_is_taken_at_its_word(tmp_path: Path) -> None:
    path = tmp_path / "dump.h5"
    with h5py.File(path, "w") as file:
        file["ids"] = np.array([139, 285, 632])  # COCO's are numbers
        file["split"] = np.array([b"train", b"val", b"test"])
        file["class"] = np.array([2, 0, -1], np.int8)
        file["feats"] = np.array([[1, 2], [np.nan, 3], [4, 5]], ">f4")
        file["failed"] = np.array([0, 1, 0], np.uint8)
        file["texts"] = np.zeros((4, 2), np.float32)
        file["image_of_text"] = np.array([2, 0, 0, 1], np.uint32)
    store = run(
        path,
        tmp_path / "x.zarr",
        *("image/id=ids", "image/split=split", "image/label=class", "image/clip/features=feats"),
        *("image/clip/quarantined=failed", "text/clip/features=texts", "pairs/image-text=image_of_text"),
        dataset="mine",
    )[0].store
    assert store.manifest.dataset == "mine"
    assert store.manifest.column("image", "id") == ["139", "285", "632"]
    assert store.manifest.column("image", "split") == ["train", "val", "test"]
    assert store.manifest.num_classes == 3
    assert store.manifest.positives("image", "text").tolist() == [[2, 0], [0, 1], [0, 2], [1, 3]]
    assert store.load("image/clip/features", range(3)).tolist() == [[1, 2], [0, 0], [4, 5]]
    assert [(entry.row, entry.id) for entry in store.quarantined("image/clip")] == [(1, "285")]


def test_part_of_an_export_can_be_named(exported: Path, original: TargetStore, tmp_path: Path) -> None:
    assert dataset_name(exported) == "tiny"
    store, said = run(exported, tmp_path / "x.zarr", "image/vit/logits=image/teacher/logits")
    assert store.store.manifest.dataset == "tiny"
    assert list(store.store.fieldsets) == ["image/vit"]
    np.testing.assert_array_equal(
        all_values(store.store, "image/vit/logits"), all_values(original, "image/teacher/logits")
    )
    assert "image ids are row numbers, since nothing is named image/id" in said


def test_second_import_finds_the_store_complete(dump: Path, tmp_path: Path) -> None:
    run(dump, tmp_path / "x.zarr", *NAMES)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "x.zarr").rglob("*") if path.is_file()}
    assert run(dump, tmp_path / "x.zarr", *NAMES)[0].num_rows == 0
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_damaged_shard_of_an_import_is_written_again(dump: Path, tmp_path: Path) -> None:
    store = run(dump, tmp_path / "x.zarr", *NAMES)[0].store
    store.discard("image/clip", 1)
    assert run(dump, tmp_path / "x.zarr", *NAMES)[0].num_rows == 5000 - 4096
    assert all(damage is None for _, _, damage in TargetStore.open(tmp_path / "x.zarr").verify())


def test_killed_import_continues_to_the_same_bytes(tmp_path: Path) -> None:
    path, killed = tmp_path / "dump.h5", tmp_path / "killed.zarr"
    with h5py.File(path, "w") as file:
        file["feats"] = np.random.default_rng(0).normal(size=(100 * 4096, 2)).astype(np.float32)
    program = (
        "from pathlib import Path; from pipeline.hdf5.import_ import import_; import sys;"
        "import_(Path(sys.argv[1]), Path(sys.argv[2]), {'image/clip/features': 'feats'}, command='pipeline import')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, path, killed],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list((killed / "precept/commits/image/clip").glob("*.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    num_missing = len(TargetStore.open(killed).missing("image/clip"))
    assert 0 < num_missing < 100
    assert run(path, killed, "image/clip/features=feats")[0].num_rows == num_missing * 4096
    run(path, tmp_path / "whole.zarr", "image/clip/features=feats")
    ours, theirs = (
        {file.relative_to(store): file.read_bytes() for file in store.rglob("*") if file.is_file()}
        for store in (killed, tmp_path / "whole.zarr")
    )
    assert {name: content for name, content in ours.items() if name.suffix != ".partial"} == theirs


def test_another_file_does_not_mix_with_the_store(dump: Path, tmp_path: Path) -> None:
    store = tmp_path / "x.zarr"
    run(dump, store, *NAMES)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    other = tmp_path / "other" / "dump.h5"
    other.parent.mkdir()
    with h5py.File(dump) as file:
        feats = file["clip/feats"][:]
    feats[4321, 3] += 1
    write_dump(other, **{"clip/feats": feats})
    with pytest.raises(StoreError, match=r"image/clip was made by another .*recipe\.content"):
        run(other, store, *NAMES)
    write_dump(other, captions=["a dog", "ein Hund", "un chat"])
    with pytest.raises(StoreError, match="text items have another text, such as '2'"):
        run(other, store, *NAMES)
    more = {"captions": ["a", "b", "c", "d"], "sentences": np.zeros((4, 4), np.float32)}
    write_dump(other, **(more | {"captions": ["a dog", "ein Hund", "un chien", "four"]}))
    with pytest.raises(StoreError, match="holds only some of these items, and an import adds none"):
        run(other, store, *NAMES)
    with pytest.raises(StoreError, match=r"features: None, not|clip was made by another"):
        run(dump, store, *NAMES[:1], "image/clip/features=clip/feats", *NAMES[3:])
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def test_second_teacher_joins_the_store_of_the_first(dump: Path, tmp_path: Path) -> None:
    run(dump, tmp_path / "x.zarr", *NAMES)
    second = [name.replace("clip/features", "second/features") for name in NAMES if "count" not in name]
    store = run(dump, tmp_path / "x.zarr", *second)[0].store
    assert set(store.fieldsets) == {"image/clip", "image/second", "text/minilm"}
    assert TargetStore.open(tmp_path / "x.zarr").complete("image/second")


MISTAKES = [
    (
        ("image/id=names",),
        {},
        r"dump\.h5 has no field under the names given; say with --map .*=clip/feats; it holds",
    ),
    (
        ("image/clip/features=feats",),
        {},
        r"features=feats: there is no such dataset; the file holds captions \(strings \[3\]\), ",
    ),
    (("image/clip/features=clip",), {}, r"features=clip: is a group, not a dataset; the file holds"),
    (
        ("image/clip=clip/feats",),
        {},
        r"--map image/clip=clip/feats: no such target; there are image/id, image/file",
    ),
    (("video/clip/features=clip/feats",), {}, "no such target"),
    (("image/c.d/features=clip/feats",), {}, "no such target"),
    (("pairs/text-image=index", "image/clip/features=clip/feats"), {}, "no such target; .*pairs/image-text"),
    (NAMES[:3] + NAMES[5:], {}, r"pairs/image-text=index: no text items are named to be paired"),
    (NAMES, {"clip/count": np.arange(4999)}, r"id=names has 5,000 rows and image/clip/count=clip/count has 4,999"),
    (NAMES, {"clip/count": np.arange(5000) + 2**31}, r"sample 'é0' \(row 0\) .* do not fit int32; the largest"),
    (NAMES, {"clip/count": ["x"] * 5000}, r"count is strings \[5000\]; expected floating-point or whole numbers"),
    (NAMES, {"clip/feats": np.float32(0)}, r"is float32 \[\]; expected a row for each item"),
    (NAMES, {"captions": [b"a", b"b\xff", b"c"]}, r"captions is b'b\\xff' in row 1, not UTF-8"),
    (NAMES, {"captions": np.zeros(3)}, r"text/text=captions is float64 \[3\]; expected strings"),
    (NAMES, {"captions": [["a"], ["b"], ["c"]]}, r"\[3, 1\]; expected one value for each item"),
    (NAMES, {"names": ["same"] * 5000}, r"dump\.h5: dataset dump: 1 image ids stand there more than once"),
    (NAMES, {"index": [[0, 0], [1, 3]]}, r"index names text row 3 in row 1; there are 3, counted from 0"),
    (
        NAMES,
        {"index": np.zeros((3, 2))},
        r"expected whole numbers \[p, 2\], a row of image and one of text, or \[3\]",
    ),
    (NAMES, {"sentences": np.full((3, 4), 1e39)}, r"sample '0' \(row 0\) .*12 of 12 values do not fit float32"),
    ((*NAMES, "text/split=captions"), {}, r"text/split=captions is 'a dog' in row 0; splits are train, val, test"),
    (
        (*NAMES, "image/label=clip/count"),
        {},
        r"image/label=clip/count is -\d in row \d+; expected 0 to 2147483647, or",
    ),
    (
        (*NAMES, "image/start_ms=clip/count"),
        {},
        r"image/start_ms=clip/count is -\d in row \d+; expected 0 to 2147483647$",
    ),
    ((*NAMES, "image/label=clip/feats"), {}, r"expected one value for each item"),
    ((*NAMES, "text/label=captions"), {}, r"expected whole numbers"),
    ((*NAMES, "text/minilm/quarantined=sentences"), {}, r"float64 \[3, 4\]; expected a bool for each item"),
]


@pytest.mark.parametrize(("names", "changes", "message"), MISTAKES)
def test_mistake_is_said_before_anything_is_written(
    tmp_path: Path, names: tuple[str, ...], changes: dict[str, Any], message: str
) -> None:
    write_dump(tmp_path / "dump.h5", **changes)
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path / "dump.h5", tmp_path / "stores/x.zarr", *names)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "dump.h5") in str(caught.value) or "--map" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["dump.h5"]


def test_value_that_is_not_finite_names_the_sample_and_nothing_is_written(tmp_path: Path) -> None:
    feats = np.zeros((5000, 8), np.float16)
    feats[4500, 2] = np.nan
    write_dump(tmp_path / "dump.h5", **{"clip/feats": feats})
    with pytest.raises(
        DataError, match=r"features=clip/feats, sample 'é4500' \(row 4500\) .*\(1 NaN, 0 infinite\)"
    ):
        run(tmp_path / "dump.h5", tmp_path / "x.zarr", *NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["dump.h5"]


def test_nothing_is_guessed_without_names(dump: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(dump, tmp_path / "x.zarr")
    message = str(caught.value)
    assert "was not written by `pipeline export`; say with --map which dataset is what" in message
    assert "such as --map image/teacher/features=clip/feats" in message
    assert "captions (strings [3])" in message
    assert "clip/feats (float16 [5000, 8])" in message


def test_names_are_targets_and_datasets() -> None:
    assert parse_names(["image/id=a=b", "image/x/y=z"]) == {"image/id": "a=b", "image/x/y": "z"}
    with pytest.raises(ConfigError, match="--map image/id: expected TARGET=DATASET"):
        parse_names(["image/id"])
    with pytest.raises(ConfigError, match="--map image/id=b: another --map names image/id, a"):
        parse_names(["image/id=a", "image/id=b"])


def test_files_that_are_not_hdf5_are_refused(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "short.h5").write_bytes(exported.read_bytes()[:3000])
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    for name, message in {
        "text.h5": "not an HDF5 file",
        "short.h5": "can't be read: .*truncated",
        "nothing.h5": "can't be read: No such file",
        ".": "can't be read: Is a directory",
        "empty.h5": "it holds no dataset",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            run(tmp_path / name, tmp_path / "x.zarr")
        assert str(tmp_path / name) in str(caught.value)
    assert not (tmp_path / "x.zarr").exists()


def test_links_that_lead_nowhere_or_round_do_not_stop_the_listing(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "dump.h5", "w") as file:
        file["group/feats"] = np.zeros((2, 2), np.float32)
        file["group/up"] = file["/"]
        file["broken"] = h5py.SoftLink("/nowhere")
        file["outside"] = h5py.ExternalLink("gone.h5", "/x")
    with pytest.raises(ConfigError, match=r"it holds group/feats \(float32 \[2, 2\]\)$"):
        run(tmp_path / "dump.h5", tmp_path / "x.zarr")
    with pytest.raises(DataError, match="outside: there is no such dataset"):
        run(tmp_path / "dump.h5", tmp_path / "x.zarr", "image/a/b=outside")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.attrs.modify("precept_format", 2), "layout 2, this version of Precept reads layout 1"),
        (lambda file: file["image/views"].attrs.modify("num_views", 4), r"\[21, 3, 5\]; expected 5 views"),
        (lambda file: file["image/views"].attrs.create("num_views", "x"), "num_views of image/views is 'x'"),
        (
            lambda file: file["image/teacher/zebra"].attrs.modify("about", "{"),
            "about of image/teacher/zebra is not",
        ),
        (lambda file: file["image/teacher/zebra"].attrs.modify("about", "3"), "is 3; expected a JSON object"),
        (lambda file: file.create_dataset("image/more", data=[1]), "image/more: no such target"),
    ],
)
def test_export_that_was_changed_says_what_is_wrong(
    exported: Path, tmp_path: Path, change: Any, message: str
) -> None:
    path = tmp_path / "changed.h5"
    shutil.copyfile(exported, path)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(UserError, match=message):
        run(path, tmp_path / "x.zarr")
    assert not (tmp_path / "x.zarr").exists()


def test_file_in_our_layout_made_by_hand_needs_no_names(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file.attrs["precept_format"] = 1
        file["audio/clap/features"] = np.arange(6, dtype=np.float32).reshape(2, 3)
        file["audio/id"] = ["a", "b"]
    imported, said = run(tmp_path / "mine.h5", tmp_path / "x.zarr")
    assert imported.store.manifest.column("audio", "id") == ["a", "b"]
    assert imported.store.load("audio/clap/features", [1]).tolist() == [[3, 4, 5]]
    assert said == ["every audio item is in the split train, since nothing is named audio/split"]


def test_memory_is_bounded_by_a_shard(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(layout, "BLOCK_BYTES", 2**20)
    path, shard_bytes = tmp_path / "dump.h5", 512 * 4096 * 4
    with h5py.File(path, "w") as file:
        file["feats"] = np.ones((4 * 512, 4096), np.float32)
    tracemalloc.start()
    try:
        store = run(path, tmp_path / "x.zarr", "image/clip/features=feats")[0].store
        assert store.num_shards("image/clip") == 4
        assert tracemalloc.get_traced_memory()[1] < 3 * shard_bytes
        tracemalloc.reset_peak()
        export(store, tmp_path / "again.h5")
        assert tracemalloc.get_traced_memory()[1] < shard_bytes
    finally:
        tracemalloc.stop()
