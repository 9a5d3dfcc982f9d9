"""An open HDF5 file, and which of its datasets stands for what.

A name is a target and a dataset: a path of our layout (`pipeline.hdf5`), and the dataset of the file that stands
for it. A file in our layout names its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from contract.errors import ConfigError, DataError
from contract.manifest import MODALITIES
from pipeline.hdf5 import layout

# A chunk is decompressed for every read that the cache can't answer: in chunks of 40 MB a file took 2.5 times as
# long with the cache that HDF5 has by itself. The slots are a prime, some 100 times the chunks that fit.
CACHE_BYTES = 64 * 2**20
CACHE_SLOTS = 20011
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
MOST_LISTED = 20
KNOWN_TARGETS = (
    f"image/{', image/'.join(layout.COLUMNS)}, image/<fieldset>/<field>, image/<fieldset>/{layout.QUARANTINED}, "
    f"the same for text and audio, {', '.join(f'{layout.PAIRS}/{kind}' for kind in layout.PAIR_KINDS)}"
)

Array = npt.NDArray[Any]


class Contents:
    """The datasets of a file by their targets; `names` maps a target to a dataset, and is empty for our layout."""

    def __init__(self, path: Path, file: Any, names: Mapping[str, str]) -> None:
        self.path, self.file = path, file
        self.is_ours = not names
        self.names = dict(names) or _own_names(path, file)
        for target in self.names:
            _check_target(target, f"{path}: {target}" if self.is_ours else f"--map {target}={names[target]}")
        # They stay open, since the cache of a dataset's chunks goes when it is closed.
        self._datasets = {target: self._find(target) for target in self.names}

    def dataset(self, target: str) -> Any:
        """The dataset that stands for a target."""
        return self._datasets[target]

    def columns(self, modality: str) -> list[str]:
        """The columns that are named of a modality's items."""
        return [name for name in layout.COLUMNS if f"{modality}/{name}" in self.names]

    def fields(self) -> dict[str, list[str]]:
        """{"image/teacher": ["logits", ...]} as they are named."""
        fields: dict[str, list[str]] = {}
        for target in self.names:
            key, _, name = target.rpartition("/")
            if "/" in key and name != layout.QUARANTINED:
                fields.setdefault(key, []).append(name)
        return fields

    def pairs(self) -> list[str]:
        """The targets that are pair tables."""
        return [target for target in self.names if target.startswith(f"{layout.PAIRS}/")]

    def rest(self) -> list[str]:
        """The datasets that stand for nothing."""
        taken = {_identity(dataset) for dataset in self._datasets.values()}
        return [name for name, dataset in _datasets(self.file).items() if _identity(dataset) not in taken]

    def read(self, target: str, rows: range) -> Array:
        """Rows of a dataset, as they are."""
        try:
            values: Array = np.asarray(self._datasets[target][rows.start : rows.stop])
        except (OSError, RuntimeError) as error:
            raise DataError(f"{self.path}: {self.said(target)} can't be read: {error}") from error
        return values

    def row_bytes(self, target: str) -> int:
        """Bytes of one row of a dataset."""
        dataset = self._datasets[target]
        return int(dataset.dtype.itemsize * np.prod(dataset.shape[1:], dtype=np.int64))

    def said(self, target: str) -> str:
        """A target, with the dataset that stands for it where that has another name."""
        return target if self.names[target] == target else f"{target}={self.names[target]}"

    def shown(self, target: str) -> str:
        """Dtype and shape of a dataset."""
        return _shown(self._datasets[target])

    def refusal(self, target: str, expected: str) -> DataError:
        """The error for a dataset that is not what is expected."""
        return DataError(f"{self.path}: {self.said(target)} is {self.shown(target)}; expected {expected}")

    def text(self, attribute: str, default: str) -> str:
        """An attribute that our layout has of the file."""
        return str(self.file.attrs.get(attribute, default)) if self.is_ours else default

    def number(self, name: str, attribute: str, default: int) -> int:
        """A whole number that our layout keeps beside a group."""
        value = self.file[name].attrs.get(attribute, default) if self.is_ours else default
        if not isinstance(value, int | np.integer) or value < 0:
            raise DataError(f"{self.path}: attribute {attribute} of {name} is {value!r}; expected a whole number")
        return int(value)

    def tree(self, name: str, attribute: str) -> dict[str, Any]:
        """A JSON object that our layout keeps beside a group or a dataset; {} where there is none."""
        text = self.file[name].attrs.get(attribute, "{}") if self.is_ours else "{}"
        try:
            tree = json.loads(text)
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.path}: attribute {attribute} of {name} is not JSON: {error}") from error
        if not isinstance(tree, dict):
            raise DataError(f"{self.path}: attribute {attribute} of {name} is {tree!r}; expected a JSON object")
        return tree

    def _find(self, target: str) -> Any:
        found = _node(self.file, self.names[target])
        if not isinstance(found, h5py.Dataset):
            what = "is a group, not a dataset" if isinstance(found, h5py.Group) else "there is no such dataset"
            raise DataError(f"{self.path}: {self.said(target)}: {what}; the file holds {_listing(self.file)}")
        if not found.shape:
            raise DataError(f"{self.path}: {self.said(target)} is {_shown(found)}; expected a row for each item")
        return found


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file, as h5py has it; `DataError` for what is not HDF5."""
    try:
        with path.open("rb"):
            pass
        if not h5py.is_hdf5(path):
            raise DataError(f"{path}: not an HDF5 file")
        file = h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES, rdcc_nslots=CACHE_SLOTS)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error
    with file:
        yield file


def dataset_name(path: Path) -> str:
    """The dataset that a file says it holds; the file's own name for one that says nothing."""
    with opened(path) as file:
        return str(file.attrs.get("dataset", path.stem)) if layout.FORMAT_ATTRIBUTE in file.attrs else path.stem


