"""Images in HDF5, with captions and labels beside them, row for row.

    train.h5    images     uint8 [n, h, w, 3], [n, 3, h, w] or [n, h, w], or n encoded: bytes of variable length
                captions   n texts, or [n, k] of them; an empty one is none
                labels     integers [n]

Names may be paths, such as `train/images`, and have `{split}` in them where one file holds several splits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import NonNegativeInt

from contract.errors import DataError
from contract.manifest import SPLITS
from pipeline.sources.classes import Classes
from pipeline.sources.files import SPLIT_NAMES, check_inside, not_on_disk, relative, split_named
from pipeline.sources.samples import Sample, add_samples, caption

if TYPE_CHECKING:
    import h5py

    from pipeline.building import ManifestBuilder

ROWS_PER_READ = 1 << 10
# Encoded images are read for their sizes: few at a time.
ENCODED_PER_READ = 1 << 6
# No row is less than a byte, and deflate makes at most this many bytes one.
MOST_COMPRESSED = 1032
SPLIT = "{split}"
SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True, kw_only=True)
class Hdf5:
    """`files` are the files of each split, as paths or patterns; without them, `train.h5`, `val.hdf5` and the like.

    `images`, `captions` and `labels` name data sets; without the last two there are none. `num_classes` is needed
    where not every class has an image.
    """

    kind: Literal["hdf5"] = "hdf5"
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    images: str = "images"
    captions: str = ""
    labels: str = ""
    num_classes: NonNegativeInt = 0
    language: str = "en"

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Read sizes, captions and labels; of images that are arrays, no pixel."""
        classes = Classes(num=self.num_classes)
        files = list(self._given(root) if self.files else _usual(builder.dataset, root))
        samples = (sample for name, file in files for sample in self._samples(root, name, file, classes))
        add_samples(builder, "image", samples)
        builder.num_classes = classes.num

    def _given(self, root: Path) -> Iterator[tuple[str, str]]:
        """(name of the split, file relative to the root), as the configuration has them."""
        for name, patterns in self.files.items():
            for pattern in patterns:
                found = sorted(root.glob(relative(pattern, f"source: files.{name}")))
                if not found:
                    raise DataError(f"source: files.{name}: there is no {root / pattern}")
                yield from ((name, path.relative_to(root).as_posix()) for path in found)

    def _samples(self, root: Path, name: str, file: str, classes: Classes) -> Iterator[Sample]:
        import h5py

        path, split = root / file, split_named(name, "source: files")
        check_inside(root, file)
        try:
            with h5py.File(path) as content:
                own = self.images.replace(SPLIT, name).strip("/")
                images = _dataset(content, own, path)
                num_rows = len(images)
                captions = self._beside(content, self.captions.replace(SPLIT, name), num_rows, path)
                labels = self._beside(content, self.labels.replace(SPLIT, name), num_rows, path)
                for row, size, texts, label in _rows(images, captions, labels, path):
                    place = f"{path}: {own}[{row}]"
                    said = [caption(text, self.language, place) for text in texts]
                    yield Sample(
                        id=f"{file}/{own}/{row}",
                        file=file,
                        part=f"hdf5:{own}[{row}]",
                        split=split,
                        label=classes.number(label, place),
                        size_bytes=size,
                        captions=[one for one in said if one.text],
                    )
        except DataError:
            raise
        except Exception as error:
            # What a broken file raises in h5py has no common parent: OSError, RuntimeError, KeyError, TypeError.
            raise DataError(f"{path}: is no HDF5 that can be read: {error}") from error

    def _beside(self, content: h5py.File, name: str, num_rows: int, path: Path) -> h5py.Dataset | None:
        """A dataset that has a row for each image."""
        if not name:
            return None
        dataset = _dataset(content, name, path)
        if len(dataset) != num_rows:
            raise DataError(f"{path}: {name} has {len(dataset):,} rows, {self.images} has {num_rows:,}")
        return dataset


