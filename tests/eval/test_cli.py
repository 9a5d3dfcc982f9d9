from __future__ import annotations

import json
import subprocess
import sys

import pytest

from eval.__main__ import main
from eval.cli import completed

PUBLISHED = {"R@1", "R@5", "R@10", "mean_rank", "median_rank", "num_queries", "num_gallery"}
SIX = {
    "text-to-image",
    "image-to-text",
    "audio-to-image",
    "image-to-audio",
    "text-to-audio",
    "audio-to-text",
}


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ([], []),
        (["--index"], ["--index="]),
        (["--index", "--json"], ["--index=", "--json"]),
        (["retrieval", "--json", "--index"], ["retrieval", "--json", "--index="]),
        (["--index", "there", "--json"], ["--index", "there", "--json"]),
        (["--index=there"], ["--index=there"]),
        (["--run", "x", "--index", "-h"], ["--run", "x", "--index=", "-h"]),
    ],
)
def test_index_may_stand_alone(typed, read):
    assert completed(typed) == read


def test_json_has_every_direction_and_nothing_else_is_printed(make_run, call):
    make_run()
    found = call("--json")
    assert found.exit_code == 0
    report = json.loads(found.out)
    assert (report["protocol"], report["dataset"]) == ("toy protocol", "toy")
    assert (report["split"], report["language"]) == ("test", "en")
    assert set(report["directions"]) == set(report["random"]) == SIX
    for name, figures in report["directions"].items():
        assert set(figures) >= PUBLISHED
        assert set(report["random"][name]) >= PUBLISHED
        assert figures["trained"] == (name not in ("text-to-audio", "audio-to-text"))
    assert report["directions"]["text-to-image"]["num_queries"] == 40
    assert report["directions"]["text-to-image"]["num_gallery"] == 20
    assert report["random"]["text-to-image"]["R@10"] == pytest.approx(50)
    assert "index" not in report


def test_two_modalities_give_two_directions(make_run, call):
    make_run(modalities=("image", "text"))
    assert set(json.loads(call("--json").out)["directions"]) == {"text-to-image", "image-to-text"}


def test_without_captions_there_is_no_language(make_run, call):
    make_run(modalities=("image", "audio"))
    assert json.loads(call("--json", "--language", "fr").out)["language"] is None


def test_eval_retrieval_is_the_same_program_as_retrieval(make_run, call):
    make_run()
    assert call("retrieval", "--json", script=main).out == call("--json").out


def test_the_newest_finished_run_is_taken_and_said(make_run, call):
    make_run("old")
    make_run("new")
    make_run("running", finished=False)
    found = call()
    assert found.exit_code == 0
    assert "run: runs/new (the newest)" in found.err
    assert "random R@10" in found.out
    assert "text-to-audio *" in found.out


def test_reports_are_written_beside_the_run(make_run, call):
    run = make_run()
    printed = call("--run", run, "--json").out
    assert (run / "reports/retrieval-toy-test.json").read_text() == printed
    assert "| text-to-image | " in (run / "reports/retrieval-toy-test.md").read_text()
    call("--run", run, "--split", "val", "--language", "de")
    assert (run / "reports/retrieval-toy-val-de.json").exists()
    assert not list((run / "reports").glob("*.partial"))


def test_val_is_taken_where_nothing_is_in_test(make_run, call):
    make_run(splits=("val",))
    found = call("--json")
    assert json.loads(found.out)["split"] == "val"
    assert "split: val (toy has no test split here)" in found.err


def test_another_language_has_captions_of_its_own(make_run, call):
    make_run()
    report = json.loads(call("--json", "--language", "de").out)
    assert report["language"] == "de"
    assert report["directions"]["image-to-text"]["num_gallery"] == 40


def test_quarantined_items_are_left_out_and_counted(make_run, call):
    make_run(quarantined=[3, 15, 16])
    report = json.loads(call("--json").out)
    assert report["quarantined"] == {"image": 2, "text": 0, "audio": 0}
    assert report["directions"]["text-to-image"]["num_gallery"] == 18
    assert report["directions"]["text-to-image"]["num_queries"] == 36
    assert report["directions"]["text-to-image"]["queries_without_positive"] == 4
    assert "image items that could not be decoded, left out: 2" in call().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nowhere"], "nowhere: no run there (it has no run.json)"),
        (["--run", "runs/one", "--split", "train"], "has no split 'train'; it has: val (72 items), test (120"),
        (
            ["--run", "runs/one", "--language", "fr"],
            "no captions in language 'fr'; --language may be one of: de, en",
        ),
        (["--run", "runs/one", "--dataset", "coco"], "has no embeddings of dataset 'coco'; it has: toy"),
        (["--run", "runs/running"], "runs/running is not finished"),
        (["--run", "runs/partial"], "audio/student lacks 1 of 1 shards; `trainer embed --run runs/partial`"),
        (["--run", "runs/one", "--index", "a-file"], "a-file: it is a file, and a folder is wanted"),
        (["--run", "runs/one", "--k", "0,1"], "--k 0,1: expected numbers from 1 on with commas between them"),
        (["--run", "runs/one", "--k", "1.5"], "--k 1.5: expected numbers"),
        (["--run", "runs/one", "--no-html", "--plots"], "--since and --plots are parts of the page"),
        (["--run", "runs/one", "--recall", "2"], "--recall 2: a share of the exact neighbours"),
    ],
)
def test_a_mistake_is_one_line(make_run, call, tmp_path, arguments, message):
    make_run("one")
    make_run("running", finished=False)
    make_run("partial", left_out=["audio"])
    (tmp_path / "a-file").write_text("")
    found = call(*arguments)
    assert found.exit_code != 0
    assert found.out == ""
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    assert message in found.err


def test_no_run_yet_is_one_line(call):
    found = call()
    assert found.exit_code != 0
    assert found.err == "error: no run under runs/; `trainer run` makes one, --run DIR names one elsewhere\n"


def test_a_run_that_never_finished_is_named(make_run, call):
    make_run("running", finished=False)
    assert "error: runs/running is not finished" in call().err


def test_several_datasets_must_be_told_apart(make_run, call):
    make_run("one", dataset="first")
    make_run("one", dataset="second")
    assert "several datasets: first, second; choose one with --dataset" in call().err
    assert json.loads(call("--dataset", "second", "--json").out)["dataset"] == "second"


def test_help_imports_nothing_heavy():
    code = "import eval.cli, sys; print({'torch', 'ray', 'numpy', 'faiss', 'zarr', 'pydantic'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
