from __future__ import annotations

import pytest

from eval.page.charts import tradeoff_chart
from eval.page.tradeoff import tradeoff

POINT = {"settings": {}, "1-recall@1": 1.0, "1-recall@10": 1.0, "10-recall@10": 1.0, "queries_per_second": 2000.0}
BUILT = {"settings": {}, "bytes_per_vector": 2048.0, "build_s": 0.25}
INDEX = {
    "kind": "flat",
    "tradeoff": {
        "direction": "image-to-text",
        "num_queries": 250,
        "curves": [
            {"kind": "flat", "factory": "Flat", **BUILT, "points": [POINT]},
            {
                "kind": "ivf",
                "factory": "IVF64,Flat",
                **BUILT,
                "points": [
                    POINT | {"settings": {"nprobe": 1}, "10-recall@10": 0.8125, "queries_per_second": 90_000.0},
                    POINT | {"settings": {"nprobe": 8}, "queries_per_second": 30_000.0},
                ],
            },
            {"kind": "opq", "skipped": "too <few> vectors"},
        ],
    },
}


def test_without_a_comparison_there_is_none():
    assert tradeoff({}) is None
    assert tradeoff({"index": {"kind": "flat"}}) is None


def test_every_point_is_a_line_of_the_table_named_by_its_settings():
    table = tradeoff({"index": INDEX}).table
    assert [row.name for row in table.rows] == ["Flat", "IVF64,Flat nprobe=1", "IVF64,Flat nprobe=8"]
    assert [cell.text for cell in table.rows[1].cells] == ["1.000", "1.000", "0.812", "90,000", "2,048", "0.25"]


def test_a_kind_that_was_left_out_says_why():
    assert tradeoff({"index": INDEX}).skipped == ("opq: too <few> vectors",)


def test_the_chart_has_a_line_for_each_kind():
    chart = tradeoff_chart(tradeoff({"index": INDEX}))
    assert chart.count('<g class="series') == 2
    assert "flat 1.000 at best; ivf 1.000 at best" in chart


@pytest.mark.parametrize("recall", [0.0, 0.05, 0.5, 0.75, 0.95, 1.0])
def test_any_recall_is_on_the_chart(recall):
    curves = [{"kind": "flat", "factory": "Flat", **BUILT, "points": [POINT | {"10-recall@10": recall}]}]
    found = tradeoff({"index": INDEX | {"tradeoff": INDEX["tradeoff"] | {"curves": curves}}})
    assert "nan" not in tradeoff_chart(found)


def test_the_page_has_the_comparison_of_a_run(make_run, call):
    run = make_run()
    assert call("--run", run, "--index", "--index-compare").exit_code == 0
    text = (run / "reports/retrieval-toy-test.html").read_text(encoding="utf-8")
    assert '<h2 id="index-title">Kinds of index</h2>' in text
