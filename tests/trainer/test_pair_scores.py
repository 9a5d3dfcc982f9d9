"""The scores that a run's matching head writes, and that `eval` ranks by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract import embeddings, ranking, scores
from contract.scores import Direction
from contract.store import TargetStore
from eval.retrieval import evaluate
from eval.runs import open_student
from trainer import runs, student_stores
from trainer.device import Device
from trainer.fit import fit
from trainer.recipes import Recipe
from trainer.state import State

Make = Callable[..., Recipe]
TOP_K = 5
CHANGES: dict[str, Any] = {
    "epochs": 1,
    "student.fusion": {"num_heads": 2},
    "objectives": {"rank": {"kind": "ranking"}, "match": {"kind": "itm", "top_k": TOP_K}},
    "targets": {},
    "inputs": {"image": "patch_embeddings", "text": "token_embeddings"},
}


@pytest.fixture(scope="module")
def matched(recipe: Make, store: TargetStore, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    run = runs.begin(recipe(CHANGES), [store.path], tmp_path_factory.mktemp("matched") / "run")
    fit(run)
    return run


def test_a_run_with_a_matching_head_scores_the_nearest_of_every_query(matched: runs.Run) -> None:
    student = TargetStore.open(embeddings.path(matched.path, "tiny"))
    names = {file.stem for file in (matched.path / "scores").iterdir()}
    assert names == {
        f"tiny-{split}-{way}-en" for split in ("val", "test") for way in ("image-to-text", "text-to-image")
    }
    for queries, gallery in (("image", "text"), ("text", "image")):
        way = Direction(dataset="tiny", split="test", queries=queries, gallery=gallery, language="en")
        found = scores.read(matched.path, way, student)
        rows = {m: student.manifest.rows(m, "test", languages=["en"]) for m in (queries, gallery)}
        vectors = {m: student.load(f"{m}/student/embedding", rows[m]) for m in rows}
        ids = student.manifest.column(gallery, "id", rows[gallery])
        expected = ranking.nearest(vectors[queries], vectors[gallery], ids, TOP_K)
        np.testing.assert_array_equal(found.query_rows, rows[queries])
        np.testing.assert_array_equal(found.candidate_rows, rows[gallery][expected])


@torch.no_grad()
def test_a_score_is_the_heads_logit_of_the_pair_alone(matched: runs.Run) -> None:
    state = State(matched.recipe, matched.streams, Device(name="cpu", precision="float32"))
    state.restore_student(matched.best)
    model: Any = state.student.eval()
    head: Any = state.objectives[1]
    ((store, inputs),) = matched.streams.stores
    student = TargetStore.open(embeddings.path(matched.path, "tiny"))
    way = Direction(dataset="tiny", split="val", queries="image", gallery="text", language="en")
    found = scores.read(matched.path, way, student)
    places = {m: {name: row for row, name in enumerate(store.manifest.column(m, "id"))} for m in inputs}
    for query, candidates, values in zip(found.query_rows, found.candidate_rows, found.scores, strict=True):
        for candidate, value in zip(candidates, values, strict=True):
            rows = {
                m: [places[m][student.manifest.column(m, "id", [row])[0]]]
                for m, row in (("image", query), ("text", candidate))
            }
            named = model({m: inputs[m].load(store, np.array(row)) for m, row in rows.items()})
            sides = [named[f"{m}/{part}"] for m in ("text", "image") for part in ("tokens", "mask")]
            expected = head.head(model.fusion(*sides)["pooled"]).item()
            assert value == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_eval_ranks_by_them(matched: runs.Run) -> None:
    student = open_student(matched.path, None)
    report = evaluate(student, split="test", language="en", index=None, say=lambda line: None, by_scores=True)
    assert set(report.reranked) == {"image-to-text", "text-to-image"}
    assert all(found.k == TOP_K for found in report.reranked.values())


def test_growing_the_student_store_scores_what_is_new(matched: runs.Run) -> None:
    run = runs.resume(matched.path, [])
    student_stores.grow(run, ["train"], [])
    assert (matched.path / "scores" / "tiny-train-image-to-text-en.npz").is_file()


def test_a_run_without_a_head_writes_none(recipe: Make, store: TargetStore, tmp_path: Path) -> None:
    fit(runs.begin(recipe({"epochs": 1}), [store.path], tmp_path / "run"))
    assert not (tmp_path / "run" / "scores").exists()
