"""Webdataset shards: tar files whose members with the same name up to the first dot are one sample.

    train/00000.tar         000000000.jpg  000000000.txt  000000000.json  000000001.jpg  ...

Nothing is unpacked: an item is `bytes:FIRST+COUNT` of its tar, which therefore has to be an uncompressed one.
Members that are links, or whose names point elsewhere, are left out, and said, as is what else is no sample's.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import NonNegativeInt

from contract.errors import ConfigError, DataError
from contract.tables import NO_LABEL
from pipeline.sources.files import IMAGE_SUFFIXES, SPLIT_NAMES, is_unicode, not_on_disk, split_named
from pipeline.sources.joint import Joint, add_joint
from pipeline.sources.samples import Caption, Sample, batched
from pipeline.sources.sounds import SOUND_SUFFIXES
from pipeline.sources.tars import TAR, Member, all_tars, find_tars, members

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pipeline.building import ManifestBuilder

SAMPLES_PER_BATCH = 1 << 13
# Fewer shards than this are read here: starting processes takes longer than that many small ones.
FEWEST_SHARDS_TO_SHARE = 16
MAX_TEXT_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class WebDataset:
    """`shards` says which tars each split has, as paths, patterns or with braces: `train/{00000..00099}.tar`.

    Without it all tars under the data root are read, and the split is the one that a tar's folder or its name has
    as a word (`val/00000.tar`, `cc3m-validation-0000.tar`), training without one.

    `captions` and `label` say where in a sample they stand: in the member `.txt`, or in the key `caption` of the
    member `.json`; a caption's first place that a sample has is taken, and a list there is several captions.
    `num_classes` is needed where not every class has a sample.
    """

    kind: Literal["webdataset"] = "webdataset"
    shards: dict[str, tuple[str, ...]] = field(default_factory=dict)
    captions: tuple[str, ...] = ("txt", "json.caption")
    label: str = "cls"
    num_classes: NonNegativeInt = 0
    language: str = "en"

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Read the tars' headers, several tars at a time, and the captions in them."""
        shards = self._shards(builder.dataset, root)
        found = _Found()
        for shard, samples in _read(root, shards, self.captions, self.label):
            found.add(shard, samples)
            add_joint(builder, [self._joint(shard, sample) for sample in samples.samples])
        builder.num_classes = self.num_classes or found.largest_label + 1
        if found.largest_label >= builder.num_classes:
            raise ConfigError(
                f"num_classes: {self.num_classes}, and {found.largest_label_of} has the label {found.largest_label}"
            )
        for line in found.notes():
            builder.note(line)

    def _shards(self, dataset: str, root: Path) -> list[_Shard]:
        if not self.shards:
            found = all_tars(root, "**/*")
            if not found:
                raise not_on_disk(dataset, root, ["**/*.tar"], "webdataset's tars, or folders of them")
            return [_Shard(file, _split_of(file)) for file in found]
        splits: dict[str, str] = {}
        for name, patterns in self.shards.items():
            split = split_named(name, "shards")
            for pattern in patterns:
                for file in find_tars(root, pattern, f"shards.{name}"):
                    if splits.setdefault(file, split) != split:
                        raise ConfigError(f"shards: {file} is of the split {splits[file]} and of {split}")
        return [_Shard(file, split) for file, split in splits.items()]

    def _joint(self, shard: _Shard, sample: _Sample) -> Joint:
        id_ = shard.id(sample)
        media = {
            modality: Sample(
                id=id_,
                file=shard.file,
                part=f"bytes:{member.first}+{member.size}",
                label=sample.label,
                split=shard.split,
                size_bytes=member.size,
            )
            for modality, member in sample.media.items()
        }
        captions = [Caption(text, self.language) for text in sample.captions]
        return Joint(id=id_, split=shard.split, media=media, captions=captions)


class _Shard(NamedTuple):
    """A tar, relative to the root, and the split of its samples."""

    file: str
    split: str

    def id(self, sample: _Sample) -> str:
        return f"{self.file.removesuffix(TAR)}/{sample.key}"


class _Sample(NamedTuple):
    """The members of one key: image and sound by modality."""

    key: str
    media: dict[str, Member]
    captions: list[str]
    label: int


