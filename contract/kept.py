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
from contract.files import Content
from contract.storage import Storage, StorePath

COPIES = "precept/copies/"
CHECKSUMS = "precept/checksums.json"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A file that is not as it was kept: the file of the key `right`, or this content, mends it; None does not."""

    key: str
    reason: str
    right: str | bytes | None


def keep(files: Storage, contents: Mapping[str, bytes | Content]) -> None:
    """Write files by key, in this order, after their copies and checksums.

    Whoever is killed before the last file is written leaves, for each of them, what was there or what was to be.
    """
    checksums = _checksums(files) or _agreed(files)
    for key, content in contents.items():
        _write(files, f"{COPIES}{key}", content)
    files.write(CHECKSUMS, _listed(checksums | {key: _crc(content) for key, content in contents.items()}))
    for key, content in contents.items():
        _write(files, key, content)


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
            found[one.key] = one.right
        file, copy = one.key, f"{COPIES}{one.key}"
        for key, checksum, other in ((file, one.file, copy), (copy, one.copy, file)):
            if one.right is None or checksum != one.right:
                yield Fault(key=key, reason=_reason(checksum), right=None if one.right is None else other)
    if checksums is None and found:
        yield Fault(key=CHECKSUMS, reason=_reason(_read(files, CHECKSUMS)), right=_listed(found))


def mend(files: Storage) -> tuple[list[str], list[str]]:
    """Put right what can be; returns the files that were mended and those that could not be."""
    mended, lost = [], []
    for fault in list(faults(files)):
        if fault.right is None:
            lost.append(fault.key)
            continue
        if isinstance(fault.right, str):
            files.copy(fault.right, fault.key)
        else:
            files.write(fault.key, fault.right)
        mended.append(fault.key)
    return mended, lost


def advice(path: StorePath) -> str:
    """What a message about a damaged file ends with."""
    return f"`pipeline repair {path}` mends it"


@dataclass(frozen=True, kw_only=True)
class _Witnesses:
    """The checksums of a file and of its copy, None without one, and of what two of the three witnesses say."""

    key: str
    file: int | None
    copy: int | None
    right: int | None


def _witnesses(files: Storage, checksums: Mapping[str, int] | None) -> Iterator[_Witnesses]:
    """Of every file that is kept; without a list of checksums, the copies say which these are."""
    copied = files.keys_under(COPIES.rstrip("/")) if checksums is None else []
    for key in checksums or [key.removeprefix(COPIES) for key in copied]:
        file, copy = _checksum(files, key), _checksum(files, f"{COPIES}{key}")
        right = file if file == copy else None
        if checksums is not None and checksums[key] in (file, copy):
            right = checksums[key]
        yield _Witnesses(key=key, file=file, copy=copy, right=right)


def _agreed(files: Storage) -> dict[str, int]:
    """The checksums, when the list of them is gone."""
    found = {}
    for one in _witnesses(files, None):
        if one.right is not None:
            found[one.key] = one.right
        elif one.file is not None:  # without a file, writing it had only begun
            raise StoreError(
                f"{files.locate(CHECKSUMS)}: {_reason(_read(files, CHECKSUMS))}, and {one.key} differs from its "
                "copy; make the store again"
            )
    return found


def _reason(found: bytes | int | None) -> str:
    return "it is missing" if found is None else "it is not what was written"


def _checksums(files: Storage) -> dict[str, int] | None:
    content = _read(files, CHECKSUMS)
    try:
        return None if content is None else records.load(content)
    except records.DamagedRecordError:
        return None


def _listed(checksums: Mapping[str, int]) -> bytes:
    return records.dump(dict(sorted(checksums.items())))


def _crc(content: bytes | Content) -> int:
    return int(google_crc32c.value(content)) if isinstance(content, bytes) else content.crc32c


def _write(files: Storage, key: str, content: bytes | Content) -> None:
    if isinstance(content, bytes):
        files.write(key, content)
    else:
        files.write_large(key, content)


def _checksum(files: Storage, key: str) -> int | None:
    try:
        return files.checksum(key)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read(files: Storage, key: str) -> bytes | None:
    try:
        return files.read(key)
    except (FileNotFoundError, NotADirectoryError):
        return None
