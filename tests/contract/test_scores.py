from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from contract import embeddings, scores
from contract.encodings import Float32
from contract.errors import RunError
from contract.manifest import Manifest
from contract.schema import Field, FieldSet
from contract.scores import Direction, Scores
from contract.store import TargetStore

MakeManifest = Callable[..., Manifest]

WAY = Direction(dataset="tiny", split="train", queries="text", gallery="image", language="en")
RNG = np.random.default_rng(0)


def student_store(run: Path, manifest: Manifest, seed: int = 0) -> TargetStore:
    """Of embeddings that are a function of the item's id and the seed."""
    store = TargetStore.create(embeddings.path(run, "tiny"), manifest)
    for modality in manifest.modalities:
        fieldset = FieldSet(
            name=embeddings.FIELDSET,
            modality=modality,
            fields=(Field(name=embeddings.FIELD, shape=(4,), encoding=Float32()),),
            batch_size=8,
            provenance={},
        )
        store.add(fieldset)
        for shard in store.missing(fieldset.key):
            rows = store.shard_rows(fieldset.key, shard)[store.kept_rows(fieldset.key, shard) :]
            ids = store.manifest.column(modality, "id", list(rows))
            drawn = [np.random.default_rng(crc32(f"{name} {seed}".encode())).standard_normal(4) for name in ids]
            store.write_shard(fieldset.key, shard, {embeddings.FIELD: np.array(drawn, np.float32)})
    return store


def some(num_queries: int = 12, k: int = 3, num_gallery: int = 6) -> Scores:
    candidates = np.stack([RNG.permutation(num_gallery)[:k] for _ in range(num_queries)])
    return Scores(
        query_rows=np.arange(num_queries),
        candidate_rows=candidates.astype(np.int64),
        scores=RNG.standard_normal((num_queries, k)).astype(np.float32),
    )


@pytest.fixture
def student(tmp_path: Path, scenes: MakeManifest) -> TargetStore:
    """The student store of a run, six images with two captions each."""
    return student_store(tmp_path, scenes(6, captions=True))


def test_scores_read_back_as_they_were_written(tmp_path: Path, student: TargetStore) -> None:
    written = some()
    path = scores.write(tmp_path, WAY, written, student)
    assert path == tmp_path / "scores/tiny-train-text-to-image-en.npz"
    found = scores.read(tmp_path, WAY, student)
    assert found.k == 3
    for name in ("query_rows", "candidate_rows", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(written, name))
        assert getattr(found, name).dtype == getattr(written, name).dtype
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_any_reader_of_npz_files_can_open_them(tmp_path: Path, student: TargetStore) -> None:
    with np.load(scores.write(tmp_path, WAY, some(), student), allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
    assert (about["queries"], about["gallery"], about["k"]) == ("text", "image", 3)
    assert about["student"].keys() == {"image", "text"}


def test_scores_stay_true_of_a_student_store_that_grew(
    tmp_path: Path, student: TargetStore, scenes: MakeManifest
) -> None:
    scores.write(tmp_path, WAY, some(), student)
    grown = student_store(tmp_path, scenes(9, captions=True))
    assert grown.manifest.num_rows("image") == 9
    assert scores.read(tmp_path, WAY, grown).k == 3


def test_scores_of_another_students_candidates_are_refused(
    tmp_path: Path, student: TargetStore, scenes: MakeManifest
) -> None:
    scores.write(tmp_path, WAY, some(), student)
    other = student_store(tmp_path / "other", scenes(6, captions=True), seed=1)
    with pytest.raises(RunError, match=r"of another student or other items: student\.text\.embeddings: '\w+', not"):
        scores.read(tmp_path, WAY, other)


def test_scores_of_other_items_are_refused(tmp_path: Path, student: TargetStore, scenes: MakeManifest) -> None:
    scores.write(tmp_path, WAY, some(), student)
    other = student_store(tmp_path / "other", scenes(6, captions=True, order=[5, 4, 3, 2, 1, 0]))
    with pytest.raises(RunError, match=r"of another student or other items: student\.text\.ids"):
        scores.read(tmp_path, WAY, other)


def test_scores_under_the_name_of_another_direction_are_refused(tmp_path: Path, student: TargetStore) -> None:
    path = scores.write(tmp_path, WAY, some(), student)
    way = replace(WAY, split="test")
    path.rename(scores.path(tmp_path, way))
    with pytest.raises(RunError, match="the scores are of something else: split: 'train', not 'test'"):
        scores.read(tmp_path, way, student)


def test_scores_that_are_not_there_are_told_with_those_that_are(tmp_path: Path, student: TargetStore) -> None:
    scores.write(tmp_path, WAY, some(), student)
    with pytest.raises(
        RunError, match=r"image-to-text-en\.npz: no such file.*there are: tiny-train-text-to-image-en"
    ):
        scores.read(tmp_path, replace(WAY, queries="image", gallery="text"), student)


@pytest.mark.parametrize("keep", [0, 10, 400, -1])
def test_file_that_was_cut_short_is_refused(tmp_path: Path, student: TargetStore, keep: int) -> None:
    path = scores.write(tmp_path, WAY, some(), student)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"en\.npz is damaged, or no file of scores: .*; have the trainer write"):
        scores.read(tmp_path, WAY, student)


