"""One item of a manifest, as a view sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Item:
    """A row of the manifest: its id, and its file or its text."""

    id: str
    file: Path
    text: str = ""


class UndecodableError(Exception):
    """An input that can't be turned into a view; the message is the reason that the quarantine list gives."""
