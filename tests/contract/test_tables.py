import io
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pytest

from contract.tables import (
    ITEMS,
    ROWS_PER_BATCH,
    TableFile,
    content_fingerprint,
    items_table,
    open_table,
    pair_kind,
    pairs_table,
    take,
)


def items(texts: list[str]) -> pa.Table:
    return items_table({"id": [f"{n}" for n in range(len(texts))], "split": ["val"] * len(texts), "text": texts})


def dump(table: pa.Table) -> bytes:
    file = io.BytesIO()
    TableFile(table).write(file)
    return file.getvalue()


def test_pair_kinds_have_one_spelling() -> None:
    assert pair_kind("text", "image") == "image-text"
    assert pair_kind("audio", "image") == "image-audio"
    assert pair_kind("text", "audio") == "audio-text"


def test_columns_that_are_left_out_hold_nothing() -> None:
    row = items(["a"]).to_pylist()[0]
    assert row == {
        "id": "0",
        "file": "",
        "part": "",
        "start_ms": 0,
        "length_ms": -1,
        "text": "a",
        "label": -1,
        "language": "",
        "split": "val",
        "size_bytes": -1,
    }


def test_content_does_not_depend_on_chunks_or_on_the_place_in_memory() -> None:
    whole = items(["schön", "", "b", "cc", ""])
    pieces = pa.concat_tables([whole.slice(0, 1), whole.slice(1, 0), whole.slice(1, 3), whole.slice(4)])
    assert content_fingerprint(pieces) == content_fingerprint(whole)
    assert content_fingerprint(whole.slice(1, 3)) == content_fingerprint(items(["x", "", "b", "cc"]).slice(1))


def test_content_depends_on_every_value_and_on_the_boundary_between_two() -> None:
    tables = [items(texts) for texts in (["ab", "c"], ["a", "bc"], ["ab", "d"], ["ab", "c", ""], ["", ""], [])]
    label = ITEMS.get_field_index("label")
    tables.append(tables[0].set_column(label, "label", pa.array([0, -1], pa.int32())))
    tables.append(tables[0].rename_columns(["name", *ITEMS.names[1:]]))
    assert len({content_fingerprint(table) for table in tables}) == len(tables)


def test_segments_are_opened_as_one_table(tmp_path: Path) -> None:
    table = items(["a", "b", "c"])
    (tmp_path / "items.text.arrow").write_bytes(dump(table.slice(0, 2)))
    (tmp_path / "items.text.1.arrow").write_bytes(dump(table.slice(2)))
    segments = [{"rows": 2, "crc32c": 0}, {"rows": 1, "crc32c": 0}]
    assert open_table("items.text", segments, lambda name, _: tmp_path / name).equals(table)


def test_equal_tables_are_equal_files() -> None:
    whole = items(["a", "b", "c"])
    assert dump(pa.concat_tables([whole.slice(0, 2), whole.slice(2)])) == dump(whole)
    assert dump(items(["x", "b", "c"]).slice(1)) == dump(whole.slice(1))


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("items.text", items(["a", "b"]), "has 2 rows, manifest.json says 1"),
        ("items.text", items(["a"]).drop_columns("label"), "has other columns"),
        ("pairs.image-text", pa.table({"image": [1], "audio": [2]}), "has other columns"),
        ("pairs.image-text", pa.table({"image": [1], "text": [2.0]}), "has other columns"),
    ],
)
def test_another_table_is_refused(tmp_path: Path, name: str, table: pa.Table, message: str) -> None:
    (tmp_path / "t").write_bytes(dump(table))
    with pytest.raises(ValueError, match=message):
        open_table(name, [{"rows": 1, "crc32c": 0}], lambda *_: tmp_path / "t")


def test_pairs_may_stand_either_way_round(tmp_path: Path) -> None:
    for first, second in (("image", "text"), ("text", "image")):
        kind, table = pairs_table(first, second, np.array([[1, 2]]))
        (tmp_path / "t").write_bytes(dump(table))
        assert open_table(f"pairs.{kind}", [{"rows": 1, "crc32c": 0}], lambda *_: tmp_path / "t").equals(table)


def test_checksum_is_that_of_the_file() -> None:
    table = items(["a", "schön", ""])
    assert TableFile(table).crc32c == google_crc32c.value(dump(table))


def test_long_table_is_read_back_and_hashed_as_a_short_one(tmp_path: Path) -> None:
    num_rows = 2 * ROWS_PER_BATCH + 7
    table = items([str(n % 999) for n in range(num_rows)])
    pieces = pa.concat_tables([table.slice(start, 9_999) for start in range(0, num_rows, 9_999)])
    assert dump(pieces) == dump(table)
    assert content_fingerprint(pieces) == content_fingerprint(table)
    (tmp_path / "t").write_bytes(dump(table))
    found = open_table("items.text", [{"rows": num_rows, "crc32c": 0}], lambda *_: tmp_path / "t")
    assert found.equals(table)
    assert found.column("id").num_chunks == 3


def test_rows_are_taken_in_the_order_asked_for() -> None:
    table = items([str(n) for n in range(10)])
    column = pa.concat_tables([table.slice(0, 4), table.slice(4, 0), table.slice(4)]).column("text")
    assert take(column, [9, 0, 4, 3, 9]).to_pylist() == ["9", "0", "4", "3", "9"]
    assert take(column, []).to_pylist() == []
    with pytest.raises(IndexError):
        take(column, [10])
