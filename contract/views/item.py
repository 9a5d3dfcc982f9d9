"""One item of a manifest, as a view sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contract.tables import TO_THE_END
from contract.undecodable import UndecodableError

__all__ = ["Item", "UndecodableError"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """A row of the manifest: its id, and its file, a part of one, or its text.

    `part` says where in the file it lies ("" is the whole file, see contract/parts); of a sound, only the
    `length_ms` milliseconds from `start_ms` on are the item, or all that follow.
    """

    id: str
    file: Path
    part: str = ""
    start_ms: int = 0
    length_ms: int = TO_THE_END
    text: str = ""
