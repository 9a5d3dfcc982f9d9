"""Folders of short sounds whose names say what is heard, such as Speech Commands and the Free Spoken Digit Dataset.

    {label}/{speaker}_nohash_{number}    bed/00176480_nohash_0.wav       Speech Commands
    {label}_{speaker}_{number}           7_jackson_32.wav                FSDD
    {split}/{label}/{name}               train/dog/0001.flac

A pattern is the path below the folder without its suffix; each of its names stands for as little as it can, and for
no slash.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from contract.errors import ConfigError, DataError
from pipeline.sources.classes import Classes
from pipeline.sources.files import HashedSplit, check_inside, not_on_disk, relative, split_named, walk
from pipeline.sources.rows import lines
from pipeline.sources.samples import Sample, add_samples
from pipeline.sources.sounds import SOUND_SUFFIXES

if TYPE_CHECKING:
    from pipeline.building import ManifestBuilder


@dataclass(frozen=True, kw_only=True)
class SpeechFolder:
    """`folders` are looked for under the data root in order, and the first that is there is read.

    A sound's split is that of the file of `lists` that names it, such as `{val: validation_list.txt}`; or that of
    `held_out` with one of its values, such as `{test: {speaker: [theo]}}`; or what `{split}` in the pattern stands
    for; or, of all others, shares that `split` sets aside by the values of the names in `split_by`, so that, say, a
    speaker is in one split. `classes` are the labels in the order of their numbers, otherwise they are sorted.
    """

    kind: Literal["speech_folder"] = "speech_folder"
    pattern: str = "{label}/{name}"
    folders: tuple[str, ...] = (".",)
    lists: dict[str, str] = field(default_factory=dict)
    held_out: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    split: HashedSplit = field(default_factory=HashedSplit)
    split_by: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a pattern without a label, and names that it has not."""
        names = re.findall(r"\{(\w+)\}", self.pattern)
        if "label" not in names or len(set(names)) < len(names) or not all(map(str.isidentifier, names)):
            raise ConfigError(
                f"source: pattern {self.pattern!r}: expected {{label}} in it, and other names, each once, such as "
                "{label}/{name}"
            )
        used = [*self.split_by, *(name for values in self.held_out.values() for name in values)]
        unknown = [name for name in used if name not in names]
        if unknown:
            raise ConfigError(f"source: the pattern {self.pattern!r} has no {{{unknown[0]}}}")

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Walk the folder, twice where the classes are not given."""
        folder = self._folder(builder.dataset, root)
        listed = self._listed(root, folder)
        classes = Classes(self.classes) if self.classes else Classes.found(self._labels(root, folder))
        unmatched = _Unmatched()
        add_samples(builder, "audio", self._samples(root, folder, listed, classes, unmatched))
        if not builder.num_rows("audio"):
            raise DataError(
                f"dataset {builder.dataset}: no sound in {root / folder} is called {self.pattern}"
                + (f", such as {unmatched.first}" if unmatched.num else "")
            )
        builder.num_classes = classes.num
        if unmatched.num:
            builder.note(
                f"left out: {unmatched.num:,} sounds that are not called {self.pattern}, "
                f"the first {unmatched.first}"
            )
        if listed:
            builder.note(
                f"{len(listed):,} sounds that are in `lists` are not there, the first {next(iter(listed))}"
            )

    def _samples(
        self, root: Path, folder: str, listed: dict[str, str], classes: Classes, unmatched: _Unmatched
    ) -> Iterator[Sample]:
        for file, names in self._matched(root, folder, unmatched):
            yield Sample(
                id=str(PurePosixPath(file).with_suffix("")),
                file=file,
                label=classes.number(names["label"], str(root / file)),
                split=self._split(file, names, listed, str(root / file)),
            )

    def _matched(self, root: Path, folder: str, unmatched: _Unmatched) -> Iterator[tuple[str, Mapping[str, str]]]:
        """Every sound with what the names in the pattern stand for; what it does not fit goes to `unmatched`."""
        pattern = re.compile(
            "".join(
                f"(?P<{text[1:-1]}>[^/]+?)" if text.startswith("{") else re.escape(text)
                for text in re.split(r"(\{\w+\})", self.pattern)
            )
        )
        for file in walk(root, folder, SOUND_SUFFIXES):
            found = pattern.fullmatch(str(PurePosixPath(file).relative_to(folder).with_suffix("")))
            if found is None:
                unmatched.add(file)
            else:
                yield file, found.groupdict()

    def _labels(self, root: Path, folder: str) -> Collection[str]:
        return {names["label"] for _, names in self._matched(root, folder, _Unmatched())}

    def _split(self, file: str, names: Mapping[str, str], listed: dict[str, str], place: str) -> str:
        if file in listed:
            return listed.pop(file)
        for split, values in self.held_out.items():
            if any(names[name] in some for name, some in values.items()):
                return split_named(split, "source: held_out")
        if "split" in names:
            return split_named(names["split"], place)
        return self.split.of("/".join(names[name] for name in self.split_by) or file)

    def _folder(self, dataset: str, root: Path) -> str:
        for folder in self.folders:
            if (root / folder).is_dir():
                check_inside(root, folder)
                return relative(folder, "source: folders") if folder != "." else folder
        raise not_on_disk(dataset, root, self.folders, f"sounds called {self.pattern}")

    def _listed(self, root: Path, folder: str) -> dict[str, str]:
        """File, relative to the root, -> split, for every line of the lists."""
        listed: dict[str, str] = {}
        for name, list_file in self.lists.items():
            split = split_named(name, "source: lists")
            path = root / folder / relative(list_file, f"source: lists.{name}")
            if not path.is_file():
                raise DataError(f"{path}: no such file, which lists the {split} sounds")
            for place, line in lines(path):
                file = posixpath.normpath(posixpath.join(folder, relative(line.strip(), place)))
                if listed.setdefault(file, split) != split:
                    raise DataError(f"{place}: {line} is listed for {listed[file]} too")
        return listed


class _Unmatched:
    """The sounds that the pattern does not fit."""

    num, first = 0, ""

    def add(self, file: str) -> None:
        self.num, self.first = self.num + 1, self.first or file
