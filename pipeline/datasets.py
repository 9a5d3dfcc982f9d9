"""Datasets by name: data_manifests/<dataset>.yaml says where the files lie and how they are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from contract import config
from contract.errors import DataError
from contract.manifest import Manifest
from pipeline.sources import Source

DATA_FOLDER = Path("data")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data manifest: what a dataset is, where its files lie, what it should hold.

    `counts` are images (or, without images, items) per split, as its publishers state them; a difference is said,
    not refused, since people work with parts of datasets.
    """

    name: str
    title: str
    homepage: str
    licence: str
    source: Source
    counts: dict[str, int] = field(default_factory=dict)

    def build(self, data_root: Path) -> Manifest:
        """Read the dataset that lies at `data_root`; raise `DataError` if it is missing or broken."""
        manifest = self.source.build(self.name, data_root)
        manifest.check()
        return manifest

    def count_differences(self, manifest: Manifest) -> list[str]:
        """How the counts differ from the expected ones, a line each."""
        found = manifest.splits(manifest.modalities[0])
        return [
            f"{self.name}: {found.get(split, 0):,} {split} items, where {count:,} are published"
            for split, count in self.counts.items()
            if found.get(split, 0) != count
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
