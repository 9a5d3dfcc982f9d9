from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import faiss
import numpy as np
import pytest

from contract import fingerprint, records
from contract.errors import MissingExtraError, RunError
from eval import gallery
from eval.gallery import Description, Gallery
from eval.indexes import KINDS, named
from eval.vectors import Vectors

NAME = "toy-test-image.flat"


def unit(num_vectors: int = 50, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((num_vectors, 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def held(array: np.ndarray) -> Vectors:
    return Vectors(name="toy: image", num_rows=len(array), width=array.shape[1], load=lambda rows: array[rows])


def describe(array: np.ndarray, run: str = "runs/a", index: str = "flat", **changed: str) -> Description:
    return gallery.describe(
        named(index),
        run=Path(run),
        dataset="toy",
        split=changed.get("split", "test"),
        language="en",
        modality=changed.get("modality", "image"),
        ids=np.array([f"{changed.get('prefix', 'i')}{row}" for row in range(len(array))]),
        vectors=held(array),
    )


def open_(folder: Path, array: np.ndarray, said: list[str] | None = None, **about: str) -> Gallery:
    say = (said if said is not None else []).append
    return gallery.open_or_build(describe(array, **about), folder, held(array), say)


def rewrite(path: Path, content: bytes) -> None:
    """Put another file in the index's place, as one who knows how it is written down would."""
    tree = records.load((path / "description.json").read_bytes())
    (path / "index.faiss").write_bytes(content)
    tree["about"]["file"] = {"size_bytes": len(content), "fingerprint": fingerprint.of_bytes(content)}
    (path / "description.json").write_bytes(records.dump(tree))


def test_search_finds_each_vector_itself_first(tmp_path):
    rows = open_(tmp_path, unit()).search(unit(), 3)
    assert rows.dtype == np.int64
    assert rows[:, 0].tolist() == list(range(50))


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw", "IVF2,PQ4x4,RFlat"])
def test_index_read_again_answers_alike(tmp_path, kind):
    built = open_(tmp_path / "index", unit(), index=kind)
    read = open_(tmp_path / "index", unit(), index=kind)
    assert (built.reused, read.reused) == (False, True)
    np.testing.assert_array_equal(built.search(unit(), 5), read.search(unit(), 5))
    assert built.about == read.about
    assert built.knobs == read.knobs


def test_kinds_splits_and_modalities_lie_beside_one_another(tmp_path):
    for about in ({}, {"index": "hnsw"}, {"split": "val"}, {"modality": "text"}, {"index": "IVF2,PQ4x4,RFlat"}):
        open_(tmp_path, unit(), **about)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        NAME,
        "toy-test-image.hnsw32",
        "toy-test-image.ivf2-pq4x4-rflat",
        "toy-test-text-en.flat",
        "toy-val-image.flat",
    ]
    assert open_(tmp_path, unit()).reused


def test_a_kind_and_the_string_it_stands_for_are_one_index(tmp_path):
    open_(tmp_path, unit(), index="hnsw")
    assert open_(tmp_path, unit(), index="HNSW32").reused


def test_equal_embeddings_of_a_moved_run_are_welcome(tmp_path):
    open_(tmp_path, unit())
    assert open_(tmp_path, unit(), run="runs/moved").reused


def test_index_of_another_run_is_refused(tmp_path):
    open_(tmp_path, unit())
    before = (tmp_path / NAME / "index.faiss").read_bytes()
    with pytest.raises(RunError, match=r"is the index of something else: run: '.*runs/a', not '.*runs/b'"):
        open_(tmp_path, unit(seed=1), run="runs/b")
    assert (tmp_path / NAME / "index.faiss").read_bytes() == before


def test_index_of_other_items_is_refused(tmp_path):
    open_(tmp_path, unit())
    with pytest.raises(RunError, match="is the index of something else"):
        open_(tmp_path, unit(), run="runs/b", prefix="j")


def test_new_embeddings_of_the_same_run_are_indexed_again(tmp_path):
    open_(tmp_path, unit())
    said: list[str] = []
    again = open_(tmp_path, unit(seed=1), said)
    assert not again.reused
    assert "the index is built again" in said[0]
    assert again.search(unit(seed=1), 1)[:, 0].tolist() == list(range(50))
    assert open_(tmp_path, unit(seed=1)).reused
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_truncated_index_is_refused(tmp_path):
    file = open_(tmp_path, unit()).path / "index.faiss"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(
        RunError, match=r"flat is damaged: its index.faiss has 1,638 bytes, not 1,645; remove it and"
    ):
        open_(tmp_path, unit())


def test_altered_index_is_refused(tmp_path):
    file = open_(tmp_path, unit()).path / "index.faiss"
    content = bytearray(file.read_bytes())
    content[300] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"the checksum of its index.faiss is not the one written down"):
        open_(tmp_path, unit())


def test_lost_index_is_refused(tmp_path):
    (open_(tmp_path, unit()).path / "index.faiss").unlink()
    with pytest.raises(RunError, match=r"flat is damaged: its index.faiss is gone"):
        open_(tmp_path, unit())


@pytest.mark.parametrize("content", [b"", b"not an index", b"IxFI", b"\0" * 2000])
def test_what_is_no_index_is_refused(tmp_path, content):
    rewrite(open_(tmp_path, unit()).path, content)
    with pytest.raises(RunError, match=r"index.faiss: FAISS .* can't read what FAISS .* wrote: .*; remove"):
        open_(tmp_path, unit())


def test_index_of_another_gallery_behind_this_ones_description_is_refused(tmp_path):
    content = (open_(tmp_path / "other", unit(20)).path / "index.faiss").read_bytes()
    rewrite(open_(tmp_path, unit()).path, content)
    with pytest.raises(RunError, match=r"flat is damaged: its index.faiss holds 20 vectors of width 8"):
        open_(tmp_path, unit())


def test_index_that_ranks_by_distance_is_refused(tmp_path):
    distances = faiss.IndexFlatL2(8)
    distances.add(unit())
    rewrite(open_(tmp_path, unit()).path, faiss.serialize_index(distances).tobytes())
    with pytest.raises(RunError, match=r"flat is damaged: its index.faiss does not rank by inner products"):
        open_(tmp_path, unit())


def test_a_folder_for_a_description_is_refused(tmp_path):
    description = open_(tmp_path, unit()).path / "description.json"
    description.unlink()
    description.mkdir()
    with pytest.raises(RunError, match=r"flat is damaged: it has no description.json"):
        open_(tmp_path, unit())


@pytest.mark.parametrize("changed", [{"about": None}, {"about": {}}, {"description": 5}])
def test_a_record_that_describes_no_index_is_refused(tmp_path, changed):
    description = open_(tmp_path, unit()).path / "description.json"
    description.write_bytes(records.dump(records.load(description.read_bytes()) | changed))
    with pytest.raises(RunError, match=r"flat is damaged: its description.json is not the description of an index"):
        open_(tmp_path, unit())


def test_an_index_that_can_not_be_written_is_one_clear_line(tmp_path):
    (tmp_path / f"{NAME}.partial").write_text("mine")
    with pytest.raises(RunError, match=r"flat: the index can't be written: .*File exists"):
        open_(tmp_path, unit())


def test_what_a_killed_build_left_goes_with_the_next_build_of_any_kind(tmp_path):
    killed, mine = tmp_path / "toy-test-image.hnsw32.partial", tmp_path / "download.partial"
    for folder, file in ((killed, "index.faiss"), (mine, "film.mkv")):
        folder.mkdir()
        (folder / file).write_bytes(b"half")
    open_(tmp_path, unit())
    assert sorted(path.name for path in tmp_path.iterdir()) == [mine.name, NAME]


def test_index_without_description_is_refused(tmp_path):
    (open_(tmp_path, unit()).path / "description.json").unlink()
    with pytest.raises(RunError, match=r"flat is damaged: it has no description.json; remove it and"):
        open_(tmp_path, unit())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"file": 1}', "\udcff"])
