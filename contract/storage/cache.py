"""Whole files of remote stores on this machine's disk, as many as fit into a limit; processes share it.

$PRECEPT_CACHE        the folder; default ~/.cache/precept
$PRECEPT_CACHE_GB     the limit; default 100. What is being fetched comes on top, one file a thread

Locks of the operating system (flock), which end with the process that holds them, keep processes and threads
apart: whoever fetches a file holds <name>.copying, so that the others wait for it instead of fetching it too;
whoever is about to map a file holds the file itself, so that it is not removed before it is mapped.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

from contract.errors import ConfigError
from contract.files import PARTIAL

COPY = ".copy"  # what has another name is somebody else's
LOCK = ".copying"
GIGABYTE = 1e9


class Cache:
    """The least recently used files go first; a file that is mapped stays readable until it is let go of."""

    def __init__(self, folder: Path, limit_bytes: float) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    @classmethod
    def of_environment(cls) -> Cache:
        """What the two variables say."""
        folder = os.environ.get("PRECEPT_CACHE") or Path.home() / ".cache/precept"
        text = os.environ.get("PRECEPT_CACHE_GB") or "100"
        try:
            gigabytes = float(text)
        except ValueError:
            gigabytes = -1
        if not gigabytes >= 0:
            raise ConfigError(f"PRECEPT_CACHE_GB is {text!r}, not a number of gigabytes")
        return cls(Path(folder), gigabytes * GIGABYTE)

    def find(self, name: str, size_bytes: int) -> Path | None:
        """The file of that name and size, if it is there; it stays until this thread asks for another."""
        path = self.folder / f"{name}{COPY}"
        try:
            held = _Held(path)
        except FileNotFoundError:
            return None
        if not held.is_at(path) or held.size_bytes != size_bytes:
            return None
        _last.held = held
        os.utime(held.number)  # used now
        return path

    def fetch(self, name: str, size_bytes: int, fetch: Callable[[Path], None]) -> Path:
        """The file of that name, once `fetch(path)` has written it, here or in another thread or process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path, partial, lock = (self.folder / f"{name}{suffix}" for suffix in (COPY, PARTIAL, LOCK))
        _last.held = None
        while True:
            with lock.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not _is_at(file.fileno(), lock):
                    continue  # whoever held it is done
                try:
                    found = self.find(name, size_bytes)
                    if found is not None:
                        return found
                    partial.touch()
                    held = _Held(partial)
                    fetch(partial)
                    partial.replace(path)
                    _last.held = held
                finally:
                    partial.unlink(missing_ok=True)
                    lock.unlink(missing_ok=True)
            self._make_room()
            return path

    def remove(self, name: str) -> None:
        """Let go of a file, whoever may be about to map it."""
        (self.folder / f"{name}{COPY}").unlink(missing_ok=True)

    def _make_room(self) -> None:
        for lock in self.folder.glob(f"*{LOCK}"):  # what a killed process has left
            _remove_unless_held(lock, lock.with_suffix(PARTIAL), lock)
        copies = sorted(found for path in self.folder.glob(f"*{COPY}") if (found := _used(path)))
        total = sum(size for _, size, _ in copies)
        for _, size, path in copies:
            if total <= self.limit_bytes:
                return
            if _remove_unless_held(path, path):
                total -= size


class _Held:
    """A file that is kept from being removed for as long as this object lives."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)
        fcntl.flock(self.number, fcntl.LOCK_SH)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)

    @property
    def size_bytes(self) -> int:
        return os.fstat(self.number).st_size

    def is_at(self, path: Path) -> bool:
        return _is_at(self.number, path)


class _Last(threading.local):
    """The file that each thread was given last."""

    held: _Held | None = None


_last = _Last()


def _remove_unless_held(held: Path, *paths: Path) -> bool:
    """Remove files, unless somebody holds the one named first; whether they are gone."""
    try:
        number = os.open(held, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(number, held):
            for path in paths:
                path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(number)
    return True


def _used(path: Path) -> tuple[int, int, Path] | None:
    """When a file was used last, its size, and where it is; None if another process has just removed it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, path


def _is_at(number: int, path: Path) -> bool:
    """Whether an open file is still the one at that path."""
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except FileNotFoundError:
        return False
