"""Where a store's files lie: a folder of this machine, or whatever fsspec reaches by a URL.

A file is named by its key, its path inside the store with slashes. A file is written whole or not at all.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from contract.errors import StoreError
from contract.files import Content
from contract.storage.folder import Folder
from contract.storage.remote import Remote
from contract.storage.web import Web

StorePath = Path | str  # a URL is a string


class Storage(Protocol):
    """What a store asks of the place it lies in."""

    @property
    def path(self) -> StorePath:
        """How people name the place."""

    @property
    def most_maps(self) -> int:
        """How many of its files may be memory-mapped at a time."""

    def locate(self, key: str) -> str:
        """How people name a file of it."""

    def read(self, key: str) -> bytes:
        """A small file's content; FileNotFoundError without one."""

    def read_all(self, prefix: str) -> dict[str, bytes]:
        """The content of every small file under `prefix`, by key."""

    def checksum(self, key: str) -> int:
        """The crc32c of a file of any size, as it lies there; FileNotFoundError without one."""

    def sizes(self, keys: list[str]) -> list[int]:
        """The files' sizes in bytes, -1 for those that are not there."""

    def keys_under(self, prefix: str) -> list[str]:
        """The keys of all files under `prefix`."""

    def children(self, prefix: str) -> list[str]:
        """The keys of the files one folder below `prefix`: those of its subfolders' own files."""

    def write(self, key: str, *parts: Any) -> None:
        """Make `parts`, one after the other, the file's content in one step."""

    def write_large(self, key: str, content: Content) -> None:
        """The same of what is written piece by piece, and not held in memory."""

    def copy(self, source: str, key: str) -> None:
        """Make the content of another file of the place this one's, in one step."""

    def delete(self, key: str) -> None:
        """Remove the file; nothing happens if it is not there."""

    def local(self, key: str, version: str) -> Path:
        """A file of this machine with its content, to be memory-mapped at once; FileNotFoundError without one.

        `version` names the content that it should have, for servers that don't tell when a file has changed.
        """

    def distrust(self, prefix: str) -> None:
        """Forget this machine's copies of files under `prefix`: one is damaged, and the file itself may not be."""

    def zarr(self) -> Any:
        """What zarr-python opens."""

    def writing(self) -> AbstractContextManager[None]:
        """Hold the place for one writer; a second one is refused."""


def storage(path: StorePath) -> Storage:
    """The storage at a path or a URL such as s3://bucket/coco.zarr."""
    if not is_url(path):
        if Path(path).parts[:1] and Path(path).parts[0].endswith(":"):
            raise StoreError(f"{path}: that is no path; a store may have a URL, with two slashes, a run may not")
        return Folder(Path(path))
    return Web(str(path)) if str(path).startswith(("http://", "https://")) else Remote(str(path))


def store_path(text: str) -> StorePath:
    """What a person typed as a path or a URL; file:// names a path."""
    if not is_url(text):
        return Path(text)
    protocol, _, place = text.partition("://")
    return Path(place) if protocol == "file" else f"{protocol}://{place.rstrip('/')}"


def is_url(path: StorePath) -> bool:
    """Whether it names a protocol."""
    return isinstance(path, str) and "://" in path
