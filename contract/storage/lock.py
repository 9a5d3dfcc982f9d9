"""One writer at a time, in a place that can do no more than write, list and remove whole files.

    precept/writers/<started>-<random>.json     who it is; written anew every now and then while the writer lives

A writer puts a file of its own in place and then lists. If it finds itself alone it holds the lock, else it takes
its file away again; of two that start at once and see each other, the later one goes and the earlier one waits for
that. So two never hold it, as long as a listing shows what was written before it, which S3, GCS and Azure promise.
Nothing rests on conditional writes: fsspec's `mode="create"` is one request with If-None-Match in s3fs 2025.7 and
later, an unconditional write in s3fs 2024.6 and over http, and two steps (look, then write) where a client has
nothing of its own.

How long a writer has been silent is told by the server's clock, which dates the newcomer's file too.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from contract.errors import StoreError

WRITERS = "precept/writers/"
HEARTBEAT_S = 20.0
# A writer that has been silent for this long is dead.
STALE_S = 120.0
# How long the earlier of two waits for the later one to go.
PATIENCE_S = 2.0


class Place(Protocol):
    """What the lock asks of a storage."""

    path: str

    def read(self, key: str) -> bytes:
        """A file's content."""

    def write(self, key: str, *parts: Any) -> None:
        """Put a file in place."""

    def delete(self, key: str) -> None:
        """Remove a file."""

    def writers(self) -> Mapping[str, float | None]:
        """{key: when it was written, in seconds of the server's clock} of the files under `WRITERS`."""


@contextmanager
def held(place: Place) -> Iterator[None]:
    """Hold the lock, and renew it in a thread; `StoreError` if a writer that lives holds it."""
    me = f"{WRITERS}{time.time_ns():020}-{secrets.token_hex(4)}.json"
    _put(place, me)
    try:
        _wait_until_alone(place, me)
        ended, lost = threading.Event(), threading.Event()
        renewing = threading.Thread(target=_renew, args=(place, me, ended, lost), name="writer", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
    except BaseException:
        with suppress(StoreError):  # the reason why we leave is the one to be read
            place.delete(me)
        raise
    if lost.is_set():
        raise StoreError(
            f"{place.path}: this run was silent for over {STALE_S:.0f} s, and another one has taken its place; "
            f"`pipeline verify {place.path}` tells whether they got in each other's way"
        )
    place.delete(me)


def _wait_until_alone(place: Place, me: str) -> None:
    """Return once no other writer lives, and remove what dead ones have left."""
    patience = time.monotonic() + PATIENCE_S
    while True:
        alive, dead = _others(place, me)
        if not alive:
            for key in dead:
                place.delete(key)
            return
        if alive[0] < me or time.monotonic() > patience:
            raise StoreError(
                f"{place.path}: another run is writing to it ({_who(place, alive[0])}); wait for it, or stop it: "
                f"what a stopped one leaves behind counts for nothing after {STALE_S:.0f} s"
            )
        time.sleep(0.1)


def _others(place: Place, me: str) -> tuple[list[str], list[str]]:
    """The other writers' files, in order: of those that live, and of those that don't."""
    times = dict(place.writers())
    now = times.pop(me, None)
    dead = [key for key, then in times.items() if now is not None and then is not None and now - then > STALE_S]
    return sorted(times.keys() - set(dead)), dead


def _renew(place: Place, me: str, ended: threading.Event, lost: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_S):
        try:
            place.read(me)
            _put(place, me)
        except FileNotFoundError:
            lost.set()
            return
        except StoreError:  # the server does not answer; it may the next time
            continue


def _put(place: Place, key: str) -> None:
    place.write(key, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode())


def _who(place: Place, key: str) -> str:
    try:
        who = json.loads(place.read(key))
        return f"process {who['process']} of {who['host']}"
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return key
