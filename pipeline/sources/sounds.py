"""Sounds on disk: what their files are called, and which file a table means that names no more than a recording."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from contract.errors import DataError
from pipeline.sources.files import check_inside, walk

# In the order of preference where one recording is there in several formats.
SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".au")
MAX_MS = (1 << 31) - 1


def milliseconds(value: object, place: str) -> int:
    """Seconds, as a number or a text, in milliseconds; `DataError` that names `place` for no time of a sound."""
    try:
        time_ms = round(float(value) * 1000) if isinstance(value, str | int | float) else -1
    except (ValueError, OverflowError):
        time_ms = -1
    if not 0 <= time_ms <= MAX_MS:
        raise DataError(f"{place}: expected seconds, found {value!r:.60}")
    return time_ms


class SoundFinder:
    """The sounds in some folders and those below, looked up by name; the first folder goes before the others.

    Each folder is read once, since asking for every name in every format takes minutes on a network disk.
    """

    def __init__(self, root: Path, folders: Sequence[str]) -> None:
        self._found: dict[str, str] = {}
        for folder in folders:
            if (root / folder).is_dir():
                check_inside(root, folder)
                for file in sorted(walk(root, folder, SOUND_SUFFIXES), key=_preference):
                    path = PurePosixPath(file)
                    for name in (str(path.relative_to(folder)), path.name, path.stem):
                        self._found.setdefault(name, file)

    def find(self, names: Iterable[str]) -> str | None:
        """The file, relative to the root, of the first of these names that is there, with its suffix or without."""
        return next((self._found[name] for name in names if name in self._found), None)


def _preference(file: str) -> int:
    return SOUND_SUFFIXES.index(PurePosixPath(file).suffix.lower())
