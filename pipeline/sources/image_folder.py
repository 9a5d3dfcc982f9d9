"""Any folder of images, in one of three layouts.

    train/dog/a.jpg     splits: folders called train, val, valid, validation, dev or test, of classes or images
    dog/a.jpg           classes: two folders or more that hold images
    a.jpg               flat: anything else; no labels

The layout is the first of these that fits. The folder right below the split, or the root, is the class; an image
that is in none has no label. Classes are numbered in the order of their names, as by torchvision, over all splits.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import join
from typing import TYPE_CHECKING, Literal

from contract.errors import DataError
from contract.tables import NO_LABEL
from pipeline.sources.classes import Classes
from pipeline.sources.files import (
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    HashedSplit,
    check_inside,
    not_on_disk,
    relative,
    walk,
)
from pipeline.sources.samples import Sample, add_samples

if TYPE_CHECKING:
    from pipeline.building import ManifestBuilder


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """The images in `folder`, which lies under the data root, in the `layout` that is named, or that fits.

    `split` sets shares of the training images aside: of all images in a folder without splits. `classes` is a text
    file under the root with the names of the class folders, one a line, in the order of their numbers.
    """

    kind: Literal["image_folder"] = "image_folder"
    folder: str = "."
    layout: Literal["auto", "splits", "classes", "flat"] = "auto"
    split: HashedSplit = field(default_factory=HashedSplit)
    classes: str = ""

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Walk the folders in the order of their names."""
        if not (root / self.folder).is_dir():
            layout = "images, in folders by split, by class or in none"
            raise not_on_disk(builder.dataset, root, [self.folder], layout)
        check_inside(root, self.folder)
        splits = self._splits(root)
        classes = self._classes(root, list(splits))
        others: Counter[str] = Counter()
        add_samples(builder, "image", self._samples(root, splits, classes, others))
        if not builder.num_rows("image"):
            raise DataError(f"{root / self.folder}: no image in it; there are: {_counts(others) or 'no files'}")
        builder.num_classes = classes.num
        if others:
            builder.note(
                f"{root / self.folder}: {others.total():,} files are no images by their suffix and are left out: "
                f"{_counts(others)}"
            )

    def _splits(self, root: Path) -> Mapping[str, str]:
        """The folders to walk, relative to the root, and the split that each is."""
        names = sorted(path.name for path in (root / self.folder).iterdir() if not path.name.startswith("."))
        splits = {
            name: SPLIT_NAMES[name.lower()]
            for name in names
            if name.lower() in SPLIT_NAMES and (root / self.folder / name).is_dir()
        }
        if self.layout in ("classes", "flat") or (self.layout == "auto" and not splits):
            return {self.folder: "train"}
        if not splits:
            raise DataError(f"{root / self.folder}: no folder of a split in it; there are: {', '.join(names)}")
        for name in names if self.layout == "auto" else ():
            if name not in splits and _holds_image(root, join(self.folder, name)):
                raise DataError(
                    f"{root / self.folder}: {name} is or holds an image, beside the splits {', '.join(splits)}; "
                    "`layout: splits` under `source` leaves it out, `layout: classes` says that these are no splits"
                )
        return {join(self.folder, name): split for name, split in splits.items()}

    def _classes(self, root: Path, folders: Sequence[str]) -> Classes:
        """The classes of the folders in these; none where that is not what they are."""
        if self.layout == "flat":
            return Classes()
        if self.classes:
            return Classes.read(root, self.classes)
        names = class_names(root, folders)
        return Classes(names if len(names) > 1 or self.layout == "classes" else ())

    def _samples(
        self, root: Path, splits: Mapping[str, str], classes: Classes, others: Counter[str]
    ) -> Iterator[Sample]:
        top = len(prefix(self.folder))
        for folder, split in splits.items():
            start = len(prefix(folder))
            for file in walk(root, folder, IMAGE_SUFFIXES, others):
                name, is_in_folder, _ = file[start:].partition("/")
                yield Sample(
                    id=file[top:],
                    file=file,
                    split=self.split.of(file[top:]) if split == "train" else split,
                    label=classes.number(name, file) if is_in_folder and classes.num else NO_LABEL,
                )


def class_names(root: Path, folders: Sequence[str]) -> list[str]:
    """The names of the folders right below these that hold an image, sorted."""
    names: set[str] = set()
    for folder in folders:
        with os.scandir(root / folder) as entries:
            below = {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}
        names |= {name for name in below - names if _holds_image(root, join(folder, name))}
    return sorted(names)


def prefix(folder: str) -> str:
    """What the paths of the files in a folder start with."""
    return "" if folder == "." else f"{relative(folder, folder)}/"


def _holds_image(root: Path, path: str) -> bool:
    """Whether it is an image, or a folder with one anywhere in it."""
    if (root / path).is_dir():
        return next(walk(root, path, IMAGE_SUFFIXES), None) is not None
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def _counts(others: Counter[str]) -> str:
    return ", ".join(f"{number:,} {suffix or 'without a suffix'}" for suffix, number in sorted(others.items()))
