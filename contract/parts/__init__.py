"""Items that are part of a file: one image of a CIFAR batch, one member of a tar, one row of a table.

    bytes:FIRST+COUNT     COUNT bytes of a file from FIRST on: an encoded image or sound in an uncompressed tar
    npz:NAME[ROW]         a row of an array of an .npz; of an .npy, whose only array is called `array`
    hdf5:NAME[ROW]        a row of a data set of an HDF5 file
    arrow:NAME[ROW]       a row of an Arrow IPC file or stream; NAME may be a member of a struct, as in image.bytes
    parquet:NAME[ROW]     a row of a Parquet file, NAME as above
    cifar:ROW             a row of a binary CIFAR-10 or CIFAR-100 batch
    cifar-pickle:ROW      a row of a python CIFAR batch

Rows count from 0. Containers stay open, a few of each kind, for all threads of a process.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from contract.parts import arrays, cifar, columns, hdf5
from contract.parts.content import MAX_BYTES, Part
from contract.undecodable import UndecodableError, said

__all__ = ["Part", "read"]

Reader = Callable[[Path, str, int], Part]

NAMED = re.compile(r"(npz|hdf5|arrow|parquet):(.+)\[(\d{1,18})\]", re.ASCII)
NUMBERED = re.compile(r"(cifar|cifar-pickle):(\d{1,18})", re.ASCII)
RANGE = re.compile(r"bytes:(\d{1,18})\+(\d{1,18})", re.ASCII)


def read(file: Path, part: str) -> Part:
    """The encoded image or sound, or pixels: uint8 [h, w, 3] or [h, w]; `UndecodableError` says why not."""
    if found := RANGE.fullmatch(part):
        return _range(file, int(found[1]), int(found[2]))
    if found := NUMBERED.fullmatch(part):
        return cifar.row(file, int(found[2]), pickled=found[1] == "cifar-pickle")
    if found := NAMED.fullmatch(part):
        readers: dict[str, Reader] = {
            "npz": arrays.row,
            "hdf5": hdf5.row,
            "arrow": columns.arrow_row,
            "parquet": columns.parquet_row,
        }
        return readers[found[1]](file, found[2], int(found[3]))
    raise UndecodableError(f"part {part!r} is none of bytes:FIRST+COUNT, KIND:NAME[ROW] and cifar:ROW")


def _range(file: Path, first: int, count: int) -> bytes:
    if count > MAX_BYTES:
        raise UndecodableError(f"{count:,} bytes are more than an item may have, {MAX_BYTES:,}")
    try:
        with file.open("rb") as opened:
            opened.seek(first)
            content = opened.read(count)
    except FileNotFoundError as error:
        raise UndecodableError("the file is missing") from error
    except OSError as error:
        raise UndecodableError(f"not a readable file: {said(error, file)}") from error
    if len(content) < count:
        raise UndecodableError(
            f"{file.name} is truncated: {len(content):,} of {count:,} bytes are there from {first:,} on"
        )
    return content
