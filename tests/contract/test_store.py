import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract import kept
from contract.encodings import Encoding, Lookup
from contract.errors import DataError, StoreError
from contract.storage import storage
from contract.store import Quarantined, TargetStore, newest_store, writing

KEYS = ("image/teacher", "image/plain")
IDS = [f"i{n}" for n in range(20)]


@pytest.fixture(scope="module")
def by_zarr(whole: Path) -> dict[str, np.ndarray]:
    """Every array of the finished store, read by zarr-python."""
    found = dict(zarr.open_group(whole, mode="r").members(max_depth=None))
    return {name: array[:] for name, array in found.items() if name.startswith(KEYS) and hasattr(array, "shape")}


def flip(path: Path, place: int) -> None:
    """Replace a file by one in which a bit is another."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_every_encoding_is_tried(tiny) -> None:
    kinds = {field.encoding.kind for field in tiny.fieldset.fields}
    assert kinds == {member().kind for member in get_args(get_args(Encoding)[0])}


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_read_equal_what_zarr_reads(whole: Path, by_zarr, data: st.DataObject) -> None:
    store, key = TargetStore.open(whole), data.draw(st.sampled_from(KEYS))
    field = data.draw(st.sampled_from(store.fieldsets[key].fields))
    rows = data.draw(st.lists(st.integers(0, 19), max_size=30))
    num_views = store.fieldsets[key].num_views
    one_each = st.lists(st.integers(0, num_views), min_size=len(rows), max_size=len(rows)).map(np.array)
    views = data.draw(st.integers(0, num_views) | one_each)
    out = None
    if data.draw(st.booleans()):
        out = {name: np.empty((len(rows), *shape), dtype) for name, (dtype, shape) in field.arrays.items()}
    given_rows = data.draw(st.sampled_from([rows, tuple(rows), np.array(rows, np.int32), np.array(rows, np.int64)]))
    views = views if np.ndim(views) == 0 else views.astype(np.int64)
    check = data.draw(st.booleans())
    found = store.read(f"{key}/{field.name}", given_rows, out, views=views, check=check)
    assert found.keys() == field.arrays.keys()
    for name, ours in found.items():
        theirs = by_zarr[f"{key}/{name}"]
        theirs = theirs[rows, views] if num_views else theirs[rows]
        assert ours.dtype == theirs.dtype
        assert out is None or ours is out[name]
        np.testing.assert_array_equal(ours, theirs)


def test_what_zarr_reads_is_what_was_written(tiny, by_zarr) -> None:
    for one in (tiny, tiny.but(name="plain", num_views=0)):
        for name, expected in (one.stored(IDS) | one.constants).items():
            np.testing.assert_array_equal(by_zarr[f"{one.key}/{name}"], expected)


def test_rows_are_loaded_as_logical_values(tiny, whole: Path) -> None:
    store, values = TargetStore.open(whole), tiny.values(IDS)
    rows, views = [3, 19, 3], np.array([2, 0, 1])
    patches = store.load(f"{tiny.key}/patches", rows, views=views)
    np.testing.assert_array_equal(patches, values["patches"][rows, views])
    tokens = store.load(f"{tiny.key}/tokens", rows, views=views)
    np.testing.assert_array_equal(tokens, tiny.constants["tokens.table"][values["tokens"][rows, views]])
    np.testing.assert_array_equal(store.load(f"{tiny.key}/length", rows), values["length"][rows, 0])
    wide = store.load(f"{tiny.key}/wide", rows)
    np.testing.assert_allclose(wide, values["wide"][rows, 0], rtol=2**-8)


@pytest.mark.parametrize(
    ("rows", "views"), [([20], 0), ([-1], 0), ([0], 3), ([0], -1), ([19], 3), ([0, 1], np.array([0, 3]))]
)
def test_rows_and_views_that_are_not_there_are_an_error(tiny, whole: Path, rows, views) -> None:
    with pytest.raises(IndexError, match="image/teacher/length has"):
        TargetStore.open(whole).read(f"{tiny.key}/length", rows, views=views)


def test_rows_can_be_asked_for_ahead(tiny, whole: Path) -> None:
    store = TargetStore.open(whole)
    for field in tiny.fieldset.fields:
        store.will_need(f"{tiny.key}/{field.name}", [0, 19, 7], views=np.array([0, 2, 1]))
        store.will_need(f"{tiny.key}/{field.name}", [])


def test_interrupted_store_knows_what_is_missing_and_ends_byte_identical(
    tiny, scenes, tmp_path: Path, contents
) -> None:
    tiny.fill(tiny.create(tmp_path / "whole", scenes(20)))
    store = tiny.create(tmp_path / "again", scenes(20))
    tiny.fill(store, [1])
    again = tiny.create(tmp_path / "again", scenes(20))
    assert again.missing(tiny.key) == [0, 2]
    with pytest.raises(StoreError, match=r"lacks 2 of 3 shards \(the first is 0\)"):
        again.require_complete([tiny.key])
    tiny.fill(again)
    again.require_complete([tiny.key])
    assert again.complete(tiny.key)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_shard_without_a_commit_record_does_not_count_and_is_not_read(tiny, copy: Path) -> None:
    (copy / "precept/commits" / tiny.key / "000001.json").unlink()
    store = TargetStore.open(copy)
    assert store.missing(tiny.key) == [1]
    store.read(f"{tiny.key}/length", [7])
    with pytest.raises(StoreError, match=r"000001.json: no commit record .*repair"):
        store.read(f"{tiny.key}/length", [8])


def test_missing_or_shortened_files_are_missing_shards(tiny, copy: Path) -> None:
    (copy / tiny.key / "length/c/0/0").unlink()
    short = copy / tiny.key / "features/c/2/0/0/0"
    content = short.read_bytes()
    short.unlink()
    short.write_bytes(content[:-1])
    store = TargetStore.open(copy)
    assert store.missing(tiny.key) == [0, 2]
    with pytest.raises(StoreError, match=r"length/c/0/0 is missing; `pipeline repair"):
        store.read(f"{tiny.key}/length", [3])
    with pytest.raises(StoreError, match=r"features/c/2/0/0/0 has \d+ bytes, not"):
        store.read(f"{tiny.key}/features", [19])
    np.testing.assert_array_equal(store.load(f"{tiny.key}/length", [9]), tiny.values(["i9"])["length"][:, 0])


def test_checked_read_names_the_sample_whose_row_is_damaged(tiny, copy: Path) -> None:
    flip(copy / tiny.key / "patches/c/1/0/0", 7 * (8300 * 4 + 4))  # the shard's third row, its second view
    store = TargetStore.open(copy)
    store.read(f"{tiny.key}/patches", [10], views=0, check=True)
    store.read(f"{tiny.key}/patches", [10], views=1)  # not looked at
    with pytest.raises(StoreError, match=r"patches/c/1/0/0: .* \(shard 1, row 10 or one near it, sample 'i10'\)"):
        store.read(f"{tiny.key}/patches", [10], views=1, check=True)


def test_verify_finds_nothing_wrong_with_a_whole_store(tiny, whole: Path) -> None:
    found = list(TargetStore.open(whole).verify())
    assert sorted(found) == [
        ("image/plain", 0, None),
        ("image/plain", 1, None),
        *((KEYS[0], n, None) for n in range(3)),
    ]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": 1}'])
def test_damaged_commit_record_is_a_missing_shard_and_a_bad_one(tiny, copy: Path, content: str) -> None:
    (copy / "precept/commits" / tiny.key / "000001.json").write_text(content)
    store = TargetStore.open(copy)
    assert store.missing(tiny.key) == [1]
    bad = [damage for *_, damage in store.verify() if damage]
    assert [(one.fieldset, one.shard) for one in bad] == [(tiny.key, 1)]
    assert "000001.json: it is damaged" in bad[0].reason
    tiny.fill(store)
    assert store.complete(tiny.key)


def test_altered_metadata_is_refused(tiny, copy: Path) -> None:
    path = copy / tiny.key / "zarr.json"
    tree = json.loads(path.read_text())
    tree["attributes"]["precept"]["provenance"]["recipe"]["model"] = "vit"
    path.write_text(json.dumps(tree))
    with pytest.raises(StoreError, match=r"teacher/zarr.json: it was changed after it was written.*repair"):
        TargetStore.open(copy)


def test_another_encoder_under_the_same_name_is_refused(tiny, copy: Path) -> None:
    store = TargetStore.open(copy)
    store.add(tiny.fieldset, tiny.constants)  # the same again is fine
    assert store.holds(tiny.fieldset)
    vit = tiny.but(provenance={"recipe": {"model": "vit"}}).fieldset
    assert not store.holds(vit)
    with pytest.raises(StoreError, match=r"recipe\.model: 'resnet', not 'vit'"):
        store.add(vit, tiny.constants)
    with pytest.raises(StoreError, match="num_views: 2, not 1"):
        store.add(tiny.but(num_views=1).fieldset, tiny.constants)


def test_encoder_that_never_got_a_value_leaves_nothing_when_it_is_another(
    tiny, scenes, tmp_path: Path, contents
) -> None:
    mistaken = tiny.but(provenance={"recipe": {"model": "a typing mistake"}}, num_views=0).only("logits", "tokens")
    store = mistaken.create(tmp_path / "tiny.zarr", scenes(20))
    mistaken.fill(store, [0])
    store.discard(tiny.key, 0)  # killed before its first shard was finished
    only = tiny.only("length")
    only.fill(only.create(tmp_path / "tiny.zarr", scenes(20)))
    only.fill(only.create(tmp_path / "fresh.zarr", scenes(20)))
    assert contents(tmp_path / "tiny.zarr") == contents(tmp_path / "fresh.zarr")


def test_second_teacher_touches_nothing_of_the_first(tiny, copy: Path, contents) -> None:
    before = contents(copy / tiny.key)
    store = TargetStore.open(copy)
    second = tiny.but(name="second", provenance={})
    store.add(second.fieldset, second.constants)
    assert store.missing("image/second") == [0, 1, 2]
    assert TargetStore.open(copy).complete(tiny.key)
    assert contents(copy / tiny.key) == before


def test_fieldset_of_a_modality_that_has_no_items_is_refused(tiny, copy: Path) -> None:
    with pytest.raises(DataError, match=r"text/teacher: dataset tiny has no text items, only image"):
        TargetStore.open(copy).add(tiny.but(modality="text").fieldset, tiny.constants)


def test_folder_that_is_no_store_is_left_alone(tmp_path: Path, scenes) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="not a target store"):
        TargetStore.create(tmp_path, scenes(3))
    with pytest.raises(StoreError, match="not a target store"):
        TargetStore.create(tmp_path / "notes.txt", scenes(3))
    with pytest.raises(StoreError, match="no target store there"):
        TargetStore.open(tmp_path)
    with pytest.raises(StoreError, match="no target store there"):
        TargetStore.open(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="empty"):
        TargetStore.create(tmp_path / "new.zarr", scenes(0))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_foreign_zarr_group_is_left_alone(tmp_path: Path, scenes, contents) -> None:
    zarr.open_group(tmp_path / "foreign.zarr", mode="w").create_array("precept", shape=(3,), dtype="int8")
    before = contents(tmp_path)
    with pytest.raises(StoreError, match="not a target store"):
        TargetStore.create(tmp_path / "foreign.zarr", scenes(3))
    with pytest.raises(StoreError, match=r"its zarr.json is missing or damaged|no target store there"):
        TargetStore.open(tmp_path / "foreign.zarr")
    assert contents(tmp_path) == before


def test_groups_and_arrays_of_others_are_let_be(tiny, copy: Path) -> None:
    group = zarr.open_group(copy, mode="a")
    group["image"].create_group("mine", attributes={"note": 1})
    group["image"].create_array("labels", shape=(20,), dtype="int8")
    store = TargetStore.open(copy)
    assert sorted(store.fieldsets) == sorted(KEYS)
    assert list(kept.faults(store.files)) == []


def test_store_whose_manifest_is_gone_is_not_begun_anew(tiny, copy: Path, scenes, contents) -> None:
    (copy / "precept/manifest/manifest.json").unlink()
    before = contents(copy)
    assert not TargetStore.exists(copy)
    with pytest.raises(StoreError, match=r"manifest.json: the manifest is missing or damaged: .*repair"):
        TargetStore.create(copy, scenes(20))
    (copy / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"its zarr.json is missing or damaged.*repair"):
        TargetStore.create(copy, scenes(20))
    assert contents(copy) == {name: content for name, content in before.items() if name != "zarr.json"}
    kept.mend(storage(copy))
    assert TargetStore.create(copy, scenes(20)).complete(tiny.key)


def test_store_of_another_format_is_refused(copy: Path) -> None:
    path = copy / "zarr.json"
    path.write_text(path.read_text().replace('"format": 3', '"format": 2'))
    with pytest.raises(StoreError, match="store format 2, this version of Precept reads format 3"):
        TargetStore.open(copy)


def test_damaged_table_stops_the_writer_and_whoever_asks(tiny, copy: Path, scenes) -> None:
    path = copy / "precept/manifest/items.image.arrow"
    flip(path, path.read_bytes().index(b"i10i11") + 5)
    store = TargetStore.open(copy)
    with pytest.raises(StoreError, match=r"items.image.arrow: its checksum is not the one written down; .*repair"):
        store.require_intact_manifest()
    with pytest.raises(StoreError, match="its checksum is not"):
        TargetStore.create(copy, scenes(20))


def test_expectations_are_checked_part_by_part(tiny, whole: Path) -> None:
    reference = f"{tiny.key}/logits"
    TargetStore.open(whole, {reference: {"shape": [30], "encoding": "topk", "recipe": {"model": "resnet"}}})
    with pytest.raises(StoreError, match=r"recipe\.model: 'resnet', not 'vit'"):
        TargetStore.open(whole, {reference: {"recipe": {"model": "vit"}}})
    with pytest.raises(StoreError, match="shape"):
        TargetStore.open(whole, {reference: {"shape": [9]}})
    with pytest.raises(StoreError, match=r"has no field .*; it has: .*image/teacher/patches"):
        TargetStore.open(whole, {f"{tiny.key}/nothing": {}})
    with pytest.raises(StoreError, match=r"says nothing of 'model', only of shape, encoding, temperature"):
        TargetStore.open(whole, {reference: {"model": "vit"}})


def test_nested_expectations_may_name_a_part_only(tiny, scenes, tmp_path: Path) -> None:
    deep = tiny.but(provenance={"recipe": {"view": {"height": 224, "width": 224}}})
    deep.create(tmp_path / "deep.zarr", scenes(2))
    reference = f"{tiny.key}/logits"
    TargetStore.open(tmp_path / "deep.zarr", {reference: {"recipe": {"view": {"height": 224}}}})
    with pytest.raises(StoreError, match=r"recipe\.view\.height: 224, not 384"):
        TargetStore.open(tmp_path / "deep.zarr", {reference: {"recipe": {"view": {"height": 384}}}})


def test_field_is_found_by_its_short_name(tiny, scenes, tmp_path: Path) -> None:
    store = tiny.create(tmp_path / "tiny.zarr", scenes(2))
    assert store.find("image", "logits") == store.find("image", "teacher/logits") == f"{tiny.key}/logits"
    with pytest.raises(StoreError, match="no text field 'logits'; its text fields: none"):
        store.find("text", "logits")


def test_name_that_two_fieldsets_share_must_be_spelt_out(whole: Path) -> None:
    store = TargetStore.open(whole)
    assert store.find("image", "plain/logits") == "image/plain/logits"
    with pytest.raises(StoreError, match="more than one image field 'logits'"):
        store.find("image", "logits")


def test_gate_is_kept_as_it_was_written(tiny, copy: Path) -> None:
    store = TargetStore.open(copy)
    assert store.gate(tiny.key) is None
    store.write_gate(tiny.fieldset, {"what": "accuracy", "value": 0.5})
    assert TargetStore.open(copy).gate(tiny.key) == {"what": "accuracy", "value": 0.5}
    assert list(kept.faults(store.files)) == []
    flip(copy / f"precept/gates/{tiny.key}.json", 20)
    with pytest.raises(StoreError, match=r"gates/image/teacher.json: .*repair"):
        store.gate(tiny.key)


def test_quarantined_rows_are_listed_and_masked(tiny, scenes, tmp_path: Path) -> None:
    store = tiny.create(tmp_path / "tiny.zarr", scenes(20))
    entries = [Quarantined(row=row, id=f"i{row}", file=f"{row}.jpg", reason="cut short") for row in (17, 9)]
    store.write_shard(tiny.key, 2, tiny.values(IDS[16:]), [entries[0]])
    store.write_shard(tiny.key, 1, tiny.values(IDS[8:16]), [entries[1]])
    assert store.quarantined(tiny.key) == entries[::-1]
    assert np.flatnonzero(~store.usable("image")).tolist() == [9, 17]
    assert store.usable("image", []).all()


def test_losses_are_told_over_all_shards(tiny, scenes, tmp_path: Path) -> None:
    one = tiny.only("quantised", "logits").but(num_views=0)
    store = one.create(tmp_path / "tiny.zarr", scenes(20))
    values = one.values(IDS)
    for shard, error in enumerate((0.1, 0.2, 0.6)):
        rows = store.shard_rows(one.key, shard)
        part = {name: array[rows.start : rows.stop] for name, array in values.items()}
        store.write_shard(one.key, shard, part, error={"quantised": {"relative_rmse": error}})
    means, clipped = store.losses(one.key)
    assert means == {"quantised": {"relative_rmse": pytest.approx(0.3)}}
    assert clipped == {"quantised": int((np.abs(values["quantised"]) > 127.5 * 0.02).sum())}
    assert clipped["quantised"] > 0


def test_values_that_cannot_be_held_are_counted_by_field_and_name_a_sample_and_nothing_is_written(
    tiny, scenes, tmp_path: Path, contents
) -> None:
    store = tiny.create(tmp_path / "tiny.zarr", scenes(20))
    before = contents(tmp_path)
    values = tiny.values(IDS[8:16])
    values["features"][3, 1, 2, 5] = 70_000  # item 11
    values["logits"][5, 2, :4] = [np.nan, np.inf, -np.inf, 0]
    values["tokens"][7, 0, 0] = 50
    values["coarse"][0, 0, 0] = 500
    message = (
        r"image/teacher, rows 8 to 15, can't be stored: "
        r"coarse of sample 'i8' and perhaps others: 1 of 96,000 values do not fit float8, whose largest is 448; .* "
        r"features of sample 'i11' and perhaps others: 1 of 1,440 values do not fit float16, .*; "
        r"logits of sample 'i13' .*: 3 of 720 values are not finite \(1 NaN, 2 infinite\); "
        r"tokens of sample 'i15' .*: 1 of 120 values are not among the 50 rows of the table"
    )
    with pytest.raises(StoreError, match=message):
        store.write_shard(tiny.key, 1, values)
    assert contents(tmp_path) == before
    assert store.missing(tiny.key) == [0, 1, 2]


def test_finished_shard_stays_when_its_new_values_cannot_be_held(tiny, copy: Path, contents) -> None:
    before, values = contents(copy), tiny.values(IDS[8:16])
    values["patches"][0] = np.nan
    with pytest.raises(StoreError, match="can't be stored"):
        TargetStore.open(copy).write_shard(tiny.key, 1, values)
    assert contents(copy) == before


def test_full_disk_leaves_a_store_that_can_be_gone_on_with(
    tiny, scenes, tmp_path: Path, contents, full_disk
) -> None:
    tiny.fill(tiny.create(tmp_path / "whole", scenes(20)))
    store = tiny.create(tmp_path / "tiny.zarr", scenes(20))
    tiny.fill(store, [0])
    with full_disk(200_000), pytest.raises(OSError, match="File too large"):
        tiny.fill(store, [1])
    assert not [name for name in contents(tmp_path) if name.endswith(".partial")]
    again = TargetStore.open(tmp_path / "tiny.zarr")
    assert again.missing(tiny.key) == [1, 2]
    assert [damage.shard for *_, damage in again.verify() if damage] == [1, 2]
    tiny.fill(again)
    assert contents(tmp_path / "tiny.zarr") == contents(tmp_path / "whole")


def test_shard_is_not_committed_once_its_replacement_has_begun(tiny, copy: Path, full_disk) -> None:
    store = TargetStore.open(copy)
    with full_disk(200_000), pytest.raises(OSError, match="File too large"):
        tiny.fill(store, [1])
    assert TargetStore.open(copy).missing(tiny.key) == [1]


@pytest.mark.parametrize("size_bytes", [0, 300, 900, 3000])
def test_disk_that_is_full_from_the_start_leaves_no_half_store(
    tiny, scenes, tmp_path: Path, contents, full_disk, size_bytes: int
) -> None:
    path = tmp_path / "tiny.zarr"
    with full_disk(size_bytes), pytest.raises(OSError, match="File too large"):
        tiny.create(path, scenes(20))
    assert not [name for name in contents(tmp_path) if name.endswith(".partial")]
    tiny.fill(tiny.create(path, scenes(20)))
    tiny.fill(tiny.create(tmp_path / "whole", scenes(20)))
    assert contents(path) == contents(tmp_path / "whole")


def test_read_only_store_is_read_and_not_half_written(tiny, copy: Path, scenes, contents, without_rights) -> None:
    before = contents(copy)
    with without_rights(copy):
        store = TargetStore.open(Path())
        assert store.complete(tiny.key)
        store.read(f"{tiny.key}/patches", range(20), check=True)
        with pytest.raises(PermissionError):
            tiny.fill(store, [1])
        with pytest.raises(PermissionError):
            TargetStore.create(Path(), scenes(21))
        with pytest.raises(PermissionError):
            TargetStore.create(Path("new"), scenes(21))
    assert contents(copy) == before


def test_second_writer_is_refused(copy: Path) -> None:
    with writing(copy), pytest.raises(StoreError, match="another run is writing"), writing(copy):
        pass
    with writing(copy):
        pass


WRITER = """
import sys
from pathlib import Path
from contract.store import writing
with writing(Path(sys.argv[1])):
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_writer_in_another_process_is_in_the_way_until_it_is_dead(copy: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(copy)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ) as other:
        assert other.stdout.readline() == b"writing\n"
        with pytest.raises(StoreError, match="another run is writing"), writing(copy):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    with writing(copy):
        pass


