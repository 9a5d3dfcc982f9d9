import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from contract import commits
from contract.arrays import FieldSetArrays
from contract.errors import StoreError
from contract.maps import Maps
from contract.shard import DamagedShardError
from contract.storage.folder import Folder
from contract.store import TargetStore, writing


def arrays_of(tiny, path: Path, most_maps: int = 100) -> FieldSetArrays:
    digests = commits.read(Folder(path), tiny.key, 0).constants
    return FieldSetArrays(Folder(path), tiny.fieldset, digests, Maps(most_maps), num_shards=8)


@pytest.fixture(scope="module")
def truth(tiny) -> dict[str, np.ndarray]:
    """Every stored array, [rows x views, ...]."""
    stored = tiny.stored([f"i{n}" for n in range(20)])
    return {name: array.reshape(-1, *array.shape[2:]) for name, array in stored.items()}


def read(arrays: FieldSetArrays, name: str, rows: np.ndarray, check: bool = False) -> np.ndarray:
    dtype, shape = arrays.fieldset.arrays[name]
    out = np.empty((len(rows), *shape), dtype)
    arrays.read(name, rows, out, check=check)
    return out


def num_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_two_maps_are_enough_to_read_everything(tiny, whole: Path, truth) -> None:
    arrays = arrays_of(tiny, whole, most_maps=2)
    before = num_open_files()
    for name, expected in truth.items():
        rows = np.random.default_rng(0).permutation(60)
        np.testing.assert_array_equal(read(arrays, name, rows), expected[rows])
    assert num_open_files() - before <= 2


def test_threads_read_right_while_maps_come_and_go(tiny, whole: Path, truth) -> None:
    arrays = arrays_of(tiny, whole, most_maps=2)

    def check(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for name in rng.choice(list(truth), 40):
            rows = rng.integers(0, 60, 9)
            np.testing.assert_array_equal(read(arrays, name, rows, check=bool(seed % 2)), truth[name][rows])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(check, range(6)))


def test_arrays_that_would_take_too_many_maps_are_read_all_the_same(
    tiny, whole: Path, truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contract.arrays.MOST_SHARDS", 20)  # two of the arrays, of eight shards each
    arrays, rows = arrays_of(tiny, whole), np.random.default_rng(0).permutation(60)
    for name, expected in truth.items():
        np.testing.assert_array_equal(read(arrays, name, rows), expected[rows])


def test_file_that_is_replaced_by_a_shorter_one_after_it_was_looked_at_is_an_error(tiny, copy: Path) -> None:
    arrays = arrays_of(tiny, copy)
    read(arrays, "coarse", np.arange(24), check=True)
    path = copy / tiny.key / "coarse/c/0/0/0"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:5000])
    with pytest.raises(DamagedShardError, match=rf"coarse/c/0/0/0 has 5000 bytes, not {len(content)}"):
        read(arrays, "coarse", np.arange(24))
    read(arrays, "coarse", np.arange(24, 48))


def test_shard_of_another_process_is_read_after_the_old_one_is_forgotten(tiny, copy: Path, truth) -> None:
    arrays, writer = arrays_of(tiny, copy), arrays_of(tiny, copy)
    rows = np.arange(24)
    np.testing.assert_array_equal(read(arrays, "features", rows), truth["features"][rows])
    other = {name: array[:24][::-1] for name, array in truth.items()}
    writer.write(0, other)
    np.testing.assert_array_equal(read(arrays, "features", rows), truth["features"][rows])  # the old file
    arrays.forget(0)
    np.testing.assert_array_equal(read(arrays, "features", rows), other["features"])


def test_rows_of_a_shard_that_was_never_finished_are_an_error(tiny, copy: Path) -> None:
    (copy / commits.place(tiny.key, 1)).unlink()
    arrays = arrays_of(tiny, copy)
    read(arrays, "features", np.arange(24))
    with pytest.raises(DamagedShardError, match=r"000001.json: no commit record of this shard is there"):
        read(arrays, "features", np.array([24]))
    with pytest.raises(DamagedShardError, match="no commit record"):
        arrays.will_need("features", np.array([24]))


