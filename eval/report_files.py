"""A report in a folder: as JSON for programs, as Markdown for people."""

from __future__ import annotations

from pathlib import Path

from contract.files import replace_file


def write(folder: Path, name: str, json: str, markdown: str) -> tuple[Path, Path]:
    """Write both, each in one step; returns where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.json", folder / f"{name}.md"
    for path, text in zip(paths, (json, markdown), strict=True):
        replace_file(path, text.encode())
    return paths
