"""Datasets that `datasets` has saved with `save_to_disk`, read with Arrow alone.

    dataset_dict.json                  {"splits": ["train", "validation"]}; without it the root is one dataset
    train/dataset_info.json            the features: what each column is
    train/state.json                   the data files, in order
    train/data-00000-of-00002.arrow    Arrow streams; an image or a sound is a struct of `bytes` and `path`

An item is `arrow:image.bytes[ROW]` of its data file, or, without bytes, the file at `path`, which has to be under
the root.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import NonNegativeInt

from contract.errors import ConfigError, DataError
from contract.parts.columns import batches
from contract.tables import NO_LABEL
from contract.undecodable import UndecodableError
from pipeline.sources.classes import Classes
from pipeline.sources.files import Files, HashedSplit, check_inside, not_on_disk, relative, split_named
from pipeline.sources.joint import MEDIA, Joint, add_joint
from pipeline.sources.samples import Caption, Sample, caption

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.building import ManifestBuilder

ROWS_PER_BATCH = 1 << 12
# What a stream that was written to its end ends with; without it, Arrow takes a file cut between batches for whole.
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
USUAL_CAPTIONS = ("caption", "captions", "text", "sentence", "sentences")

Features = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class HuggingFace:
    """`image`, `audio` and `label` are columns; without one, the only column that is an Image, Audio or ClassLabel.

    `captions` are columns with a text, a list of texts or a text by language, all in `language` or in that of the
    column `language_column`, or columns by language, such as `{en: caption_en, de: caption_de}`; without them, the
    first of the usual names that there is. `splits` says what the dataset's own splits are where their names do not
    (`{train_extra: train}`); of a dataset without splits, `split` sets shares aside. `id` is a column with ids.
    """

    kind: Literal["huggingface"] = "huggingface"
    image: str = ""
    audio: str = ""
    captions: tuple[str, ...] | dict[str, str] = ()
    language: str = "en"
    language_column: str = ""
    label: str = ""
    num_classes: NonNegativeInt = 0
    splits: dict[str, str] = field(default_factory=dict)
    split: HashedSplit = field(default_factory=HashedSplit)
    id: str = ""

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Read the tables' columns of text, and where in the files the images and sounds lie."""
        num_empty, first_empty = 0, ""
        for number, folder in enumerate(_folders(builder.dataset, root)):
            columns = self._columns(_json(root / folder / "dataset_info.json"), root / folder)
            if number == 0 and columns.note:
                builder.note(columns.note)
            for joints in self._batches(root, folder, columns):
                kept = [joint for joint in joints if joint.media]
                if len(kept) < len(joints):
                    first_empty = first_empty or next(joint.id for joint in joints if not joint.media)
                    num_empty += len(joints) - len(kept)
                add_joint(builder, kept)
            builder.num_classes = max(builder.num_classes, columns.classes.num)
        if num_empty:
            builder.note(f"left out: {num_empty:,} rows without an image or a sound, the first {first_empty}")

    def _batches(self, root: Path, folder: str, columns: _Columns) -> Iterator[list[Joint]]:
        from tqdm import tqdm

        state = _json(root / folder / "state.json")
        split_of, files = self._split_of(state.get("_split"), folder, root / folder), Files(root)
        number = 0  # of the row in the whole split: ids stay when it is saved in other files
        for file in tqdm(_data_files(root, folder, state), desc=f"read {folder}", unit="file"):
            row = 0
            for batch in _read(root / file, columns.names):
                place = _Place(root, folder, file, row, number, files)
                yield self._joints(batch, columns, split_of, place)
                row, number = row + batch.num_rows, number + batch.num_rows

    def _joints(
        self, batch: pa.RecordBatch, columns: _Columns, split_of: Callable[[str], str], place: _Place
    ) -> list[Joint]:
        texts = {name: batch.column(name).to_pylist() for name in columns.texts}
        media = {modality: _media(batch.column(name), name, place) for modality, name in columns.media.items()}
        joints = []
        for row in range(batch.num_rows):
            where = f"{place.root / place.file}: row {place.row + row}"
            values = {name: column[row] for name, column in texts.items()}
            id_ = self._id(values, place, row)
            split = split_of(id_)
            label = columns.classes.number(values[columns.label], where) if columns.label else NO_LABEL
            items = {
                modality: Sample(id=id_, file=file, part=part, size_bytes=size, label=label, split=split)
                for modality, found in media.items()
                for file, part, size in found[row]
            }
            captions = list(self._captions(values, columns.captions, where))
            joints.append(Joint(id=id_, split=split, media=items, captions=captions))
        return joints

    def _id(self, values: Mapping[str, Any], place: _Place, row: int) -> str:
        if not self.id:
            return posixpath.normpath(posixpath.join(place.folder, str(place.number + row)))
        if values[self.id] in (None, ""):
            raise DataError(f"{place.root / place.file}: row {place.row + row} has no `{self.id}`")
        return str(values[self.id])

    def _captions(
        self, values: Mapping[str, Any], columns: Sequence[tuple[str, str]], where: str
    ) -> Iterator[Caption]:
        for given, column in columns:
            language = (values[self.language_column] if self.language_column else "") or given
            for own, text in _texts(values[column]):
                said = caption(text, own or language, where)
                if said.text:
                    yield said

    def _split_of(self, saved: object, folder: str, path: Path) -> Callable[[str], str]:
        """The split of the row of an id: the dataset's own one, or shares of a dataset that has none."""
        name = folder if folder != "." else saved
        if name is None:
            return self.split.of
        if self.split != HashedSplit():
            raise ConfigError(f"source: `split` sets shares aside, and {path} is the split {name!r}; leave it out")
        if name in self.splits:
            split = split_named(self.splits[str(name)], f"source: splits.{name}")
        else:
            split = split_named(name, f"{path}: say what it is, such as `splits: {{{name}: train}}`")
        return lambda id_: split

    def _columns(self, info: Mapping[str, Any], path: Path) -> _Columns:
        features = info.get("features")
        if not isinstance(features, dict) or not features:
            raise DataError(f"{path / 'dataset_info.json'}: has no `features`, which say what each column is")
        media = {
            modality: self._column(features, path, modality, feature)
            for modality, feature in zip(MEDIA, ("Image", "Audio"), strict=True)
        }
        media = {modality: name for modality, name in media.items() if name}
        if not media:
            raise DataError(f"{path}: no column is an Image or Audio; there are: {_described(features)}")
        label = self._column(features, path, "label", "ClassLabel")
        captions, note = self._caption_columns(features, path)
        texts = [name for _, name in captions] + [name for name in (label, self.language_column, self.id) if name]
        for name in texts:
            if name not in features:
                raise ConfigError(f"source: {path} has no column `{name}`; there are: {_described(features)}")
        names = features[label].get("names") if label and isinstance(features[label], dict) else None
        classes = Classes(num=len(names or ()) or self.num_classes)
        return _Columns(media, list(dict.fromkeys(texts)), captions, label, classes, note)

    def _column(self, features: Features, path: Path, setting: str, feature: str) -> str:
        """The column of that setting, or else the only one of that feature; "" without either."""
        given = str(getattr(self, setting))
        if given:
            if given not in features:
                raise ConfigError(f"source: {setting}: {path} has no column `{given}`: {_described(features)}")
            return given
        found = [name for name, one in features.items() if isinstance(one, dict) and one.get("_type") == feature]
        if len(found) > 1:
            raise ConfigError(
                f"source: {path} has several columns of {feature}, {', '.join(found)}; give one as `{setting}`"
            )
        return found[0] if found else ""

    def _caption_columns(self, features: Features, path: Path) -> tuple[list[tuple[str, str]], str]:
        """(language, column) of each, and a note where the column was not given."""
        if isinstance(self.captions, dict):
            return list(self.captions.items()), ""
        if self.captions:
            return [(self.language, name) for name in self.captions], ""
        usual = [name for name in USUAL_CAPTIONS if _is_text(features.get(name))]
        if not usual:
            return [], ""
        more = f", and not from {', '.join(usual[1:])}" if usual[1:] else ""
        note = f"captions are read from the column {usual[0]}{more}: `captions` says otherwise"
        return [(self.language, usual[0])], note


