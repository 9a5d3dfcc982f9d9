from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from contract.errors import MissingExtraError, RunError
from eval import gallery
from eval.gallery import Description, Gallery
from eval.indexes.flat import Flat


def unit(num_vectors: int = 50, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((num_vectors, 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def describe(embeddings: np.ndarray, run: str = "runs/a") -> Description:
    return gallery.describe(
        Flat(),
        run=Path(run),
        dataset="toy",
        split="test",
        language="en",
        modality="image",
        ids=[f"i{row}" for row in range(len(embeddings))],
        embeddings=embeddings,
    )


def open_(folder: Path, embeddings: np.ndarray, run: str = "runs/a", said: list[str] | None = None) -> Gallery:
    say = (said if said is not None else []).append
    return gallery.open_or_build(Flat(), folder, describe(embeddings, run), embeddings, say)


def test_search_finds_each_vector_itself_first(tmp_path):
    embeddings = unit()
    rows = open_(tmp_path, embeddings).search(embeddings, 3)
    assert rows.dtype == np.int64
    assert rows[:, 0].tolist() == list(range(50))


def test_index_read_again_answers_alike(tmp_path):
    embeddings = unit()
    built, read = open_(tmp_path / "index", embeddings), open_(tmp_path / "index", embeddings)
    assert (built.reused, read.reused) == (False, True)
    np.testing.assert_array_equal(built.search(embeddings, 5), read.search(embeddings, 5))
    assert not list(tmp_path.glob("index/*.partial"))


def test_equal_embeddings_of_a_moved_run_are_welcome(tmp_path):
    open_(tmp_path, unit())
    assert open_(tmp_path, unit(), run="runs/moved").reused


def test_index_of_another_run_is_refused(tmp_path):
    open_(tmp_path, unit())
    before = (tmp_path / "toy-test-image.faiss").read_bytes()
    with pytest.raises(RunError, match=r"is the index of something else: run: '.*runs/a', not '.*runs/b'"):
        open_(tmp_path, unit(seed=1), run="runs/b")
    assert (tmp_path / "toy-test-image.faiss").read_bytes() == before


def test_new_embeddings_of_the_same_run_are_indexed_again(tmp_path):
    open_(tmp_path, unit())
    said: list[str] = []
    embeddings = unit(seed=1)
    again = open_(tmp_path, embeddings, said=said)
    assert not again.reused
    assert "the index is built again" in said[0]
    assert again.search(embeddings, 1)[:, 0].tolist() == list(range(50))
    assert open_(tmp_path, embeddings).reused


def test_truncated_index_is_refused(tmp_path):
    path = open_(tmp_path, unit()).path
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(RunError, match=r"toy-test-image.faiss is damaged: it has 1,638 bytes, not 1,645; remove"):
        open_(tmp_path, unit())


def test_altered_index_is_refused(tmp_path):
    path = open_(tmp_path, unit()).path
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="its checksum is not the one written down"):
        open_(tmp_path, unit())


def test_lost_index_is_refused(tmp_path):
    open_(tmp_path, unit()).path.unlink()
    with pytest.raises(RunError, match="it is gone, its description is there"):
        open_(tmp_path, unit())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"file": 1}'])
def test_damaged_description_is_refused(tmp_path, text):
    open_(tmp_path, unit()).path.with_suffix(".json").write_text(text)
    with pytest.raises(RunError, match=r"toy-test-image.json is damaged"):
        open_(tmp_path, unit())


def test_index_without_description_was_never_finished_and_is_built_again(tmp_path):
    path = open_(tmp_path, unit()).path
    path.with_suffix(".json").unlink()
    path.write_bytes(b"half")
    assert not open_(tmp_path, unit()).reused
    assert open_(tmp_path, unit()).reused


def test_description_says_what_the_index_is_of(tmp_path):
    path = open_(tmp_path, unit()).path
    found = json.loads(path.with_suffix(".json").read_text())
    assert found["index"] == {"kind": "flat"}
    assert (found["dataset"], found["split"], found["modality"]) == ("toy", "test", "image")
    assert (found["num_vectors"], found["width"]) == (50, 8)
    assert found["metric"] == "inner product of unit vectors"
    assert found["file"]["size_bytes"] == path.stat().st_size


def test_without_faiss_an_index_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match="--index needs FAISS, which can't be imported"):
        open_(tmp_path, unit())
