"""JSON records that carry a checksum of themselves, so that a flipped bit never passes for another value."""

from __future__ import annotations

import json
from typing import Any

import google_crc32c

Tree = dict[str, Any]
SEAL = "crc32c"


class DamagedRecordError(ValueError):
    """A record that is not what was written."""


def dump(tree: Tree) -> bytes:
    """A record as the content of a file: its last line is the checksum of all that stands before."""
    text = json.dumps(tree, indent=1, ensure_ascii=False).removesuffix("\n}").encode()
    return text + _last_line(text)


def load(content: bytes) -> Tree:
    """What `dump` wrote, byte by byte: 1E-05 where 1e-05 stood is damage too, though it means the same."""
    text = content[: content.rfind(b",\n")]
    if content != text + _last_line(text):
        raise DamagedRecordError("it was changed after it was written (its checksum is another)")
    tree: Tree = json.loads(content)
    del tree[SEAL]
    return tree


def seal(tree: Tree) -> Tree:
    """A tree with its checksum, as a part of a file that others write in their own way."""
    return tree | {SEAL: _checksum(tree)}


def unseal(tree: object) -> Tree:
    """The tree without its checksum, once that has been found right."""
    if not isinstance(tree, dict):
        raise DamagedRecordError(f"{type(tree).__name__} where an object belongs")
    content = {key: value for key, value in tree.items() if key != SEAL}
    if tree.get(SEAL) != _checksum(content):
        raise DamagedRecordError("it was changed after it was written (its checksum is another)")
    return content


def _last_line(text: bytes) -> bytes:
    return b',\n "%s": %d\n}\n' % (SEAL.encode(), google_crc32c.value(text))


def _checksum(tree: Tree) -> int:
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return int(google_crc32c.value(canonical.encode()))
