from __future__ import annotations

import json


def test_a_page_stands_beside_the_report(make_run, call):
    run = make_run()
    found = call("--run", run)
    assert "report  " + str(run / "reports/retrieval-toy-test.html") in found.out
    assert (run / "reports/retrieval-toy-test.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_no_page_where_none_is_wanted(make_run, call):
    run = make_run()
    assert ".html" not in call("--run", run, "--no-html").out
    assert not list((run / "reports").glob("*.html"))


def test_json_prints_nothing_of_the_page(make_run, call):
    make_run()
    assert "directions" in json.loads(call("--json").out)


def test_since_names_the_other_run(make_run, call):
    run, before = make_run("now"), make_run("before", noise=2.0)
    assert call("--run", run, "--since", before).exit_code == 0
    page = (run / "reports/retrieval-toy-test.html").read_text(encoding="utf-8")
    assert "What changed since <bdi>" + str(before) in page


def test_since_of_another_dataset_is_one_line(make_run, call):
    run, before = make_run("now"), make_run("before", dataset="other")
    assert call("--run", run, "--since", before).err == (
        f"error: {before} has no embeddings of dataset 'toy'; it has: other\n"
    )


def test_parts_of_a_page_without_a_page_are_refused(make_run, call):
    run = make_run()
    found = call("--run", run, "--no-html", "--since", run)
    assert found.exit_code != 0
    assert found.err == "error: --since and --plots are parts of the page: leave out --no-html\n"
    assert not (run / "reports").exists()


def test_quarantined_items_are_said_on_the_page(make_run, call):
    run = make_run(quarantined=[15, 16])
    call("--run", run)
    page = (run / "reports/retrieval-toy-test.html").read_text(encoding="utf-8")
    assert "2 image items could not be decoded when the store was made, and are left out." in page
    assert "4 queries have no positive in the gallery, and are left out." in page
