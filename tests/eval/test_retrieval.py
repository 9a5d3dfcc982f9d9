from __future__ import annotations

import json

import numpy as np
import pytest

from contract.encodings import Float16, Float32
from contract.errors import DataError, StoreError
from contract.manifest import items_table
from contract.ranking import rank, summarise
from contract.schema import Field, FieldSet
from contract.store import TargetStore
from eval import retrieval
from eval.candidates import Wanted
from eval.protocols import COCO_1K
from eval.retrieval import Direction, Measured, evaluate
from eval.runs import Student, open_student


def say(line: str) -> None:
    raise AssertionError(line)


def measure(student: Student, **options) -> Measured:
    return evaluate(student, **{"split": "test", "language": "en", "index": None, "say": say, **options})


def ways(measured: Measured) -> dict[str, Direction]:
    return {way.name: way for way in measured.directions}


def test_figures_are_those_of_the_ranks_over_the_split(make_run):
    student = open_student(make_run(noise=2.0), None)
    manifest, store = student.store.manifest, student.store
    text, image = manifest.rows("text", "test", languages=["en"]), manifest.rows("image", "test")
    owners = manifest.positives("text", "image")[text, 1]
    pairs = np.stack([np.arange(len(text)), owners - image[0]], axis=1)
    expected = rank(
        store.load("text/student/embedding", text),
        store.load("image/student/embedding", image),
        pairs,
        manifest.ids("image")[image],
    )
    found = ways(measure(student))["text-to-image"]
    assert found.figures == summarise(expected)
    assert found.figures["mean_rank"] > 1.5
    assert found.ranked.ranks.tolist() == expected.ranks.tolist()
    assert found.ranked.ids.tolist() == manifest.ids("text")[text].tolist()


def test_the_best_of_several_captions_counts(make_run):
    found = ways(measure(open_student(make_run(), None)))["image-to-text"]
    assert found.figures["num_queries"] == 20
    # The best of two positives among 40: (40 + 1) / (2 + 1).
    assert found.random["mean_rank"] == pytest.approx(41 / 3)


def test_both_captions_count_in_average_precision(make_run):
    found = ways(measure(open_student(make_run(noise=0.0), None)))
    # A caption's image ties with nothing but itself; an image has its two captions first.
    assert found["image-to-text"].figures["mAP@R"] == 100
    assert found["text-to-image"].figures["mAP@R"] == found["text-to-image"].figures["R@1"]


def test_untrained_directions_are_found_through_the_shared_modality(make_run):
    untrained = [way for way in measure(open_student(make_run(), None)).directions if not way.trained]
    assert {way.name for way in untrained} == {"text-to-audio", "audio-to-text"}
    assert all(way.figures["R@10"] > way.random["R@10"] for way in untrained)


def test_captions_of_one_image_are_drawn_together(make_run):
    found = ways(measure(open_student(make_run(noise=2.0), None)))
    assert found["text-to-image"].figures["num_queries"] == 40
    assert {name: way.num_clusters for name, way in found.items()} == dict.fromkeys(found, 20)
    for way in found.values():
        assert way.intervals.keys() == {"R@1", "R@5", "R@10", "mean_rank", "median_rank", "mAP@R"}
        assert all(low <= way.figures[name] <= high for name, (low, high) in way.intervals.items())


def test_recall_is_given_at_the_k_that_are_asked_for(make_run):
    found = ways(measure(open_student(make_run(), None), ks=(3, 50)))["text-to-image"]
    assert [name for name in found.figures if name.startswith("R@")] == ["R@3", "R@50"]
    assert (found.figures["R@50"], found.random["R@50"]) == (100, 100)


def test_flat_index_finds_all_of_the_best_even_where_all_tie(make_run, tmp_path):
    student = open_student(make_run(noise=0.0), None)
    measured = measure(student, index=Wanted(folder=tmp_path / "index"))
    assert measured.indexed is not None
    assert all(found.recalls.all_at_k == 1.0 for found in measured.indexed.directions.values())


def test_labels_grade_what_is_found(make_run, monkeypatch):
    student = open_student(make_run(modalities=("image", "text"), noise=2.0), None)
    columns = {name: student.store.manifest.column("image", name) for name in ("id", "split")}
    images = items_table(columns | {"label": [row % 4 for row in range(len(columns["id"]))]})
    monkeypatch.setitem(student.store.manifest.items, "image", images)
    for way in measure(student).directions:
        assert way.random["nDCG@10"] < way.figures["nDCG@10"] < 100
        assert way.figures["graded_queries"] == way.figures["num_queries"]
        low, high = way.intervals["nDCG@10"]
        assert low < way.figures["nDCG@10"] < high
        assert way.ranked.values["nDCG@10"].mean() == pytest.approx(way.figures["nDCG@10"])


def test_a_table_grades_its_own_modalities(make_run, tmp_path):
    (tmp_path / "grades.csv").write_text("image,text,grade\ni012,i012-en-0,3\ni013,i020-en-1,1\n")
    found = ways(measure(open_student(make_run(), None), grades=tmp_path / "grades.csv"))
    graded = {name: way.figures["graded_queries"] for name, way in found.items() if "nDCG@10" in way.figures}
    assert graded == {"text-to-image": 2, "image-to-text": 2}


def test_folds_are_averaged(make_run, monkeypatch):
    monkeypatch.setattr(retrieval.protocols, "choose", lambda *_: (folds_of(5), ()))
    monkeypatch.setattr(retrieval.protocols.Protocol, "fold_size", 4)
    student = open_student(make_run(noise=2.0), None)
    found = ways(measure(student))["text-to-image"]
    assert (found.figures["num_queries"], found.figures["num_gallery"]) == (40, 4)
    folds = [found.ranked.ranks[found.ranked.folds == fold] for fold in range(5)]
    assert found.figures["R@1"] == pytest.approx(np.mean([100 * (ranks == 1).mean() for ranks in folds]))
    assert found.figures["median_rank"] == pytest.approx(np.mean([np.median(ranks) for ranks in folds]))
    assert found.random["mean_rank"] == 2.5
    assert found.num_clusters == len(np.unique(found.ranked.clusters)) == 20
    assert found.ranks is None


