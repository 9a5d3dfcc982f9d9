"""The record that makes a shard count: written after its files, with what they must be.

precept/commits/<modality>/<fieldset>/<shard>.json
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from contract import records
from contract.storage import Storage

COMMITS = "precept/commits/"


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """An input that could not be decoded: its row holds zeros, and nothing trains on it or is scored by it."""

    row: int
    id: str
    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A finished shard of a FieldSet.

    `fingerprint` is the FieldSet's, `items` that of the `rows` manifest rows it holds, `constants` the digests of
    the fields' constants; `files` maps a stored array to the size and the digest of its shard file. `clipped`
    counts, by field, values that the encoding moved to the nearest it can hold; `error` is what the encoding costs
    on a sample of the rows. `batch_size` is how many views went through the encoder at a time where memory ran out
    on the FieldSet's own, 0 elsewhere.
    """

    fingerprint: str
    items: str
    rows: int
    constants: Mapping[str, int]
    files: Mapping[str, Mapping[str, int]]
    quarantined: tuple[Quarantined, ...] = ()
    clipped: Mapping[str, int] = field(default_factory=dict)
    error: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    batch_size: int = 0

    def dump(self) -> bytes:
        """As the content of a file."""
        return records.dump(asdict(self))

    @classmethod
    def load(cls, content: bytes) -> Commit | None:
        """What `dump` wrote; None for anything else, which commits nothing."""
        try:
            tree: dict[str, Any] = records.load(content)
            quarantined = tuple(Quarantined(**entry) for entry in tree.pop("quarantined"))
            return cls(**tree, quarantined=quarantined)
        except (ValueError, TypeError, KeyError):
            return None


def place(key: str, shard: int) -> str:
    """Where the record of a shard of the FieldSet `key` lies."""
    return f"{COMMITS}{key}/{shard:06d}.json"


def read(files: Storage, key: str, shard: int) -> Commit | None:
    """One shard's record; None if there is none, or none that can be read."""
    try:
        return Commit.load(files.read(place(key, shard)))
    except FileNotFoundError:
        return None


def read_all(files: Storage, key: str) -> dict[int, Commit]:
    """The records of a FieldSet that can be read, by shard, ascending."""
    prefix = f"{COMMITS}{key}"
    found = {}
    for name, content in files.read_all(prefix).items():
        number, commit = name.removeprefix(f"{prefix}/").removesuffix(".json"), Commit.load(content)
        if number.isdecimal() and commit is not None:
            found[int(number)] = commit
    return dict(sorted(found.items()))
