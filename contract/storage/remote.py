"""Whatever fsspec reaches by a URL: s3://, gs://, az://, memory:// and others.

Credentials and endpoints are fsspec's own business: environment variables such as AWS_ACCESS_KEY_ID and
AWS_ENDPOINT_URL, or its configuration files. An object store puts an object in place whole, so a file is never
seen half-written.
"""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from contract import fingerprint
from contract.errors import MissingExtraError, StoreError, UserError
from contract.files import PARTIAL, Content, checksum
from contract.storage import lock
from contract.storage.cache import Cache
from contract.storage.folder import Folder

# A mapped file takes room on the disk even after the cache has let go of it: this much, more or less. What one
# store maps is thereby bounded by the cache's limit once more.
SHARD_BYTES = 64 * 2**20
FEW_MAPS = 16
NUM_REQUESTS = 32  # at a time


class Object(NamedTuple):
    """What the server says of a file: `version` names its content, "" if the server does not tell."""

    size_bytes: int
    version: str
    written: float | None


class Remote:
    """Files under a URL; those that are mapped are copied to a bounded cache on this machine first.

    What a listing or a request said of a file is remembered; it is asked for again before the file is fetched.
    """

    def __init__(self, url: str, cache: Cache | None = None) -> None:
        self.path = url
        self._cache = cache or Cache.of_environment()
        self._objects: dict[str, Object] = {}
        self._contents: dict[str, tuple[str, bytes]] = {}  # version and content of small files
        self._names: dict[str, str] = {}  # of copies in the cache
        self._opened: tuple[int, Any, str] | None = None

    @property
    def most_maps(self) -> int:
        """As many as of any folder here, if the cache is large."""
        wanted = min(self._cache.limit_bytes / SHARD_BYTES, Folder(self._cache.folder).most_maps)
        return max(FEW_MAPS, int(wanted))

    def locate(self, key: str) -> str:
        """Its URL."""
        return f"{self.path}/{key}"

    def read(self, key: str) -> bytes:
        """The object's content."""
        with self._translated(key):
            content: bytes = self._files.cat_file(self._place(key), **self._in_one_request)
            return content

    def read_all(self, prefix: str) -> dict[str, bytes]:
        """The content of every object under `prefix`; those that have not changed since are not read again."""
        found = self._find(prefix)
        read = {key: self._contents.get(key, ("", b"")) for key in found}
        contents = {key: content for key, (version, content) in read.items() if version == found[key].version != ""}
        changed = [key for key in found if key not in contents]
        for key, content in zip(changed, self._at_once(self._read_if_there, changed), strict=True):
            if content is not None:  # else it was removed since it was listed
                contents[key] = content
                self._contents[key] = (found[key].version, content)
        return dict(sorted(contents.items()))

    def checksum(self, key: str) -> int:
        """One download, past the cache."""
        with tempfile.TemporaryDirectory(prefix="precept-") as folder:
            path = Path(folder) / "object"
            self._fetch(key, path)
            return checksum(path)

    def sizes(self, keys: list[str]) -> list[int]:
        """One listing of what the keys have in common."""
        found = self._find(os.path.commonpath(keys)) if keys else {}
        return [found[key].size_bytes if key in found else -1 for key in keys]

    def keys_under(self, prefix: str) -> list[str]:
        """Every object under `prefix`, sorted."""
        return sorted(self._find(prefix))

    def children(self, prefix: str) -> list[str]:
        """The objects two levels below `prefix`."""
        folders = [name for name, kind in self._list(prefix) if kind == "directory"]
        return sorted(name for folder in folders for name, kind in self._list(folder) if kind == "file")

    def write(self, key: str, *parts: Any) -> None:
        """One upload."""
        content = b"".join(memoryview(part).cast("B") for part in parts)
        with self._written(key):
            self._files.pipe_file(self._place(key), content)

    def write_large(self, key: str, content: Content) -> None:
        """An upload, in parts where the server takes them, of a file that is made here first."""
        with tempfile.NamedTemporaryFile(prefix="precept-", suffix=PARTIAL) as file:
            content.write(cast(IO[bytes], file))
            file.flush()
            with self._written(key):
                self._files.put_file(file.name, self._place(key))

    def copy(self, source: str, key: str) -> None:
        """The server copies it."""
        with self._written(key):
            self._files.cp_file(self._place(source), self._place(key))

    def delete(self, key: str) -> None:
        """Remove the object."""
        with self._translated(key):
            try:
                self._files.rm_file(self._place(key))
            except FileNotFoundError as error:
                _require_bucket(self.path, error)
        self._forget(key)

    def local(self, key: str, version: str) -> Path:
        """The copy in the cache, fetched if there is none of what lies there now."""
        known = self._objects.get(key)
        path = self._cache.find(self._named(key, version, known), known.size_bytes) if known else None
        if path is not None:
            return path
        known = self._objects[key] = self._ask(key)  # what was listed some time ago may have been replaced since
        name = self._named(key, version, known)
        return self._cache.fetch(name, known.size_bytes, lambda to: self._fetch(key, to))

    def distrust(self, prefix: str) -> None:
        """Remove them from the cache."""
        for key, name in list(self._names.items()):
            if key.startswith(prefix):
                self._cache.remove(name)

    def zarr(self) -> Any:
        """The same place, as zarr-python sees it."""
        from zarr.storage import FsspecStore

        with self._translated(""):
            return FsspecStore.from_url(self.path, read_only=True)

    def writing(self) -> AbstractContextManager[None]:
        """A lock that lies in the store itself while it is held."""
        return lock.held(self)

    def writers(self) -> Mapping[str, float | None]:
        """When each lock was renewed."""
        return {key: known.written for key, known in self._found(lock.WRITERS.rstrip("/")).items()}

    def _find(self, prefix: str) -> dict[str, Object]:
        """Every file under `prefix` but locks."""
        found = {key: known for key, known in self._found(prefix).items() if not key.startswith(lock.WRITERS)}
        within = f"{prefix}/" if prefix else ""
        for key in list(self._objects):  # other threads add to them
            if key.startswith(within) and key not in found:
                self._forget(key)
        self._objects |= found
        return found

    def _found(self, prefix: str) -> dict[str, Object]:
        with self._translated(prefix):
            try:
                found = self._files.find(self._place(prefix), detail=True)
            except FileNotFoundError as error:
                _require_bucket(self.path, error)
                return {}
        return {self._key(place): _described(info) for place, info in found.items()}

    def _list(self, folder: str) -> list[tuple[str, str]]:
        """(key, "file" or "directory") of what lies in a folder."""
        with self._translated(folder):
            try:
                found = self._files.ls(self._place(folder), detail=True)
            except FileNotFoundError as error:
                _require_bucket(self.path, error)
                return []
        return [(self._key(info["name"].rstrip("/")), info["type"]) for info in found]

    def _ask(self, key: str) -> Object:
        with self._translated(key):
            return _described(self._files.info(self._place(key)))

    def _fetch(self, key: str, path: Path) -> None:
        with self._translated(key):
            self._files.get_file(self._place(key), str(path))

    def _read_if_there(self, key: str) -> bytes | None:
        try:
            return self.read(key)
        except FileNotFoundError:
            return None

    def _at_once(self, function: Any, keys: Iterable[str]) -> list[Any]:
        with ThreadPoolExecutor(NUM_REQUESTS) as threads:
            return list(threads.map(function, keys))

    def _forget(self, key: str) -> None:
        self._objects.pop(key, None)
        self._contents.pop(key, None)

    def _named(self, key: str, version: str, known: Object) -> str:
        """The name of the copy in the cache."""
        name = fingerprint.of_tree([self.path, key, version, known.version, known.size_bytes])
        self._names[key] = name
        return name

    def _place(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _key(self, place: str) -> str:
        return place[len(self._root) + 1 :]

    @property
    def _files(self) -> Any:
        return self._open()[1]

    @property
    def _root(self) -> str:
        return self._open()[2]

    @property
    def _in_one_request(self) -> dict[str, int]:
        # s3fs asks how large an object is before it reads it, unless it may not read its parts at once.
        cat_file = getattr(self._files, "_cat_file", self._files.cat_file)
        return {"max_concurrency": 1} if "max_concurrency" in inspect.signature(cat_file).parameters else {}

    def _open(self) -> tuple[int, Any, str]:
        # Clients don't outlive a fork.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), *_client(self.path))
        return self._opened

    @contextmanager
    def _written(self, key: str) -> Iterator[None]:
        """While an object is put in place."""
        self._forget(key)
        with self._translated(key):
            try:
                yield
            except FileNotFoundError as error:
                _require_bucket(self.path, error)
                raise StoreError(f"{self.locate(key)}: can't be written: {_reason(error)}") from error
        self._forget(key)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            _require_bucket(self.path, error)
            raise
        except UserError:
            raise
        except Exception as error:  # each protocol's client has exceptions of its own
            raise StoreError(f"{self.locate(key)}: {_reason(error)}") from error


def _client(url: str) -> tuple[Any, str]:
    """fsspec's filesystem, and the name of the place in it."""
    from fsspec.core import url_to_fs

    try:
        files, root = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        with_extra = "; install Precept with its extra `s3`" if url.startswith(("s3", "http")) else ""
        raise MissingExtraError(f"{url}: {error}{with_extra}") from error
    except Exception as error:
        raise StoreError(f"{url}: {_reason(error)}") from error
    if not root.strip("/"):
        raise StoreError(f"{url}: it names no place to keep a store in")
    return files, root.rstrip("/")


def _described(info: Mapping[str, Any]) -> Object:
    """What a filesystem says of a file, which each does in its own words."""
    size_bytes = info.get("size")
    times = [info[name] for name in ("LastModified", "last_modified", "mtime", "created") if info.get(name)]
    written = times[0].timestamp() if times and hasattr(times[0], "timestamp") else times[0] if times else None
    named = [info[name] for name in ("ETag", "etag", "Last-Modified") if info.get(name)]
    version = str(named[0]) if named else "" if written is None else repr(written)
    return Object(-1 if size_bytes is None else size_bytes, version, written)


def _require_bucket(url: str, error: FileNotFoundError) -> None:
    """Raise `StoreError` where it is not a file that is missing."""
    if "bucket" in str(error) and "not exist" in str(error):
        raise StoreError(f"{url}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
