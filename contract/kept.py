"""Files that are kept twice: all that a store has beside its shards and their commit records.

    precept/copies/<key>      the file <key> once more
    precept/checksums.json    the crc32c of each of them

Metadata and tables can't be computed again from what they describe, and are small. Of a file, its copy and its
checksum any two that agree are right, and mend the third.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import google_crc32c

from contract import records
from contract.errors import StoreError
from contract.storage import Storage, StorePath

COPIES = "precept/copies/"
CHECKSUMS = "precept/checksums.json"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A file that is not as it was kept: `content` mends it, None if nothing does."""

    key: str
    reason: str
    content: bytes | None


def keep(files: Storage, contents: Mapping[str, bytes]) -> None:
    """Write files by key, in this order, after their copies and checksums.

    Whoever is killed before the last file is written leaves, for each of them, what was there or what was to be.
    """
    checksums = _checksums(files) or _agreed(files)
    for key, content in contents.items():
        files.write(f"{COPIES}{key}", content)
    files.write(CHECKSUMS, _listed(checksums | {key: _crc(content) for key, content in contents.items()}))
    for key, content in contents.items():
        files.write(key, content)


def drop(files: Storage, keys: Sequence[str]) -> None:
    """Remove files, kept or not, and their copies."""
    checksums = _checksums(files) or _agreed(files)
    files.write(CHECKSUMS, _listed({key: value for key, value in checksums.items() if key not in keys}))
    for key in keys:
        files.delete(key)
        files.delete(f"{COPIES}{key}")


def faults(files: Storage) -> Iterator[Fault]:
    """What is wrong with the files that are kept, with their copies, or with the list of checksums."""
    checksums = _checksums(files)
    found: dict[str, int] = {}
    for one in _witnesses(files, checksums):
        if one.right is not None:
            found[one.key] = _crc(one.right)
        for key, content in ((one.key, one.file), (f"{COPIES}{one.key}", one.copy)):
            if one.right is None or content != one.right:
                yield Fault(key=key, reason=_reason(content), content=one.right)
    if checksums is None and found:
        yield Fault(key=CHECKSUMS, reason=_reason(_read(files, CHECKSUMS)), content=_listed(found))


def mend(files: Storage) -> tuple[list[str], list[str]]:
    """Put right what can be; returns the files that were mended and those that could not be."""
    mended, lost = [], []
    for fault in list(faults(files)):
        if fault.content is None:
            lost.append(fault.key)
        else:
            files.write(fault.key, fault.content)
            mended.append(fault.key)
    return mended, lost


def advice(path: StorePath) -> str:
    """What a message about a damaged file ends with."""
    return f"`pipeline repair {path}` mends it"


@dataclass(frozen=True, kw_only=True)
class _Witnesses:
    """A file, its copy, and what two of the three say; None where no two agree."""

    key: str
    file: bytes | None
    copy: bytes | None
    right: bytes | None


def _witnesses(files: Storage, checksums: Mapping[str, int] | None) -> Iterator[_Witnesses]:
    """Of every file that is kept; without a list of checksums, the copies say which these are."""
    copied = files.keys_under(COPIES.rstrip("/")) if checksums is None else []
    for key in checksums or [key.removeprefix(COPIES) for key in copied]:
        file, copy = _read(files, key), _read(files, f"{COPIES}{key}")
        right = file if file == copy else None
        if checksums is not None:
            right = next((one for one in (file, copy) if one is not None and _crc(one) == checksums[key]), right)
        yield _Witnesses(key=key, file=file, copy=copy, right=right)


def _agreed(files: Storage) -> dict[str, int]:
    """The checksums, when the list of them is gone."""
    found = {}
    for one in _witnesses(files, None):
        if one.right is not None:
            found[one.key] = _crc(one.right)
        elif one.file is not None:  # without a file, writing it had only begun
            raise StoreError(
                f"{files.locate(CHECKSUMS)}: {_reason(_read(files, CHECKSUMS))}, and {one.key} differs from its "
                "copy; make the store again"
            )
    return found


def _reason(content: bytes | None) -> str:
    return "it is missing" if content is None else "it is not what was written"


def _checksums(files: Storage) -> dict[str, int] | None:
    content = _read(files, CHECKSUMS)
    try:
        return None if content is None else records.load(content)
    except records.DamagedRecordError:
        return None


def _listed(checksums: Mapping[str, int]) -> bytes:
    return records.dump(dict(sorted(checksums.items())))


def _crc(content: bytes) -> int:
    return int(google_crc32c.value(content))


def _read(files: Storage, key: str) -> bytes | None:
    try:
        return files.read(key)
    except (FileNotFoundError, NotADirectoryError):
        return None
