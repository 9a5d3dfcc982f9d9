"""Files of named arrays, `.npz`: read whole, and only if they are what was written."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# What zipfile and NumPy raise for damaged files; RuntimeError is for a flag that says encrypted.
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read(source: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file by name; `ValueError` says what is wrong with one that is damaged."""
    try:
        # The checksums first: NumPy would take a damaged header for a program. It leaves a file open that it opened
        # itself and could not read.
        with source.open("rb") as opened:
            with zipfile.ZipFile(opened) as packed:
                if damaged := packed.testzip():
                    raise ValueError(f"the checksum of {damaged} is wrong")
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as file:
                return dict(file)
    except UNREADABLE as error:
        raise ValueError(str(error)) from error
