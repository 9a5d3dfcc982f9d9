"""ESC-50 and ESC-10: environmental sounds of five seconds in 50 or 10 classes and five folds (Piczak 2015).

    meta/esc50.csv    filename,fold,target,category,esc10,src_file,take
    audio/            1-100032-A-0.wav, ...

ESC-10 is the rows of ESC-50 with `esc10`, or a CSV of its own. The protocol is the mean over five runs, each of
which tests on one fold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from posixpath import join
from typing import TYPE_CHECKING, Literal

from contract.errors import ConfigError, DataError
from pipeline.sources.classes import Classes
from pipeline.sources.files import first_file, fullest_folder, relative
from pipeline.sources.rows import read_rows
from pipeline.sources.samples import Sample, add_samples

if TYPE_CHECKING:
    from pipeline.building import ManifestBuilder

Fold = Literal[1, 2, 3, 4, 5]

ESC50 = ("meta/esc50.csv", "esc50.csv")
ANNOTATIONS = {"esc50": ESC50, "esc10": ("meta/esc10.csv", "esc10.csv", *ESC50)}
FOLDERS = ("audio", ".")
# The classes of ESC-50 that are ESC-10, in the order of their numbers: there they are 0 to 9.
ESC10_TARGETS = ("0", "1", "10", "11", "12", "20", "21", "38", "40", "41")


@dataclass(frozen=True, kw_only=True)
class Esc:
    """The fold `test_fold` is the test split, `val_fold` the validation split, and the others are for training."""

    kind: Literal["esc"] = "esc"
    subset: Literal["esc50", "esc10"]
    test_fold: Fold = 5
    val_fold: Fold | None = None

    def __post_init__(self) -> None:
        """Refuse one fold for two splits."""
        if self.test_fold == self.val_fold:
            raise ConfigError(f"source: test_fold and val_fold are both {self.test_fold}")

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Read the CSV, find the sounds."""
        annotations = first_file(
            builder.dataset,
            root,
            ANNOTATIONS[self.subset],
            f"{ANNOTATIONS[self.subset][0]} and the sounds in audio/",
        )
        folds: Counter[str] = Counter()
        samples = list(self._samples(annotations, folds))
        folder = fullest_folder(builder.dataset, root, FOLDERS, [sample.file for sample in samples])
        add_samples(builder, "audio", (_in_folder(sample, folder) for sample in samples))
        builder.num_classes = 50 if self.subset == "esc50" else 10
        absent = [str(fold) for fold in (self.test_fold, self.val_fold) if fold and str(fold) not in folds]
        if absent:
            builder.note(
                f"{annotations}: has no sound in fold {' or '.join(absent)}, which is set aside; its folds are "
                f"{', '.join(sorted(folds))}: see `test_fold` and `val_fold`"
            )

    def _samples(self, annotations: Path, folds: Counter[str]) -> Iterator[Sample]:
        """A sample for each row, its file relative to the folder of the sounds."""
        within_esc50 = self.subset == "esc10" and annotations.name == "esc50.csv"
        classes = Classes(ESC10_TARGETS) if within_esc50 else Classes(num=50 if self.subset == "esc50" else 10)
        splits = {str(self.val_fold): "val", str(self.test_fold): "test"}
        columns = ["filename", "fold", "target", *(["esc10"] if within_esc50 else [])]
        for place, row in read_rows(annotations, columns):
            if within_esc50 and not _is_true(row["esc10"], place):
                continue
            fold = row["fold"].strip()
            if fold not in ("1", "2", "3", "4", "5"):
                raise DataError(f"{place}: fold {fold!r} is none of 1 to 5")
            folds[fold] += 1
            file = relative(row["filename"].strip(), place)
            label = classes.number(row["target"], place)
            yield Sample(id=PurePosixPath(file).stem, file=file, split=splits.get(fold, "train"), label=label)


def _in_folder(sample: Sample, folder: str) -> Sample:
    return replace(sample, file=relative(join(folder, sample.file), sample.file))


def _is_true(value: str, place: str) -> bool:
    # Spreadsheets write capitals.
    if value.strip().lower() not in ("true", "false"):
        raise DataError(f"{place}: esc10 {value!r} is neither True nor False")
    return value.strip().lower() == "true"