def folds_of(number: int):
    return type(COCO_1K)(name="toy-folds", num_images=20, num_folds=number)


def test_a_teacher_that_can_do_the_task_is_scored_on_the_same_items(make_run, tmp_path):
    run = make_run(noise=2.0)
    student = open_student(run, None)
    store = TargetStore.create(tmp_path / "stores/toy.zarr", student.store.manifest)
    for modality in ("image", "text"):
        field = Field(name="embedding", shape=(64,), encoding=Float16(), about={"space": "clip"})
        fieldset = FieldSet(name="clip", modality=modality, fields=(field,), batch_size=8, provenance={})
        store.add(fieldset)
        rows = np.arange(store.manifest.num_rows(modality))
        owners = rows if modality == "image" else store.manifest.positives("text", "image")[:, 1]
        store.write_shard(fieldset.key, 0, {"embedding": np.eye(64, dtype=np.float32)[owners]})
    record = json.loads((run / "run.json").read_text()) | {"stores": [{"path": "stores/toy.zarr"}]}
    (run / "run.json").write_text(json.dumps(record))
    found = ways(measure(open_student(run, None)))
    assert found["text-to-image"].teachers["clip"]["R@1"] == 100
    assert found["text-to-image"].figures["R@1"] < 100
    assert not found["text-to-audio"].teachers


def test_one_query_has_no_interval(make_run):
    student = open_student(make_run(quarantined=range(13, 32)), None)
    found = ways(measure(student))["text-to-image"]
    assert (found.figures["num_gallery"], found.figures["R@1"]) == (1, 100)
    assert found.figures["queries_without_positive"] == 38
    assert found.intervals == {}


def test_embeddings_that_are_not_finite_are_an_error_that_names_one(make_run, monkeypatch):
    student = open_student(make_run(), None)
    read = student.store.read

    def spoilt(reference: str, rows: np.ndarray, **options: bool) -> dict[str, np.ndarray]:
        values = read(reference, rows, **options)
        next(iter(values.values()))[3, 1] = np.nan
        return values

    monkeypatch.setattr(student.store, "read", spoilt)
    with pytest.raises(DataError, match=r"1 of 20 image items of split test have values .* such as that of 'i015'"):
        measure(student)


def test_long_embeddings_rank_as_their_directions_do(make_run, monkeypatch):
    student = open_student(make_run(noise=2.0), None)
    figures = {name: way.figures for name, way in ways(measure(student)).items()}
    read = student.store.read

    def longer(reference: str, rows: np.ndarray, **options: bool) -> dict[str, np.ndarray]:
        return {name: values * np.float32(2.0**127) for name, values in read(reference, rows, **options).items()}

    monkeypatch.setattr(student.store, "read", longer)
    assert {name: way.figures for name, way in ways(measure(student)).items()} == figures


def test_embeddings_whose_file_is_damaged_are_an_error_that_names_it(make_run):
    run = make_run()
    shard = run / "embeddings/toy.zarr/text/student/embedding/c/0/0"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="the checksum of a row is wrong"):
        measure(open_student(run, None))


def test_embeddings_of_different_widths_are_an_error(make_run, tmp_path):
    run = tmp_path / "runs" / "other"
    manifest = open_student(make_run(modalities=("image", "text")), None).store.manifest
    store = TargetStore.create(run / "embeddings" / "toy.zarr", manifest)
    for modality, width in (("image", 4), ("text", 6)):
        fieldset = FieldSet(
            name="student",
            modality=modality,
            fields=(Field(name="embedding", shape=(width,), encoding=Float32()),),
            batch_size=8,
            rows_per_shard=128,
            provenance={"trained": [], "train_splits": []},
        )
        store.add(fieldset)
        store.write_shard(fieldset.key, 0, {"embedding": np.ones((manifest.num_rows(modality), width), np.float32)})
    (run / "run.json").write_text(json.dumps({"finished": True}))
    with pytest.raises(DataError, match=r"of one width, and have the shapes image \[4\], text \[6\]"):
        measure(open_student(run, None))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "image,text,grade\nelsewhere,i012-en-0,3\n",
            "none of its pairs, such as 'elsewhere' and 'i012-en-0', is among",
        ),
        ("image,audio,grade\ni012,a012,3\n", "it grades image and audio; split test of toy has no audio items"),
    ],
)
def test_a_table_of_other_items_is_an_error(make_run, tmp_path, table, message):
    (tmp_path / "grades.csv").write_text(table)
    with pytest.raises(DataError) as raised:
        measure(open_student(make_run(modalities=("image", "text")), None), grades=tmp_path / "grades.csv")
    assert message in str(raised.value)


def test_pairs_of_a_table_that_are_not_evaluated_are_told(make_run, tmp_path):
    (tmp_path / "grades.csv").write_text("image,text,grade\ni012,i012-en-0,3\ni000,i000-en-0,3\n")
    said: list[str] = []
    measure(open_student(make_run(), None), grades=tmp_path / "grades.csv", say=said.append)
    assert any("1 of 2 pairs are not among the items of split test of toy, such as 'i000'" in line for line in said)


def test_nothing_that_belongs_together_is_an_error(make_run):
    student = open_student(make_run(modalities=("image",)), None)
    with pytest.raises(DataError, match="no two items of split test belong together"):
        measure(student, split=None)
