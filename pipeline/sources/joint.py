"""Samples that may hold an image and a sound at once, and captions of both: how containers of samples give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.sources.samples import Caption, Sample

if TYPE_CHECKING:
    from pipeline.building import ManifestBuilder

MEDIA = ("image", "audio")


@dataclass(frozen=True, kw_only=True, slots=True)
class Joint:
    """What belongs together under one id: an item of each modality in `media`, and what is said of them."""

    id: str
    split: str
    media: Mapping[str, Sample]
    captions: Sequence[Caption]


def add_joint(builder: ManifestBuilder, batch: Sequence[Joint]) -> None:
    """Add the items, and as pairs what belongs together; caption n of the sample `id` is the text item `id#n`."""
    rows = {modality: _add_media(builder, modality, batch) for modality in MEDIA}
    captioned = [(number, n) for number, joint in enumerate(batch) for n in range(len(joint.captions))]
    if captioned:
        said = [batch[number].captions[n] for number, n in captioned]
        texts = builder.items(
            "text",
            id=[f"{batch[number].id}#{n}" for number, n in captioned],
            text=[one.text for one in said],
            language=[one.language for one in said],
            split=[batch[number].split for number, _ in captioned],
        )
        for modality, row_of in rows.items():
            pairs = [(row_of[n], text) for (n, _), text in zip(captioned, texts, strict=True) if n in row_of]
            _add_pairs(builder, modality, "text", pairs)
    image, audio = (rows[modality] for modality in MEDIA)
    _add_pairs(builder, "image", "audio", [(image[number], audio[number]) for number in image if number in audio])


def _add_media(builder: ManifestBuilder, modality: str, batch: Sequence[Joint]) -> dict[int, int]:
    """Add one modality's items; returns the row of each sample of the batch, by its number there, that has one."""
    numbers = [number for number, joint in enumerate(batch) if modality in joint.media]
    if not numbers:
        return {}
    samples = [batch[number].media[modality] for number in numbers]
    rows = builder.items(
        modality,
        id=[sample.id for sample in samples],
        file=[sample.file for sample in samples],
        part=[sample.part for sample in samples],
        label=[sample.label for sample in samples],
        split=[sample.split for sample in samples],
        size_bytes=[sample.size_bytes for sample in samples],
    )
    return dict(zip(numbers, rows, strict=True))


def _add_pairs(builder: ManifestBuilder, first: str, second: str, pairs: Sequence[tuple[int, int]]) -> None:
    if pairs:
        builder.pairs(first, second, pairs)
