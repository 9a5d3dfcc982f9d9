"""A store on a web server is read, and not written."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from contract.errors import StoreError
from contract.store import TargetStore, writing

KEY = "image/teacher"


class Handler(http.server.SimpleHTTPRequestHandler):
    """As `python -m http.server` answers, without the log."""

    lists_folders = True

    def log_message(self, *_: object) -> None:
        pass

    def list_directory(self, path: str):  # type: ignore[no-untyped-def]
        if self.lists_folders:
            return super().list_directory(path)
        self.send_error(403)
        return None


class Bare(Handler):
    lists_folders = False


@pytest.fixture
def site(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("aiohttp", reason="the extra `s3` brings aiohttp, which http:// needs")
    monkeypatch.setenv("PRECEPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return Path(shutil.copytree(whole, tmp_path / "site/tiny.zarr"))


@pytest.fixture(params=[Handler])
def server(request: pytest.FixtureRequest, site: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    handler = functools.partial(request.param, directory=str(site.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def url(server: http.server.ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}/tiny.zarr"


def test_rows_equal_the_local_ones(url: str, whole: Path, sample) -> None:
    store = TargetStore.open(url)
    store.require_intact_manifest()
    store.require_complete(sample.keys)
    sample.require_equal(store, TargetStore.open(whole))
    assert not [damage for _, _, damage in store.verify() if damage]
    assert store.quarantined(KEY) == TargetStore.open(whole).quarantined(KEY)


def test_zarr_reads_the_same_rows(url: str, sample) -> None:
    theirs = zarr.open_array(zarr.storage.FsspecStore.from_url(url, read_only=True), path=f"{KEY}/logits")[:]
    np.testing.assert_array_equal(theirs, sample.values["logits"])


def test_missing_and_damaged_files_are_found(url: str, site: Path) -> None:
    (site / KEY / "logits/c/2/0").unlink()
    damaged = site / KEY / "logits/c/3/0"
    damaged.write_bytes(b"?" + damaged.read_bytes()[1:])
    store = TargetStore.open(url)
    assert store.missing(KEY) == [2]
    with pytest.raises(StoreError, match=f"{url}/{KEY}/logits/c/2/0 is missing"):
        store.read(f"{KEY}/logits", [33])
    with pytest.raises(StoreError, match="checksum of a row is wrong"):
        store.read(f"{KEY}/logits", [50], check=True)


def test_writing_is_refused(url: str) -> None:
    with (
        pytest.raises(StoreError, match=rf"^{url}: a store is only read over http; write it by another"),
        writing(url),
    ):
        pass


@pytest.mark.parametrize("server", [Bare], indirect=True)
def test_server_that_lists_nothing_is_named(url: str) -> None:
    with pytest.raises(StoreError, match=rf"^{url}/image: .*list"):
        TargetStore.open(url)


def test_server_that_is_gone_is_not_taken_for_an_empty_store(url: str, server, sample) -> None:
    store = TargetStore.open(url)
    server.shutdown()
    server.server_close()
    for ask in (
        lambda: store.missing(KEY),
        lambda: store.read(f"{KEY}/logits", [0]),
        lambda: store.files.sizes([f"{KEY}/logits/c/0/0"]),
        lambda: TargetStore.open(url),
    ):
        with pytest.raises(StoreError, match=rf"^{url}.*(Cannot connect|refused)"):
            ask()


def test_place_without_a_store_holds_none(url: str) -> None:
    with pytest.raises(StoreError, match=rf"^{url}/nothing: no target store there"):
        TargetStore.open(f"{url}/nothing")
