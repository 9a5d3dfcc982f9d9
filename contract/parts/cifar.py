"""CIFAR-10 and CIFAR-100 batches: the binary ones, and the pickled ones, of which nothing is run.

A binary record is the label, or the coarse and the fine label, and 32 x 32 pixels in three planes, a byte each.
A pickled batch is a dictionary of lists and one array; it is read with stand-ins for what NumPy's arrays are put
together from, so that a file that names anything else is refused, and no file reaches NumPy's own unpickling.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.parts.content import Part, pixels, require_row, require_size
from contract.parts.opened import Opened
from contract.undecodable import UndecodableError

SIDE = 32
NUM_PIXELS = 3 * SIDE * SIDE
NUM_OPEN = 8
# The labels of a record, in the binary files' order, and how many classes each has.
LABELS = ({"labels": 10}, {"coarse_labels": 20, "fine_labels": 100})
CODES = re.compile(r"[<>|=]?([iu][1248]|f[248]|b1)")


def labels(file: Path) -> Mapping[str, npt.NDArray[np.int64]]:
    """int64 [n] by name: `labels` of CIFAR-10, `coarse_labels` and `fine_labels` of CIFAR-100.

    `file` is a binary batch (*.bin) or a pickled one; `UndecodableError` if it is neither.
    """
    return (_BINARY if file.suffix == ".bin" else _PICKLED).get(file).labels


def load(file: Path) -> dict[str, Any]:
    """What a pickled batch, or batches.meta, holds: lists, strings, numbers and arrays by name."""
    return _CONTENTS.get(file)


def row(file: Path, number: int, *, pickled: bool) -> Part:
    """The pixels of an image, uint8 [32, 32, 3]."""
    batch = (_PICKLED if pickled else _BINARY).get(file)
    require_row(number, len(batch.planes), file.name)
    return pixels(batch.planes[number].reshape(3, SIDE, SIDE).transpose(1, 2, 0))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Batch:
    """Pixels uint8 [n, 3072], plane by plane, and labels int64 [n] by name."""

    planes: npt.NDArray[np.uint8]
    labels: Mapping[str, npt.NDArray[np.int64]]


def _binary(file: Path, _: str) -> _Batch:
    size_bytes = file.stat().st_size
    for classes in LABELS:
        num_records, rest = divmod(size_bytes, len(classes) + NUM_PIXELS)
        if rest or not num_records:
            continue
        records = np.memmap(file, np.uint8, "r", shape=(num_records, len(classes) + NUM_PIXELS))
        found = {name: records[:, place].astype(np.int64) for place, name in enumerate(classes)}
        if all(found[name].max() < count for name, count in classes.items()):
            return _Batch(planes=records[:, len(classes) :], labels=found)
    raise ValueError(f"its {size_bytes:,} bytes are no records of 1 + {NUM_PIXELS} or 2 + {NUM_PIXELS} with labels")


def _pickled(file: Path, _: str) -> _Batch:
    content = load(file)
    planes = content.get("data")
    if not isinstance(planes, np.ndarray) or planes.dtype != np.uint8 or planes.shape[1:] != (NUM_PIXELS,):
        raise ValueError(f"its `data` is not uint8 [n, {NUM_PIXELS}]")
    found = {name: np.asarray(content[name]) for classes in LABELS for name in classes if name in content}
    for name, values in found.items():
        if values.shape != (len(planes),) or values.dtype.kind not in "iu":
            raise ValueError(f"its `{name}` are not {len(planes):,} numbers")
    return _Batch(planes=planes, labels={name: values.astype(np.int64) for name, values in found.items()})


def _content(file: Path, _: str) -> dict[str, Any]:
    require_size(file.stat().st_size, file.name)
    content = _Restricted(io.BytesIO(file.read_bytes()), encoding="bytes").load()
    if not isinstance(content, dict):
        raise ValueError("it is no dictionary")
    return {str(_plain(key)): _plain(value) for key, value in content.items()}


def _plain(value: Any) -> Any:
    """Python 2's strings as strings, arrays as arrays."""
    if isinstance(value, bytes):
        return value.decode("latin1")
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value.values if isinstance(value, _Array) else value


class _DType:
    """Stands in for `numpy.dtype`: numbers only."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        name = code.decode() if isinstance(code, bytes) else code
        if not CODES.fullmatch(name):
            raise pickle.UnpicklingError(f"arrays of {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order: Any = state[1].decode() if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands in for `numpy.ndarray`."""

    values: npt.NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        self.values = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(content: bytes, dtype: _DType, shape: tuple[int, ...], order: str, *_: Any) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


def _encode(text: str, _: str) -> bytes:
    """Stands in for `_codecs.encode`: how Python 3 writes bytes for Python 2."""
    return text.encode("latin1")


class _Restricted(pickle.Unpickler):
    """Knows nothing but the stand-ins."""

    # NumPy 1 and 2 call the same module by two names; protocol 5 has a function of its own.
    KNOWN = {  # noqa: RUF012
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _encode,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    }

    def find_class(self, module: str, name: str) -> Any:
        """Refuse to import anything."""
        if (module, name) not in self.KNOWN:
            raise UndecodableError(f"it names {module}.{name}, which a CIFAR batch has no need of: nothing was run")
        return self.KNOWN[module, name]


_BINARY: Opened[_Batch] = Opened("binary CIFAR batch", NUM_OPEN, _binary)
_CONTENTS: Opened[dict[str, Any]] = Opened("python CIFAR batch", NUM_OPEN, _content)
_PICKLED: Opened[_Batch] = Opened("python CIFAR batch", NUM_OPEN, _pickled)
