from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import IO

import google_crc32c
import pytest

from contract import kept
from contract.errors import StoreError
from contract.storage.folder import Folder

FILES = {
    "zarr.json": b"{}",
    "image/teacher/zarr.json": b'{"a": 1}',
    "precept/manifest/items.image.arrow": bytes(999),
}


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def files(tmp_path: Path) -> Folder:
    """A folder in which three files are kept."""
    folder = Folder(tmp_path)
    kept.keep(folder, FILES)
    return folder


def places(key: str) -> tuple[str, str, str]:
    return key, f"{kept.COPIES}{key}", kept.CHECKSUMS


def test_what_is_kept_has_no_fault(files: Folder) -> None:
    assert list(kept.faults(files)) == []
    assert kept.mend(files) == ([], [])
    assert {key: files.read(key) for key in FILES} == FILES


@pytest.mark.parametrize("key", FILES)
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("damage", ["flip", "empty", "half", "gone"])
def test_any_one_of_file_copy_and_checksums_is_mended_by_the_others(
    files: Folder, contents, key: str, which: int, damage: str
) -> None:
    before = contents(files.path)
    place = places(key)[which]
    content = bytearray(files.read(place))
    content[len(content) // 2] ^= 16
    changed = {"flip": bytes(content), "empty": b"", "half": bytes(content[: len(content) // 2])}
    if damage == "gone":
        files.delete(place)
    else:
        files.write(place, changed[damage])
    assert [fault.key for fault in kept.faults(files)] == [place]
    assert kept.mend(files) == ([place], [])
    assert contents(files.path) == before


@pytest.mark.parametrize("two", list(combinations(range(3), 2)))
def test_two_that_are_damaged_are_never_mended_to_something_else(files: Folder, two: tuple[int, int]) -> None:
    for which in two:
        files.write(places("zarr.json")[which], b"damaged %d" % which)
    assert "zarr.json" in [fault.key for fault in kept.faults(files)]
    assert "zarr.json" in kept.mend(files)[1]


def test_another_content_replaces_file_copy_and_checksum(files: Folder, contents, tmp_path: Path) -> None:
    kept.keep(files, {"zarr.json": b"[]"})
    assert list(kept.faults(files)) == []
    assert files.read("zarr.json") == b"[]"
    other = Folder(tmp_path / "other")
    kept.keep(other, FILES | {"zarr.json": b"[]"})
    there = {name: content for name, content in contents(files.path).items() if not name.startswith("other/")}
    assert there == contents(other.path)


def killed_after(files: Folder, num_writes: int) -> Folder:
    """A folder whose writer is killed after so many writes."""

    class Killing(Folder):
        num_left = num_writes

        def write(self, key: str, *parts: bytes) -> None:
            if self.num_left == 0:
                raise KilledError
            self.num_left -= 1
            super().write(key, *parts)

    return Killing(files.path)


def test_whoever_is_killed_leaves_what_was_there_or_what_was_to_be(tmp_path: Path, contents) -> None:
    new = {"zarr.json": b"[]", "image/zarr.json": b"new", "precept/manifest/items.image.arrow": bytes(998)}
    done = Folder(tmp_path / "done")
    kept.keep(done, FILES)
    kept.keep(done, new)
    for num_writes in range(2 * len(new) + 1):
        files = Folder(tmp_path / str(num_writes))
        kept.keep(files, FILES)
        with pytest.raises(KilledError):
            kept.keep(killed_after(files, num_writes), new)
        assert kept.mend(files)[1] == []
        assert list(kept.faults(files)) == []
        for key in FILES:
            assert files.read(key) in (FILES[key], new.get(key))
        kept.keep(files, new)
        assert contents(files.path) == contents(done.path)


def test_lost_list_of_checksums_is_made_again_by_the_next_writer(files: Folder) -> None:
    files.delete(kept.CHECKSUMS)
    kept.keep(files, {"more": b"more"})
    assert list(kept.faults(files)) == []
    files.write("zarr.json", b"damaged")
    assert [fault.right for fault in kept.faults(files)] == [f"{kept.COPIES}zarr.json"]


def test_lost_list_and_a_damaged_file_are_not_written_over(files: Folder) -> None:
    files.delete(kept.CHECKSUMS)
    files.write("zarr.json", b"damaged")
    with pytest.raises(StoreError, match=r"checksums.json: it is missing, and zarr.json differs from its copy"):
        kept.keep(files, {"more": b"more"})


def test_dropped_files_leave_nothing(files: Folder, contents, tmp_path: Path) -> None:
    files.write("image/teacher/c/0", b"not kept")
    kept.drop(files, ["image/teacher/c/0", "image/teacher/zarr.json"])
    assert list(kept.faults(files)) == []
    other = Folder(tmp_path / "other")
    kept.keep(other, {key: FILES[key] for key in FILES if key != "image/teacher/zarr.json"})
    there = {name: content for name, content in contents(files.path).items() if not name.startswith("other/")}
    assert there == contents(other.path)


def test_place_where_nothing_is_kept_has_no_fault(tmp_path: Path) -> None:
    assert list(kept.faults(Folder(tmp_path / "nothing"))) == []


@dataclass(frozen=True)
class Large:
    """A content that is written piece by piece."""

    size_bytes: int

    @property
    def crc32c(self) -> int:
        return int(google_crc32c.value(bytes(self.size_bytes)))

    def write(self, file: IO[bytes]) -> None:
        for _ in range(self.size_bytes):
            file.write(bytes(1))


@pytest.mark.parametrize("which", range(3))
def test_what_is_written_piece_by_piece_is_kept_and_mended_like_the_rest(files: Folder, which: int) -> None:
    kept.keep(files, {"large": Large(999)})
    assert list(kept.faults(files)) == []
    place = places("large")[which]
    files.write(place, b"damaged")
    assert kept.mend(files) == ([place], [])
    assert files.read("large") == bytes(999)
