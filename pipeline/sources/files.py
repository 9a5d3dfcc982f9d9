"""The files of a dataset: paths that stay under the data root, sizes, folders walked in order, and splits.

relative("./a//b.jpg", "captions.csv: line 7")      "a/b.jpg"; DataError for what leaves the root
Files(root).sizes(["a/b.jpg", ...])                 bytes, UNKNOWN_SIZE for a file that is not there
walk(root, "images", IMAGE_SUFFIXES)                "images/a.jpg", "images/b/c.png", ... sorted, as they are found
split_named("validation", "captions.csv: line 7")   "val"
HashedSplit(val=0.05).of("a/b.jpg")                 the same for the same id, wherever the dataset lies
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from contract.errors import ConfigError, DataError
from contract.manifest import UNKNOWN_SIZE

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def relative(path: str, place: str) -> str:
    """The path in its shortest form, with `/`; `DataError` that names `place` if it can't lie under the root."""
    parts = path.split("/")
    if path.startswith("/") or ".." in parts:
        raise DataError(f"{place}: {path!r} points out of the data root; paths are relative to it")
    if "" in parts or "." in parts:
        path = "/".join(part for part in parts if part not in ("", "."))
    if not path or "\0" in path or not is_unicode(path):
        raise DataError(f"{place}: {path!r} is not the name of a file: it is empty or not UTF-8")
    return path


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8: JSON's `\\ud800`, and file names in other encodings, can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Files:
    """The files under a data root, none of them behind a folder that is a link out of it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._inside: set[str] = set()

    def sizes(self, files: Sequence[str]) -> list[int]:
        """The size of each in bytes, `UNKNOWN_SIZE` where there is no such file."""
        for folder in {os.path.dirname(file) for file in files} - self._inside:  # noqa: PTH120 - ten times faster
            check_inside(self._root, folder)
            self._inside.add(folder)
        sizes = {file: _size(f"{self._root}/{file}") for file in set(files)}
        return [sizes[file] for file in files]


def check_inside(root: Path, path: str) -> None:
    """Raise `DataError` if following links from `path`, relative to the root, leaves the root."""
    target = (root / path).resolve()
    if not target.is_relative_to(root.resolve()):
        raise DataError(
            f"{root / path} is a link out of the data root, to {target}; give a folder that holds both as "
            "--data-root, or put the files there themselves"
        )


def walk(root: Path, folder: str, suffixes: Collection[str], others: Counter[str] | None = None) -> Iterator[str]:
    """Every file under `folder` with one of these lower-case suffixes, relative to the root, sorted by name.

    Those with other suffixes are counted in `others`, by suffix; names that start with a dot are left out, as
    everywhere. A folder that is a link is an error: it leads out of the root, or its files would be there twice.
    """
    with os.scandir(root / folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        path = f"{folder}/{entry.name}" if folder not in ("", ".") else entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.is_symlink():
                check_inside(root, path)
                raise DataError(f"{root / path} is a link to a folder; remove it, or its files are there twice")
            yield from walk(root, path, suffixes, others)
            continue
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - ten times faster
        if suffix in suffixes:
            yield relative(path, str(root))
        elif others is not None:
            others[suffix] += 1


def first_file(dataset: str, root: Path, names: Sequence[str], layout: str) -> Path:
    """The first of these files that is there; `layout` says in words what the root should hold."""
    for name in names:
        if (root / name).is_file():
            check_inside(root, name)
            return root / name
    raise not_on_disk(dataset, root, names, layout)


def fullest_folder(dataset: str, root: Path, folders: Sequence[str], files: Sequence[str]) -> str:
    """The one of `folders` that holds the most of `files`; `DataError` if none holds any."""
    counts = {
        folder: sum((root / folder / file).is_file() for file in files)
        for folder in folders
        if (root / folder).is_dir()
    }
    if files and not any(counts.values()):
        looked = ", ".join(str(root / folder / files[0]) for folder in folders)
        raise DataError(f"dataset {dataset}: none of its {len(files):,} files is there: looked for {looked}")
    return max(counts, key=counts.__getitem__, default=".")


def not_on_disk(dataset: str, root: Path, names: Sequence[str], layout: str) -> DataError:
    """The error for a dataset of which none of these files or folders is there."""
    looked = ", ".join(str(root / name) for name in names)
    return DataError(
        f"dataset {dataset} is not on disk: looked for {looked}; give its folder with --data-root DIR, "
        f"where DIR holds {layout}"
    )


def split_named(name: object, place: str) -> str:
    """The split that a folder or a column calls by one of its usual names."""
    split = SPLIT_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if split is None:
        raise DataError(f"{place}: {name!r} is not a split; there are: {', '.join(SPLIT_NAMES)}")
    return split


@dataclass(frozen=True, kw_only=True)
class HashedSplit:
    """Shares of a dataset that are set aside for validation and for testing; the rest is training data.

    An item's split follows from its id alone: it stays when others are added, and when the dataset is moved.
    """

    val: float = 0.0
    test: float = 0.0

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test <= 1):
            raise ConfigError(f"split: val {self.val} and test {self.test} are not shares of a whole")

    def of(self, id_: str) -> str:
        """The split of the item of that id."""
        place = int.from_bytes(blake2b(id_.encode(), digest_size=8).digest(), "big") / 2**64
        return "val" if place < self.val else "test" if place < self.val + self.test else "train"


def _size(path: str) -> int:
    try:
        found = os.stat(path)  # noqa: PTH116 - ten times faster
    except OSError:
        return UNKNOWN_SIZE
    return found.st_size if stat.S_ISREG(found.st_mode) else UNKNOWN_SIZE
