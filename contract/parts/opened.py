"""Containers that are open, so that a row costs no more than itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from contract.maps import Maps
from contract.undecodable import UndecodableError, said

T = TypeVar("T")


class Opened(Generic[T]):
    """The last `most` containers of a kind, by path, size and time of change, and by `name` within them."""

    def __init__(self, kind: str, most: int, open_container: Callable[[Path, str], T]) -> None:
        self._kind, self._open_container = kind, open_container
        self._containers: Maps[tuple[Path, int, int, str], T] = Maps(most)

    def get(self, file: Path, name: str = "") -> T:
        """The open container; `UndecodableError` if it is missing or not one of its kind."""
        try:
            about = file.stat()
            return self._containers.get((file, about.st_size, about.st_mtime_ns, name), self._open)
        except UndecodableError:
            raise
        except FileNotFoundError as error:
            raise UndecodableError("the file is missing") from error
        except Exception as error:
            # What a broken file raises in NumPy, HDF5, Arrow or pickle has no common parent.
            raise self.error(error, file) from error

    def error(self, error: Exception, file: Path) -> UndecodableError:
        """What a library raised, as the reason of a quarantine."""
        return UndecodableError(f"not a readable {self._kind}, truncated or broken: {said(error, file)}")

    def _open(self, key: tuple[Path, int, int, str]) -> T:
        return self._open_container(key[0], key[3])
