from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.errors import DataError
from pipeline.sources import rows
from pipeline.sources.rows import lines, read_rows

ROWS = [{"image": "a.jpg", "caption": 'He said "no", and\nleft.'}, {"image": "ü.jpg", "caption": "Zwei Hunde"}]


def read(path: Path, content: str | bytes, *columns: str, **settings: Any) -> list[dict[str, Any]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [dict(row) for _, row in read_rows(path, columns or ("image", "caption"), **settings)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'image,caption\na.jpg,"He said ""no"", and\nleft."\nü.jpg,Zwei Hunde\n'),
        ("a.csv", '\ufeffimage, caption ,more\r\na.jpg,"He said ""no"", and\nleft.",1\r\n\r\nü.jpg,Zwei Hunde,2'),
        ("a.tsv", 'caption\timage\n"He said ""no"", and\nleft."\ta.jpg\nZwei Hunde\tü.jpg\n'),
        (
            "a.jsonl",
            '\ufeff{"image": "a.jpg", "caption": "He said \\"no\\", and\\nleft."}\r\n\n'
            '{"x": 1, "image": "ü.jpg", "caption": "Zwei Hunde"}',
        ),
    ],
)
def test_rows_are_the_same_in_every_format(tmp_path: Path, name: str, content: str) -> None:
    assert read(tmp_path / name, content) == ROWS


def test_parquet_gives_the_columns_asked_for(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([row | {"pixels": b"x"} for row in ROWS])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    assert list(read_rows(tmp_path / "a.parquet", ["image", "caption"])) == [
        (f"{tmp_path / 'a.parquet'}: row {number}", row) for number, row in enumerate(ROWS)
    ]


def test_other_delimiters_and_unquoted_texts_are_read(tmp_path: Path) -> None:
    assert read(tmp_path / "a.txt", 'image|caption\na|"b\n', delimiter="|", quoted=False) == [
        {"image": "a", "caption": '"b'}
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", r"a\.csv: line 1: there is no `image`; there are: none"),
        ("a.csv", "image;caption\n", r"there is no `image`; there are: 'image;caption'"),
        ("a.csv", "image,caption,image\na,b,c\n", r"line 1 names the column `image` more than once"),
        ("a.csv", "image,caption\na.jpg,x\nb.jpg,one, two\n", r"line 3 has 3 values, where the first line names 2"),
        ("a.csv", 'image,caption\na.jpg,x\nb.jpg,"open\nc.jpg,y\n', r"line 4: unexpected end of data"),
        ("a.csv", b"image,caption\na.jpg,x\nb.jpg,\xe9t\xe9\n", r"line 3 is not UTF-8: invalid .* at byte 6"),
        ("a.csv", f"image,caption\na.jpg,{'x' * 200_000}\n", "line 2: field larger than field limit"),
        (
            "a.jsonl",
            '{"image": "a", "caption": "x"}\n{"image": "b"}\n',
            r"line 2: there is no `caption`; .*'image'",
        ),
        ("a.jsonl", '{"image": "a", "caption": "x"}\n{"image": \n', r"line 2 is not JSON: Expecting value"),
        ("a.jsonl", "[1]\n", r"line 1: expected one object a line, found list"),
        ("a.jsonl", "[" * 100_000, r"line 1 is not JSON"),
        ("a.parquet", "PAR1", r"a\.parquet: not Parquet that can be read"),
        ("a.xlsx", "PK", r"a\.xlsx: what it holds is told by its suffix"),
    ],
)
def test_broken_table_is_named_with_its_row(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / name, content)


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"image": broken}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: not Parquet that can be read"):
        list(read_rows(tmp_path / "a.parquet", ["image"]))


def test_missing_parquet_column_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: there is no `image`; there are: 'url'"):
        list(read_rows(tmp_path / "a.parquet", ["image"]))


def test_table_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv: can't be read: No such file"):
        list(read_rows(tmp_path / "a.csv", ["image"]))


def test_line_without_an_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 100)
    (tmp_path / "a.txt").write_text(f"short\n{'x' * 101}")
    with pytest.raises(DataError, match=r"a\.txt: line 2 is longer than 100 bytes"):
        list(lines(tmp_path / "a.txt"))


def test_blank_lines_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n\r\ntwo")
    assert [text for _, text in lines(tmp_path / "a.txt")] == ["one", "two"]
    assert [text for _, text in lines(tmp_path / "a.txt", blank=True)] == ["one", "", "two"]
