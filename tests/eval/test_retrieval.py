from __future__ import annotations

import numpy as np
import pytest

from contract.errors import DataError
from contract.ranking import rank, summarise
from eval.retrieval import evaluate
from eval.runs import open_student


def say(line: str) -> None:
    raise AssertionError(line)


def test_figures_are_those_of_the_ranks_over_the_split(make_run):
    student = open_student(make_run(noise=2.0), None)
    measured = evaluate(student, split="test", language="en", index=None, say=say)
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
    found = {way.name: way for way in measured.directions}["text-to-image"]
    assert found.figures == summarise(expected)
    assert found.figures["mean_rank"] > 1.5


def test_the_best_of_several_captions_counts(make_run):
    student = open_student(make_run(), None)
    measured = evaluate(student, split="test", language="en", index=None, say=say)
    found = {way.name: way for way in measured.directions}["image-to-text"]
    assert found.figures["num_queries"] == 20
    # The best of two positives among 40: (40 + 1) / (2 + 1).
    assert found.random["mean_rank"] == pytest.approx(41 / 3)


def test_untrained_directions_are_found_through_the_shared_modality(make_run):
    measured = evaluate(open_student(make_run(), None), split="test", language="en", index=None, say=say)
    untrained = [way for way in measured.directions if not way.trained]
    assert {way.name for way in untrained} == {"text-to-audio", "audio-to-text"}
    assert all(way.figures["R@10"] > way.random["R@10"] for way in untrained)


def test_flat_index_finds_all_of_the_best_even_where_all_tie(make_run, tmp_path):
    student = open_student(make_run(noise=0.0), None)
    measured = evaluate(student, split="test", language="en", index=tmp_path / "index", say=say)
    assert all(way.candidates is not None and way.candidates.recall == 1.0 for way in measured.directions)


def test_nothing_that_belongs_together_is_an_error(make_run):
    student = open_student(make_run(modalities=("image",)), None)
    with pytest.raises(DataError, match="no two items of split test belong together"):
        evaluate(student, split=None, language="en", index=None, say=say)