def test_what_is_no_description_is_refused(tmp_path, text):
    path = open_(tmp_path, unit()).path
    (path / "description.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RunError, match=r"flat is damaged: its description.json is not the description of an index"):
        open_(tmp_path, unit())


def test_altered_description_is_refused(tmp_path):
    description = open_(tmp_path, unit()).path / "description.json"
    description.write_text(description.read_text().replace('"image"', '"audio"'))
    with pytest.raises(RunError, match="it was changed after it was written"):
        open_(tmp_path, unit())


def test_index_of_another_version_is_refused(tmp_path):
    path = open_(tmp_path, unit()).path
    (path / "description.json").write_text('{"format": 7}')
    with pytest.raises(RunError, match=r"flat has format 7, this version of Precept reads format 1; remove it"):
        open_(tmp_path, unit())


def test_a_file_where_the_index_belongs_is_refused(tmp_path):
    (tmp_path / NAME).write_text("mine")
    with pytest.raises(RunError, match=r"flat is damaged: it has no description.json"):
        open_(tmp_path, unit())
    with pytest.raises(RunError, match=r"flat: it is a file, and a folder is wanted"):
        open_(tmp_path / NAME, unit())
    assert (tmp_path / NAME).read_text() == "mine"


KILLED = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
from eval import gallery
from eval.indexes import building
from test_gallery import open_, unit

folder, place, step, at_call, seed = sys.argv[2], *sys.argv[3:5], *map(int, sys.argv[5:])
place = {"building": building, "gallery": gallery, "path": pathlib.Path}[place]
before, calls = getattr(place, step), []

def killing(*arguments, **options):
    calls.append(step)
    if len(calls) == at_call:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(*arguments, **options)

setattr(place, step, killing)
open_(pathlib.Path(folder), unit(seed=seed))
"""


@pytest.mark.parametrize(
    ("place", "step", "at_call", "seed"),
    [
        ("building", "tqdm", 1, 0),
        ("gallery", "_write_description", 1, 0),
        ("gallery", "replace_file", 1, 1),
        ("path", "rename", 1, 0),
        ("path", "rename", 1, 1),
        ("path", "rename", 2, 1),
    ],
)
def test_a_killed_build_leaves_nothing_that_counts(tmp_path, place, step, at_call, seed):
    if seed:  # in place of an older one
        open_(tmp_path, unit())
    arguments = [str(Path(__file__).parent), str(tmp_path), place, step, str(at_call), str(seed)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    again = open_(tmp_path, unit(seed=seed))
    assert not again.reused
    assert again.search(unit(seed=seed), 1)[:, 0].tolist() == list(range(50))
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_an_index_that_is_being_built_is_waited_for(tmp_path):
    array, found, said = unit(5000), [], []
    building, said_so = threading.Event(), threading.Event()

    def load(rows: np.ndarray) -> np.ndarray:
        building.set()
        assert said_so.wait(timeout=30)
        return array[rows]

    def hear(line: str) -> None:
        said.append(line)
        said_so.set()

    description = describe(array, index="ivf")
    slow = Vectors(name="toy", num_rows=len(array), width=8, load=load)
    first = threading.Thread(target=lambda: gallery.open_or_build(description, tmp_path, slow, [].append))
    second = threading.Thread(
        target=lambda: found.append(gallery.open_or_build(description, tmp_path, held(array), hear))
    )
    first.start()
    assert building.wait(timeout=30)
    second.start()
    first.join()
    second.join()
    assert found[0].reused
    assert said == [f"note: {tmp_path}: another process writes there; waiting for it"]


def test_settings_are_written_down_when_no_other_process_writes(tmp_path):
    index, waiting = open_(tmp_path, unit()), threading.Event()
    held_by_another = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held_by_another, fcntl.LOCK_EX)
    writing = threading.Thread(target=lambda: index.remember({"settings": {}}, lambda _: waiting.set()))
    writing.start()
    assert waiting.wait(timeout=30)
    description = index.path / "description.json"
    assert "tuned" not in description.read_text()
    os.close(held_by_another)
    writing.join()
    assert records.load(description.read_bytes())["about"]["tuned"] == {"settings": {}}


def test_description_says_what_the_index_is_of(tmp_path):
    path = open_(tmp_path, unit(1000), index="ivf").path
    tree = json.loads((path / "description.json").read_text())
    found, about = tree["description"], tree["about"]
    assert found["factory"] == "IVF25,Flat"
    assert (found["dataset"], found["split"], found["modality"]) == ("toy", "test", "image")
    assert (found["num_vectors"], found["width"]) == (1000, 8)
    assert found["metric"] == "inner product of unit vectors"
    assert about["num_training"] == 1000
    assert about["build_s"] >= 0
    assert about["file"]["size_bytes"] == (path / "index.faiss").stat().st_size


def test_fingerprints_do_not_depend_on_blocks(monkeypatch):
    whole = describe(unit(50))
    monkeypatch.setattr("eval.vectors.BLOCK_ROWS", 7)
    assert describe(unit(50)) == whole
    assert describe(unit(50, seed=1)).embeddings != whole.embeddings
    assert describe(unit(50), prefix="j").ids != whole.ids


def test_without_faiss_an_index_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match="FAISS can't be imported"):
        open_(tmp_path, unit())


def test_every_kind_has_a_name_of_its_own():
    assert len({describe(unit(1000), index=kind).name for kind in KINDS}) == len(KINDS)
