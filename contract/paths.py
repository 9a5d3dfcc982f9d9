"""Paths that stay inside the data root."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path, PurePosixPath

from contract.undecodable import UndecodableError

# Folders whose real place is remembered: an item then costs one look at its own entry.
NUM_FOLDERS = 4096


def inside(root: Path, file: str) -> Path:
    """`root / file`; `UndecodableError` if that is, or leads through links, out of the root."""
    parts = PurePosixPath(file)
    if "\0" in file:
        raise UndecodableError("the name of the file has a NUL in it")
    if parts.is_absolute() or ".." in parts.parts:
        raise UndecodableError(f"{file} leads out of the data root")
    top = root.absolute()
    path = top / file
    real = Path(os.path.realpath(path)) if path.is_symlink() else _real(path.parent) / path.name
    if not real.is_relative_to(_real(top)):
        raise UndecodableError(f"{file} leads out of the data root, through a link")
    return root / file


@lru_cache(NUM_FOLDERS)
def _real(folder: Path) -> Path:
    return Path(os.path.realpath(folder))
