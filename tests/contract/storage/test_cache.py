"""A bounded folder of whole files that several processes share."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from contract.errors import ConfigError
from contract.storage.cache import Cache
from contract.storage.remote import Remote
from contract.store import TargetStore

KEY = "image/teacher"


def get(cache: Cache, name: str, content: bytes = b"x" * 100) -> Path:
    """What a store does."""
    return cache.find(name, len(content)) or cache.fetch(name, len(content), lambda path: _write(path, content))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def names(cache: Cache) -> set[str]:
    return {path.name.removesuffix(".copy") for path in cache.folder.iterdir()}


def test_file_is_fetched_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    assert get(cache, "a").read_bytes() == b"x" * 100
    assert cache.find("a", 100) == tmp_path / "a.copy"
    assert names(cache) == {"a"}


def test_least_recently_used_files_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 300)
    for name in "abc":
        get(cache, name)
        time.sleep(0.01)
    get(cache, "a")
    get(cache, "d")
    assert names(cache) == {"a", "c", "d"}


def test_file_larger_than_the_limit_is_there_until_the_next(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 0)
    assert get(cache, "a").exists()
    get(cache, "b")
    assert names(cache) == {"b"}


def test_file_of_another_size_is_fetched_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    (tmp_path / "a.copy").write_bytes(b"cut")
    assert get(cache, "a").read_bytes() == b"x" * 100


def test_fetch_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise ConnectionError

    cache = Cache(tmp_path, 1000)
    with pytest.raises(ConnectionError):
        cache.fetch("a", 100, fail)
    assert names(cache) == set()
    get(cache, "a")


def test_what_a_killed_process_left_behind_goes_too(tmp_path: Path) -> None:
    for name in ("dead.partial", "dead.copying"):
        (tmp_path / name).write_bytes(b"x" * 100)
    cache = Cache(tmp_path, 100)
    time.sleep(0.01)
    get(cache, "a")
    assert names(cache) == {"a"}


def test_threads_that_want_the_same_file_fetch_it_once(tmp_path: Path) -> None:
    cache, fetched = Cache(tmp_path, 1000), []

    def fetch(path: Path) -> None:
        fetched.append(path)
        time.sleep(0.1)
        path.write_bytes(b"x" * 100)

    with ThreadPoolExecutor(8) as threads:
        paths = list(threads.map(lambda _: cache.fetch("a", 100, fetch), range(8)))
    assert set(paths) == {tmp_path / "a.copy"}
    assert len(fetched) == 1
    assert names(cache) == {"a"}


@pytest.mark.parametrize("is_there", [False, True])
def test_file_that_is_about_to_be_mapped_is_not_removed(tmp_path: Path, is_there: bool) -> None:
    cache, go, done = Cache(tmp_path, 0), threading.Event(), threading.Event()
    found = []
    if is_there:
        (tmp_path / "a.copy").write_bytes(b"x" * 100)

    def open_late() -> None:
        path = get(cache, "a")
        go.set()
        done.wait()
        found.append(path.read_bytes())

    thread = threading.Thread(target=open_late)
    thread.start()
    go.wait()
    for name in "bcd":
        get(cache, name)
    done.set()
    thread.join()
    assert found == [b"x" * 100]
    get(cache, "e")
    assert names(cache) == {"e"}


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_bytes(b"x" * 1000)
    (tmp_path / "folder").mkdir()
    cache = Cache(tmp_path, 0)
    get(cache, "a")
    get(cache, "b")
    assert names(cache) == {"thesis", "folder", "b"}


@pytest.mark.parametrize("text", ["many", "-1", "nan"])
def test_limit_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPT_CACHE_GB", text)
    with pytest.raises(ConfigError, match=f"PRECEPT_CACHE_GB is '{text}'"):
        Cache.of_environment()


@pytest.fixture
def in_memory(sample, request: pytest.FixtureRequest) -> str:
    """A store that needs no server."""
    url = f"memory://{request.node.name}.zarr"
    sample.write(url)
    return url


def test_store_larger_than_the_cache_is_read_right(
    in_memory: str, sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = Remote(in_memory).sizes([f"{KEY}/patches/c/{shard}/0/0" for shard in range(4)])
    limit = 2 * max(sizes)
    assert sum(sizes) > limit
    monkeypatch.setenv("PRECEPT_CACHE", str(tmp_path))
    monkeypatch.setenv("PRECEPT_CACHE_GB", str(limit / 1e9))
    largest = 0
    fetch = Remote._fetch

    def watched(self: Remote, key: str, path: Path) -> None:
        nonlocal largest
        fetch(self, key, path)
        largest = max(largest, sum(file.stat().st_size for file in tmp_path.iterdir()))

    monkeypatch.setattr(Remote, "_fetch", watched)
    store, rng = TargetStore.open(in_memory), np.random.default_rng(0)
    store.require_complete(sample.keys)
    assert store.files.most_maps == 16
    for _ in range(30):
        rows = rng.integers(0, 60, 8)
        for name in ("patches", "logits"):
            found = store.read(f"{KEY}/{name}", rows, check=True)[name]
            np.testing.assert_array_equal(found, sample.values[name].astype(found.dtype)[rows])
    assert limit < largest <= limit + max(sizes)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= limit


READER = """
import sys
import numpy as np
from contract.store import TargetStore
url, seed = sys.argv[1], int(sys.argv[2])
rng, total = np.random.default_rng(seed), 0.0
for _ in range(3):
    store = TargetStore.open(url)
    for _ in range(20):
        rows = rng.integers(0, 60, 8)
        total += float(store.load("image/teacher/logits", rows).sum())
        store.read("image/teacher/patches", rows, check=True)
print(total)
"""


def test_processes_share_a_cache_that_is_too_small(remote: str, sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPT_CACHE_GB", str(20_000 / 1e9))
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, remote, str(seed)], stdout=subprocess.PIPE, text=True)
        for seed in range(2)
    ]
    for seed, reader in enumerate(readers):
        rng = np.random.default_rng(seed)
        expected = sum(float(sample.values["logits"][rng.integers(0, 60, 8)].sum()) for _ in range(60))
        assert float(reader.communicate()[0]) == pytest.approx(expected)
    cache = Path(os.environ["PRECEPT_CACHE"])
    assert sum(path.stat().st_size for path in cache.iterdir()) <= 2 * 20_000
    assert {path.suffix for path in cache.iterdir()} == {".copy"}