def test_two_processes_that_write_different_shards_are_right(tiny, scenes, tmp_path: Path, contents) -> None:
    tiny.fill(tiny.create(tmp_path / "whole", scenes(20)))
    tiny.create(tmp_path / "tiny.zarr", scenes(20))
    stores = [TargetStore.open(tmp_path / "tiny.zarr") for _ in range(3)]  # as workers have them
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda shard: tiny.fill(stores[shard], [shard]), range(3)))
    assert contents(tmp_path / "tiny.zarr") == contents(tmp_path / "whole")


def test_readers_see_right_rows_while_shards_are_written_anew(tiny, copy: Path) -> None:
    """In the writer's process and in another; until it is finished again, a shard may be refused."""
    writer, other = TargetStore.open(copy), TargetStore.open(copy)
    expected, done = tiny.stored(IDS)["wide"], threading.Event()

    def read(seed: int) -> int:
        rng, store, num_right = np.random.default_rng(seed), (writer, other)[seed % 2], 0
        while not done.is_set() or not num_right:
            rows, views = rng.integers(0, 20, 5), rng.integers(0, 3, 5)
            try:
                found = store.read(f"{tiny.key}/wide", rows, views=views, check=True)["wide"]
            except StoreError as error:
                assert "no commit record" in str(error)  # noqa: PT017
                continue
            np.testing.assert_array_equal(found, expected[rows, views])
            num_right += 1
        return num_right

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(read, seed) for seed in range(4)]
        try:
            for shard in [0, 1, 2] * 3:
                tiny.fill(writer, [shard])
        finally:
            done.set()
        assert all(future.result() for future in futures)