class _Samples(NamedTuple):
    """A batch of a tar's samples, and what was left out on the way: reason -> how often, and the first member."""

    samples: list[_Sample]
    left_out: dict[str, tuple[int, str]]


class _Found:
    """What all shards together hold: counted, for the notes at the end."""

    def __init__(self) -> None:
        self.largest_label, self.largest_label_of = NO_LABEL, ""
        self._kinds: Counter[str] = Counter()
        self._first_of: dict[str, str] = {}
        self._left_out: dict[str, tuple[int, str]] = {}

    def add(self, shard: _Shard, samples: _Samples) -> None:
        for sample in samples.samples:
            kind = " + ".join((*sample.media, *(["caption"] if sample.captions else [])))
            self._kinds[kind] += 1
            self._first_of.setdefault(kind, shard.id(sample))
            if sample.label > self.largest_label:
                self.largest_label, self.largest_label_of = sample.label, shard.id(sample)
        for reason, (count, first) in samples.left_out.items():
            known, example = self._left_out.get(reason, (0, f"{shard.file}: {first}"))
            self._left_out[reason] = known + count, example

    def notes(self) -> Iterator[str]:
        """One line for each kind of thing that is not as the others."""
        (usual, _), *others = self._kinds.most_common() or [("", 0)]
        for kind, count in others:
            yield f"{count:,} samples hold {kind} where most hold {usual}, the first {self._first_of[kind]}"
        for reason, (count, example) in sorted(self._left_out.items()):
            yield f"left out: {count:,} {reason}, the first {example}"


