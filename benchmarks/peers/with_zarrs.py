"""zarrs: the codec pipeline in Rust beneath zarr-python; its ways of reading, with that pipeline set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import zarr
import zarrs  # noqa: F401 - registers the pipeline

from peers import with_zarr
from peers.batches import Array, Mode, Read, Rows


def prepare(folder: Path, source: Array) -> dict[str, Mode]:
    """The arrays and the ways of reading of `with_zarr`, opened and read with this pipeline."""
    with _pipeline():
        modes = with_zarr.prepare(folder, source)
    return {name: Mode(read=_within(mode.read)) for name, mode in modes.items()}


def _within(read: Read) -> Read:
    def within(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        with _pipeline():
            return read(rows, out)

    return within


def _pipeline() -> Any:
    return zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
