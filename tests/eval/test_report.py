from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from eval import rank_files, report
from eval.overlap import Overlap
from eval.protocols import COCO_1K
from eval.retrieval import Measured, evaluate
from eval.runs import open_student


@pytest.fixture
def measured(make_run) -> Measured:
    student = open_student(make_run(noise=2.0), None)
    return evaluate(student, split="test", language="en", index=None, say=print)


def table(text: str) -> list[list[str]]:
    """The cells of the first Markdown table."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_every_figure_of_the_json_has_its_interval(measured):
    for found in report.as_tree(measured)["directions"].values():
        assert found["independent_queries"] == 20
        for name, (low, high) in found["intervals"].items():
            assert low <= found[name] <= high


def test_a_figure_is_shown_with_half_its_interval(measured):
    way = measured.directions[0]
    low, high = way.intervals["R@5"]
    columns, _, first, *_ = table(report.as_markdown(measured))
    assert first[columns.index("R@5")] == f"{way.figures['R@5']:.1f} ± {(high - low) / 2:.1f}"
    assert "± half of the 95% interval" in report.as_text(measured, [])


def test_the_table_has_the_columns_that_were_asked_for(make_run):
    student = open_student(make_run(), None)
    found = evaluate(student, split="test", language="en", index=None, say=print, ks=(1, 3))
    columns = table(report.as_markdown(found))[0]
    assert columns[:6] == ["direction", "R@1", "R@3", "mean rank", "median rank", "mAP@R"]
    assert columns[-1] == "random R@3"


def test_the_protocol_stands_in_every_report(measured):
    named = replace(measured, protocol=replace(measured.protocol, name="flickr-1k"))
    assert json.loads(report.as_json(named))["protocol"] == "flickr-1k"
    for text in (report.as_markdown(named), report.as_text(named, [])):
        assert "Retrieval on flickr-1k (toy) test, captions: en" in text


def test_a_protocol_beside_has_a_table_of_its_own(measured):
    both = replace(measured, beside={COCO_1K: measured.directions[:2]})
    tree = report.as_tree(both)["beside"]["coco-1k"]
    assert tree["folds"] == 5
    assert tree["directions"].keys() == tree["random"].keys() == {"text-to-image", "image-to-text"}
    assert "## coco-1k: the mean of 5 folds" in report.as_markdown(both)
    assert report.as_text(both, []).count("text-to-image") == 2


def test_a_report_over_folds_does_not_replace_that_of_the_whole_split(measured, tmp_path):
    first, second = (
        report.write(replace(measured, protocol=protocol), tmp_path)[0] for protocol in (measured.protocol, COCO_1K)
    )
    assert (first.name, second.name) == ("retrieval-toy-test.json", "retrieval-toy-test-coco-1k.json")


def test_a_teacher_stands_below_its_direction(measured):
    taught = tuple(replace(way, teachers={"clip": way.figures}) for way in measured.directions[:2])
    found = replace(measured, directions=(*taught, *measured.directions[2:]))
    assert report.as_tree(found)["teacher"].keys() == {way.name for way in taught}
    assert [row[0] for row in table(report.as_markdown(found))[2:5]] == [
        taught[0].name,
        "teacher clip",
        taught[1].name,
    ]


def test_several_teachers_keep_their_names(measured):
    taught = tuple(replace(way, teachers={"a": way.figures, "b": way.figures}) for way in measured.directions)
    assert {"teacher a", "teacher b"} <= report.as_tree(replace(measured, directions=taught)).keys()


def test_every_rank_is_kept_beside_the_report(measured, tmp_path):
    path = report.write(measured, tmp_path)[0]
    kept = rank_files.read(path)
    for way in measured.directions:
        assert (kept[way.name].ranks <= 5).mean() * 100 == pytest.approx(way.figures["R@5"])
        assert kept[way.name].values["mAP@R"].mean() == pytest.approx(way.figures["mAP@R"])
        assert len(np.unique(kept[way.name].clusters)) == way.num_clusters


def test_what_could_not_be_compared_with_training_is_told(measured):
    found = replace(measured, overlap=Overlap(missing=("stores/gone.zarr",), copies={"image": 3}))
    for text in (report.as_markdown(found), report.as_text(found, [])):
        assert "not compared with the training items of stores/gone.zarr, which is gone or damaged" in text
        assert "image items whose file is one of training under another name, byte for byte: 3" in text
    assert report.as_tree(found)["training"]["copies"] == {"image": 3}