def parse_names(options: Sequence[str]) -> dict[str, str]:
    """["image/teacher/features=feats", ...] as a mapping."""
    names: dict[str, str] = {}
    for option in options:
        target, equals, name = option.partition("=")
        if not (equals and target and name):
            raise ConfigError(f"--map {option}: expected TARGET=DATASET, such as image/teacher/features=feats")
        if target in names:
            raise ConfigError(f"--map {option}: another --map names {target}, {names[target]}")
        names[target] = name
    return names


def no_field(path: Path, file: Any, why: str) -> ConfigError:
    """The error for a file of which nobody says what its values are."""
    floats = [name for name, dataset in _datasets(file).items() if dataset.dtype.kind == "f" and dataset.ndim]
    example = f"--map image/teacher/features={(floats or ['DATASET'])[0]}"
    return ConfigError(
        f"{path} {why}; say with --map which dataset is what, such as {example}; it holds {_listing(file)}"
    )


def some(names: Sequence[str]) -> str:
    """The first of them."""
    more = f" and {len(names) - MOST_LISTED:,} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more


def _own_names(path: Path, file: Any) -> dict[str, str]:
    """Each dataset of a file in our layout, under its own name."""
    found = file.attrs.get(layout.FORMAT_ATTRIBUTE)
    if found is None:
        raise no_field(path, file, "was not written by `pipeline export`")
    if found != layout.FORMAT:
        raise DataError(f"{path}: layout {found}, this version of Precept reads layout {layout.FORMAT}")
    return {name: name for name in _datasets(file)}


def _check_target(target: str, where: str) -> None:
    first, *rest = target.split("/")
    is_column = first in MODALITIES and len(rest) == 1 and rest[0] in layout.COLUMNS
    is_field = first in MODALITIES and len(rest) == 2 and all(NAME.fullmatch(name) for name in rest)
    is_pairs = first == layout.PAIRS and len(rest) == 1 and rest[0] in layout.PAIR_KINDS
    if not (is_column or is_field or is_pairs):
        raise ConfigError(f"{where}: no such target; there are {KNOWN_TARGETS}")


def _datasets(file: Any) -> dict[str, Any]:
    """All datasets by name, in the order in which the file has them."""
    found: dict[str, Any] = {}
    seen = {_identity(file)}

    def visit(group: Any, prefix: str) -> None:
        for name in group:
            node = _node(group, name)
            if isinstance(node, h5py.Dataset):
                found[f"{prefix}{name}"] = node
            elif isinstance(node, h5py.Group) and _identity(node) not in seen:  # links may go round in a circle
                seen.add(_identity(node))
                visit(node, f"{prefix}{name}/")

    visit(file, "")
    return found


def _node(group: Any, name: str) -> Any:
    """The object of that name, None for a link to nothing."""
    try:
        return group.get(name)
    except (OSError, RuntimeError, ValueError):
        return None


def _identity(node: Any) -> tuple[int, int]:
    info = h5py.h5o.get_info(node.id)
    return info.fileno, info.addr


def _listing(file: Any) -> str:
    return some([f"{name} ({_shown(dataset)})" for name, dataset in _datasets(file).items()]) or "no dataset"


def _shown(dataset: Any) -> str:
    is_string = h5py.check_string_dtype(dataset.dtype) is not None
    return f"{'strings' if is_string else dataset.dtype} {list(dataset.shape or ())}"
