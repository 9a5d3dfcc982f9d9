"""Tar files that stay packed: which there are, and where in them their members lie.

Nothing is ever unpacked. A tar that is cut off or damaged is an error, wherever in it that is.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from contract.errors import ConfigError, DataError
from pipeline.sources.files import check_inside, is_unicode, relative

TAR = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")


class Member(NamedTuple):
    """Where a member's content lies in its tar."""

    name: str
    first: int
    size: int


def members(file: IO[bytes], path: Path, leave_out: Callable[[str, str], None]) -> Iterator[Member]:
    """The regular files in a tar; `DataError` for one that is cut off or broken, wherever that is."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            before = -1
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # which it keeps for unpacking
                if member.size < 0 or tar.offset <= before:
                    raise tarfile.ReadError(f"a header says a size of {member.size}")
                before = tar.offset
                reason = _refused(member)
                if reason:
                    leave_out(reason, member.name.encode("utf-8", "backslashreplace").decode())
                elif member.isreg():
                    yield Member(relative(member.name, str(path)), member.offset_data, member.size)
            end = tar.offset
    except tarfile.TarError as error:
        # Of its own errors, the tar's size tells most to whoever copied it.
        raise DataError(
            f"{path}: not a whole tar: {error}, in {os.fstat(file.fileno()).st_size:,} bytes; copy it again, or, "
            "if it is compressed, decompress it"
        ) from error
    _check_end(file, path, end)


def _refused(member: tarfile.TarInfo) -> str:
    """Why a member is not read, "" for one that is."""
    if member.islnk() or member.issym():
        return "members that are links"
    if member.isdir():
        return ""
    if not member.isreg():
        return "members that are devices or the like"
    if member.issparse():
        return "members that are sparse"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "members whose name points out of the tar"
    if not member.name.strip("./") or "\0" in member.name or not is_unicode(member.name):
        return "members whose name is empty or not UTF-8"
    return ""


def _check_end(file: IO[bytes], path: Path, end: int) -> None:
    """Python's reader takes a header that it can't read for the end: only zeros may follow."""
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise DataError(
            f"{path}: is cut off at byte {end + len(block):,}: the blocks of zeros that end a tar are not there; "
            "copy it again"
        )
    at = end
    while block:
        if block.strip(b"\0"):
            raise DataError(
                f"{path}: after byte {at:,} come neither a tar's header nor its end: it is damaged, or several "
                "tars were written into one file; make a file of each"
            )
        at += len(block)
        block = file.read(1 << 20)


def find_tars(root: Path, pattern: str, key: str) -> list[str]:
    """The tars that one pattern of the configuration means, in its order; `DataError` where there is none."""
    files: list[str] = []
    for one in _expanded(pattern, key):
        one = relative(one, f"{key}: {pattern}")
        found = all_tars(root, one) if re.search(r"[*?[]", one) else [_checked(root, one)]
        if not (found and (root / found[0]).is_file()):
            raise DataError(f"{key}: {pattern}: there is no {root / one}")
        files += found
    return files


def all_tars(root: Path, pattern: str) -> list[str]:
    """The tars of a glob, sorted; a compressed one among them is an error."""
    found = [path for path in root.glob(pattern) if path.name.endswith((TAR, *COMPRESSED)) and path.name[0] != "."]
    return [_checked(root, file) for file in sorted(path.relative_to(root).as_posix() for path in found)]


def _checked(root: Path, file: str) -> str:
    check_inside(root, file)
    if not file.endswith(TAR):
        raise DataError(
            f"{root / file}: items are read by their place in a tar, so that it has to be an uncompressed `.tar`: "
            "decompress it, for instance with `gunzip`"
        )
    return file


def _expanded(pattern: str, key: str) -> list[str]:
    """`a{00..02}.tar` is `a00.tar`, `a01.tar`, `a02.tar`; `{a,b}.tar` is `a.tar`, `b.tar`."""
    done = [""]
    for text in re.split(r"(\{[^{}]*\})", pattern):
        choices = _choices(text[1:-1], f"{key}: {pattern}") if text[:1] == "{" and text[-1:] == "}" else [text]
        done = [start + choice for start in done for choice in choices]
    return done


def _choices(inside: str, place: str) -> list[str]:
    numbers = re.fullmatch(r"(\d{1,6})\.\.(\d{1,6})", inside)
    if numbers:
        choices = [f"{n:0{len(numbers[1])}d}" for n in range(int(numbers[1]), int(numbers[2]) + 1)]
    else:
        choices = inside.split(",") if "," in inside else []
    if not choices:
        raise ConfigError(f"{place}: expected {{00000..00099}} or {{a,b}}, found {{{inside}}}")
    return choices
