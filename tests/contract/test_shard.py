from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from contract.files import replace_file
from contract.shard import DamagedShardError, ShardLayout, ShardMap, shard_content

LAYOUT = ShardLayout(dtype=np.dtype("<f4"), row_shape=(3,), rows_per_shard=8, rows_per_chunk=2)
ROWS = np.arange(24, dtype=np.float32).reshape(8, 3)


def write(path: Path, rows: np.ndarray = ROWS) -> int:
    parts, digest = shard_content(rows, LAYOUT)
    replace_file(path, *parts)
    return digest


def put(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # the old file may still be mapped
    path.write_bytes(content)


def read(shard: ShardMap, rows: list[int], check: bool = False) -> np.ndarray:
    out = np.full((len(rows), 3), np.nan, np.float32)
    shard.copy(np.array(rows), out, np.arange(len(rows)), check=check)
    return out


def test_file_has_the_size_that_is_told_beforehand(tmp_path: Path) -> None:
    for num_rows in range(9):
        write(tmp_path / "0", ROWS[:num_rows])
        assert LAYOUT.file_bytes(num_rows) == (tmp_path / "0").stat().st_size


@pytest.mark.parametrize("rows", [[], [3], [7, 0, 0, 5], list(range(8))])
@pytest.mark.parametrize("check", [False, True])
def test_rows_are_read_as_they_were_written(tmp_path: Path, rows: list[int], check: bool) -> None:
    digest = write(tmp_path / "0")
    shard = ShardMap(tmp_path / "0", LAYOUT, 8)
    np.testing.assert_array_equal(read(shard, rows, check), ROWS[rows])
    shard.will_need(np.array(rows, np.int64))
    assert shard.digest() == digest


def test_rows_of_any_byte_order_and_stride_are_written_alike() -> None:
    expected = [part.tobytes() for part in shard_content(ROWS, LAYOUT)[0]]
    for rows in (ROWS.astype(">f4"), ROWS.astype(np.float64), np.asfortranarray(ROWS), np.repeat(ROWS, 2, 0)[::2]):
        assert [part.tobytes() for part in shard_content(rows, LAYOUT)[0]] == expected


def test_digest_depends_on_every_row_and_on_their_number() -> None:
    digests = {shard_content(ROWS[:num_rows], LAYOUT)[1] for num_rows in (0, 2, 4, 6, 8)}
    for row in range(8):
        other = ROWS.copy()
        other[row, row % 3] += 1
        digests.add(shard_content(other, LAYOUT)[1])
    assert len(digests) == 13


@pytest.mark.parametrize("num_rows", [1, 7, 8])
def test_every_flipped_bit_is_found_by_the_digest_and_by_checked_reads(tmp_path: Path, num_rows: int) -> None:
    write(tmp_path / "0", ROWS[:num_rows])
    content = (tmp_path / "0").read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        put(tmp_path / "0", damaged)
        with pytest.raises(DamagedShardError):
            ShardMap(tmp_path / "0", LAYOUT, num_rows).digest()
        with pytest.raises(DamagedShardError):
            read(ShardMap(tmp_path / "0", LAYOUT, num_rows), list(range(num_rows)), check=True)


def test_flipped_bit_in_any_chunk_of_large_rows_is_found(tmp_path: Path) -> None:
    layout = ShardLayout(dtype=np.dtype("<i2"), row_shape=(3000,), rows_per_shard=8, rows_per_chunk=2)
    rows = np.random.default_rng(0).integers(0, 999, (8, 3000)).astype(np.int16)
    content = b"".join(part.tobytes() for part in shard_content(rows, layout)[0])
    out = np.empty_like(rows)
    for chunk in range(4):
        damaged = bytearray(content)
        damaged[chunk * layout.chunk_bytes + 7000] ^= 8
        put(tmp_path / "0", damaged)
        shard = ShardMap(tmp_path / "0", layout, 8)
        with pytest.raises(DamagedShardError) as raised:
            shard.copy(np.arange(8), out, np.arange(8), check=True)
        assert raised.value.row == 2 * chunk
    put(tmp_path / "0", content)
    ShardMap(tmp_path / "0", layout, 8).copy(np.arange(8), out, np.arange(8), check=True)
    np.testing.assert_array_equal(out, rows)


def test_checked_read_of_another_chunk_is_not_held_up_by_a_damaged_one(tmp_path: Path) -> None:
    write(tmp_path / "0")
    content = bytearray((tmp_path / "0").read_bytes())
    content[LAYOUT.chunk_bytes] ^= 1  # row 2
    put(tmp_path / "0", content)
    shard = ShardMap(tmp_path / "0", LAYOUT, 8)
    np.testing.assert_array_equal(read(shard, [0, 1, 4], check=True), ROWS[[0, 1, 4]])
    with pytest.raises(DamagedShardError, match="checksum of a row") as raised:
        read(shard, [0, 3], check=True)
    assert raised.value.row == 2


def test_file_that_is_missing_or_cut_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedShardError, match="is missing"):
        ShardMap(tmp_path / "0", LAYOUT, 8)
    write(tmp_path / "0")
    content = (tmp_path / "0").read_bytes()
    for size in range(len(content)):
        put(tmp_path / "0", content[:size])
        with pytest.raises(DamagedShardError):
            ShardMap(tmp_path / "0", LAYOUT, 8)


def test_shard_that_has_grown_meanwhile_is_read_on(tmp_path: Path) -> None:
    write(tmp_path / "0")
    np.testing.assert_array_equal(read(ShardMap(tmp_path / "0", LAYOUT, 3), [2, 0]), ROWS[[2, 0]])
    write(tmp_path / "0", ROWS[:3])
    with pytest.raises(DamagedShardError, match=f"has {LAYOUT.file_bytes(3)} bytes, not {LAYOUT.file_bytes(8)}"):
        ShardMap(tmp_path / "0", LAYOUT, 8)


def test_shard_whose_chunks_lie_elsewhere_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "0")
    content = bytearray((tmp_path / "0").read_bytes())
    start = 4 * LAYOUT.chunk_bytes
    content[start : start + 8] = (LAYOUT.chunk_bytes).to_bytes(8, "little")
    content[-4:] = google_crc32c.value(bytes(content[start:-4])).to_bytes(4, "little")
    put(tmp_path / "0", content)
    with pytest.raises(DamagedShardError, match="do not lie in order"):
        ShardMap(tmp_path / "0", LAYOUT, 8)
