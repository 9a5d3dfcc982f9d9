"""Flickr8k and Flickr30k as their authors publish them: one file of captions, a list of images for each split.

    Flickr8k.token.txt, results_20130124.token     1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress ...
    results.csv                                    1000092795.jpg| 0| Two young guys ...
    captions.txt                                   1000268201_693b08cb0e.jpg,A child in a pink dress ...

The list of a split, such as Flickr_8k.trainImages.txt, has a file name, with or without `.jpg`, in each line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from posixpath import join
from typing import TYPE_CHECKING, Literal

from contract.errors import DataError
from pipeline.sources.files import first_file, fullest_folder, relative
from pipeline.sources.rows import lines, read_rows
from pipeline.sources.samples import Caption, Sample, add_samples, caption

if TYPE_CHECKING:
    from pipeline.building import ManifestBuilder

# A line of results.csv lacks its second bar: "2199200615.jpg| 4   A dog runs across the grass ."
LINE = re.compile(r"(?P<image>[^#|\t]+)(?:#|\| *)(?P<number>\d+)(?: *\| *|\s+)(?P<text>.*)")


@dataclass(frozen=True, kw_only=True)
class Flickr:
    """`captions`, `images` and, by split, `splits` are names that are looked for under the data root, in order.

    Captions of images in no list are left out, and said.
    """

    kind: Literal["flickr"] = "flickr"
    captions: tuple[str, ...]
    images: tuple[str, ...]
    splits: dict[Literal["train", "val", "test"], tuple[str, ...]]
    layout: str
    language: str = "en"

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Images in the order of the lists."""
        file = first_file(builder.dataset, root, self.captions, self.layout)
        captions: dict[str, list[Caption]] = {}
        for place, image, text in _lines(file):
            captions.setdefault(_name(image), []).append(caption(text, self.language, place))
        samples: dict[str, Sample] = {}
        for split, names in self.splits.items():
            for place, line in lines(first_file(builder.dataset, root, names, self.layout)):
                name = _name(line)
                if name in samples:
                    raise DataError(f"{place}: {name} stands in a list before")
                image = relative(f"{name}.jpg", place)
                samples[name] = Sample(id=name, file=image, split=split, captions=captions.pop(name, ()))
        if captions:
            builder.note(f"{file}: {len(captions):,} images are in no split: left out, the first {min(captions)!r}")
        folder = fullest_folder(builder.dataset, root, self.images, [sample.file for sample in samples.values()])
        add_samples(
            builder, "image", (replace(s, file=relative(join(folder, s.file), s.id)) for s in samples.values())
        )


def _lines(file: Path) -> Iterator[tuple[str, str, str]]:
    """The place, the image and the text of each caption, in the file's order."""
    place, first = next(lines(file), ("", ""))
    if first.replace(" ", "") == "image,caption":
        for place, row in read_rows(file, ["image", "caption"], delimiter=","):
            yield place, row["image"], row["caption"]
        return
    is_bar = first.startswith("image_name|")
    for place, line in islice(lines(file), int(is_bar), None):
        found = LINE.fullmatch(line)
        if found is None:
            raise DataError(
                f"{place}: neither `image#number<TAB>caption` nor `image| number| caption`: {line!r:.80}"
            )
        yield place, found["image"], found["text"]


def _name(image: str) -> str:
    """The image's name without `.jpg`, which is its id, as in Karpathy's splits."""
    return image.strip().removesuffix(".jpg")