def test_rows_behind_the_last_of_a_part_full_shard_are_not_zeros(tiny, whole: Path) -> None:
    arrays = arrays_of(tiny, whole)
    read(arrays, "features", np.array([59]))  # 20 rows of three views
    with pytest.raises(DamagedShardError, match="of 12 rows; the others are not computed yet"):
        read(arrays, "features", np.array([60]))


def test_what_another_process_finished_meanwhile_is_found(tiny, scenes, copy: Path, truth) -> None:
    store = TargetStore.open(copy)
    store.adopt(scenes(24))
    store.read(f"{tiny.key}/features", [19])
    with pytest.raises(StoreError, match=r"000002.json: it is of 12 rows; the others are not computed yet"):
        store.read(f"{tiny.key}/features", [20])
    tiny.fill(TargetStore.create(copy, scenes(24)))
    expected = tiny.stored(["i20"])["features"][:, 0]
    np.testing.assert_array_equal(store.read(f"{tiny.key}/features", [20])["features"], expected)


def test_shard_that_was_mended_meanwhile_is_read_again(tiny, copy: Path, truth) -> None:
    path = copy / tiny.key / "features/c/0/0/0/0"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    arrays = arrays_of(tiny, copy)
    with pytest.raises(DamagedShardError, match="the checksum of a row is wrong"):
        read(arrays, "features", np.arange(3), check=True)
    path.unlink()
    path.write_bytes(content)
    np.testing.assert_array_equal(read(arrays, "features", np.arange(3), check=True), truth["features"][:3])


def test_verified_is_what_a_remote_store_holds_and_not_what_is_here_of_it(
    tiny, scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRECEPT_CACHE", str(tmp_path / "cache"))
    url = f"memory://{tmp_path.name}/tiny.zarr"
    one = tiny.only("features")
    with writing(url):
        one.fill(one.create(url, scenes(20)))
    store = TargetStore.open(url)
    store.read(f"{one.key}/features", range(20), check=True)
    key = f"{one.key}/features/c/1/0/0/0"
    content = bytearray(store.files.read(key))
    content[0] ^= 1
    store.files.write(key, content)
    store.read(f"{one.key}/features", range(20), check=True)  # what is here is right
    assert [damage.shard for *_, damage in store.verify() if damage] == [1]


def test_constants_are_read_as_they_were_written_and_their_damage_is_found(tiny, copy: Path) -> None:
    arrays = arrays_of(tiny, copy)
    for name, expected in tiny.constants.items():
        np.testing.assert_array_equal(arrays.constants[name], expected)
    assert arrays.constants is arrays.constants
    path = copy / tiny.key / "tokens.table/c/0/0"
    content = bytearray(path.read_bytes())
    content[77] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"tokens.table/c/0/0: the checksum of a row is wrong; .*repair"):
        assert arrays_of(tiny, copy).constants


def test_files_of_a_shard_have_the_sizes_of_its_commit(tiny, whole: Path) -> None:
    commit = commits.read(Folder(whole), tiny.key, 2)
    sizes = arrays_of(tiny, whole).sizes(2, commit)
    assert sizes == {key: (whole / key).stat().st_size for key in sizes}
    assert len(sizes) == len(tiny.fieldset.arrays)


def test_shard_that_holds_other_rows_is_at_fault(tiny, copy: Path) -> None:
    first, second = (copy / tiny.key / "features/c" / str(shard) / "0/0/0" for shard in (0, 1))
    content = second.read_bytes()
    first.unlink()
    first.write_bytes(content)  # whole and of the right size, but of other rows
    arrays = arrays_of(tiny, copy)
    assert arrays.fault(1, commits.read(Folder(copy), tiny.key, 1)) == ""
    assert "features/c/0/0/0/0: it holds other rows" in arrays.fault(0, commits.read(Folder(copy), tiny.key, 0))
