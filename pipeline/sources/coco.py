"""Photographs with captions as COCO publishes them, and captions of the same photographs in other languages.

    {"images": [{"id": 391895, "file_name": "COCO_val2014_000000391895.jpg", ...}, ...],
     "annotations": [{"image_id": 391895, "id": 770337, "caption": "A man with a red helmet ..."}, ...]}

An image's id is its folder and name, `val2014/COCO_val2014_000000391895`, as in Karpathy's splits of 2014's images.
Those of 2017 are the same photographs under other names, `val2017/000000391895`: the last twelve digits agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path, PurePosixPath
from posixpath import basename, join
from typing import TYPE_CHECKING, Any, Literal

from contract.errors import DataError
from pipeline.sources.files import check_inside, fullest_folder, not_on_disk, relative
from pipeline.sources.samples import Caption, Sample, add_samples, caption

if TYPE_CHECKING:
    from pipeline.building import ManifestBuilder


@dataclass(frozen=True, kw_only=True)
class CaptionFile:
    """A file of captions, and the folder of its images: the first of `files`, the fullest of `images`."""

    files: tuple[str, ...]
    images: tuple[str, ...]
    split: Literal["train", "val", "test"]
    language: str = "en"


@dataclass(frozen=True, kw_only=True)
class CocoCaptions:
    """`annotations` that are not on disk are left out, and said, as long as one is there.

    Those that name the same images, such as in another language, add captions to them. `layout` says in words what
    the root should hold.
    """

    kind: Literal["coco_captions"] = "coco_captions"
    annotations: tuple[CaptionFile, ...]
    layout: str

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Images in the order of the files, captions in that of their numbers."""
        samples: dict[str, Sample] = {}
        for file in self.annotations:
            found = [name for name in file.files if (root / name).is_file()]
            if not found:
                builder.note(f"{builder.dataset}: no {' or '.join(file.files)}: left out")
                continue
            check_inside(root, found[0])
            for sample in _read(builder.dataset, root, found[0], file):
                samples[sample.id] = _joined(samples.get(sample.id), sample, root / found[0])
        if not samples:
            looked_for = [name for file in self.annotations for name in file.files]
            raise not_on_disk(builder.dataset, root, looked_for, self.layout)
        add_samples(builder, "image", samples.values())


def _read(dataset: str, root: Path, name: str, settings: CaptionFile) -> Iterator[Sample]:
    """The images of a file of captions, each with its captions."""
    content = _load(root / name)
    files = [_file(image, f"{root / name}: images[{number}]") for number, image in enumerate(content["images"])]
    captions: dict[Any, list[tuple[int, Caption]]] = {image["id"]: [] for image in content["images"]}
    if len(captions) < len(files):
        raise DataError(f"{root / name}: {len(files) - len(captions)} of its images have the `id` of another")
    for number, annotation in enumerate(content["annotations"]):
        place = f"{root / name}: annotations[{number}]"
        try:
            said = caption(annotation["caption"], settings.language, place)
            captions[annotation["image_id"]].append((int(annotation["id"]), said))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{place} is not as it should be ({error!r}): each needs `caption`, a number as `id`, and the `id` "
                "of an image as `image_id`"
            ) from error
    folder = fullest_folder(dataset, root, settings.images, files)
    for image, file in zip(content["images"], files, strict=True):
        yield Sample(
            id=relative(join(basename(folder), str(PurePosixPath(file).with_suffix(""))), file),
            file=relative(join(folder, file), file),
            split=settings.split,
            captions=[said for _, said in sorted(captions[image["id"]], key=itemgetter(0))],
        )


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not COCO's JSON: {error!r}") from error
    for name in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list) or not content[name]:
            raise DataError(f"{path}: not COCO's JSON, an object with the lists `images` and `annotations`")
    return dict(content)


def _file(image: Any, place: str) -> str:
    """The image's file, relative to the folder of the images."""
    try:
        hash(image["id"])
        return relative(image["file_name"], place)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{place} is not as it should be ({error!r}): each needs `id` and `file_name`") from error


def _joined(known: Sample | None, sample: Sample, source: Path) -> Sample:
    """The image with the captions of both."""
    if known is None:
        return sample
    if (known.file, known.split) != (sample.file, sample.split):
        raise DataError(
            f"{source}: {sample.file} is {sample.split} here, and {known.file} is {known.split} in a file before"
        )
    return replace(known, captions=[*known.captions, *sample.captions])
