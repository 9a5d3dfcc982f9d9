"""Shards over a manifest that grows, and runs that are killed at any moment."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from contract import kept
from contract.errors import DataError, StoreError
from contract.schema import Field, FieldSet
from contract.storage import storage
from contract.store import Quarantined, TargetStore


class KilledError(BaseException):
    """Stands for the end of the process."""


def shard_files(path: Path, key: str) -> dict[str, tuple[int, bytes]]:
    """Inode and content of every shard file of a FieldSet."""
    found = [one for one in (path / key).rglob("c/*/**/*") if one.is_file()]
    return {str(one.relative_to(path)): (one.stat().st_ino, one.read_bytes()) for one in found}


def check(store: TargetStore, tiny) -> None:
    """Every row of every array is what it must be, for us and for zarr-python, and nothing is at fault."""
    assert store.complete(tiny.key)
    assert [damage for key, _, damage in store.verify() if damage and key == tiny.key] == []
    assert list(kept.faults(store.files)) == []
    store.require_intact_manifest()
    num_rows = store.manifest.num_rows("image")
    expected = tiny.stored(store.manifest.column("image", "id"))
    views = tiny.fieldset.views_per_row
    for field in tiny.fieldset.fields:
        rows, each = np.repeat(np.arange(num_rows), views), np.tile(np.arange(views), num_rows)
        found = store.read(f"{tiny.key}/{field.name}", rows, views=each, check=True)
        for name, array in found.items():
            np.testing.assert_array_equal(array.reshape(expected[name].shape), expected[name])
            theirs = zarr.open_array(store.path / tiny.key / name, mode="r")[:]
            np.testing.assert_array_equal(theirs, expected[name])


def test_grown_store_keeps_its_shards_and_asks_for_the_new_rows_alone(tiny, scenes, copy: Path) -> None:
    before = shard_files(copy, tiny.key)
    store = TargetStore.create(copy, scenes(30))
    assert store.missing(tiny.key) == [2, 3]
    assert [store.kept_rows(tiny.key, shard) for shard in range(4)] == [0, 0, 4, 0]
    assert shard_files(copy, tiny.key) == before
    tiny.fill(store)  # computes what comes behind the kept rows
    check(store, tiny)
    after = shard_files(copy, tiny.key)
    untouched = {name for name in before if "/c/2" not in name}
    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}
    assert TargetStore.open(copy).manifest.segments == {"items.image": (20, 10)}


def test_store_that_grew_has_the_shards_of_one_that_was_made_whole(
    tiny, scenes, copy: Path, tmp_path: Path
) -> None:
    tiny.fill(TargetStore.create(copy, scenes(22)))
    tiny.fill(TargetStore.create(copy, scenes(30)))
    made = tiny.create(tmp_path / "made.zarr", scenes(30))
    tiny.fill(made)
    ours = {name: content for name, (_, content) in shard_files(copy, tiny.key).items()}
    assert ours == {name: content for name, (_, content) in shard_files(made.path, tiny.key).items()}
    for path in (made.path / tiny.key).rglob("zarr.json"):
        assert (copy / path.relative_to(made.path)).read_bytes() == path.read_bytes()


def test_store_that_grew_again_before_it_was_finished_keeps_the_first_rows(tiny, scenes, copy: Path) -> None:
    TargetStore.create(copy, scenes(22))
    store = TargetStore.create(copy, scenes(30))
    assert store.kept_rows(tiny.key, 2) == 4
    tiny.fill(store)
    check(store, tiny)
    assert store.manifest.segments == {"items.image": (20, 2, 8)}


def test_items_that_come_interleaved_are_appended(tiny, scenes, copy: Path) -> None:
    newer = scenes(30, captions=True, order=list(range(29, -1, -1)))
    store = TargetStore.create(copy, newer)
    assert store.manifest.ids("image")[:20].tolist() == [f"i{n}" for n in range(20)]
    images, texts = store.manifest.ids("image"), store.manifest.ids("text")
    assert all(
        texts[text].startswith(f"{images[image]}#") for image, text in store.manifest.positives("image", "text")
    )
    tiny.fill(store)
    check(store, tiny)
    # The same dataset again finds everything done.
    inodes = {path: path.stat().st_ino for path in copy.rglob("*")}
    assert TargetStore.create(copy, newer).complete(tiny.key)
    assert {path: path.stat().st_ino for path in copy.rglob("*")} == inodes


def test_captions_that_are_added_to_old_images_get_a_place_of_their_own(tiny, scenes, copy: Path) -> None:
    before = shard_files(copy, tiny.key)
    store = TargetStore.create(copy, scenes(20, captions=True))
    assert store.complete(tiny.key)
    assert shard_files(copy, tiny.key) == before
    text = FieldSet(
        name="words", modality="text", fields=(Field(name="v", shape=(2,)),), batch_size=4, provenance={}
    )
    store.add(text)
    store.write_shard("text/words", 0, {"v": np.ones((40, 2), np.float32)})
    assert sorted(dict(zarr.open_group(copy, mode="r")["text"].members(max_depth=None))) == ["words", "words/v"]
    again = TargetStore.open(copy)
    assert again.manifest.positives("image", "text").tolist() == [[n // 2, n] for n in range(40)]
    check(again, tiny)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (list(range(19)), "1 of 20 image items are gone, such as 'i19'"),
        ([*range(5), *range(6, 25)], "such as 'i5'"),
    ],
)
def test_dataset_that_lost_an_item_is_refused(copy: Path, scenes, contents, order: list[int], message: str) -> None:
    before = contents(copy)
    with pytest.raises(StoreError, match=f"another dataset or another state of it: .*{message}"):
        TargetStore.create(copy, scenes(len(order), order=order))
    assert contents(copy) == before


def test_dataset_in_which_an_item_changed_is_refused(copy: Path, scenes, contents) -> None:
    before, newer = contents(copy), scenes(22)
    sizes = newer.items["image"].column("size_bytes").to_pylist()
    sizes[7] = 99
    column = newer.items["image"].schema.get_field_index("size_bytes")
    table = newer.items["image"].set_column(column, newer.items["image"].schema.field(column), [sizes])
    with pytest.raises(StoreError, match="1 image items have another size_bytes, such as 'i7': 99, not -1"):
        TargetStore.create(copy, replace(newer, items={"image": table}))
    assert contents(copy) == before


def test_dataset_that_no_store_may_hold_does_not_grow_one(copy: Path, scenes, contents) -> None:
    before = contents(copy)
    with pytest.raises(DataError, match="'i3'"):
        TargetStore.create(copy, scenes(22, order=[*range(21), 3]))
    assert contents(copy) == before


def test_what_is_adopted_is_planned_with_and_not_written(tiny, scenes, copy: Path, contents) -> None:
    before, store = contents(copy), TargetStore.open(copy)
    store.adopt(scenes(30))
    assert store.missing(tiny.key) == [2, 3]
    assert store.kept_rows(tiny.key, 2) == 4
    store.read(f"{tiny.key}/length", [19], check=True)
    with pytest.raises(StoreError, match="not computed yet"):
        store.read(f"{tiny.key}/length", [20])
    assert contents(copy) == before


def test_quarantined_and_clipped_values_of_the_kept_rows_stay_counted(tiny, scenes, tmp_path: Path) -> None:
    one = tiny.only("quantised").but(num_views=0)
    store = one.create(tmp_path / "tiny.zarr", scenes(3))
    first, second = np.zeros((3, 2, 12), np.float32), np.zeros((2, 2, 12), np.float32)
    first[0, 0, 0] = 9  # beyond the scales
    entries = [Quarantined(row=row, id=f"i{row}", file="", reason="cut short") for row in (1, 4)]
    store.write_shard(one.key, 0, {"quantised": first}, entries[:1], {"quantised": {"relative_rmse": 0.5}})
    store = TargetStore.create(store.path, scenes(5))
    store.write_shard(one.key, 0, {"quantised": second}, entries[1:], {"quantised": {"relative_rmse": 0.7}})
    assert store.losses(one.key) == ({"quantised": {"relative_rmse": 0.5}}, {"quantised": 1})
    assert store.quarantined(one.key) == entries


def test_shards_of_other_constants_do_not_count(tiny, copy: Path) -> None:
    (copy / tiny.key / "zarr.json").unlink()
    store = TargetStore.open(copy)
    assert tiny.key not in store.fieldsets
    store.add(tiny.fieldset, tiny.constants | {"quantised.scale": np.ones(12, np.float32)})
    assert store.missing(tiny.key) == [0, 1, 2]
    reasons = [damage.reason for key, _, damage in store.verify() if key == tiny.key]
    assert all("it is of other items, constants or settings" in reason for reason in reasons)


def test_shards_of_another_encoder_do_not_count_and_are_not_read(tiny, copy: Path) -> None:
    (copy / tiny.key / "zarr.json").unlink()
    store = TargetStore.open(copy)
    store.add(tiny.but(provenance={"recipe": {"model": "vit"}}).fieldset, tiny.constants)
    assert store.missing(tiny.key) == [0, 1, 2]
    with pytest.raises(StoreError, match="no commit record of this shard is there"):
        store.read(f"{tiny.key}/length", [0])


def test_shards_of_other_items_do_not_count(tiny, scenes, copy: Path, tmp_path: Path) -> None:
    other = tiny.create(tmp_path / "other.zarr", scenes(20, order=[*range(12), *range(100, 108)]))
    for folder in (tiny.key, f"precept/commits/{tiny.key}"):
        shutil.copytree(copy / folder, other.path / folder, dirs_exist_ok=True)
    assert TargetStore.open(other.path).missing(tiny.key) == [1, 2]


def test_damaged_rows_are_not_kept(tiny, scenes, copy: Path) -> None:
    path = copy / tiny.key / "features/c/2/0/0/0"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.unlink()
    path.write_bytes(content)
    store = TargetStore.create(copy, scenes(30))
    assert store.kept_rows(tiny.key, 2) == 0
    tiny.fill(store)
    check(store, tiny)


def test_reader_from_before_the_growth_goes_on_reading(tiny, scenes, copy: Path) -> None:
    reader, expected = TargetStore.open(copy), tiny.stored([f"i{n}" for n in range(20)])["wide"]
    done = threading.Event()

    def read() -> int:
        rng, num_read = np.random.default_rng(0), 0
        while not done.is_set() or not num_read:
            rows = np.append(rng.integers(16, 20, 3), rng.integers(0, 20, 3))
            fresh = TargetStore.open(copy) if num_read % 2 else reader
            found = fresh.read(f"{tiny.key}/wide", rows, views=1, check=True)["wide"]
            np.testing.assert_array_equal(found, expected[rows, 1])
            num_read += 1
        return num_read

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(read)
        try:
            for num_images in (21, 23, 24, 30):
                tiny.fill(TargetStore.create(copy, scenes(num_images)))
        finally:
            done.set()
        assert future.result()
    check(TargetStore.open(copy), tiny)


def killed_at(monkeypatch: pytest.MonkeyPatch, number: int, run) -> bool:
    """Run something until it flushes its `number`-th file, and end it there; False if it came to its end."""
    flushed = [0]

    def flush(_: int) -> None:
        flushed[0] += 1
        if flushed[0] > number:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", flush)
        try:
            run()
        except KilledError:
            return True
    return False


def test_run_killed_at_any_file_ends_with_the_same_bytes(
    tiny, scenes, tmp_path: Path, contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run, and one that finds more items and captions, each killed at any file that it writes.

    Half of them are repaired before they are run again.
    """
    one, path = tiny.only("quantised", "length").but(num_views=1, rows_per_shard=4), tmp_path / "tiny.zarr"
    steps = [scenes(6), scenes(9, captions=True, order=[8, *range(8)])]

    def run(manifest) -> None:
        one.fill(one.create(path, manifest))

    num_killed = 0
    for number, manifest in enumerate(steps):
        if path.exists():
            shutil.copytree(path, tmp_path / "before")
        killed_at(monkeypatch, 10**9, lambda manifest=manifest: run(manifest))
        done = contents(path)
        for at in range(1000):
            shutil.rmtree(path)
            if number:
                shutil.copytree(tmp_path / "before", path)
            if not killed_at(monkeypatch, at, lambda manifest=manifest: run(manifest)):
                break
            num_killed += 1
            if at % 2:
                kept.mend(storage(path))
            killed_at(monkeypatch, 10**9, lambda manifest=manifest: run(manifest))
            assert contents(path) == done, f"step {number}, killed at file {at}"
    check(TargetStore.open(path), one)
    assert num_killed > 40


def test_growth_that_was_killed_is_readable_and_may_be_taken_back(
    tiny, scenes, tmp_path: Path, contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, path = tiny.only("features").but(num_views=0), tmp_path / "tiny.zarr"
    one.fill(one.create(path, scenes(6)))
    before = contents(path)
    for at in range(1000):
        if not killed_at(monkeypatch, at, lambda: TargetStore.create(path, scenes(11))):
            break
        store = TargetStore.open(path)
        store.read(f"{one.key}/features", range(6), check=True)
        if store.manifest.num_rows("image") == 6:
            assert TargetStore.create(path, scenes(6)).complete(one.key)
            after = contents(path)
            arrays = [name for name in before if name.startswith("image/")]
            assert {name: after[name] for name in arrays} == {name: before[name] for name in arrays}
    assert at > 6
