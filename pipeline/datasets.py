"""Datasets by name: data_manifests/<dataset>.yaml says where the files lie and how they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from contract import config
from contract.errors import ConfigError, DataError
from contract.manifest import Manifest
from contract.paths import inside
from contract.undecodable import UndecodableError
from pipeline import building
from pipeline.sources import Source

DATA_FOLDER = Path("data")

# It becomes the name of folders.
Name = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Split = Literal["train", "val", "test"]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data manifest: what a dataset is, where its files lie, what it should hold.

    `counts` are images (or, without images, sounds) per split, as its publishers state them, and `sha256` are the
    hashes of annotation files, by their paths under the data root. A difference is said, not refused, since people
    work with parts of datasets.
    """

    name: Name
    title: str
    homepage: str
    licence: str
    source: Source
    counts: dict[Split, NonNegativeInt] = field(default_factory=dict)
    sha256: dict[str, Sha256] = field(default_factory=dict)

    def build(self, data_root: Path, say: Callable[[str], None] | None = None) -> Manifest:
        """Read the dataset that lies at `data_root`; raise `DataError` if it is missing or broken.

        `say` is called with each line that its source notes, such as what it left out.
        """
        return building.build(self.source, self.name, data_root, say)

    def count_differences(self, manifest: Manifest) -> list[str]:
        """How the counts differ from the expected ones, a line each."""
        found = manifest.splits(next(name for name in ("image", "audio", "text") if name in manifest.items))
        return [
            f"{self.name}: {found.get(split, 0):,} {split} items, where {count:,} are published"
            for split, count in self.counts.items()
            if found.get(split, 0) != count
        ]

    def hash_differences(self, data_root: Path) -> list[str]:
        """Which annotation files are there and are not those that were published, a line each."""
        found = {}
        for name in self.sha256:
            try:
                with inside(data_root, name).open("rb") as file:
                    found[name] = hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:  # another layout, or no annotations, which is the source's business
                continue
            except UndecodableError as error:
                raise ConfigError(f"dataset {self.name}: sha256: {error}") from error
        return [
            f"{data_root / name}: its SHA-256 is {value}, where {self.sha256[name]} was published"
            for name, value in found.items()
            if value != self.sha256[name]
        ]


def load(name: str) -> Dataset:
    """The data manifest of that name, or in that YAML file."""
    return config.load(config.find("data_manifests", name), Dataset)


def locate(dataset: Dataset, data_root: Path | None) -> Path:
    """The folder to look in: what the user gave, or data/<dataset>."""
    if data_root is None:
        return DATA_FOLDER / dataset.name
    if data_root.exists() and not data_root.is_dir():
        raise DataError(f"--data-root {data_root} is a file, not a folder")
    return data_root