def _usual(dataset: str, root: Path) -> list[tuple[str, str]]:
    """(name of the split, file) of those files at the root that are called as splits are."""
    files = [(name, f"{name}{suffix}") for name in SPLIT_NAMES for suffix in SUFFIXES]
    found = [(name, file) for name, file in files if (root / file).is_file()]
    if not found:
        looked = [f"{split}{suffix}" for split in SPLITS for suffix in SUFFIXES]
        raise not_on_disk(dataset, root, looked, "one of them, or give others as `files`")
    return found


def _dataset(content: h5py.File, name: str, path: Path) -> h5py.Dataset:
    import h5py

    found = content.get(name)
    if not isinstance(found, h5py.Dataset) or not found.shape:
        raise DataError(f"{path}: there is no dataset `{name}` of rows; there are: {_names(content)}")
    # A file may send its reader to others, wherever they lie.
    if found.file.filename != content.filename or found.external or found.is_virtual:
        raise DataError(f"{path}: {name} lies in another file; copy it into this one")
    # A damaged or hostile header has more rows than anything could hold: rows that are not there read as zeros.
    num_bytes = found.id.get_storage_size()
    if len(found) > MOST_COMPRESSED * num_bytes:
        raise DataError(f"{path}: {name} should have {len(found):,} rows, and there are {num_bytes:,} bytes of it")
    return found


def _names(content: h5py.File) -> str:
    """The datasets in a file, some of them if there are many."""
    import h5py

    names: list[str] = []

    def visit(name: str, found: object) -> bool | None:
        if isinstance(found, h5py.Dataset):
            names.append(name)
        return True if len(names) == 20 else None

    content.visititems(visit)
    return ", ".join(names) or "none"


def _rows(
    images: h5py.Dataset, captions: h5py.Dataset | None, labels: h5py.Dataset | None, path: Path
) -> Iterator[tuple[int, int, Sequence[str], Any]]:
    """(row, size in bytes, captions, label) of each image."""
    encoded = _check_images(images, path)
    step = ENCODED_PER_READ if encoded else ROWS_PER_READ
    size = 0 if encoded else int(np.prod(images.shape[1:]))
    for start in range(0, len(images), step):
        rows = slice(start, min(start + step, len(images)))
        sizes = [len(one) for one in images[rows]] if encoded else [size] * (rows.stop - start)
        texts = _texts(captions, rows, path)
        numbers = [None] * len(sizes) if labels is None else _labels(labels, rows, path)
        yield from zip(range(start, rows.stop), sizes, texts, numbers, strict=True)


def _check_images(images: h5py.Dataset, path: Path) -> bool:
    """Whether the images are encoded; `DataError` if they are neither that nor arrays of pixels."""
    import h5py

    text = h5py.check_string_dtype(images.dtype)
    variable = h5py.check_vlen_dtype(images.dtype) == np.uint8 or (text is not None and text.length is None)
    if variable and images.ndim == 1:
        return True
    # What contract.parts takes for pixels.
    channels = {1, 3} & {images.shape[1], images.shape[-1]} if images.ndim == 4 else {1}
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not channels:
        raise DataError(
            f"{path}: {images.name} is {images.dtype} {list(images.shape)}, where images are uint8 [n, h, w, 3], "
            "[n, 3, h, w] or [n, h, w], or n encoded images: bytes of variable length"
        )
    return False


def _texts(captions: h5py.Dataset | None, rows: slice, path: Path) -> list[list[str]]:
    if captions is None:
        return [[]] * (rows.stop - rows.start)
    import h5py

    if not h5py.check_string_dtype(captions.dtype) or captions.ndim > 2:
        raise DataError(
            f"{path}: {captions.name} is {captions.dtype} {list(captions.shape)}, where captions are texts"
        )
    try:
        values = captions.asstr()[rows]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: {captions.name}[{rows.start}:{rows.stop}] has a text that is not UTF-8"
        ) from error
    return [list(np.atleast_1d(value)) for value in values]


def _labels(labels: h5py.Dataset, rows: slice, path: Path) -> list[int]:
    if labels.dtype.kind not in "iu" or labels.size != len(labels):
        raise DataError(
            f"{path}: {labels.name} is {labels.dtype} {list(labels.shape)}, where labels are integers [n]"
        )
    return [int(label) for label in labels[rows].reshape(-1)]
