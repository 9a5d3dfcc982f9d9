from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from contract import parts
from contract.parts import columns
from contract.views import UndecodableError

CONTENTS = [f"encoded {number}".encode() for number in range(23)]
TABLE = pa.table(
    {
        "image": pa.array([{"bytes": content, "path": "a.jpg"} for content in CONTENTS]),
        "label": pa.array(range(23)),
        "raw": pa.array(CONTENTS, pa.large_binary()),
        "image.raw": pa.array(CONTENTS, pa.binary()),
        "caption": pa.array([f"caption {number}" for number in range(23)]),
        "missing": pa.array([None, {"bytes": None}] + [{"bytes": b"x"}] * 21, pa.struct([("bytes", pa.binary())])),
    }
)


def as_file(path: Path) -> None:
    with pa.ipc.new_file(path, TABLE.schema) as out:
        out.write_table(TABLE, max_chunksize=5)


def as_stream(path: Path) -> None:
    """As Hugging Face's datasets saves them."""
    with pa.ipc.new_stream(path, TABLE.schema) as out:
        out.write_table(TABLE, max_chunksize=5)


def as_feather(path: Path) -> None:
    pa.feather.write_feather(TABLE, path, compression="lz4", chunksize=5)


def as_parquet(path: Path) -> None:
    pa.parquet.write_table(TABLE, path, row_group_size=5)


WRITERS = {"file.arrow": as_file, "stream.arrow": as_stream, "a.feather": as_feather, "a.parquet": as_parquet}


@pytest.fixture(params=WRITERS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    WRITERS[request.param](tmp_path / request.param)
    return tmp_path / request.param


def part(file: Path, name: str, row: int) -> str:
    return f"{'parquet' if file.suffix == '.parquet' else 'arrow'}:{name}[{row}]"


@pytest.mark.parametrize("name", ["image.bytes", "raw", "image.raw"])
def test_row_is_the_bytes_of_the_column(file: Path, name: str) -> None:
    for row in (0, 22, 7, 5, 4, 15, 0):
        assert parts.read(file, part(file, name, row)) == CONTENTS[row]


def test_columns_are_read_in_batches(file: Path) -> None:
    found = pa.Table.from_batches(columns.batches(file, ["caption", "label"]))
    assert found.to_pydict() == TABLE.select(["caption", "label"]).to_pydict()
    with pytest.raises(UndecodableError, match="has no column 'text'; it has image, label"):
        list(columns.batches(file, ["text"]))


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("raw", 23, "^row 23 of column 'raw', which has 23$"),
        ("picture", 0, "has no column 'picture'; it has image, label"),
        ("image.data", 0, "has no column 'image.data': 'image' is struct"),
        ("label.bytes", 0, "has no column 'label.bytes': 'label' is int64"),
        ("label", 0, "column 'label' of .* holds int64, and not the bytes"),
        ("image", 0, "column 'image' of .* holds struct"),
        ("missing.bytes", 0, "row 0 of column 'missing.bytes' is null"),
        ("missing.bytes", 1, "row 1 of column 'missing.bytes' is null"),
    ],
)
def test_what_is_not_there_says_why(file: Path, name: str, row: int, reason: str) -> None:
    with pytest.raises(UndecodableError, match=reason):
        parts.read(file, part(file, name, row))


@pytest.mark.parametrize("kept", [0.001, 0.2, 0.6, 0.97])
def test_truncated_container_says_so(file: Path, kept: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UndecodableError, match=r"not a readable .*, truncated or broken"):
        parts.read(file, part(file, "raw", 22))


def test_offsets_beyond_the_data_are_a_reason_and_no_crash(tmp_path: Path) -> None:
    offsets = pa.array([0, 4, 8], pa.int32()).buffers()[1]
    column = pa.Array.from_buffers(pa.binary(), 2, [None, offsets, pa.py_buffer(b"12345678")])
    with pa.ipc.new_stream(tmp_path / "a.arrow", pa.schema([("raw", pa.binary())])) as out:
        out.write_table(pa.table({"raw": column}))
    content = (tmp_path / "a.arrow").read_bytes()
    place = content.index(offsets.to_pybytes()[:12])
    damaged = (
        content[:place]
        + pa.array([0, 4, 1 << 30], pa.int32()).buffers()[1].to_pybytes()[:12]
        + content[place + 12 :]
    )
    (tmp_path / "a.arrow").write_bytes(damaged)
    with pytest.raises(UndecodableError, match="not a readable Arrow file"):
        parts.read(tmp_path / "a.arrow", "arrow:raw[1]")


def test_row_groups_are_decoded_once_for_rows_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_parquet(tmp_path / "a.parquet")
    decoded = []
    read_row_group = pa.parquet.ParquetFile.read_row_group

    def counted(self: object, number: int, **options: object) -> pa.Table:
        decoded.append(number)
        return read_row_group(self, number, **options)

    monkeypatch.setattr(pa.parquet.ParquetFile, "read_row_group", counted)
    # Threads finish out of order, by some rows.
    for row in (0, 1, 2, 5, 3, 4, 6, 10, 7, 8, 9, 11, 12):
        parts.read(tmp_path / "a.parquet", f"parquet:raw[{row}]")
    assert decoded == [0, 1, 2]


def test_row_group_that_is_too_large_to_hold_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "MAX_ROW_GROUP_BYTES", 100)
    as_parquet(tmp_path / "a.parquet")
    with pytest.raises(UndecodableError, match="write it in smaller ones"):
        parts.read(tmp_path / "a.parquet", "parquet:raw[0]")
