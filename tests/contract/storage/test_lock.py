"""One writer at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from contract.errors import StoreError
from contract.storage import lock, storage
from contract.storage.remote import Remote
from contract.store import TargetStore, writing


@pytest.fixture(params=["s3", "memory"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return f"memory://{request.node.originalname}/tiny.zarr"
    return f"{request.getfixturevalue('bucket')}/tiny.zarr"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers that are dead after two seconds, which S3's clock counts whole."""
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(lock, "STALE_S", 2.0)


def locks(url: str) -> list[str]:
    return list(Remote(url).writers())


WRITER = """
import sys, time
from contract.store import writing
with writing(sys.argv[1]):
    print("writing", flush=True)
    time.sleep(600)
"""


def killed_writer(url: str) -> int:
    """A process that was killed while it wrote; its number."""
    with subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.kill()
    return process.pid


def test_second_writer_is_refused_and_the_lock_is_removed_at_the_end(url: str) -> None:
    with writing(url):
        assert len(locks(url)) == 1
        with (
            pytest.raises(StoreError, match=rf"^{url}: another run is writing to it \(process \d+ of ") as error,
            writing(url),
        ):
            pass
        assert len(str(error.value).splitlines()) == 1
        assert len(locks(url)) == 1
    assert locks(url) == []
    with writing(url):
        pass


def test_lock_is_no_file_of_the_store(url: str, sample) -> None:
    with writing(url):
        sample.write(url, num_rows=20)
        assert not [key for key in storage(url).keys_under("") if key.startswith(lock.WRITERS)]
    assert TargetStore.open(url).missing("image/teacher") == []


def test_lock_is_removed_when_the_writer_fails(url: str) -> None:
    with pytest.raises(ZeroDivisionError), writing(url):
        raise ZeroDivisionError
    assert locks(url) == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_killed_writers_lock_is_taken_over_and_a_live_ones_is_not(url: str) -> None:
    number, other = killed_writer(url), f"{url}2"
    with pytest.raises(StoreError, match=f"process {number} of "), writing(url):
        pass
    with writing(other):
        time.sleep(3.2)
        with writing(url):
            assert len(locks(url)) == 1
        assert locks(url) == []
        with pytest.raises(StoreError, match="another run is writing"), writing(other):
            pass


@pytest.mark.usefixtures("impatient")
def test_writer_whose_place_was_taken_says_so(url: str) -> None:
    def write() -> None:
        with writing(url):
            (mine,) = locks(url)
            Remote(url).delete(mine)
            time.sleep(0.6)

    with pytest.raises(StoreError, match=rf"^{url}: this run was silent for over"):
        write()


def test_of_writers_that_start_at_once_one_writes(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE_S", 0.5)
    num_writers, holding, most = 6, 0, 0
    start, done, count = threading.Barrier(num_writers), threading.Event(), threading.Lock()

    def is_refused(_: int) -> bool:
        nonlocal holding, most
        start.wait()
        try:
            with writing(url):
                with count:
                    holding += 1
                    most = max(most, holding)
                done.wait()
                with count:
                    holding -= 1
        except StoreError as error:
            return "another run is writing to it" in str(error)
        return False

    with ThreadPoolExecutor(num_writers) as threads:
        outcomes = [threads.submit(is_refused, number) for number in range(num_writers)]
        deadline = time.monotonic() + 120
        while sum(outcome.done() for outcome in outcomes) < num_writers - 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        done.set()
    assert most == 1
    assert sum(outcome.result() for outcome in outcomes) == num_writers - 1
    assert locks(url) == []
