"""A store at s3:// is the store on the disk, byte for byte, and breaks as politely."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from contract import kept
from contract.errors import MissingExtraError, StoreError
from contract.storage import storage, store_path
from contract.storage.remote import Remote
from contract.store import Quarantined, TargetStore, writing

KEY = "image/teacher"
SHARD = f"{KEY}/logits/c/2/0"


@pytest.fixture
def url(bucket: str) -> str:
    return f"{bucket}/folder/tiny.zarr"


def flip(s3, url: str, key: str) -> None:
    content = bytearray(s3.client().cat_file(f"{url}/{key}"))
    content[5] ^= 1
    s3.client().pipe_file(f"{url}/{key}", bytes(content))


def test_objects_equal_the_files_of_a_local_store(url: str, whole: Path, sample, files) -> None:
    with writing(url):
        sample.write(url)
    assert files(url) == files(whole)


def test_rows_equal_the_local_ones_bit_for_bit(remote: str, whole: Path, sample) -> None:
    store = TargetStore.open(remote)
    sample.require_equal(store, TargetStore.open(whole))
    assert store.require_complete(sample.keys) is None
    assert store.quarantined(KEY) == TargetStore.open(whole).quarantined(KEY)
    np.testing.assert_array_equal(
        store.load(f"{KEY}/quantised", [5]), TargetStore.open(whole).load(f"{KEY}/quantised", [5])
    )


def test_zarr_reads_the_same_rows(remote: str, sample) -> None:
    theirs = zarr.open_array(zarr.storage.FsspecStore.from_url(remote, read_only=True), path=f"{KEY}/logits")[:]
    np.testing.assert_array_equal(theirs, sample.values["logits"])
    assert zarr.open_group(storage(remote).zarr(), mode="r")[KEY].attrs["precept"]["name"] == "teacher"


def test_array_in_another_encoding_is_read_through_zarr(remote: str, sample) -> None:
    root = zarr.open_group(zarr.storage.FsspecStore.from_url(remote), mode="r+")
    del root[KEY]["logits"]
    root[KEY].create_array("logits", data=sample.values["logits"], chunks=(16, 10))
    store = TargetStore.open(remote)
    np.testing.assert_array_equal(
        store.read(f"{KEY}/logits", [50, 3], check=True)["logits"], sample.values["logits"][[50, 3]]
    )


def test_interrupted_write_continues_to_the_same_bytes(url: str, whole: Path, sample, files) -> None:
    def write_some() -> None:
        with writing(url):
            store = sample.create(url)
            for shard in (0, 3):
                sample.write_shard(store, KEY, shard)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_some()
    with writing(url):
        store = sample.create(url)
        assert store.missing(KEY) == [1, 2]
        with pytest.raises(StoreError, match=rf"^{url} is incomplete: image/teacher lacks 2 of 4 shards"):
            TargetStore.open(url).require_complete([KEY])
        sample.finish(store)
    assert files(url) == files(whole)


def test_commit_record_is_the_last_of_a_shards_objects(url: str, sample, monkeypatch: pytest.MonkeyPatch) -> None:
    store, written = sample.create(url), []
    write = Remote.write
    monkeypatch.setattr(Remote, "write", lambda self, key, *parts: (written.append(key), write(self, key, *parts)))
    sample.write_shard(store, KEY, 1)
    assert written[-1] == f"precept/commits/{KEY}/000001.json"
    assert len(written) == 4


def test_growth_keeps_the_rows_that_are_there(url: str, whole: Path, sample, files) -> None:
    sample.write(url, num_rows=24)
    grown = sample.finish(sample.create(url))
    assert grown.missing(KEY) == []
    sample.require_equal(TargetStore.open(url), TargetStore.open(whole))


def test_missing_and_shortened_objects_are_missing_shards(remote: str, s3) -> None:
    storage(remote).delete(SHARD)
    short = f"{remote}/{KEY}/patches/c/3/0/0"
    s3.client().pipe_file(short, s3.client().cat_file(short)[:-1])
    store = TargetStore.open(remote)
    assert store.missing(KEY) == [2, 3]
    with pytest.raises(StoreError, match=f"{remote}/{SHARD} is missing; `pipeline repair {remote}`"):
        store.read(f"{KEY}/logits", [33])
    with pytest.raises(StoreError, match=f"{remote}/{KEY}/patches/c/3/0/0 has .* bytes, not"):
        store.read(f"{KEY}/patches", [50])


def test_verify_reads_what_lies_there_and_not_the_cache(remote: str, sample, s3) -> None:
    store = TargetStore.open(remote)
    sample.require_equal(store, store)  # everything is in the cache
    flip(s3, remote, SHARD)
    bad = [damage for _, _, damage in store.verify() if damage]
    assert [(one.fieldset, one.shard) for one in bad] == [(KEY, 2)]
    assert f"{remote}/{SHARD}: the checksum of a row is wrong" in bad[0].reason


def test_repaired_shard_is_not_served_from_the_cache(remote: str, whole: Path, sample, files, s3) -> None:
    flip(s3, remote, SHARD)
    with pytest.raises(StoreError, match=r"checksum of a row is wrong .*sample 'i32'"):
        TargetStore.open(remote).read(f"{KEY}/logits", [32], check=True)
    store = TargetStore.open(remote)
    for key, shard, damage in store.verify():
        if damage:
            store.discard(key, shard)
    sample.finish(store)
    assert files(remote) == files(whole)
    for reader in (store, TargetStore.open(remote)):
        sample.require_equal(reader, TargetStore.open(whole))


@pytest.mark.parametrize("reference", [f"{KEY}/patches", f"{KEY}/quantised"])
def test_copy_that_was_damaged_in_the_cache_is_fetched_anew_the_next_time(
    remote: str, sample, whole: Path, reference: str
) -> None:
    store = TargetStore.open(remote)
    sample.require_equal(store, store)
    for path in Path(os.environ["PRECEPT_CACHE"]).iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    for _ in range(2):  # the tables, then the constants or the rows
        with pytest.raises(StoreError, match=f"`pipeline repair {remote}` mends it"):
            _use(remote, reference)
    _use(remote, reference)
    assert not [damage for _, _, damage in TargetStore.open(remote).verify() if damage]


def _use(url: str, reference: str) -> None:
    store = TargetStore.open(url)
    store.require_intact_manifest()
    assert store.constants(KEY)
    store.read(reference, [0], check=True)


def test_copy_that_was_cut_short_in_the_cache_is_fetched_again(remote: str, sample) -> None:
    store = TargetStore.open(remote)
    sample.require_equal(store, store)
    for path in Path(os.environ["PRECEPT_CACHE"]).iterdir():
        path.write_bytes(b"")
    sample.require_equal(TargetStore.open(remote), TargetStore.open(remote))


def test_replaced_object_is_read_by_who_opens_the_store_later(remote: str, sample) -> None:
    store = TargetStore.open(remote)
    store.read(f"{KEY}/logits", range(16))
    changed = {name: array[:16] * 0.5 for name, array in sample.values.items()}
    TargetStore.open(remote).write_shard(KEY, 0, changed)
    np.testing.assert_array_equal(TargetStore.open(remote).load(f"{KEY}/logits", range(16)), changed["logits"])


def test_damaged_shard_that_lies_in_the_cache_unnoticed_is_not_served_once_it_is_repaired(
    remote: str, whole: Path, s3
) -> None:
    flip(s3, remote, SHARD)
    TargetStore.open(remote).read(f"{KEY}/logits", [32])  # without a check
    s3.client().pipe_file(f"{remote}/{SHARD}", (whole / SHARD).read_bytes())
    TargetStore.open(remote).read(f"{KEY}/logits", [32], check=True)


def test_object_that_is_replaced_after_it_was_listed_is_not_cached_as_what_was_listed(
    remote: str, whole: Path, s3
) -> None:
    store = TargetStore.open(remote)
    store.require_complete([KEY])
    flip(s3, remote, SHARD)
    store.read(f"{KEY}/logits", [32])
    s3.client().pipe_file(f"{remote}/{SHARD}", (whole / SHARD).read_bytes())
    again = TargetStore.open(remote)
    again.require_complete([KEY])
    again.read(f"{KEY}/logits", [32], check=True)


def test_what_another_process_commits_is_seen(remote: str, sample) -> None:
    store = TargetStore.open(remote)
    assert [entry.row for entry in store.quarantined(KEY)] == [3]
    part = {name: array[16:32] for name, array in sample.values.items()}
    TargetStore.open(remote).write_shard(KEY, 1, part, [Quarantined(row=20, id="i20", file="", reason="none")])
    assert [entry.row for entry in store.quarantined(KEY)] == [3, 20]
    TargetStore.open(remote).discard(KEY, 0)
    assert store.missing(KEY) == [0]


def test_damaged_metadata_are_mended_from_their_copies(remote: str, whole: Path, files, s3) -> None:
    s3.client().pipe_file(f"{remote}/{KEY}/zarr.json", b"{")
    storage(remote).delete("precept/manifest/items.image.arrow")
    with pytest.raises(StoreError, match=f"`pipeline repair {remote}` mends it"):
        TargetStore.open(remote)
    mended, lost = kept.mend(storage(remote))
    assert sorted(mended) == [f"{KEY}/zarr.json", "precept/manifest/items.image.arrow"]
    assert not lost
    assert files(remote) == files(whole)


def test_large_object_is_written_copied_and_checked_without_being_held(url: str, large) -> None:
    files = Remote(url)
    files.write_large("a/large", large)
    assert files.read("a/large") == large.content
    assert files.checksum("a/large") == large.crc32c
    files.copy("a/large", "b/copy")
    assert files.checksum("b/copy") == large.crc32c
    assert files.keys_under("") == ["a/large", "b/copy"]
    with pytest.raises(FileNotFoundError):
        files.checksum("a/none")


def test_manifest_is_mapped_from_the_cache(remote: str) -> None:
    manifest = TargetStore.open(remote).manifest
    (address,) = {chunk.buffers()[-1].address for chunk in manifest.items["image"].column("id").chunks}
    cache = os.environ["PRECEPT_CACHE"]
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if cache in line]
    spans = [[int(end, 16) for end in fields[0].split("-")] for fields in mapped]
    assert any(start <= address < stop for start, stop in spans)


def test_store_at_the_root_of_a_bucket(bucket: str, sample) -> None:
    sample.write(bucket, num_rows=16)
    np.testing.assert_array_equal(
        TargetStore.open(bucket).load(f"{KEY}/logits", [7, 3]), sample.values["logits"][[7, 3]]
    )


def test_neighbour_whose_name_begins_alike_is_another_store(remote: str, sample, files) -> None:
    before = files(remote)
    sample.write(f"{remote}2", num_rows=16)
    assert files(remote) == before
    assert TargetStore.open(remote).missing(KEY) == []


def test_place_where_something_else_lies_is_refused(url: str, sample, s3) -> None:
    s3.client().pipe_file(f"{url}/notes.txt", b"mine")
    with pytest.raises(StoreError, match=f"{url} exists and is not a target store"):
        sample.create(url)


def test_threads_read_at_once(remote: str, whole: Path, sample) -> None:
    store, local = TargetStore.open(remote), TargetStore.open(whole)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: sample.require_equal(store, local), range(16)))


def _read_in_a_child(store: TargetStore, queue) -> None:
    queue.put(float(store.read(f"{KEY}/logits", range(60))["logits"].sum()))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_open_store_survives_a_fork(remote: str, sample) -> None:
    store = TargetStore.open(remote)
    store.read(f"{KEY}/logits", [0])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_read_in_a_child, args=(store, queue))
    child.start()
    assert queue.get(timeout=60) == float(sample.values["logits"].sum())
    child.join()
    assert float(store.read(f"{KEY}/logits", range(60))["logits"].sum()) == float(sample.values["logits"].sum())


def test_store_in_memory(sample, whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files) -> None:
    monkeypatch.setenv("PRECEPT_CACHE", str(tmp_path))
    with writing("memory://tiny.zarr"):
        sample.write("memory://tiny.zarr")
    assert files("memory://tiny.zarr") == files(whole)
    sample.require_equal(TargetStore.open("memory://tiny.zarr"), TargetStore.open(whole))


def test_file_url_is_a_path(whole: Path) -> None:
    assert store_path(f"file://{whole}") == whole
    assert store_path("s3://bucket/a.zarr/") == "s3://bucket/a.zarr"
    with pytest.raises(StoreError, match=r"^s3:/bucket/a.zarr: that is no path"):
        TargetStore.open(Path("s3://bucket/a.zarr"))


REQUESTS = {
    "open": 12,  # manifest.json, zarr.json, 3 tables (1 request each if cached), 2 modalities and FieldSets
    "require_complete": 2 + 4 + 3,  # 2 listings, 4 commit records, the metadata of 3 arrays
    "read": 4 + 4,  # of each shard: what it is now, and its content
}


def test_opening_and_reading_need_few_requests(remote: str, s3) -> None:
    storage(remote).read("zarr.json")
    s3.requests()
    store = TargetStore.open(remote)
    assert s3.requests().total() <= REQUESTS["open"] + 3  # the tables themselves
    store = TargetStore.open(remote)
    assert s3.requests().total() <= REQUESTS["open"]
    store.require_complete([KEY])
    assert s3.requests().total() <= REQUESTS["require_complete"]
    store.usable("image", [KEY])
    assert s3.requests().total() == 1  # commit records that did not change are not read again
    rows = range(60)
    store.read(f"{KEY}/logits", rows)
    assert s3.requests().total() <= REQUESTS["read"]
    store.read(f"{KEY}/logits", rows)
    assert s3.requests().total() == 0
    store = TargetStore.open(remote)
    store.require_complete([KEY])
    s3.requests()
    store.read(f"{KEY}/logits", rows)
    assert s3.requests().total() == 0  # what was listed lies in the cache


def test_missing_bucket_is_named(bucket: str, sample) -> None:
    url = "s3://no-such-bucket/tiny.zarr"
    with pytest.raises(StoreError, match=rf"^{url}: The specified bucket does not exist$"):
        TargetStore.open(url)
    with pytest.raises(StoreError, match=rf"^{url}: The specified bucket does not exist$"), writing(url):
        pass
    with pytest.raises(StoreError, match=rf"^{url}: The specified bucket does not exist$"):
        sample.create(url)


def test_empty_place_holds_no_store(url: str) -> None:
    with pytest.raises(StoreError, match=rf"^{url}: no target store there; `pipeline precompute"):
        TargetStore.open(url)


@pytest.fixture
def asking(remote: str, s3) -> Iterator[None]:
    """While the test runs, the server wants to know who one is."""
    s3.ask_who_one_is(asks=True)
    yield
    s3.ask_who_one_is(asks=False)


@pytest.mark.usefixtures("asking")
def test_wrong_credentials_are_one_line(remote: str) -> None:
    with pytest.raises(
        StoreError, match=rf"^{remote}/precept/manifest/manifest.json: The AWS Access Key Id"
    ) as error:
        TargetStore.open(remote)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(StoreError, match=rf"^{remote}/precept/writers/.*: The AWS Access Key Id"), writing(remote):
        pass


@pytest.fixture
def reader(remote: str, s3, s3_environment) -> Iterator[None]:
    """We are somebody who may read, and nothing else."""
    import boto3

    iam = boto3.client("iam")
    iam.create_user(UserName="reader")
    allowed = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_user_policy(UserName="reader", PolicyName="reads", PolicyDocument=policy)
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    s3_environment(s3, key["AccessKeyId"], key["SecretAccessKey"])
    s3.ask_who_one_is(asks=True)
    yield
    s3.ask_who_one_is(asks=False)


@pytest.mark.usefixtures("reader")
def test_who_may_only_read_reads_and_is_told_so(remote: str, whole: Path, sample, files) -> None:
    store = TargetStore.open(remote)
    sample.require_equal(store, TargetStore.open(whole))
    with pytest.raises(StoreError, match=rf"^{remote}/precept/writers/.*: Access Denied"), writing(remote):
        pass
    with pytest.raises(StoreError, match=rf"^{remote}/.*: Access Denied"):
        sample.write_shard(store, KEY, 1)
    assert files(remote) == files(whole)


def test_server_that_is_gone_is_one_line_and_nothing_is_half_written(mortal_s3, sample) -> None:
    url = f"{mortal_s3.new_bucket()}/tiny.zarr"
    gone = rf"^{url}.*: Could not connect to the endpoint URL"

    def write_until_it_dies() -> None:
        with writing(url):
            store = sample.create(url)
            sample.write_shard(store, KEY, 0)
            store.read(f"{KEY}/logits", range(16))
            mortal_s3.stop()
            sample.write_shard(store, KEY, 1)

    with pytest.raises(StoreError, match=gone) as error:
        write_until_it_dies()
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(StoreError, match=gone):
        TargetStore.open(url)
    with pytest.raises(StoreError, match=gone), writing(url):
        pass
    assert {path.suffix for path in Path(os.environ["PRECEPT_CACHE"]).iterdir()} == {".copy"}


def test_without_s3fs_the_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from contract.errors import one_line\n"
        "from contract.store import TargetStore\n"
        "with one_line(): TargetStore.open('s3://bucket/tiny.zarr')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == MissingExtraError.exit_code
    assert result.stderr.count("\n") == 1
    assert "s3://bucket/tiny.zarr: " in result.stderr
    assert "install Precept with its extra `s3`" in result.stderr


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nope://bucket/tiny.zarr", "Protocol not known: nope"),
        ("s3:///", "names no place"),
        ("s3://", "names no place"),
    ],
)
def test_url_that_names_nothing_is_refused(url: str, reason: str, bucket: str) -> None:
    with pytest.raises(StoreError, match=reason):
        TargetStore.open(store_path(url))
