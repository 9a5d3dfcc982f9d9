"""Photographs with captions in Karpathy's JSON: COCO, Flickr8k and Flickr30k.

    {"images": [{"filename": "1.jpg", "filepath": "val2014", "split": "train", "imgid": 0,
                 "sentences": [{"raw": "A dog runs.", "language": "en"}, ...]}, ...]}

`filepath` and `language` are optional. COCO's split `restval` is training data (Karpathy and Fei-Fei 2015).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from contract.errors import DataError
from contract.manifest import SPLITS, UNKNOWN_SIZE, Manifest, items_table, pairs_table

SPLIT_NAMES = {"restval": "train", **{split: split for split in SPLITS}}


@dataclass(frozen=True, kw_only=True)
class Karpathy:
    """`annotations` and `images` are the file and folder names that are looked for under the data root, in order.

    `layout` says in words what the root should hold.
    """

    kind: Literal["karpathy"] = "karpathy"
    annotations: tuple[str, ...]
    images: tuple[str, ...]
    layout: str
    language: str = "en"

    def build(self, dataset: str, data_root: Path) -> Manifest:
        """Read the annotation file, find the photographs."""
        annotations = self._find_annotations(dataset, data_root)
        entries = [_Entry.read(entry, number, annotations) for number, entry in enumerate(_images(annotations))]
        folder = self._find_images(dataset, data_root, [entry.file for entry in entries])
        captions = [
            (row, number, caption, language)
            for row, entry in enumerate(entries)
            for number, (caption, language) in enumerate(entry.captions)
        ]
        images = items_table(
            {
                "id": [entry.id for entry in entries],
                "file": [str(folder / entry.file) for entry in entries],
                "split": [entry.split for entry in entries],
                "size_bytes": [_size_bytes(data_root / folder / entry.file) for entry in entries],
            }
        )
        texts = items_table(
            {
                "id": [f"{entries[row].id}#{number}" for row, number, _, _ in captions],
                "text": [caption for _, _, caption, _ in captions],
                "language": [language or self.language for _, _, _, language in captions],
                "split": [entries[row].split for row, _, _, _ in captions],
            }
        )
        pairs = pairs_table("image", "text", [(row, text) for text, (row, _, _, _) in enumerate(captions)])
        return Manifest(
            dataset=dataset,
            protocol=dataset,
            items={"image": images, "text": texts},
            pairs=dict([pairs]),
            media_root=str(data_root.resolve()),
        )

    def _find_annotations(self, dataset: str, data_root: Path) -> Path:
        found = [data_root / name for name in self.annotations if (data_root / name).is_file()]
        if found:
            return found[0]
        looked = ", ".join(str(data_root / name) for name in self.annotations)
        raise DataError(
            f"dataset {dataset} is not on disk: looked for {looked}; give its folder with --data-root DIR, "
            f"where DIR holds {self.layout}"
        )

    def _find_images(self, dataset: str, data_root: Path, files: list[PurePosixPath]) -> PurePosixPath:
        """The folder, relative to the root, that holds the most of the photographs."""
        counts = {
            name: sum((data_root / name / file).is_file() for file in files)
            for name in self.images
            if (data_root / name).is_dir()
        }
        if files and not any(counts.values()):
            looked = ", ".join(str(data_root / name / files[0]) for name in self.images)
            raise DataError(
                f"dataset {dataset}: none of its {len(files):,} photographs is there: looked for {looked}"
            )
        return PurePosixPath(max(counts, key=counts.__getitem__, default="."))


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One photograph of the annotation file."""

    id: str
    file: PurePosixPath
    split: str
    captions: list[tuple[str, str]]

    @classmethod
    def read(cls, entry: Any, number: int, source: Path) -> _Entry:
        try:
            file = PurePosixPath(entry.get("filepath") or "", entry["filename"])
            split = SPLIT_NAMES[entry["split"]]
            captions = [
                (sentence["raw"].strip(), sentence.get("language", "").strip()) for sentence in entry["sentences"]
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{source}: images[{number}] is not as it should be ({error!r}): each needs `filename`, a `split` "
                f"of {', '.join(SPLIT_NAMES)}, and `sentences`, each with `raw`"
            ) from error
        if file.is_absolute() or ".." in file.parts:
            raise DataError(f"{source}: images[{number}]: {file} points out of the data root")
        return cls(id=str(file.with_suffix("")), file=file, split=split, captions=captions)


def _images(annotations: Path) -> list[Mapping[str, Any]]:
    try:
        images = json.loads(annotations.read_text(encoding="utf-8"))["images"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{annotations}: not Karpathy's JSON, an object with a list `images`: {error!r}") from error
    if not isinstance(images, list) or not images:
        raise DataError(f"{annotations}: its list `images` is empty")
    return images


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return UNKNOWN_SIZE
