"""Images and captions in several languages, in text files whose lines belong together: Multi30k.

    train_images.txt          train.en                         train.de
      1000092795.jpg            Two young, White males ...       Zwei junge weiße Männer ...

An image has as many captions in a language as there are files of it (Multi30k's second task has five).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from posixpath import join
from typing import TYPE_CHECKING, Literal

from contract.errors import DataError
from pipeline.sources.files import first_file, fullest_folder, relative
from pipeline.sources.rows import lines
from pipeline.sources.samples import Caption, Sample, add_samples, caption

if TYPE_CHECKING:
    from pipeline.building import ManifestBuilder


@dataclass(frozen=True, kw_only=True)
class AlignedSplit:
    """The list of a split's images, and the files of their captions by language, relative to the data root."""

    images: str
    captions: dict[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """`images` are folders that are looked for under the data root; `layout` says what it should hold."""

    kind: Literal["aligned"] = "aligned"
    splits: dict[Literal["train", "val", "test"], AlignedSplit]
    images: tuple[str, ...]
    layout: str

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Images in the order of the lists, captions in that of the languages."""
        samples = [s for split in self.splits for s in self._read(builder.dataset, root, split)]
        folder = fullest_folder(builder.dataset, root, self.images, [sample.file for sample in samples])
        add_samples(builder, "image", (replace(s, file=relative(join(folder, s.file), s.id)) for s in samples))

    def _read(self, dataset: str, root: Path, split: Literal["train", "val", "test"]) -> Iterator[Sample]:
        files = self.splits[split]
        listed = first_file(dataset, root, [files.images], self.layout)
        names = [(place, relative(line.strip(), place)) for place, line in lines(listed)]
        captions: list[list[Caption]] = [[] for _ in names]
        for language, file in ((language, file) for language, files in files.captions.items() for file in files):
            path = first_file(dataset, root, [file], self.layout)
            # Blank lines count, or every caption after one would go to another image; they are no captions.
            texts = [caption(text, language, place) for place, text in lines(path, blank=True)]
            if len(texts) != len(names):
                raise DataError(
                    f"{path}: {len(texts):,} lines, where {listed} has {len(names):,}: not a caption each"
                )
            for said, text in zip(captions, texts, strict=True):
                said += [text] if text.text else []
        for (_, name), said in zip(names, captions, strict=True):
            yield Sample(id=name.removesuffix(".jpg"), file=name, split=split, captions=said)
