import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from contract import parts
from contract.parts import opened
from contract.views import UndecodableError


def test_range_of_bytes_is_a_member_of_a_tar(tmp_path: Path) -> None:
    contents = {"a.jpg": b"first", "b.jpg": b"the second", "c.jpg": b""}
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with tarfile.open(tmp_path / "shard.tar") as archive:
        members = [(member.name, f"bytes:{member.offset_data}+{member.size}") for member in archive]
    assert {name: parts.read(tmp_path / "shard.tar", part) for name, part in members} == contents


def test_range_beyond_the_end_is_truncated(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    assert parts.read(tmp_path / "a.tar", "bytes:4+6") == b"456789"
    with pytest.raises(UndecodableError, match=r"^a\.tar is truncated: 6 of 7 bytes are there from 4 on$"):
        parts.read(tmp_path / "a.tar", "bytes:4+7")
    with pytest.raises(UndecodableError, match="0 of 1 bytes"):
        parts.read(tmp_path / "a.tar", "bytes:99999999+1")
    with pytest.raises(UndecodableError, match="more than an item may have"):
        parts.read(tmp_path / "a.tar", "bytes:0+999999999999999999")


@pytest.mark.parametrize(
    "part",
    ["bytes:-1+2", "bytes:1", "bytes:0+9999999999999999999", "npz:x", "npz:[0]", "npz:x[-1]", "npz:x[1.5]",
     "hdf5:x[]", "cifar:", "cifar:-1", "cifar:x[0]", "zip:x[0]", "x", "npz:x[\u0663]", " npz:x[0]", "npz:x[0]\n"],
)  # fmt: skip
def test_part_of_another_grammar_is_refused(tmp_path: Path, part: str) -> None:
    with pytest.raises(UndecodableError, match=r"^part .* is none of "):
        parts.read(tmp_path, part)


@pytest.mark.parametrize(
    "part",
    ["bytes:0+1", "npz:x[0]", "hdf5:x[0]", "arrow:x[0]", "parquet:x[0]", "cifar:0", "cifar-pickle:0"],
)
def test_missing_and_broken_containers_say_so_in_one_line(tmp_path: Path, part: str) -> None:
    with pytest.raises(UndecodableError, match=r"^the file is missing$"):
        parts.read(tmp_path / "nothing", part)
    for name, content in (("empty", b""), ("text", b"hello, this is no container at all" * 99)):
        (tmp_path / name).write_bytes(content)
        if part.startswith("bytes") and content:
            continue
        with pytest.raises(UndecodableError, match="truncated") as caught:
            parts.read(tmp_path / name, part)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
        assert "0x" not in str(caught.value)
    with pytest.raises(UndecodableError):
        parts.read(tmp_path, part)


def test_container_that_is_replaced_is_opened_again(tmp_path: Path) -> None:
    for value in (1, 2):
        np.save(tmp_path / "a.npy", np.full((value, 2, 2), value, np.uint8))
        assert parts.read(tmp_path / "a.npy", "npz:array[0]")[0, 0] == value


def test_many_threads_open_a_container_once_and_read_the_same(tmp_path: Path) -> None:
    values = [str(number).encode() for number in range(500)]
    with pa.ipc.new_file(tmp_path / "a.arrow", pa.schema([("image", pa.binary())])) as out:
        out.write_table(pa.table({"image": pa.array(values, pa.binary())}), max_chunksize=7)
    times = []

    def open_container(file: Path, name: str) -> int:
        times.append(file)
        return 1

    containers = opened.Opened("file", 2, open_container)
    with ThreadPoolExecutor(8) as threads:
        assert (
            list(threads.map(lambda row: parts.read(tmp_path / "a.arrow", f"arrow:image[{row}]"), range(500)))
            == values
        )
        list(threads.map(lambda _: containers.get(tmp_path / "a.arrow"), range(100)))
    assert len(times) == 1
