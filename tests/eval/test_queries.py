from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from contract import bundle
from contract.errors import DataError, RunError
from contract.store import TargetStore
from eval.queries import encode, search
from eval.report_search import as_json, as_text
from eval.runs import open_student

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

WIDTH = 16
ASKED = {"language": None, "k": 3}


def write_bundle(run: Path, weights: str = "") -> None:
    """One whose embedding of a text is the sum of its hashed words, brought to unit length."""
    folder = run / "export"
    folder.mkdir()
    of = onnx.helper.make_tensor_value_info
    float_, int_ = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    nodes = [
        onnx.helper.make_node("ReduceSum", ["vectors", "axis"], ["sum"], keepdims=0),
        onnx.helper.make_node("LpNormalization", ["sum"], ["embedding"], axis=1, p=2),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "words",
        [of("vectors", float_, ["batch", 8, WIDTH]), of("length", int_, ["batch"])],
        [of("embedding", float_, ["batch", WIDTH])],
        [onnx.numpy_helper.from_array(np.array([1]), "axis")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "text.onnx")
    words = {"kind": "ngrams", "width": WIDTH, "max_length": 8, "ngrams": [3, 5], "word": r"\w+"}
    text = {"model": "text.onnx", "inputs": ["vectors", "length"], "preprocessing": words}
    tree = {"format": bundle.FORMAT, "weights": weights, "width": WIDTH, "modalities": {"text": text}}
    (folder / bundle.DESCRIPTION).write_text(json.dumps(tree))


def test_a_text_is_ranked_against_every_modality_of_the_split(make_run):
    run = make_run()
    write_bundle(run)
    student, said = open_student(run, None), []
    found = search(student, "text", "a dog", language="en", k=100, say=said.append)
    assert said == ["split: test"]
    assert (found.split, found.item.modality, found.item.about["text"]) == ("test", "text", "a dog")
    query = encode(student, "text", "a dog")[0]
    store = TargetStore.open(run / "embeddings/toy.zarr")
    for modality, neighbours in found.neighbours.items():
        ids, columns = store.manifest.column(modality, "id"), [one.item.about for one in neighbours]
        rows = [ids.index(about["id"]) for about in columns]
        assert {store.manifest.column(modality, "split", [row])[0] for row in rows} == {"test"}
        cosines = store.load(f"{modality}/student/embedding", rows) @ query
        np.testing.assert_allclose([one.score for one in neighbours], cosines, atol=1e-6)
        assert (np.diff(cosines) <= 1e-6).all()
    assert len(found.neighbours["image"]) == 20
    assert {one.item.about["language"] for one in found.neighbours["text"]} == {"en"}


def test_a_query_belongs_to_nothing_and_has_no_id(make_run):
    run = make_run()
    write_bundle(run)
    found = search(open_student(run, None), "text", "a dog", split="val", say=[].append, **ASKED)
    tree = json.loads(as_json(found))
    assert (tree["split"], tree["query"]["id"], tree["query"]["text"]) == ("val", "", "a dog")
    assert {one["belongs"] for ones in tree["neighbours"].values() for one in ones} == {None}
    assert as_text(found).startswith("text: a dog\n")


def test_val_is_searched_where_there_is_no_test(make_run):
    run = make_run(splits=("val",))
    write_bundle(run)
    assert search(open_student(run, None), "text", "a dog", say=[].append, **ASKED).split == "val"


def test_torch_is_not_needed(make_run, monkeypatch):
    run = make_run()
    write_bundle(run)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert encode(open_student(run, None), "text", "a dog").shape == (1, WIDTH)


@pytest.mark.parametrize(
    ("weights", "modality", "content", "error", "message"),
    [
        (
            None,
            "text",
            "a dog",
            RunError,
            "runs/one has no bundle that encodes queries; `trainer export .*runs/one`",
        ),
        (
            "other",
            "text",
            "a dog",
            RunError,
            "export is of other weights than the run's embeddings; `trainer export",
        ),
        ("", "text", "  ", DataError, "the text is empty"),
        ("", "image", "no.png", DataError, "no.png: no such file"),
        ("", "image", __file__, DataError, "export embeds no pictures, only text"),
    ],
)
def test_a_mistake_is_one_line(make_run, weights, modality, content, error, message):
    run = make_run()
    if weights is not None:
        write_bundle(run, weights)
    with pytest.raises(error, match=message) as raised:
        search(open_student(run, None), modality, content, say=[].append, **ASKED)
    assert "\n" not in str(raised.value)


def test_a_split_that_is_not_there_is_named(make_run):
    run = make_run()
    write_bundle(run)
    with pytest.raises(DataError, match="has no split 'train'; it has: test, val"):
        search(open_student(run, None), "text", "a dog", split="train", say=[].append, **ASKED)
