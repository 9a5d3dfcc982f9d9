import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.encoding import Float32, Int32
from contract.errors import DataError, StoreError
from contract.manifest import Manifest, items_table
from contract.schema import Field, FieldSet
from contract.store import Quarantined, TargetStore, newest_store, writing

NUM_ROWS = 1300
KEY = "image/teacher"
FIELDS = (
    Field(name="patch_embeddings", shape=(7, 300), about={"grid": [1, 7]}),  # one row in an inner chunk
    Field(name="features", shape=(12, 200)),  # several rows, each large enough to be copied alone
    Field(name="logits", shape=(10,), encoding=Float32()),
    Field(name="length", shape=(), encoding=Int32()),
)


def manifest(num_rows: int = NUM_ROWS, name: str = "tiny") -> Manifest:
    ids = [f"item-{row}" for row in range(num_rows)]
    return Manifest(
        dataset=name, protocol=name, items={"image": items_table({"id": ids, "split": ["train"] * num_rows})}
    )


def fieldset(model: str = "resnet", batch_size: int = 64) -> FieldSet:
    return FieldSet(
        name="teacher",
        modality="image",
        fields=FIELDS,
        batch_size=batch_size,
        provenance={"recipe": {"model": model}, "command": "pipeline precompute"},
    )


def values(num_rows: int = NUM_ROWS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {field.name: rng.normal(size=(num_rows, *field.shape)).astype(np.float32) for field in FIELDS[:3]}
    return made | {"length": rng.integers(0, 9, num_rows)}


def write(store: TargetStore, shard: int, quarantined: tuple[Quarantined, ...] = ()) -> None:
    rows = store.shard_rows(KEY, shard)
    part = {name: array[rows.start : rows.stop] for name, array in values().items()}
    store.write_shard(KEY, shard, part, quarantined)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of three shards, the last of them part full."""
    path = tmp_path_factory.mktemp("whole") / "tiny.zarr"
    store = TargetStore.create(path, manifest())
    store.add(fieldset())
    for shard in range(store.num_shards(KEY)):
        write(store, shard)
    return path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished store that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "tiny.zarr"))


@given(rows=st.lists(st.integers(0, NUM_ROWS - 1), max_size=40), field=st.sampled_from(FIELDS))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_read_equal_what_zarr_reads(whole: Path, rows: list[int], field: Field) -> None:
    ours = TargetStore.open(whole).read(f"{KEY}/{field.name}", rows)[field.name]
    theirs = zarr.open_array(whole / KEY / field.name, mode="r")[:][rows]
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


def test_rows_read_equal_what_was_written(whole: Path) -> None:
    store, written = TargetStore.open(whole), values()
    rows = np.random.default_rng(1).permutation(NUM_ROWS)
    np.testing.assert_array_equal(store.load(f"{KEY}/logits", rows), written["logits"][rows])
    np.testing.assert_array_equal(store.load(f"{KEY}/length", rows), written["length"][rows])
    half = written["patch_embeddings"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(store.load(f"{KEY}/patch_embeddings", rows), half[rows])


def test_rows_are_copied_into_the_array_that_is_given(whole: Path) -> None:
    out = {"logits": np.empty((2, 10), np.float32)}
    assert TargetStore.open(whole).read(f"{KEY}/logits", [5, 1299], out)["logits"] is out["logits"]
    np.testing.assert_array_equal(out["logits"], values()["logits"][[5, 1299]])


def test_any_zarr_reader_lists_the_store_without_a_warning(whole: Path) -> None:
    found = dict(zarr.open_group(whole, mode="r").members(max_depth=None))
    assert {f"{KEY}/{field.name}" for field in FIELDS} <= set(found)
    assert found[f"{KEY}/patch_embeddings"].chunks == (8, 7, 300)
    assert found[f"{KEY}/patch_embeddings"].shards == (512, 7, 300)


def test_interrupted_store_knows_what_is_missing_and_ends_byte_identical(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "again.zarr"
    store = TargetStore.create(path, manifest())
    store.add(fieldset())
    write(store, 1)
    again = TargetStore.create(path, manifest())
    again.add(fieldset())
    assert again.missing(KEY) == [0, 2]
    with pytest.raises(StoreError, match="lacks 2 of 3 shards"):
        again.require_complete([KEY])
    for shard in again.missing(KEY):
        write(again, shard)
    assert again.complete(KEY)
    ours = {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    theirs = {file.relative_to(whole): file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    assert ours == theirs


def test_files_without_a_commit_record_do_not_count(copy: Path) -> None:
    (copy / "precept/commits" / KEY / "000001.json").unlink()
    assert TargetStore.open(copy).missing(KEY) == [1]


def shard_file(path: Path, name: str = "logits", shard: int = 0) -> Path:
    return next(file for file in (path / KEY / name / "c" / str(shard)).rglob("*") if file.is_file())


def test_missing_or_shortened_files_are_missing_shards(copy: Path) -> None:
    shard_file(copy, "logits", 0).unlink()
    short = shard_file(copy, "features", 2)
    short.write_bytes(short.read_bytes()[:-1])
    store = TargetStore.open(copy)
    assert store.missing(KEY) == [0, 2]
    with pytest.raises(StoreError, match=r"missing; `pipeline verify"):
        store.read(f"{KEY}/logits", [3])
    with pytest.raises(StoreError, match="bytes, not"):
        store.read(f"{KEY}/features", [1299])
    np.testing.assert_array_equal(store.load(f"{KEY}/logits", [600]), values()["logits"][[600]])


@pytest.mark.parametrize("place", [0, 1000, -1, -30])
def test_flipped_byte_is_found_by_verify(copy: Path, place: int) -> None:
    path = shard_file(copy, "features", 1)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    bad = [damage for _, _, damage in TargetStore.open(copy).verify() if damage]
    assert [(entry.fieldset, entry.shard) for entry in bad] == [(KEY, 1)]
    assert "features" in bad[0].reason


def test_verify_finds_nothing_wrong_with_a_whole_store(whole: Path) -> None:
    assert [damage for _, _, damage in TargetStore.open(whole).verify()] == [None, None, None]


def test_damaged_index_is_an_error_and_not_wrong_rows(copy: Path) -> None:
    path = shard_file(copy, "features", 0)
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="checksum of its index"):
        TargetStore.open(copy).read(f"{KEY}/features", [0])


def test_value_that_is_not_finite_names_the_sample_and_writes_nothing(tmp_path: Path) -> None:
    store = TargetStore.create(tmp_path / "tiny.zarr", manifest())
    store.add(fieldset())
    part = {name: array[512:1024] for name, array in values().items()}
    part["logits"][7, 3] = np.nan
    with pytest.raises(StoreError, match=r"image/teacher/logits of sample 'item-519': 1 of 10"):
        store.write_shard(KEY, 1, part)
    assert store.missing(KEY) == [0, 1, 2]
    assert not list((tmp_path / "tiny.zarr").rglob("*.partial"))


def test_another_encoder_under_the_same_name_is_refused(copy: Path) -> None:
    store = TargetStore.open(copy)
    store.add(fieldset())  # the same again is fine
    with pytest.raises(StoreError, match=r"recipe\.model: 'resnet', not 'vit'"):
        store.add(fieldset(model="vit"))
    with pytest.raises(StoreError, match="batch_size: 64, not 32"):
        store.add(fieldset(batch_size=32))


def test_second_teacher_touches_nothing_of_the_first(copy: Path) -> None:
    before = {path: path.read_bytes() for path in (copy / KEY).rglob("*") if path.is_file()}
    store = TargetStore.open(copy)
    store.add(replace(fieldset(model="vit"), name="second"))
    assert store.missing("image/second") == [0, 1, 2]
    assert TargetStore.open(copy).complete(KEY)
    assert before == {path: path.read_bytes() for path in (copy / KEY).rglob("*") if path.is_file()}


def test_store_of_another_dataset_is_refused(copy: Path) -> None:
    with pytest.raises(StoreError, match="dataset: 'tiny', not 'other'"):
        TargetStore.create(copy, manifest(name="other"))
    with pytest.raises(StoreError, match="image items: 1300, not 1301"):
        TargetStore.create(copy, manifest(NUM_ROWS + 1))


def test_folder_that_is_no_store_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="not a target store"):
        TargetStore.create(tmp_path, manifest())
    with pytest.raises(StoreError, match="no target store"):
        TargetStore.open(tmp_path)
    with pytest.raises(DataError, match="empty"):
        TargetStore.create(tmp_path / "new.zarr", manifest(0))


def test_expectations_are_checked_part_by_part(whole: Path) -> None:
    reference = f"{KEY}/patch_embeddings"
    TargetStore.open(whole, {reference: {"shape": [7, 300], "grid": [1, 7], "recipe": {"model": "resnet"}}})
    with pytest.raises(StoreError, match=r"recipe\.model: 'resnet', not 'vit'"):
        TargetStore.open(whole, {reference: {"recipe": {"model": "vit"}}})
    with pytest.raises(StoreError, match="shape"):
        TargetStore.open(whole, {reference: {"shape": [9, 300]}})
    with pytest.raises(StoreError, match=r"has no field .*; it has: image/teacher/patch_embeddings"):
        TargetStore.open(whole, {f"{KEY}/nothing": {}})


def test_field_is_found_by_its_short_name(whole: Path) -> None:
    store = TargetStore.open(whole)
    assert store.find("image", "logits") == store.find("image", "teacher/logits") == f"{KEY}/logits"
    with pytest.raises(StoreError, match="no text field 'logits'; its text fields: none"):
        store.find("text", "logits")


def test_name_that_two_fieldsets_share_must_be_spelt_out(copy: Path) -> None:
    store = TargetStore.open(copy)
    store.add(replace(fieldset(model="vit"), name="second"))
    assert store.find("image", "second/logits") == "image/second/logits"
    with pytest.raises(StoreError, match="more than one image field 'logits'"):
        store.find("image", "logits")


def test_altered_metadata_is_refused(copy: Path) -> None:
    path = copy / KEY / "zarr.json"
    tree = json.loads(path.read_text())
    tree["attributes"]["precept"]["provenance"]["recipe"]["model"] = "vit"
    path.write_text(json.dumps(tree))
    with pytest.raises(StoreError, match="changed after it was written"):
        TargetStore.open(copy)


def test_quarantined_rows_are_listed_and_masked(tmp_path: Path) -> None:
    store = TargetStore.create(tmp_path / "tiny.zarr", manifest())
    store.add(fieldset())
    entry = Quarantined(row=600, id="item-600", file="600.jpg", reason="cut short")
    write(store, 1, (entry,))
    assert store.quarantined(KEY) == [entry]
    assert np.flatnonzero(~store.usable("image")).tolist() == [600]


def test_second_writer_is_refused(copy: Path) -> None:
    with writing(copy), pytest.raises(StoreError, match="another run is writing"), writing(copy):
        pass


def test_newest_store_is_the_one_that_was_written_last(whole: Path, copy: Path, tmp_path: Path) -> None:
    newer = Path(shutil.copytree(whole, tmp_path / "newer.zarr"))
    write(TargetStore.open(newer), 2)
    TargetStore.create(tmp_path / "empty.zarr", manifest(5))
    assert newest_store(tmp_path) == newer
    with pytest.raises(StoreError, match="no store under"):
        newest_store(tmp_path / "nowhere")


def test_fieldset_that_was_not_added_to_the_end_is_added_again(copy: Path) -> None:
    metadata = json.loads((copy / KEY / "zarr.json").read_text())
    metadata["attributes"] = {}
    (copy / KEY / "zarr.json").write_text(json.dumps(metadata))
    store = TargetStore.open(copy)
    assert not store.fieldsets
    store.add(fieldset())
    assert KEY in TargetStore.open(copy).fieldsets


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": 1}'])
def test_damaged_commit_record_is_a_missing_shard_and_a_bad_one(copy: Path, content: str) -> None:
    path = copy / "precept/commits" / KEY / "000001.json"
    path.write_text(content)
    store = TargetStore.open(copy)
    assert store.missing(KEY) == [1]
    bad = [damage for _, _, damage in store.verify() if damage]
    assert "its commit record can't be read" in bad[0].reason
    write(store, 1)
    assert store.complete(KEY)


def test_shard_is_not_committed_while_it_is_replaced(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store = TargetStore.open(copy)
    monkeypatch.setattr("contract.store.write_shard", full)
    with pytest.raises(OSError, match="No space"):
        write(store, 1)
    assert TargetStore.open(copy).missing(KEY) == [1]


def test_moved_dataset_keeps_its_store(copy: Path) -> None:
    moved = TargetStore.create(copy, replace(manifest(), media_root="/elsewhere"))
    assert moved.complete(KEY)
    assert TargetStore.open(copy).manifest.media_root == "/elsewhere"


def test_foreign_zarr_group_is_left_alone(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "foreign.zarr", mode="w").create_array("precept", shape=(3,), dtype="int8")
    with pytest.raises(StoreError, match="not a target store"):
        TargetStore.create(tmp_path / "foreign.zarr", manifest())
    assert zarr.open_array(tmp_path / "foreign.zarr/precept", mode="r").shape == (3,)


def test_nested_expectations_may_name_a_part_only(tmp_path: Path) -> None:
    deep = replace(fieldset(), provenance={"recipe": {"view": {"height": 224, "width": 224}}})
    TargetStore.create(tmp_path / "deep.zarr", manifest()).add(deep)
    reference = f"{KEY}/logits"
    TargetStore.open(tmp_path / "deep.zarr", {reference: {"recipe": {"view": {"height": 224}}}})
    with pytest.raises(StoreError, match=r"recipe\.view\.height: 224, not 384"):
        TargetStore.open(tmp_path / "deep.zarr", {reference: {"recipe": {"view": {"height": 384}}}})


def test_fieldset_that_never_got_a_value_may_be_another_one(tmp_path: Path) -> None:
    store = TargetStore.create(tmp_path / "tiny.zarr", manifest())
    store.add(fieldset(model="a typing mistake"))
    store.add(fieldset(model="vit"))
    assert TargetStore.open(tmp_path / "tiny.zarr").fieldsets[KEY].provenance["recipe"] == {"model": "vit"}
    with pytest.raises(StoreError, match="no store under"):
        newest_store(tmp_path)


def test_expectation_of_what_is_not_told_lists_what_is(whole: Path) -> None:
    with pytest.raises(StoreError, match=r"says nothing of 'model', only of shape, encoding"):
        TargetStore.open(whole, {f"{KEY}/logits": {"model": "vit"}})
