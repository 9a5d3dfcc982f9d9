"""A folder of this machine."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from contract.errors import StoreError
from contract.files import BLOCK_BYTES, PARTIAL, Content, checksum, replace_file, replacing

# A map holds a file open, and Linux allows a process 65,530 maps. A store like COCO's is some thousands of them.
MOST_MAPS = 16384
MOST_OPEN = 65536


class Folder:
    """Files under a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.most_maps = _most_maps()

    def locate(self, key: str) -> str:
        """Its path."""
        return str(self.path / key)

    def read(self, key: str) -> bytes:
        """The file's content."""
        return (self.path / key).read_bytes()

    def read_all(self, prefix: str) -> dict[str, bytes]:
        """The content of every file under `prefix`."""
        found = {}
        for key in self.keys_under(prefix):
            with suppress(FileNotFoundError):  # a writer has just removed it
                found[key] = self.read(key)
        return found

    def checksum(self, key: str) -> int:
        """One reading of it."""
        return checksum(self.path / key)

    def sizes(self, keys: list[str]) -> list[int]:
        """One look at each."""
        return [_size(self.path / key) for key in keys]

    def keys_under(self, prefix: str) -> list[str]:
        """Every whole file under `prefix`, sorted; what a killed writer left half-written is not one."""
        found = []
        for folder, _, names in os.walk(self.path / prefix, onerror=_raise_unless_missing):
            inside = os.path.relpath(folder, self.path)
            start = "" if inside == "." else f"{inside}/"
            found += [f"{start}{name}" for name in names if not name.endswith(PARTIAL)]
        return sorted(found)

    def children(self, prefix: str) -> list[str]:
        """The files of the subfolders of `prefix`."""
        return sorted(str(path.relative_to(self.path)) for path in (self.path / prefix).glob("*/*"))

    def write(self, key: str, *parts: Any) -> None:
        """A temporary name, a flush to the disk, and one rename."""
        replace_file(self._made(key), *parts)

    def write_large(self, key: str, content: Content) -> None:
        """The same way."""
        with replacing(self._made(key)) as file:
            content.write(file)

    def copy(self, source: str, key: str) -> None:
        """The same way."""
        with (self.path / source).open("rb") as content, replacing(self._made(key)) as file:
            shutil.copyfileobj(content, file, BLOCK_BYTES)

    def delete(self, key: str) -> None:
        """Remove the file."""
        (self.path / key).unlink(missing_ok=True)

    def local(self, key: str, version: str) -> Path:
        """The file itself."""
        return self.path / key

    def distrust(self, prefix: str) -> None:
        """There are no copies."""

    def zarr(self) -> Path:
        """The folder."""
        return self.path

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold a lock file beside the folder, which the kernel lets go of when the process ends."""
        self.path.absolute().parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(f".{self.path.name}.lock")
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(f"{self.path}: another run is writing to it; wait for it, or stop it") from None
            yield

    def _made(self, key: str) -> Path:
        """The path of a file, in a folder that is there."""
        path = self.path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _most_maps() -> int:
    """Raise the soft limit of open files towards the hard one, and let one store map a quarter of them."""
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN if hard == resource.RLIM_INFINITY else min(MOST_OPEN, hard)
    if limit < wanted:
        with suppress(ValueError, OSError):  # macOS has a lower limit that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            limit = wanted
    return max(1, min(MOST_MAPS, limit // 4))


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
