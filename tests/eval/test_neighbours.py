from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest

from contract.errors import ConfigError, DataError, StoreError
from eval import labelled
from eval.__main__ import main
from eval.neighbours import chance_of_any, evaluate

RNG = np.random.default_rng(0)


def quiet(line: str) -> None:
    pass


def test_chance_is_the_share_of_all_draws_that_have_the_label():
    for num_of_class, k in ((1, 1), (2, 3), (4, 3), (6, 2), (0, 3)):
        draws = list(combinations(range(7), k))
        expected = np.mean([any(item < num_of_class for item in draw) for draw in draws])
        assert chance_of_any(7, np.array([num_of_class]), k)[0] == pytest.approx(expected)


def test_both_ways_are_measured_with_classes_that_add_up(make_labelled):
    source = labelled.of_run(make_labelled(), None, None)
    there, back = evaluate([source], bank="train", queries="test", ks=(1, 3), say=quiet)
    assert (there.bank.split, there.queries.split) == ("train", "test")
    assert (back.bank.split, back.queries.split) == ("test", "train")
    for found in (there, back):
        assert sum(each.num_queries for each in found.classes) == len(found.queries.ids)
        for place, share in enumerate(found.shares):
            counts = [each.num_queries for each in found.classes]
            for name in ("any", "vote", "chance_any", "chance_vote"):
                of_classes = [getattr(each.shares[place], name) for each in found.classes]
                assert getattr(share, name) == pytest.approx(np.average(of_classes, weights=counts))
        assert found.shares[0].any == found.shares[0].vote > 60 > 25.0 == found.shares[0].chance_any


def test_what_cannot_be_used_is_left_out_and_counted(make_labelled):
    source = labelled.of_run(make_labelled(unlabelled=[0, 1, 119], quarantined=[2, 70]), None, None)
    there, _ = evaluate([source], bank="train", queries="test", ks=(1,), say=quiet)
    assert (len(there.bank.ids), there.bank.num_unlabelled, there.bank.num_quarantined) == (57, 2, 1)
    assert (len(there.queries.ids), there.queries.num_unlabelled, there.queries.num_quarantined) == (39, 1, 0)


def test_class_that_is_not_in_memory_can_not_be_right_and_is_told(make_labelled, call):
    run = make_labelled(counts={"train": 3, "test": 40})  # 40 items of 4 classes, 3 of them in memory
    found = call("neighbours", "--run", run, script=main)
    assert "1 classes of split test are not in memory, so 10 queries can't be right" in found.out
    report = json.loads((run / "reports/neighbours-labelled-image-train-test.json").read_text())
    assert report["measured"][0]["classes"]["2"]["k"]["1"]["any"] > 0
    missing = next(each for each in report["measured"][0]["classes"].values() if not each["num_bank"])
    assert missing["k"]["3"] == {"any": 0.0, "chance_any": 0.0, "vote": 0.0, "chance_vote": 0.0}


def test_json_is_the_report_that_is_written(make_labelled, call):
    run = make_labelled()
    printed = call("neighbours", "--run", run, "--k", "1,3,10", "--json", script=main).out
    assert printed == (run / "reports/neighbours-labelled-image-train-test.json").read_text()
    assert list(json.loads(printed)["measured"][0]["k"]) == ["1", "3", "10"]
    page = (run / "reports/neighbours-labelled-image-train-test.md").read_text()
    assert "| class | memory | queries | any of 1 | vote of 1 |" in page


def test_field_of_a_target_store_is_measured_beside_the_student_or_alone(make_labelled, call):
    run = make_labelled()
    field = ["--store", str(run / "embeddings/labelled.zarr"), "--field", "image/embedding"]
    both = json.loads(call("neighbours", "--run", run, *field, "--json", script=main).out)["measured"]
    assert [one["embedding"] for one in both] == ["student one (shre)"] * 2 + ["image/student/embedding"] * 2
    assert both[0]["k"] == both[2]["k"]
    alone = call("neighbours", *field, script=main)
    assert alone.exit_code == 0
    assert "report" not in alone.out


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bank": "test"}, ConfigError, "both 'test': every item would be its own nearest neighbour"),
        ({"ks": (1, 50)}, ConfigError, "--k 50: the memory bank, split test of .* has 40 labelled image items"),
        ({"bank": "dev"}, DataError, r"no image items of split 'dev', only train \(60 items\)"),
    ],
)
def test_a_mistake_is_an_error_that_says_what_is_there(make_labelled, options, error, message):
    source = labelled.of_run(make_labelled(), None, None)
    with pytest.raises(error, match=message):
        evaluate([source], **({"bank": "train", "queries": "test", "ks": (1,), "say": quiet} | options))


def test_run_without_the_training_split_says_what_embeds_it(make_labelled):
    source = labelled.of_run(make_labelled(counts={"val": 10, "test": 10}), None, None)
    with pytest.raises(DataError, match=r"`trainer embed --run .*runs/one --split train` adds it"):
        evaluate([source], bank="train", queries="test", ks=(1,), say=quiet)


def test_one_class_is_nothing_to_tell_apart(make_labelled):
    source = labelled.of_run(make_labelled(num_classes=1), None, None)
    with pytest.raises(DataError, match="all 60 labelled image items of split train have the label 0"):
        evaluate([source], bank="train", queries="test", ks=(1,), say=quiet)


def test_items_without_labels_are_an_error(make_run, make_labelled):
    with pytest.raises(DataError, match="no item of image, text, audio has a label"):
        labelled.of_run(make_run("unlabelled"), None, None)
    source = labelled.of_run(make_labelled(unlabelled=range(60)), None, None)
    with pytest.raises(DataError, match="no image item of split train has a label"):
        evaluate([source], bank="train", queries="test", ks=(1,), say=quiet)


def test_modality_that_is_not_embedded_is_an_error(make_labelled):
    with pytest.raises(DataError, match="has no embeddings of 'audio' items, only of image"):
        labelled.of_run(make_labelled(), None, "audio")


@pytest.mark.parametrize(
    ("field", "error", "message"),
    [
        ("embedding", ConfigError, "name the modality too, as in image/embedding"),
        ("image/features", StoreError, "has no image field 'features'; its image fields: image/student/embedding"),
    ],
)
def test_field_that_a_store_does_not_have_is_an_error(make_labelled, field, error, message):
    with pytest.raises(error, match=message):
        labelled.of_store(str(make_labelled() / "embeddings/labelled.zarr"), field)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--k", "0"], "--k 0: expected numbers from 1 on with commas between them"),
        (["--k", "1,x"], "--k 1,x: expected numbers"),
        (["--store", "s.zarr"], "--store and --field go together"),
        (["--run", "nowhere"], "nowhere: no run there"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(make_labelled, call, arguments, message):
    make_labelled()
    found = call("neighbours", *arguments, script=main)
    assert found.exit_code != 0
    assert found.out == ""
    assert message in found.err.splitlines()[-1]
