"""Arrays that another program encoded anew, such as a compressed copy of a store: read through zarr-python.

The bits are the same, some 25 to 200 times slower. A chunk that is not there is an error here, so whoever writes
one with zarr-python sets `config={"write_empty_chunks": True}`, tells `contract.kept` of the new zarr.json, and
leaves it at reading: a shard of such an array is not written again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from contract.shard import Array, DamagedShardError, Rows, ShardLayout, shard_content
from contract.storage import Storage


def open_array(files: Storage, path: str) -> Any:
    """The zarr.Array at `path`; whatever it raises is about its metadata."""
    import zarr

    array = zarr.open_array(_complete(files), path=path, mode="r", zarr_format=3)
    if 0 in (array.shards or array.chunks):  # zarr-python takes it, and divides by it later
        raise ValueError(f"its chunks are {array.shards or array.chunks}")
    return array


def chunk_keys(array: Any, items: range) -> Iterator[str]:
    """The files of a zarr.Array that hold these items."""
    sizes = array.shards or array.chunks
    inner = [range(-(-length // size)) for length, size in zip(array.shape[1:], sizes[1:], strict=True)]
    first, last = items.start // sizes[0], (items.stop - 1) // sizes[0]
    for place in product(range(first, last + 1), *inner):
        yield f"{array.path}/{array.metadata.encode_chunk_key(place)}"


class RecodedShard:
    """The rows of a zarr.Array that are one shard of its FieldSet; a row is one view of one item."""

    def __init__(
        self, array: Any, layout: ShardLayout, first_item: int, num_rows: int, views_per_item: int
    ) -> None:
        self.num_rows = num_rows
        self._array = array
        self._layout = layout
        self._first_item = first_item
        self._views_per_item = views_per_item

    def copy(self, rows: Rows, out: Array, positions: Rows, *, check: bool = False) -> None:
        """Copy this shard's `rows` to `out[positions]`; zarr-python always verifies what checksums there are."""
        items, views = np.divmod(rows, self._views_per_item)
        unique, places = np.unique(items, return_inverse=True)
        try:
            found = self._array.oindex[self._first_item + unique]
        except DamagedShardError:
            raise
        except Exception as error:  # each codec has exceptions of its own
            raise DamagedShardError(f"{self._array.store_path}: {' '.join(str(error).split())}") from error
        out[positions] = found[places] if self._views_per_item == 1 else found[places, views]

    def will_need(self, rows: Rows) -> None:
        """Nothing can be done ahead."""

    def digest(self) -> int:
        """Read every row, and return the digest that they have in a shard file of ours."""
        rows = np.arange(self.num_rows)
        out = np.empty((self.num_rows, *self._layout.row_shape), self._layout.dtype)
        self.copy(rows, out, rows)
        return shard_content(out, self._layout)[1]


def _complete(files: Storage) -> Any:
    """What zarr-python reads, with an error for a file that is not there, which it takes for zeros."""
    from zarr.storage import LocalStore, WrapperStore

    class Complete(WrapperStore[Any]):
        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            found = await super().get(key, prototype, byte_range)
            if found is None:
                raise DamagedShardError(f"{files.locate(key)} is missing")
            return found

    store = files.zarr()
    return Complete(LocalStore(store, read_only=True) if isinstance(store, Path) else store)
