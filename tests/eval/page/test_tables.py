from __future__ import annotations

from eval.page.tables import figures, known, number, others


def tree(**more):
    return {
        "protocol": "toy",
        "dataset": "toy",
        "split": "test",
        "language": "en",
        "run": "runs/one",
        "recipe": "shre",
        "directions": {
            "text-to-image": {"mean_rank": 1.0, "R@1": 50.0, "R@5": 75.25, "num_queries": 1200, "trained": True},
            "text-to-audio": {"mean_rank": 1234.5, "R@1": 5.0, "R@5": 7.5, "num_queries": 3, "trained": False},
        },
        "random": {"text-to-image": {"R@1": 0.5, "mean_rank": 500.5, "num_queries": 1200}},
        "quarantined": {"image": 0},
    } | more


def cells(table, name):
    return {
        column: cell.text
        for row in table.rows
        if row.name == name
        for column, cell in zip(table.columns[1:], row.cells, strict=True)
    }


def test_known_figures_stand_in_their_order_and_counts_last():
    assert figures(tree()).columns == ("direction", "R@1", "R@5", "mean rank", "queries")


def test_a_count_of_which_there_is_none_has_no_column():
    found = tree()
    found["directions"]["text-to-image"] |= {"ties": 0, "queries_without_positive": 3}
    assert figures(found).columns[-2:] == ("queries", "no positive")


def test_untrained_directions_are_marked():
    assert [row.remark for row in figures(tree()).rows if not row.is_baseline] == ["", "untrained"]


def test_recalls_and_ranks_have_one_decimal_and_counts_none():
    found = cells(figures(tree()), "text-to-audio")
    assert found == {"R@1": "5.0", "R@5": "7.5", "mean rank": "1,234.5", "queries": "3"}


def test_a_baseline_stands_under_its_direction():
    rows = figures(tree(teacher={"text-to-audio": {"R@1": 60.0}})).rows
    assert [(row.name, row.is_baseline) for row in rows] == [
        ("text-to-image", False),
        ("random order", True),
        ("text-to-audio", False),
        ("teacher", True),
    ]


def test_figures_that_nobody_knew_of_have_a_column():
    found = tree()
    found["directions"]["text-to-image"] |= {"mAP@R": 33.25, "nDCG@10": 0.51234}
    table = figures(found)
    assert table.columns == ("direction", "R@1", "R@5", "mean rank", "mAP@R", "nDCG@10", "queries")
    assert cells(table, "text-to-image")["nDCG@10"] == "0.512"
    assert cells(table, "text-to-audio")["nDCG@10"] == ""


def test_a_column_has_as_many_decimals_everywhere():
    found = tree(random={"text-to-image": {"mAP@R": 0.09151, "nDCG@10": 0.001}})
    found["directions"]["text-to-image"] |= {"mAP@R": 33.25, "nDCG@10": 0.5}
    assert [cell.text for cell in figures(found).rows[1].cells[3:5]] == ["0.1", "0.001"]


def test_an_interval_stands_with_its_figure():
    found = tree()
    found["directions"]["text-to-image"]["intervals"] = {"R@1": [48.04, 52.0]}
    table = figures(found)
    assert table.rows[0].cells[0].interval == "48.0\N{EN DASH}52.0"
    assert table.columns == ("direction", "R@1", "R@5", "mean rank", "queries")


def test_other_parts_of_the_report_are_tables():
    index = {"kind": "flat", "directions": {"text-to-image": {"recall@10": 0.98, "reused": True}}}
    listed, nested = others(tree(index=index))
    assert (listed.caption, listed.rows[0].name, listed.rows[0].cells[0].text) == ("index", "kind", "flat")
    assert nested.caption == "index: directions"
    assert cells(nested, "text-to-image") == {"recall@10": "0.98", "reused": "yes"}


def test_a_list_of_figures_is_numbered():
    (rounds,) = others(tree(rounds=[{"R@1": 1.0}, {"R@1": 2.5}]))
    assert [(row.name, row.cells[0].text) for row in rounds.rows] == [("1", "1"), ("2", "2.5")]


def test_recalls_at_any_k_stand_in_the_order_of_k():
    assert known({"R@100", "R@5", "nDCG@10", "mean_rank", "R@20"}) == ("R@5", "R@20", "R@100", "mean_rank")


def test_settings_of_a_part_are_one_cell():
    (table,) = others(tree(index={"image": {"factory": "IVF64", "settings": {"nprobe": 4, "k": 8}, "ids": [1, 2]}}))
    assert cells(table, "image") == {"factory": "IVF64", "settings": "nprobe=4 k=8", "ids": "1, 2"}


def test_numbers_are_written_as_they_are_read():
    assert [number(value) for value in (12345, 0.123456, 12.345, 0.0, True, None, "flat")] == [
        "12,345",
        "0.1235",
        "12.3",
        "0.0",
        "yes",
        "\N{EN DASH}",
        "flat",
    ]
