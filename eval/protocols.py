"""Protocols by name: what the galleries of published figures are, and whether this split is one of them.

    flickr-1k   1,000 test images of Flickr8k or Flickr30k, five captions each or more, as one gallery
    coco-5k     the 5,000 test images of Karpathy's COCO, five captions each or more, as one gallery
    coco-1k     the same images in five disjoint folds of 1,000, in the order of the split; figures are their mean
    scenes      any split of the embedded dataset

Every caption in the manifest counts: Karpathy's COCO test has 25,010. A split that is none of these goes by the
name that its manifest has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from contract.errors import ConfigError, DataError
from contract.manifest import Manifest
from eval.embedded import Embedded, Items

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A gallery that figures are published on.

    `datasets` are the beginnings of the names of those it is taken for unasked. `num_images` is the size of the
    split `test`, and each of them has `num_captions` at least; None for any split.
    """

    name: str
    datasets: tuple[str, ...] = ()
    num_images: int | None = None
    num_captions: int = 5
    num_folds: int = 1

    @property
    def fold_size(self) -> int:
        """Images in a fold."""
        assert self.num_images is not None
        return self.num_images // self.num_folds


FLICKR_1K = Protocol(name="flickr-1k", datasets=("flickr8k", "flickr30k", "multi30k"), num_images=1000)
COCO_5K = Protocol(name="coco-5k", datasets=("coco",), num_images=5000)
COCO_1K = Protocol(name="coco-1k", datasets=("coco",), num_images=5000, num_folds=5)
SIZED = {protocol.name: protocol for protocol in (FLICKR_1K, COCO_5K, COCO_1K)}
SCENES = "scenes"


def choose(name: str | None, split: Embedded) -> tuple[Protocol, tuple[Protocol, ...]]:
    """The protocol of that name, or the one that the split is; and those that are reported beside it."""
    manifest = split.manifest
    if name is None:
        fitting = [protocol for protocol in (FLICKR_1K, COCO_5K) if _is_taken_unasked(protocol, split)]
        chosen = fitting[0] if fitting else Protocol(name=manifest.protocol or manifest.dataset)
    elif name in SIZED:
        chosen = SIZED[name]
        if reason := _misfit(chosen, split):
            raise DataError(f"--protocol {name}: it is {_in_words(chosen)}; {manifest.dataset} {reason}")
    elif name in (manifest.protocol, manifest.dataset):
        chosen = Protocol(name=name)
    elif name == SCENES:
        raise DataError(f"--protocol {name}: it is of the dataset scenes; this is {manifest.dataset}")
    else:
        known = ", ".join(dict.fromkeys([*SIZED, SCENES, manifest.protocol or manifest.dataset]))
        raise ConfigError(f"--protocol {name}: there is no such protocol; there are: {known}")
    return chosen, (COCO_1K,) if chosen is COCO_5K else ()


def folds(protocol: Protocol, split: Embedded) -> Iterator[Embedded]:
    """The split's folds, each with what belongs to its images; the split itself where there is one gallery."""
    if protocol.num_folds == 1:
        yield split
        return
    manifest = split.manifest
    images = manifest.rows("image", split.split)
    for start in range(0, len(images), protocol.fold_size):
        inside = np.zeros(manifest.num_rows("image"), bool)
        inside[images[start : start + protocol.fold_size]] = True
        items = {name: _among(found, _of_images(manifest, name, inside)) for name, found in split.items.items()}
        yield replace(split, items=items)


def _is_taken_unasked(protocol: Protocol, split: Embedded) -> bool:
    # COCO's own splits of 2014 and 2017 are other images.
    names = {"coco2014", "coco2017"}
    dataset = split.manifest.dataset
    return dataset.startswith(protocol.datasets) and dataset not in names and not _misfit(protocol, split)


def _misfit(protocol: Protocol, split: Embedded) -> str:
    """Why a split is not the protocol's; "" if it is."""
    manifest = split.manifest
    if split.split != "test":
        return f"is evaluated on its split {split.split} here"
    num_images = len(manifest.rows("image", "test")) if "image" in manifest.modalities else 0
    if num_images != protocol.num_images:
        return f"has {num_images:,} images in its split test"
    if "text" not in manifest.modalities:
        return "has no captions"
    rows = {"image": manifest.rows("image", "test"), "text": manifest.rows("text", "test", [split.language])}
    counts = np.bincount(manifest.positives_among("image", "text", rows)[:, 0], minlength=num_images)
    if few := int((counts < protocol.num_captions).sum()):
        return f"has {few:,} images with fewer captions in {split.language!r}, one of them with {counts.min()}"
    return ""


def _in_words(protocol: Protocol) -> str:
    folds = f", in {protocol.num_folds} folds of {protocol.fold_size:,}" if protocol.num_folds > 1 else ""
    return f"{protocol.num_images:,} images in the split test, {protocol.num_captions} captions each or more{folds}"


def _of_images(manifest: Manifest, modality: str, images: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which rows of a modality belong to one of `images`, bool [rows of image]; bool [rows]."""
    if modality == "image":
        return images
    mine, theirs = manifest.positives(modality, "image").T
    found = np.zeros(manifest.num_rows(modality), bool)
    found[mine[images[theirs]]] = True
    return found


def _among(items: Items, wanted: npt.NDArray[np.bool_]) -> Items:
    """Those items whose row is `wanted`, bool [rows of the modality]."""
    kept = wanted[items.rows]
    return replace(items, rows=items.rows[kept], ids=items.ids[kept], embeddings=items.embeddings[kept])