class _Columns(NamedTuple):
    """Which columns are what: `texts` are those that are read as values, captions come with their language."""

    media: Mapping[str, str]
    texts: Sequence[str]
    captions: Sequence[tuple[str, str]]
    label: str
    classes: Classes
    note: str

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys((*self.media.values(), *self.texts)))


class _Place(NamedTuple):
    """Where a batch begins: its first row in the file, and that row's number in the dataset."""

    root: Path
    folder: str
    file: str
    row: int
    number: int
    files: Files


def _folders(dataset: str, root: Path) -> list[str]:
    """The folders of the splits, or the root itself."""
    if (root / "dataset_dict.json").is_file():
        names = _json(root / "dataset_dict.json").get("splits")
        if not isinstance(names, list) or not names:
            raise DataError(f"{root / 'dataset_dict.json'}: expected a list `splits`, found {str(names)[:60]!r}")
        return [relative(str(name), str(root / "dataset_dict.json")) for name in names]
    if (root / "state.json").is_file():
        return ["."]
    raise not_on_disk(
        dataset, root, ["dataset_dict.json", "state.json"], "what `save_to_disk` of the library `datasets` wrote"
    )


def _data_files(root: Path, folder: str, state: Mapping[str, Any]) -> list[str]:
    try:
        names = [entry["filename"] for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{root / folder / 'state.json'}: has no list `_data_files` of files: {error!r}") from error
    files = [relative(posixpath.join(folder, str(name)), str(root / folder / "state.json")) for name in names]
    for file in files:
        check_inside(root, file)
    return files


def _read(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """These columns of a data file, some thousand rows at a time; `DataError` for one that is not whole."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - len(END_OF_STREAM)))
            if file.read() != END_OF_STREAM:
                raise DataError(f"{path}: is no Arrow stream, or is cut off: its end is missing; copy it again")
        for batch in batches(path, columns):
            for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                yield batch.slice(start, ROWS_PER_BATCH)
    except UndecodableError as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error


def _media(column: pa.Array, name: str, place: _Place) -> list[list[tuple[str, str, int]]]:
    """(file, part, size in bytes) of each row's image or sound, in a list that is empty where there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    paths: list[str | None] = [None] * len(column)
    if pa.types.is_struct(column.type) and {"bytes", "path"} <= {one.name for one in column.type}:
        paths = pc.struct_field(column, "path").to_pylist()
        column, name = pc.struct_field(column, "bytes"), f"{name}.bytes"
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise DataError(
            f"{place.root / place.file}: column `{name}` is {column.type}, where images and sounds are "
            "struct<bytes: binary, path: string>"
        )
    sizes = pc.binary_length(column).to_pylist()
    outside = _outside(paths, sizes, place)
    return [
        [(place.file, f"arrow:{name}[{place.row + row}]", size)]
        if size is not None
        else [outside[row]]
        if row in outside
        else []
        for row, size in enumerate(sizes)
    ]


def _outside(
    paths: Sequence[str | None], sizes: Sequence[int | None], place: _Place
) -> dict[int, tuple[str, str, int]]:
    """The rows whose content is not in the table but in a file, which has to lie under the root."""
    found: dict[int, str] = {}
    for row, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        if size is None and path:
            where = f"{place.root / place.file}: row {place.row + row}"
            inside = Path(path).is_relative_to(place.root.resolve())
            found[row] = relative(str(Path(path).relative_to(place.root.resolve())) if inside else path, where)
    sizes_on_disk = place.files.sizes(list(found.values()))
    return {row: (file, "", size) for (row, file), size in zip(found.items(), sizes_on_disk, strict=True)}


def _texts(value: object) -> Iterator[tuple[str, object]]:
    """(language, text) of a column's value: a text, a list of texts, or texts by language; "" for no language."""
    if isinstance(value, dict):
        for language, text in value.items():
            yield from ((str(language), one) for _, one in _texts(text))
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif value is not None:
        yield "", value


def _is_text(feature: Any) -> bool:
    """Whether a feature is a text, several texts, or texts by language."""
    if isinstance(feature, list):  # as older releases wrote a sequence
        return _is_text(feature[0]) if feature else False
    kind = feature.get("_type") if isinstance(feature, dict) else None
    if kind in ("Sequence", "List", "LargeList"):
        return _is_text(feature.get("feature"))
    return kind == "Translation" or (kind == "Value" and feature.get("dtype") in ("string", "large_string"))


def _described(features: Features) -> str:
    """The columns with their types, as an error message gives them."""
    kinds = {
        name: one.get("_type", "struct") if isinstance(one, dict) else "List" for name, one in features.items()
    }
    return ", ".join(f"`{name}` ({kind})" for name, kind in kinds.items())


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object, found {type(content).__name__}")
    return content
