import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from contract.storage.folder import MOST_MAPS, Folder


def test_files_are_found_by_key(tmp_path: Path) -> None:
    files = Folder(tmp_path / "s.zarr")
    for key in (
        "zarr.json",
        "image/zarr.json",
        "image/teacher/zarr.json",
        "image/teacher/v/c/0",
        "image/.h/zarr.json",
    ):
        files.write(key, key.encode())
    (tmp_path / "s.zarr/image/teacher/v/c/1.partial").write_bytes(b"left by a killed writer")
    assert files.keys_under("image/teacher") == ["image/teacher/v/c/0", "image/teacher/zarr.json"]
    assert files.keys_under("") == sorted(
        ["zarr.json", "image/zarr.json", "image/teacher/zarr.json", "image/teacher/v/c/0", "image/.h/zarr.json"]
    )
    assert files.keys_under("image/.h") == ["image/.h/zarr.json"]
    assert files.keys_under("text") == files.keys_under("zarr.json") == []
    assert "image/teacher/zarr.json" in files.children("image")
    assert files.read_all("image/teacher") == {key: key.encode() for key in files.keys_under("image/teacher")}
    assert files.sizes(["zarr.json", "nothing", "zarr.json/nothing"]) == [9, -1, -1]
    assert files.local("zarr.json", "").read_bytes() == files.read("zarr.json") == b"zarr.json"


def test_large_file_is_written_copied_and_checked_without_being_held(tmp_path: Path, large) -> None:
    files = Folder(tmp_path)
    files.write_large("a/large", large)
    assert files.read("a/large") == large.content
    assert files.checksum("a/large") == large.crc32c
    files.copy("a/large", "b/copy")
    assert files.read("b/copy") == large.content
    assert files.keys_under("") == ["a/large", "b/copy"]
    with pytest.raises(FileNotFoundError):
        files.checksum("a/none")


def test_large_file_that_fails_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    class Broken:
        crc32c = 0

        def write(self, file: IO[bytes]) -> None:
            file.write(b"half")
            raise OSError("no more")

    files = Folder(tmp_path)
    files.write("a", b"before")
    with pytest.raises(OSError, match="no more"):
        files.write_large("a", Broken())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"before"}


def test_file_that_is_removed_while_all_are_read_is_left_out(tmp_path: Path) -> None:
    class Late(Folder):
        def keys_under(self, prefix: str) -> list[str]:
            return [*super().keys_under(prefix), f"{prefix}/gone"]

    files = Late(tmp_path)
    files.write("a/b", b"b")
    assert files.read_all("a") == {"a/b": b"b"}


def test_deleting_what_is_not_there_is_nothing(tmp_path: Path) -> None:
    files = Folder(tmp_path)
    files.write("a", b"1", b"2")
    files.delete("a")
    files.delete("a")
    with pytest.raises(FileNotFoundError):
        files.read("a")


def test_folder_that_may_not_be_listed_is_an_error_and_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Folder(tmp_path).write("a/b", b"b")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").chmod(0o000)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(65534)
        with pytest.raises(PermissionError):
            Folder(Path()).keys_under("a")
    finally:
        if is_root:
            os.seteuid(0)
        (tmp_path / "a").chmod(0o755)


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 400))
from pathlib import Path
from contract.storage.folder import Folder
print(Folder(Path()).most_maps, *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_a_store_maps_a_quarter_of_the_files_that_may_be_open() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True, env=os.environ
    )
    assert ran.stdout.split() == ["100", "400", "400"]
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert Folder(Path()).most_maps <= max(1, min(MOST_MAPS, limit))
