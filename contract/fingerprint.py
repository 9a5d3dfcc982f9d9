"""Equal inputs, equal name: short hashes of JSON-able trees, of files and of bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

NUM_DIGITS = 16


def of_tree(tree: object) -> str:
    """Fingerprint of a tree of dicts, lists and scalars; the order of keys does not matter."""
    return of_bytes(json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def of_bytes(*chunks: bytes | memoryview) -> str:
    """Fingerprint of the chunks, one after the other."""
    return of_stream(chunks)


def of_stream(chunks: Iterable[bytes | memoryview]) -> str:
    """The same of chunks that are made as they are needed."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()[:NUM_DIGITS]


def of_file(path: Path) -> str:
    """Fingerprint of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:NUM_DIGITS]
