"""CIFAR-10 and CIFAR-100: the binary batches, the pickled ones (nothing but arrays is unpickled), or an .npz.

    cifar-10-batches-bin/   data_batch_1.bin ... data_batch_5.bin, test_batch.bin
    cifar-100-binary/       train.bin, test.bin
    cifar-10-batches-py/    data_batch_1 ... data_batch_5, test_batch
    cifar-100-python/       train, test
    cifar10.npz             x_train uint8 [n, 32, 32, 3], y_train [n], x_test, y_test

Whichever is there, image n of the training set is `train/00000n`, and the labels are the fine ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from posixpath import join
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeInt

from contract.errors import ConfigError, DataError
from contract.parts import arrays, cifar
from contract.undecodable import UndecodableError
from pipeline.sources.files import check_inside, not_on_disk, relative
from pipeline.sources.samples import Sample, add_samples

if TYPE_CHECKING:
    from pipeline.building import ManifestBuilder

Labels = npt.NDArray[np.int64]
BATCHES = [f"data_batch_{number}" for number in range(1, 6)]


class _Form(NamedTuple):
    """A form of the dataset: its folder, the `part` of its images, and the files of its splits."""

    folder: str
    part: str
    train: Sequence[str]
    test: Sequence[str]


FORMS = {
    10: (
        _Form("cifar-10-batches-bin", "cifar:{row}", [f"{name}.bin" for name in BATCHES], ["test_batch.bin"]),
        _Form("cifar-10-batches-py", "cifar-pickle:{row}", BATCHES, ["test_batch"]),
        _Form(".", "npz:x_{split}[{row}]", ["cifar10.npz"], ["cifar10.npz"]),
    ),
    100: (
        _Form("cifar-100-binary", "cifar:{row}", ["train.bin"], ["test.bin"]),
        _Form("cifar-100-python", "cifar-pickle:{row}", ["train"], ["test"]),
        _Form(".", "npz:x_{split}[{row}]", ["cifar100.npz"], ["cifar100.npz"]),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """The first of the forms that is on disk, under the data root or in its usual folder.

    `num_val` training images are set aside for validation: the last ones of each class, equally many.
    """

    kind: Literal["cifar"] = "cifar"
    num_classes: Literal[10, 100]
    num_val: NonNegativeInt = 0

    def __post_init__(self) -> None:
        """Refuse a number that the classes don't share equally."""
        if self.num_val % self.num_classes:
            raise ConfigError(f"source: num_val {self.num_val} is not a multiple of the {self.num_classes} classes")

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Training images first, in the order of the batches."""
        form = self._find(builder.dataset, root)
        builder.num_classes = self.num_classes
        add_samples(builder, "image", self._samples(form, root))

    def _find(self, dataset: str, root: Path) -> _Form:
        """The form that is there, with its folder as it lies under the root."""
        for form in FORMS[self.num_classes]:
            for folder in (form.folder, "."):
                files = [join(folder, name) for name in {*form.train, *form.test}]
                there = [file for file in files if (root / file).is_file()]
                if there and len(there) < len(files):
                    missing = min(set(files) - set(there))
                    raise DataError(
                        f"dataset {dataset}: {root / missing} is missing, though {root / there[0]} is there"
                    )
                if there:
                    check_inside(root, folder)
                    return form._replace(folder=folder)
        looked_for = [join(form.folder, form.train[0]) for form in FORMS[self.num_classes]]
        raise not_on_disk(dataset, root, looked_for, f"one of the forms of CIFAR-{self.num_classes}")

    def _samples(self, form: _Form, root: Path) -> Iterator[Sample]:
        for split, files in (("train", form.train), ("test", form.test)):
            labels = [self._labels(root / form.folder / file, split) for file in files]
            is_val = self._is_val(np.concatenate(labels), split)
            number = 0
            for file, of_file in zip(files, labels, strict=True):
                for row, label in enumerate(of_file.tolist()):
                    yield Sample(
                        id=f"{split}/{number:05d}",
                        file=relative(join(form.folder, file), file),
                        part=form.part.format(split=split, row=row),
                        split="val" if is_val[number] else split,
                        label=label,
                    )
                    number += 1

    def _is_val(self, labels: Labels, split: str) -> npt.NDArray[np.bool_]:
        """Which of the images are set aside, bool [n]."""
        is_val = np.zeros(len(labels), bool)
        per_class = self.num_val // self.num_classes if split == "train" else 0
        for label in range(self.num_classes if per_class else 0):
            rows = np.flatnonzero(labels == label)
            if len(rows) < per_class:
                raise DataError(
                    f"num_val {self.num_val}: there are only {len(rows)} training images of class {label}"
                )
            is_val[rows[-per_class:]] = True
        return is_val

    def _labels(self, file: Path, split: str) -> Labels:
        """The labels of a file's images, int64 [n]."""
        try:
            if file.suffix == ".npz":
                labels = self._npz_labels(file, split)
            else:
                labels = cifar.labels(file)["labels" if self.num_classes == 10 else "fine_labels"]
        except (UndecodableError, KeyError, ValueError) as error:
            raise DataError(f"{file}: not a file of CIFAR-{self.num_classes}: {error}") from error
        if len(labels) and not (labels.min() >= 0 and labels.max() < self.num_classes):
            raise DataError(
                f"{file}: it has labels from {labels.min()} to {labels.max()}, not {self.num_classes} classes"
            )
        return labels

    def _npz_labels(self, file: Path, split: str) -> Labels:
        pixels, labels = arrays.load(file, f"x_{split}"), arrays.load(file, f"y_{split}").reshape(-1)
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (32, 32, 3):
            raise ValueError(f"x_{split} is {pixels.dtype} {list(pixels.shape)}, not uint8 [n, 32, 32, 3]")
        if labels.dtype.kind not in "iu" or len(labels) != len(pixels):
            raise ValueError(f"it has {len(pixels):,} {split} images and {len(labels):,} labels, {labels.dtype}")
        if "classes" in arrays.names(file) and len(arrays.load(file, "classes")) != self.num_classes:
            raise ValueError(f"it names {len(arrays.load(file, 'classes'))} classes, not {self.num_classes}")
        return labels.astype(np.int64)