def _read(
    root: Path, shards: Sequence[_Shard], captions: tuple[str, ...], label: str
) -> Iterator[tuple[_Shard, _Samples]]:
    """The samples of each shard, in the shards' order, however many are read at once."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from tqdm import tqdm

    with tqdm(total=len(shards), desc="read shards", unit="shard") as progress:
        if len(shards) < FEWEST_SHARDS_TO_SHARE:
            for shard in shards:
                yield from ((shard, samples) for samples in _scan(root, shard, captions, label))
                progress.update()
            return
        # Processes, as headers are the interpreter's work; spawned, since a forked one has our threads' locks.
        context, num_workers = multiprocessing.get_context("spawn"), os.cpu_count() or 1
        with ProcessPoolExecutor(min(num_workers, len(shards)), mp_context=context) as pool:
            try:
                jobs = (pool.submit(_scan_all, root, shard, captions, label) for shard in shards)
                for shard, result in zip(shards, _in_order(jobs, 2 * num_workers), strict=True):
                    yield from ((shard, samples) for samples in result)
                    progress.update()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _in_order(jobs: Iterator[Future[list[_Samples]]], num_ahead: int) -> Iterator[list[_Samples]]:
    """The results in order; no more than `num_ahead` jobs are begun before theirs is asked for."""
    waiting: deque[Future[list[_Samples]]] = deque()
    for job in jobs:
        waiting.append(job)
        if len(waiting) > num_ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _scan_all(root: Path, shard: _Shard, captions: tuple[str, ...], label: str) -> list[_Samples]:
    return list(_scan(root, shard, captions, label))


def _scan(root: Path, shard: _Shard, captions: tuple[str, ...], label: str) -> Iterator[_Samples]:
    """The samples of one tar, some thousand at a time."""
    left_out: dict[str, tuple[int, str]] = {}

    def leave_out(reason: str, member: str) -> None:
        count, first = left_out.get(reason, (0, member))
        left_out[reason] = count + 1, first

    path = root / shard.file
    try:
        with path.open("rb") as file:
            reader = _Reader(file, path, captions, label, leave_out)
            for samples in batched(reader.samples(), SAMPLES_PER_BATCH):
                yield _Samples(samples, dict(left_out))
                left_out.clear()
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error
    if left_out:
        yield _Samples([], left_out)


class _Reader:
    """Groups a tar's members into samples, and reads those that are text."""

    def __init__(
        self,
        file: IO[bytes],
        path: Path,
        captions: tuple[str, ...],
        label: str,
        leave_out: Callable[[str, str], None],
    ) -> None:
        self._file, self._path, self._leave_out = file, path, leave_out
        self._captions, self._label = captions, label
        self._texts = {place.partition(".")[0] for place in (*captions, label)}

    def samples(self) -> Iterator[_Sample]:
        """In the tar's order."""
        key, sample = "", dict[str, Member]()
        for member in members(self._file, self._path, self._leave_out):
            found = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]+)", member.name)
            if found is None:
                self._leave_out("members without a name before or after a dot", member.name)
                continue
            if found[1] != key:
                yield from self._sample(key, sample)
                key, sample = found[1], {}
            extension = found[2].lower()
            if extension in sample:
                raise DataError(f"{self._path}: {member.name} is there twice in one sample")
            sample[extension] = member
        yield from self._sample(key, sample)

    def _sample(self, key: str, sample: dict[str, Member]) -> Iterator[_Sample]:
        media: dict[str, Member] = {}
        for extension, member in sample.items():
            modality = _modality(extension)
            if modality in media:
                self._leave_out(f"more {modality} members of a sample that has one", member.name)
            elif modality:
                media[modality] = member
            elif extension not in self._texts:
                dotted = "." in extension  # the extension is all that follows the first dot
                kind = "with more dots in their names" if dotted else "that are no image, sound, caption or label"
                self._leave_out(f"members {kind}", member.name)
        if media:
            label = self._label_of(sample)
            yield _Sample(key=key, media=media, captions=self._captions_of(sample), label=label)
        elif sample:
            self._leave_out("samples without an image or a sound", key)

    def _captions_of(self, sample: dict[str, Member]) -> list[str]:
        for place in self._captions:
            found = self._value(sample, place)
            if found is not None:
                captions = found if isinstance(found, list) else [found]
                for caption in captions:
                    if not isinstance(caption, str) or not is_unicode(caption):
                        raise self._wrong(sample, place, "a text or a list of texts", caption)
                return [caption.strip() for caption in captions if caption.strip()]
        return []

    def _label_of(self, sample: dict[str, Member]) -> int:
        found = self._value(sample, self._label)
        if found is None:
            return NO_LABEL
        try:
            # As text in a `.cls`, as a number in JSON: 1.5 and true are neither.
            label = int(found) if isinstance(found, str) else found
            if type(label) is int and 0 <= label < 1 << 31:
                return label
        except ValueError:
            pass
        raise self._wrong(sample, self._label, "the number of a class", found)

    def _value(self, sample: dict[str, Member], place: str) -> Any:
        """What a member, or the keys in it that follow its extension, hold; None where nothing is."""
        extension, *keys = place.split(".")
        if extension not in sample:
            return None
        member = sample[extension]
        try:
            value: Any = self._content(member).decode("utf-8-sig")
            value = json.loads(value) if keys else value
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self._path}: {member.name} can't be read: {error}") from error
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def _content(self, member: Member) -> bytes:
        if member.size > MAX_TEXT_BYTES:
            raise DataError(
                f"{self._path}: {member.name} has {member.size:,} bytes, where captions and labels have "
                f"{MAX_TEXT_BYTES:,} at most"
            )
        # The tar is read on from where its headers say, not from here.
        self._file.seek(member.first)
        return self._file.read(member.size)

    def _wrong(self, sample: dict[str, Member], place: str, expected: str, found: object) -> DataError:
        extension, _, key = place.partition(".")
        where = f"{sample[extension].name}, {key}" if key else sample[extension].name
        return DataError(f"{self._path}: {where}: expected {expected}, found {str(found)[:60]!r}")


def _modality(extension: str) -> str:
    """The modality that members with this extension are items of, "" for others."""
    suffix = f".{extension}"
    return "image" if suffix in IMAGE_SUFFIXES else "audio" if suffix in SOUND_SUFFIXES else ""


def _split_of(file: str) -> str:
    """The one split that a word of the path names, such as `cc3m-validation-0000.tar`; training without one."""
    words = re.split(r"[-_./]", file.lower())
    splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    if len(splits) > 1:
        raise ConfigError(
            f"{file}: its name has the words of several splits, {' and '.join(sorted(splits))}; say which with "
            "`shards: {train: [...], val: [...]}` in the data manifest"
        )
    return splits.pop() if splits else "train"