def test_changed_bit_is_noticed(tmp_path: Path, student: TargetStore) -> None:
    path = scores.write(tmp_path, WAY, some(), student)
    content = bytearray(path.read_bytes())
    content[content.index(b"scores.npy") + 200] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="is damaged"):
        scores.read(tmp_path, WAY, student)


def test_changed_compression_is_noticed(tmp_path: Path, student: TargetStore) -> None:
    path = scores.write(tmp_path, WAY, some(), student)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 10] ^= 0x41
    path.write_bytes(content)
    with pytest.raises(RunError, match="is damaged"):
        scores.read(tmp_path, WAY, student)


def rewritten(path: Path, **changes: Any) -> None:
    """Write the file again with some of its arrays replaced, as another program might."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    about = json.loads(str(arrays["about"])) | changes.pop("about", {})
    np.savez(path, **(arrays | changes | {"about": np.array(json.dumps(about))}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.zeros((12, 3))}, r"`scores` is float64 \[12, 3\], and float32 with 2 dimensions"),
        ({"queries": np.zeros((12, 1), np.int64)}, r"`queries` is int64 \[12, 1\], and int64 with 1"),
        ({"scores": np.zeros((11, 3), np.float32)}, r"candidates \[12, 3\] and scores \[11, 3\]"),
        ({"candidates": np.full((12, 3), 6)}, "image rows 6 to 6, and .* has 6"),
        ({"candidates": np.full((12, 3), 2)}, r"'i0#0' has a candidate more than once \(12 of 12 queries\)"),
        ({"scores": np.full((12, 3), np.nan, np.float32)}, "has a score that is not finite"),
        ({"queries": np.zeros(12, np.int64)}, "a query stands there more than once"),
        ({"about": {"k": 5}}, "of something else: k: 5, not 3"),
        ({"about": {"student": None}}, "of another student or other items: student: None, not"),
    ],
)
def test_hand_made_nonsense_is_refused(
    tmp_path: Path, student: TargetStore, changes: dict[str, Any], message: str
) -> None:
    rewritten(scores.write(tmp_path, WAY, some(), student), **changes)
    with pytest.raises(RunError, match=message):
        scores.read(tmp_path, WAY, student)


def test_nonsense_is_not_written_either(tmp_path: Path, student: TargetStore) -> None:
    with pytest.raises(RunError, match=r"text rows 0 to 12, and .* has 12"):
        scores.write(tmp_path, WAY, some(num_queries=13), student)
    assert not list((tmp_path / "scores").iterdir())


def test_scores_that_are_written_again_replace_the_old_in_one_step(
    tmp_path: Path, student: TargetStore, full_disk: Callable[[int], Any]
) -> None:
    first = some()
    path = scores.write(tmp_path, WAY, first, student)
    with full_disk(300), pytest.raises(OSError, match="File too large"):
        scores.write(tmp_path, WAY, some(), student)
    np.testing.assert_array_equal(scores.read(tmp_path, WAY, student).scores, first.scores)
    assert list(path.parent.iterdir()) == [path]
