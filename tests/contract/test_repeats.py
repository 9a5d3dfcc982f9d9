from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from contract import repeats
from contract.repeats import BLOCK, hashes, is_among, repeated, repeated_strings


def column(*parts: list[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(part, pa.string()) for part in parts], pa.string())


def test_strings_that_repeat_are_counted_and_one_is_named() -> None:
    assert repeated_strings(column(["a", "b", "c"], ["d"])) is None
    assert repeated_strings(column([], [""])) is None
    assert repeated_strings(column()) is None
    assert repeated_strings(column(["a", "b"], [], ["c", "b", "a", "b"])) == (2, "a")
    assert repeated_strings(column(["", "x"], [""])) == (1, "")


def test_hash_depends_on_every_byte_and_on_nothing_else() -> None:
    """Of strings of every length up to three words, each with one byte changed."""
    texts = ["x" * length for length in range(25)]
    texts += ["x" * place + "y" + "x" * (length - place - 1) for length in range(25) for place in range(length)]
    texts += ["x" * length + "\0" for length in range(25)]
    whole = hashes(pa.array(texts))
    assert len(set(whole.tolist())) == len(texts)
    alone = [hashes(pa.array(["before", text, "after"]).slice(1, 1))[0] for text in texts]
    assert alone == whole.tolist()


def test_hashes_of_near_strings_are_far_apart() -> None:
    """Each bit is set half of the time, and numbers in a row share none."""
    values = hashes(pa.array([f"{n:08}" for n in range(20_000)]))
    bits = (values[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.02
    assert len(np.unique(values >> np.uint64(24))) > 19_999 - 400


def test_two_strings_of_one_hash_are_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "hashes", lambda strings: np.zeros(len(strings), np.uint64))
    assert repeated_strings(column(["a", "b"], ["c"])) is None
    assert repeated_strings(column(["a", "b"], ["b"])) == (1, "b")


def test_values_that_repeat_are_found_across_blocks() -> None:
    values = np.arange(BLOCK + 10, dtype=np.uint64)
    values[-1] = BLOCK - 1  # sorted, it lies on both sides of the border
    parts = np.array_split(np.random.default_rng(0).permutation(values), 7)
    assert repeated(parts).tolist() == [BLOCK - 1]
    assert repeated([np.full(5, 3, np.uint64)]).tolist() == [3]
    assert repeated([]).tolist() == []


def test_values_are_found_among_others() -> None:
    values = np.array([5, 1, 9, 5, 0], np.uint64)
    assert is_among(values, np.array([1, 5, 7], np.uint64)).tolist() == [True, True, False, True, False]
    assert not is_among(values, values[:0]).any()


def test_nothing_is_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    repeated([np.arange(9, dtype=np.uint64)])
    assert list(tmp_path.iterdir()) == []
