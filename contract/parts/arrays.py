"""Arrays of .npy and .npz files, mapped into memory where they are not compressed."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from contract.parts.content import Part, pixels, require_row
from contract.parts.opened import Opened
from contract.undecodable import UndecodableError

# What an .npy calls its array.
ARRAY = "array"
# A compressed array has to be held whole, so that only small ones are, and only the last two.
MAX_COMPRESSED_BYTES = 4 << 30
NUM_OPEN = 2


def names(file: Path) -> list[str]:
    """The names of its arrays; `array` for an .npy."""
    return _CONTENTS.get(file)


def load(file: Path, name: str) -> npt.NDArray[Any]:
    """A whole array [n, ...], mapped where it can be, not to be changed; `UndecodableError` if it can't be read."""
    if name not in names(file):
        raise UndecodableError(f"{file.name} has no array {name!r}; it has {', '.join(names(file))}")
    return _ARRAYS.get(file, name)


def row(file: Path, name: str, number: int) -> Part:
    """The pixels of one row of an array."""
    array = load(file, name)
    if not array.ndim:
        raise UndecodableError(f"array {name!r} of {file.name} is a number and has no rows")
    require_row(number, len(array), f"array {name!r}")
    return pixels(array[number])


def _contents(file: Path, _: str) -> list[str]:
    if not zipfile.is_zipfile(file):
        _array(file, ARRAY)
        return [ARRAY]
    with zipfile.ZipFile(file) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _array(file: Path, name: str) -> npt.NDArray[Any]:
    if not zipfile.is_zipfile(file):
        return np.lib.format.open_memmap(file, mode="r")
    with zipfile.ZipFile(file) as archive:
        member = archive.getinfo(f"{name}.npy")
        with archive.open(member) as content:
            shape, is_fortran, dtype = _header(content)
            start = content.tell()
            num_bytes = math.prod(shape) * dtype.itemsize
            if start + num_bytes > member.file_size:
                raise ValueError(f"array {name!r} ends before its last row")
            if member.compress_type != zipfile.ZIP_STORED:
                return _read(content, name, num_bytes).view(dtype).reshape(shape, order="F" if is_fortran else "C")
    return np.memmap(file, dtype, "r", _data_start(file, member) + start, shape, "F" if is_fortran else "C")


def _header(content: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, dtype."""
    version = np.lib.format.read_magic(content)
    if version == (1, 0):
        header = np.lib.format.read_array_header_1_0(content)
    elif version == (2, 0):
        header = np.lib.format.read_array_header_2_0(content)
    else:
        raise ValueError(f"version {version[0]}.{version[1]} of the .npy format")
    if header[2].hasobject:
        raise ValueError("it holds Python objects, which would have to be unpickled")
    return header


def _read(content: IO[bytes], name: str, num_bytes: int) -> npt.NDArray[np.uint8]:
    if num_bytes > MAX_COMPRESSED_BYTES:
        raise UndecodableError(
            f"array {name!r} is compressed and has {num_bytes:,} bytes when it is not, more than are held at once "
            f"({MAX_COMPRESSED_BYTES:,}): save it with numpy.savez, so that each row can be read on its own"
        )
    array = np.empty(num_bytes, np.uint8)
    place = array.data
    while len(place):
        count = content.readinto(place)  # type: ignore[attr-defined]
        if not count:
            raise ValueError(f"array {name!r} ends before its last row")
        place = place[count:]
    return array


def _data_start(file: Path, member: zipfile.ZipInfo) -> int:
    """Where an uncompressed member's bytes begin: after a header with a name and extras of its own length."""
    with file.open("rb") as opened:
        opened.seek(member.header_offset)
        header = opened.read(30)
    return member.header_offset + 30 + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))


_CONTENTS: Opened[list[str]] = Opened("array file", NUM_OPEN, _contents)
_ARRAYS: Opened[npt.NDArray[Any]] = Opened("array file", NUM_OPEN, _array)
