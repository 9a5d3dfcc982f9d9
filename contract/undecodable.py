"""What can't be decoded is not an error of the user's but an entry of the quarantine list."""

from __future__ import annotations

import re
from pathlib import Path

MOST_CHARACTERS = 200


class UndecodableError(Exception):
    """An input that can't be turned into a view; the message is the reason that the quarantine list gives."""


def said(error: BaseException, file: Path) -> str:
    """What a library said of a file, in one line that is the same on every machine and in every run."""
    text = " ".join(str(error).split()).replace(str(file), file.name)
    return re.sub(r"<[\w.]+ object at 0x[0-9a-f]+>", file.name, text)[:MOST_CHARACTERS] or type(error).__name__
