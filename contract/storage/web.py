"""A store on a web server, http:// or https://, which is read only.

What lies in a folder is found by its page, as `python -m http.server`, nginx (autoindex) and Apache make one; a
server without such pages can't hold a store that is opened by its URL.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from contract.errors import StoreError
from contract.storage.remote import Object, Remote


class Web(Remote):
    """Files that a web server shows."""

    def sizes(self, keys: list[str]) -> list[int]:
        """A request for each."""
        return [-1 if known is None else known.size_bytes for known in self._at_once(self._ask_if_there, keys)]

    def children(self, prefix: str) -> list[str]:
        """What the folders' pages link to."""
        try:
            found, is_listed = super().children(prefix), bool(self._list(prefix))
        except StoreError as error:
            if not hasattr(error.__cause__, "status"):  # no answer at all
                raise
            found, is_listed = [], False
        if not is_listed:
            raise StoreError(
                f"{self.locate(prefix)}: the server does not list the folder's files; a store is read over http "
                "from one that does, or by the URL of another protocol, such as s3://"
            )
        return found

    def writing(self) -> AbstractContextManager[None]:
        """Refused."""
        raise StoreError(
            f"{self.path}: a store is only read over http; write it by another protocol, such as s3://"
        )

    def _found(self, prefix: str) -> dict[str, Object]:
        # fsspec's own walk takes a server that does not answer for an empty folder.
        found: dict[str, Object] = {}
        for key, kind in self._list(prefix):
            if kind == "directory":
                found |= self._found(key)
            else:
                found[key] = Object(-1, "", None)
        return found

    def _ask(self, key: str) -> Object:
        try:
            known = super()._ask(key)
        except FileNotFoundError:  # which fsspec also says if the server does not answer
            self.read(key)
            raise
        self._objects[key] = known
        return known

    def _ask_if_there(self, key: str) -> Object | None:
        try:
            return self._ask(key)
        except FileNotFoundError:
            return None