def test_newest_store_is_the_one_that_was_written_last(tiny, scenes, tmp_path: Path) -> None:
    only = tiny.only("length")
    for name in ("first.zarr", "second.zarr"):
        only.fill(only.create(tmp_path / name, scenes(20)))
    only.fill(TargetStore.open(tmp_path / "first.zarr"), [0])
    only.create(tmp_path / "empty.zarr", scenes(20))
    assert newest_store(tmp_path) == tmp_path / "first.zarr"
    with pytest.raises(StoreError, match="no store under"):
        newest_store(tmp_path / "nowhere")


def test_moved_dataset_keeps_its_store_and_writes_one_file(tiny, copy: Path, scenes, contents) -> None:
    before = contents(copy)
    moved = TargetStore.create(copy, replace(scenes(20), media_root="/elsewhere"))
    assert moved.complete(tiny.key)
    assert TargetStore.open(copy).manifest.media_root == "/elsewhere"
    after = contents(copy)
    manifest = "precept/manifest/manifest.json"
    assert {name for name in after if after[name] != before[name]} == {
        manifest,
        kept.COPIES + manifest,
        kept.CHECKSUMS,
    }
    assert list(kept.faults(moved.files)) == []


def test_store_of_another_dataset_is_refused(copy: Path, scenes) -> None:
    with pytest.raises(StoreError, match="it holds dataset tiny, not other"):
        TargetStore.create(copy, replace(scenes(20), dataset="other"))


def test_table_of_constants_is_given_whole(tiny, scenes, tmp_path: Path) -> None:
    lookups = tiny.but(fields=tuple(f for f in tiny.fieldset.fields if isinstance(f.encoding, Lookup)))
    store = TargetStore.create(tmp_path / "tiny.zarr", scenes(2))
    with pytest.raises(AssertionError, match=r"constants \[\], not \['tokens.table'\]"):
        store.add(lookups.fieldset)
    store.add(lookups.fieldset, {"tokens.table": lookups.constants["tokens.table"][:, ::2][:, ::-1]})
    expected = lookups.constants["tokens.table"][:, ::2][:, ::-1]
    np.testing.assert_array_equal(TargetStore.open(store.path).constants(lookups.key)["tokens.table"], expected)
