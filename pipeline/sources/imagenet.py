"""ImageNet (ILSVRC 2012) as it is unpacked: a folder of each class for training, and validation in such or in one.

    train/n01440764/n01440764_10026.JPEG
    val/n01440764/ILSVRC2012_val_00000293.JPEG   or   val/ILSVRC2012_val_00000293.JPEG

Labels are in ImageNet-1K's order, which is that of its wnids, sorted; other wnids (ImageNet-21K's) are sorted too.
For validation images in one folder they come from one of

    LOC_val_solution.csv                                ImageId,PredictionString: its first word is the wnid
    ..._validation_ground_truth.txt, map_clsloc.txt     of the development kit: a number a line, and whose it is
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from contract.errors import DataError
from pipeline.sources.classes import Classes
from pipeline.sources.files import IMAGE_SUFFIXES, check_inside, first_file, not_on_disk, walk
from pipeline.sources.image_folder import class_names, prefix
from pipeline.sources.rows import lines, read_rows
from pipeline.sources.samples import Sample, add_samples

if TYPE_CHECKING:
    from pipeline.building import ManifestBuilder


@dataclass(frozen=True, kw_only=True)
class ImageNet:
    """`train`, `val` and `val_labels` are folders and files that are looked for under the data root, in order.

    The hundred thousand test images have no labels and are not read.
    """

    kind: Literal["imagenet"] = "imagenet"
    train: tuple[str, ...]
    val: tuple[str, ...]
    val_labels: tuple[str, ...]

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Walk both folders in the order of their names."""
        folders = {
            split: folder
            for split, names in (("train", self.train), ("val", self.val))
            for folder in [name for name in names if (root / name).is_dir()][:1]
        }
        if not folders:
            layout = "train/ and val/, with a folder of each class in them"
            raise not_on_disk(builder.dataset, root, [*self.train, *self.val], layout)
        for folder in folders.values():
            check_inside(root, folder)
        named = {split: class_names(root, [folder]) for split, folder in folders.items()}
        is_flat = "val" in folders and not named["val"]
        wnids = self._val_wnids(builder.dataset, root) if is_flat else {}
        classes = Classes(_in_order({*wnids.values()}.union(*named.values())))
        add_samples(builder, "image", _samples(root, folders, classes, wnids))
        builder.num_classes = classes.num

    def _val_wnids(self, dataset: str, root: Path) -> Mapping[str, str]:
        """The wnid of each validation image, by its file's name without the suffix."""
        layout = (
            f"the labels of the validation images, which lie in one folder: one of {', '.join(self.val_labels)}"
        )
        file = first_file(dataset, root, self.val_labels, layout)
        return _solution(file) if file.suffix == ".csv" else _ground_truth(file)


def _samples(
    root: Path, folders: Mapping[str, str], classes: Classes, val_wnids: Mapping[str, str]
) -> Iterator[Sample]:
    for split, folder in folders.items():
        for file in walk(root, folder, IMAGE_SUFFIXES):
            name, is_in_folder, _ = file[len(prefix(folder)) :].partition("/")
            stem = PurePosixPath(file).stem
            wnid = name if is_in_folder else val_wnids.get(stem)
            if wnid is None:
                raise DataError(f"{root / file}: it is in no class's folder, and no list says its class")
            # The same whether validation images lie in folders or not: ImageNet's file names are unique.
            yield Sample(id=f"{split}/{stem}", file=file, split=split, label=classes.number(wnid, file))


def _in_order(wnids: Set[str]) -> Sequence[str]:
    """ImageNet-1K's thousand if these are among them, so that a part has the whole's numbers; or these, sorted."""
    from timm.data import ImageNetInfo

    known = ImageNetInfo("imagenet-1k").label_names()
    return known if wnids <= set(known) else sorted(wnids)


def _solution(file: Path) -> dict[str, str]:
    wnids = {}
    for place, row in read_rows(file, ["ImageId", "PredictionString"]):
        words = row["PredictionString"].split()
        if not words:
            raise DataError(f"{place}: `PredictionString` is empty")
        wnids[row["ImageId"].strip()] = words[0]
    return wnids


def _ground_truth(file: Path) -> dict[str, str]:
    mapped = file.with_name("map_clsloc.txt")
    if not mapped.is_file():
        raise DataError(
            f"{mapped}: not there, and the numbers in {file.name} are not in the wnids' order; it comes with the "
            "development kits from 2013 on; or put LOC_val_solution.csv in the data root"
        )
    # n02119789 1 kit_fox
    words = [line.split() for _, line in lines(mapped)]
    wnids = {numbered[1]: numbered[0] for numbered in words if len(numbered) > 1}
    found = {}
    for number, (place, line) in enumerate(lines(file), start=1):
        if line.strip() not in wnids:
            raise DataError(f"{place}: {line.strip()!r} is none of the {len(wnids):,} numbers in {mapped.name}")
        found[f"ILSVRC2012_val_{number:08d}"] = wnids[line.strip()]
    return found
