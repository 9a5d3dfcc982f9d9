from __future__ import annotations

import json

import pytest

from eval.candidates import Wanted
from eval.indexes import KINDS
from eval.retrieval import evaluate
from eval.runs import open_student

SIX = {
    "text-to-image",
    "image-to-text",
    "audio-to-image",
    "image-to-audio",
    "text-to-audio",
    "audio-to-text",
}
RECALLS = ("1-recall@1", "1-recall@10", "10-recall@10")
PLAIN = ("--json", "--no-html")


@pytest.mark.parametrize("spelling", [["--index"], ["--index", "kept"], ["--index=kept"]])
def test_index_is_kept_and_described(make_run, call, tmp_path, spelling):
    run = make_run()
    folder = run / "index" if spelling == ["--index"] else tmp_path / "kept"
    index = json.loads(call(*spelling, *PLAIN).out)["index"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "toy-test-audio.flat",
        "toy-test-image.flat",
        "toy-test-text-en.flat",
    ]
    assert (index["kind"], index["wanted_recall"]) == ("flat", 0.95)
    image = index["galleries"]["image"]
    assert (image["factory"], image["num_vectors"], image["device"], image["reused"]) == ("Flat", 20, "cpu", False)
    assert image["bytes_per_vector"] * 20 == pytest.approx(image["size_bytes"], abs=1)
    assert set(index["directions"]) == SIX
    for figures in index["directions"].values():
        assert [figures[name] for name in RECALLS] == [1.0, 1.0, 1.0]
        assert figures["queries_per_second"] > 0
        assert figures["single_queries_per_second"] > 0


@pytest.mark.parametrize("index", ["flat", "ivf", "hnsw", "IVF2,PQ4x2"])
def test_index_does_not_change_a_published_figure(make_run, call, index):
    make_run(noise=2.0)
    with_index = json.loads(call("--index-factory", index, *PLAIN).out)
    without = json.loads(call(*PLAIN).out)
    assert with_index["directions"] == without["directions"]
    assert with_index["index"]["galleries"]["image"]["num_vectors"] == 20
    assert "index" not in without


def test_index_is_read_again_by_a_later_call(make_run, call):
    run = make_run()
    call("--index", "--index-factory", "hnsw", *PLAIN)
    file = run / "index/toy-test-image.hnsw32/index.faiss"
    before = file.stat().st_mtime_ns
    assert "read from its files" in call("--index", "--index-factory", "hnsw", "--no-html").out
    assert file.stat().st_mtime_ns == before


def test_settings_are_those_of_the_wanted_recall(make_run, call):
    make_run(noise=2.0)
    least, all_ = (
        json.loads(call("--index-factory", "IVF8,Flat", "--recall", recall, *PLAIN).out)["index"]
        for recall in ("0.2", "1")
    )
    assert least["galleries"]["text"]["settings"]["nprobe"] < all_["galleries"]["text"]["settings"]["nprobe"]
    assert (least["wanted_recall"], all_["wanted_recall"]) == (0.2, 1.0)


def test_the_table_stands_apart_from_the_published_one(make_run, call):
    run = make_run()
    printed = call("--index-factory", "ivf", "--no-html").out
    assert "Index ivf in runs/one/index, built now, set to find 95% of the 10 nearest" in printed
    assert "no index has a share in the figures above" in printed
    written = (run / "reports/retrieval-toy-test.md").read_text()
    assert "## Index ivf in runs/one/index" in written
    assert "| text-to-image | IVF1,Flat nprobe=1 | 1.000 | 1.000 | 1.000 |" in written


def test_compare_tries_every_kind_on_the_largest_gallery(make_run, call):
    make_run()
    found = json.loads(call("--index-compare", *PLAIN).out)["index"]["tradeoff"]
    assert found["direction"] == "image-to-text"
    assert [curve["kind"] for curve in found["curves"]] == list(KINDS)
    flat, *_, opq = found["curves"]
    assert [point["10-recall@10"] for point in flat["points"]] == [1.0]
    assert set(flat) >= {"factory", "bytes_per_vector", "build_s", "points"}
    assert "for the 40 vectors of toy-test-text-en" in opq["skipped"]
    assert "opq left out" in call("--index-compare", "--no-html").out


def test_flat_finds_all_of_the_best_even_where_all_tie(make_run, tmp_path):
    student = open_student(make_run(noise=0.0), None)
    wanted = Wanted(folder=tmp_path / "index")
    measured = evaluate(student, split="test", language="en", index=wanted, say=[].append)
    assert measured.indexed is not None
    assert all(found.recalls.all_at_k == 1.0 for found in measured.indexed.directions.values())


def test_the_table_says_where_a_gallery_holds_fewer_than_10(make_run, call):
    make_run(quarantined=range(12, 26))
    printed = call("--index", "--no-html").out
    assert "figures above; text-to-image: 6 in the place of 10, all that there are; audio-to-image: 6 in" in printed


def test_quarantined_items_are_in_no_index(make_run, call):
    make_run(quarantined=[13, 15])
    index = json.loads(call("--index", *PLAIN).out)["index"]
    assert index["galleries"]["image"]["num_vectors"] == 18


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated", "runs/one/index/toy-test-image.flat is damaged: its index.faiss has 4 bytes, not"),
        ("lost", "its index.faiss is gone"),
        ("undescribed", "it has no description.json"),
    ],
)
def test_a_damaged_index_is_one_line(make_run, call, damage, message):
    index = make_run() / "index/toy-test-image.flat"
    call("--index", *PLAIN)
    if damage == "truncated":
        (index / "index.faiss").write_bytes(b"IxFI")
    else:
        (index / {"lost": "index.faiss", "undescribed": "description.json"}[damage]).unlink()
    refused(call("--index", *PLAIN), message)


def test_index_of_another_run_is_one_line(make_run, call):
    make_run("one")
    make_run("two", seed=1)
    call("--run", "runs/one", "--index", "kept", *PLAIN)
    refused(call("--run", "runs/two", "--index", "kept", *PLAIN), "is the index of something else: run:")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--index-factory", "IVF1024,PQ32"], "1,024 centroids for 20 vectors of toy-test-image"),
        (["--index-factory", "IVF4,PQ3"], "FAISS has no such index for inner products of vectors of width 16"),
        (["--index-factory", "nonsense"], "could not parse index string nonsense"),
        (["--index-factory", "ivfpq"], "at least as large as number of clusters (256); choose another"),
        (["--index", "--recall", "0"], "--recall 0: a share of the exact neighbours, above 0 and up to 1"),
        (["--recall", "95"], "--recall 95: a share of the exact neighbours"),
        (["--recall", "nan"], "--recall nan: a share of the exact neighbours"),
    ],
)
def test_a_mistake_is_one_line(make_run, call, arguments, message):
    make_run()
    refused(call(*arguments, *PLAIN), message)


def refused(outcome, message: str) -> None:
    last = outcome.err.splitlines()[-1]
    assert outcome.exit_code != 0
    assert outcome.out == ""
    assert last[last.rfind("error: ") :].startswith("error: ")
    assert message in last
    assert "Traceback" not in outcome.err
