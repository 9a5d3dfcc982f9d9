"""Photographs with captions in Karpathy's JSON: COCO, Flickr8k and Flickr30k.

    {"images": [{"filename": "1.jpg", "filepath": "val2014", "split": "train", "imgid": 0,
                 "sentences": [{"raw": "A dog runs.", "language": "en"}, ...]}, ...]}

`filepath` and `language` are optional. COCO's split `restval` is training data (Karpathy and Fei-Fei 2015).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from posixpath import join
from typing import TYPE_CHECKING, Any, Literal

from contract.errors import DataError
from contract.manifest import SPLITS
from pipeline.sources.files import first_file, fullest_folder, relative
from pipeline.sources.samples import Sample, add_samples, caption

if TYPE_CHECKING:
    from pipeline.building import ManifestBuilder

SPLIT_NAMES = {"restval": "train", **{split: split for split in SPLITS}}


@dataclass(frozen=True, kw_only=True)
class Karpathy:
    """`annotations` and `images` are the file and folder names that are looked for under the data root, in order.

    `layout` says in words what the root should hold. If no photograph is there by its name, they are looked for in
    the folders `numbered` by the last twelve digits of it, which is what COCO calls those of 2014 in 2017.
    """

    kind: Literal["karpathy"] = "karpathy"
    annotations: tuple[str, ...]
    images: tuple[str, ...]
    layout: str
    numbered: tuple[str, ...] = ()
    language: str = "en"

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Read the annotation file, find the photographs."""
        annotations = first_file(builder.dataset, root, self.annotations, self.layout)
        samples = [
            self._sample(entry, f"{annotations}: images[{number}]")
            for number, entry in enumerate(_images(annotations))
        ]
        files = self._find(builder.dataset, root, [sample.file for sample in samples])
        add_samples(builder, "image", (replace(s, file=file) for s, file in zip(samples, files, strict=True)))

    def _find(self, dataset: str, root: Path, files: Sequence[str]) -> Iterator[str]:
        """The files relative to the root."""
        numbered = {
            path.name: join(folder, path.name)
            for folder in self.numbered
            if (root / folder).is_dir()
            for path in (root / folder).iterdir()
        }
        if numbered and not any((root / folder / file).is_file() for folder in self.images for file in files):
            return (numbered.get(file[-len("000000391895.jpg") :], file) for file in files)
        folder = fullest_folder(dataset, root, self.images, files)
        return (relative(join(folder, file), file) for file in files)

    def _sample(self, entry: Any, place: str) -> Sample:
        """One photograph of the annotation file; its file is relative to the folder of the photographs."""
        try:
            file = relative(join(entry.get("filepath") or "", entry["filename"]), place)
            split = SPLIT_NAMES[entry["split"]]
            sentences = [(sentence["raw"], sentence.get("language", "").strip()) for sentence in entry["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{place} is not as it should be ({error!r}): each needs `filename`, a `split` "
                f"of {', '.join(SPLIT_NAMES)}, and `sentences`, each with `raw`"
            ) from error
        captions = [caption(text, language or self.language, place) for text, language in sentences]
        return Sample(id=str(PurePosixPath(file).with_suffix("")), file=file, split=split, captions=captions)


def _images(annotations: Path) -> list[Mapping[str, Any]]:
    try:
        images = json.loads(annotations.read_text(encoding="utf-8-sig"))["images"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{annotations}: not Karpathy's JSON, an object with a list `images`: {error!r}") from error
    if not isinstance(images, list) or not images:
        raise DataError(f"{annotations}: its list `images` is empty")
    return images
