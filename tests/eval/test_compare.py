from __future__ import annotations

import csv
import io
import json
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from contract import ranking
from contract.errors import RunError
from eval import rank_files
from eval.__main__ import main
from eval.compare import compare
from eval.rank_files import Ranked

NAME = "retrieval-toy-test"
WAYS = ("text-to-image", "image-to-text")


def quiet(line: str) -> None:
    pass


def figures(ranks: np.ndarray, folds: np.ndarray) -> dict[str, float]:
    """A report's figures, slowly: of each fold, then their mean."""
    found: dict[str, list[float]] = {}
    for fold in sorted(set(folds.tolist())):
        own = [rank for rank, of in zip(ranks.tolist(), folds.tolist(), strict=True) if of == fold]
        for k in (1, 5, 10):
            found.setdefault(f"R@{k}", []).append(100.0 * sum(rank <= k for rank in own) / len(own))
        found.setdefault("mean_rank", []).append(sum(own) / len(own))
        found.setdefault("median_rank", []).append(float(np.median(own)))
    return {name: sum(values) / len(values) for name, values in found.items()}


@pytest.fixture
def make_report(tmp_path):
    """Makes an evaluated run: its report, the ranks beside it, and the recipe."""

    def make(
        name, ranks, *, ids=None, clusters=None, folds=None, report=NAME, ways=WAYS, seed=0, recipe=None, **about
    ) -> Path:
        run, directions, kept = tmp_path / "runs" / name, {}, {}
        for number, way in enumerate(ways):
            of_way = np.asarray(ranks) + number
            of_fold = np.zeros(len(of_way), np.int64) if folds is None else np.asarray(folds)
            counts = {"num_queries": len(of_way), "num_gallery": 50, "ties": 0, "queries_without_positive": 0}
            directions[way] = figures(of_way, of_fold) | counts | {"trained": way != "image-to-text"}
            names = [f"q{n:04}" for n in range(len(of_way))] if ids is None else ids
            together = np.arange(len(of_way)) if clusters is None else clusters
            kept[way] = Ranked(
                ids=np.array(names), ranks=of_way, clusters=together, folds=of_fold, values={"mAP@R": 100 / of_way}
            )
            directions[way]["mAP@R"] = float(np.mean(100 / of_way)) if folds is None else 1.0
        tree = {"protocol": "toy protocol", "dataset": "toy", "split": "test", "language": "en", "recipe": "shre"}
        tree |= {"random": {way: {"R@1": 2.0, "mean_rank": 25.5, "num_queries": 3} for way in ways}} | about
        file = run / "reports" / f"{report}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(tree | {"run": str(run), "directions": directions}))
        rank_files.write(file, kept)
        (run / "run.json").write_text("{}")
        (run / "config.yaml").write_text(json.dumps({"name": "shre", "seed": seed, "width": 8} | (recipe or {})))
        return run

    return make


def replaced_in(run: Path, old: str, new: str) -> None:
    file = run / f"reports/{NAME}.json"
    file.write_text(file.read_text().replace(old, new))


def between(runs, **options):
    return compare(runs, **({"report": None, "grouped": False, "seed": 0, "say": quiet} | options))


def drawn(seed: int, num_queries: int = 200, largest: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, largest, num_queries)


def test_figures_are_those_of_the_reports_and_differences_are_to_the_first(make_report):
    runs = [make_report(name, drawn(seed)) for seed, name in enumerate("abc")]
    found = between(runs)
    assert [(row.direction, row.group) for row in found.rows] == [(way, str(run)) for way in WAYS for run in runs]
    for row in found.rows:
        number = [str(run) for run in runs].index(row.group)
        zeros = np.zeros(200, int)
        own, first = (figures(drawn(seed) + WAYS.index(row.direction), zeros) for seed in (number, 0))
        assert {name: row.cells[name].mean for name in own} == pytest.approx(own)
        for name in own:
            cell = row.cells[name]
            if number:
                assert cell.difference.value == pytest.approx(own[name] - first[name])
                assert cell.difference.low <= cell.difference.value <= cell.difference.high
            else:
                assert cell.difference is None


def test_draws_are_those_of_a_slow_loop(make_report):
    clusters, folds = np.arange(60) // 5, np.repeat([0, 1], [20, 40])
    runs = [make_report(name, drawn(seed, 60), clusters=clusters, folds=folds) for seed, name in enumerate("ab")]
    row = between(runs, seed=7).rows[1]
    expected = {"R@5": [], "mean_rank": [], "median_rank": []}
    draws = [np.random.default_rng(7 + fold) for fold in (0, 1)]
    for _ in range(ranking.bootstrap.__kwdefaults__["num_draws"]):
        change = dict.fromkeys(expected, 0.0)
        for fold, rng in enumerate(draws):
            members = [np.flatnonzero(clusters == number) for number in np.unique(clusters[folds == fold])]
            picked = np.concatenate([members[each] for each in rng.integers(0, len(members), len(members))])
            for sign, seed in ((1, 1), (-1, 0)):
                sample = drawn(seed, 60)[picked]
                change["R@5"] += sign * 100 * np.mean(sample <= 5) / 2
                change["mean_rank"] += sign * np.mean(sample) / 2
                change["median_rank"] += sign * np.median(sample) / 2
        for name, value in change.items():
            expected[name].append(value)
    for name, values in expected.items():
        found = row.cells[name].difference
        assert [found.low, found.high] == pytest.approx(np.percentile(values, [2.5, 97.5]).tolist())


def test_queries_that_are_right_or_wrong_together_make_the_interval_wider(make_report):
    first, second = np.repeat(drawn(0, 60), 5), np.repeat(drawn(1, 60), 5)
    widths = []
    for name, clusters in (("apart", np.arange(300)), ("together", np.arange(300) // 5)):
        runs = [make_report(name + one, ranks, clusters=clusters) for one, ranks in (("a", first), ("b", second))]
        change = between(runs).rows[1].cells["mean_rank"].difference
        widths.append(change.high - change.low)
    assert 1.8 < widths[1] / widths[0] < 2.7  # the root of 5


@pytest.mark.parametrize("name", ["R@10", "mean_rank", "median_rank"])
def test_intervals_are_those_of_scipy(make_report, name):
    first, second = drawn(0, 400), np.clip(drawn(0, 400) - drawn(1, 400, 9) + 3, 1, None)
    (_, row, *_) = between([make_report("a", first), make_report("b", second)]).rows
    change = row.cells[name].difference

    def statistic(ours, theirs, axis):
        made = {
            "R@10": lambda ranks: 100.0 * (ranks <= 10).mean(axis=axis),
            "mean_rank": lambda ranks: ranks.mean(axis=axis),
            "median_rank": lambda ranks: np.median(ranks, axis=axis),
        }[name]
        return made(ours) - made(theirs)

    expected = stats.bootstrap(
        (second, first), statistic, paired=True, method="percentile", n_resamples=4000, rng=1
    ).confidence_interval
    width = expected.high - expected.low
    assert abs(change.low - expected.low) < 0.12 * width
    assert abs(change.high - expected.high) < 0.12 * width


def test_queries_that_all_depend_on_each_other_give_no_interval(make_report):
    runs = [make_report(name, drawn(seed), clusters=np.zeros(200, int)) for seed, name in enumerate("ab")]
    change = between(runs).rows[1].cells["mean_rank"].difference
    assert (change.low, change.high, change.excludes_zero) == (None, None, False)


def test_run_does_not_differ_from_its_copy_in_another_order(make_report):
    order = np.random.default_rng(0).permutation(200)
    ids = np.array([f"q{n:04}" for n in range(200)])
    runs = [make_report("a", drawn(0)), make_report("b", drawn(0)[order], ids=ids[order])]
    for row in between(runs).rows:
        for cell in row.cells.values():
            if cell.difference:
                assert (cell.difference.value, cell.difference.low, cell.difference.high) == (0, 0, 0)
                assert not cell.difference.excludes_zero


def test_pairing_finds_a_difference_that_is_small_beside_the_spread_of_the_queries(make_report):
    hard = np.random.default_rng(0).integers(2, 500, 300)
    found = between([make_report("a", hard), make_report("b", hard - (np.arange(300) % 2))])
    assert found.rows[1].cells["mean_rank"].difference.excludes_zero
    unpaired = 1.96 * np.sqrt(2 * hard.var() / 300)
    assert abs(found.rows[1].cells["mean_rank"].difference.value) < unpaired / 10


def test_folds_are_averaged_as_the_report_does(make_report):
    folds = np.repeat([0, 1, 2], [20, 50, 130])
    runs = [make_report(name, drawn(seed), folds=folds) for seed, name in enumerate("ab")]
    change = between(runs).rows[1].cells["R@10"].difference
    expected = [figures(drawn(seed), folds)["R@10"] for seed in (0, 1)]
    assert change.value == pytest.approx(expected[1] - expected[0])
    assert change.low < change.value < change.high


def test_figure_that_no_query_has_a_value_of_has_a_difference_without_an_interval(make_report):
    runs = [make_report(name, drawn(seed)) for seed, name in enumerate("ab")]
    known = between(runs).rows[1].cells["mAP@R"].difference
    assert known.low < known.value < known.high
    for number, run in enumerate(runs):
        file = run / f"reports/{NAME}.json"
        tree = json.loads(file.read_text())
        for way in WAYS:
            tree["directions"][way]["nDCG@10"] = 10.0 + number
        file.write_text(json.dumps(tree))
    change = between(runs).rows[1].cells["nDCG@10"].difference
    assert (change.value, change.low, change.high, change.excludes_zero) == (1.0, None, None, False)


def test_runs_that_differ_in_their_seed_alone_are_one_group(make_report):
    settings = [(0, {}), (1, {}), (2, {}), (0, {"width": 16}), (1, {"width": 16})]
    runs = [make_report(f"r{n}", drawn(n), seed=seed, recipe=own) for n, (seed, own) in enumerate(settings)]
    found = between(runs, grouped=True)
    assert [group.name for group in found.groups] == ["shre", "shre (width: 16, not 8)"]
    first, second = found.rows[:2]
    recalls = [figures(drawn(n), np.zeros(200))["R@10"] for n in range(5)]
    assert first.cells["R@10"].mean == pytest.approx(np.mean(recalls[:3]))
    assert first.cells["R@10"].deviation == pytest.approx(np.std(recalls[:3], ddof=1))
    change = second.cells["R@10"].difference
    assert change.value == pytest.approx(np.mean(recalls[3:]) - np.mean(recalls[:3]))
    assert change.low < change.value < change.high


def test_one_group_alone_has_a_mean_and_no_differences(make_report, call):
    runs = [make_report(f"r{n}", drawn(n), seed=n) for n in range(3)]
    found = call("compare", *runs, "--group", script=main)
    assert found.exit_code == 0
    assert " ± " in found.out
    assert "minus" not in found.out


def test_direction_that_not_all_runs_have_is_left_out_and_told(make_report):
    found = between([make_report("a", drawn(0)), make_report("b", drawn(1), ways=WAYS[:1])])
    assert {row.direction for row in found.rows} == {WAYS[0]}
    assert found.notes == (f"left out, since not every run has it: {WAYS[1]} of {found.groups[0].name}",)


def test_figure_that_not_all_runs_have_is_left_out_and_told(make_report):
    runs = [make_report(name, drawn(seed)) for seed, name in enumerate("ab")]
    file = runs[1] / f"reports/{NAME}.json"
    file.write_text(file.read_text().replace('"mAP@R"', '"mAP@9"'))
    found = between(runs)
    assert "mAP@R" not in found.figures
    assert found.notes == tuple(
        f"left out, since not every run has it: {name} of {run}"
        for name, run in zip(("mAP@R", "mAP@9"), runs, strict=True)
    )


def test_groups_whose_first_difference_is_the_same_have_names_of_their_own(make_report):
    recipes = [{}, {"width": 16}, {"width": 16, "zoom": 2}]
    runs = [make_report(f"r{n}", drawn(n), recipe=recipe) for n, recipe in enumerate(recipes)]
    names = [group.name for group in between(runs, grouped=True).groups]
    assert names == ["shre", "shre (width: 16, not 8)", f"shre (width: 16, not 8) as {runs[2]}"]


def test_text_has_figures_chance_and_differences(make_report, call):
    better, worse = np.ones(200, int), np.full(200, 3)
    found = call("compare", make_report("a", worse), make_report("b", better), script=main)
    assert found.err.startswith(f"report: {NAME}\n")
    lines = found.out.splitlines()
    assert lines[0] == "toy protocol test, captions: en: 2 compared"
    assert any(line.startswith("text-to-image    random") for line in lines)
    assert any(line.startswith("image-to-text *  ") for line in lines)
    assert "+100.0 [+100.0, +100.0] ≠" in found.out
    assert "-2.0 [-2.0, -2.0] ≠" in found.out


def test_csv_has_every_digit_of_every_figure(make_report, call):
    runs = [make_report(name, drawn(seed)) for seed, name in enumerate("ab")]
    rows = list(csv.DictReader(io.StringIO(call("compare", *runs, "--format", "csv", script=main).out)))
    assert len(rows) == 2 * 2 * 6 + 2 * 2  # directions, runs, figures; the random baseline has two
    expected = {
        (row.direction, row.group, name): cell for row in between(runs).rows for name, cell in row.cells.items()
    }
    for row in rows:
        if row["run"] == "random":
            continue
        cell = expected[row["direction"], row["run"], row["figure"]]
        assert float(row["mean"]) == cell.mean
        if cell.difference:
            assert [float(row[name]) for name in ("difference", "low", "high")] == [
                cell.difference.value,
                cell.difference.low,
                cell.difference.high,
            ]
            assert row["excludes_zero"] == str(cell.difference.excludes_zero).lower()
        else:
            assert row["difference"] == row["low"] == row["excludes_zero"] == ""


@pytest.mark.parametrize(
    ("file", "has"),
    [("t.md", "| direction | run |"), ("t.tex", r"\begin{tabular}{llrrrrrr}"), ("t.csv", "direction,run,")],
)
def test_file_is_written_in_the_format_that_its_name_ends_in(make_report, call, tmp_path, file, has):
    runs = [make_report(name, drawn(seed)) for seed, name in enumerate("ab")]
    found = call("compare", *runs, "--out", file, script=main)
    assert found.out == ""
    assert has in (tmp_path / file).read_text()


def test_same_seed_gives_the_same_bytes(make_report, call):
    runs = [make_report(name, drawn(seed)) for seed, name in enumerate("ab")]
    outs = [call("compare", *runs, "--seed", seed, "--format", "csv", script=main).out for seed in "001"]
    assert outs[0] == outs[1] != outs[2]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"split": "val"}, "can't be compared with .*a/reports.*: split: 'val', not 'test'"),
        ({"protocol": "coco-1k"}, "protocol: 'coco-1k', not 'toy protocol'"),
        ({"language": None}, "language: None, not 'en'"),
        ({"ids": [f"p{n:04}" for n in range(200)]}, "400 queries of text-to-image are ranked in one of them alone"),
        ({"folds": np.arange(200) % 2}, "text-to-image has other folds"),
        ({"ways": ("audio-to-text",)}, "have no direction in common"),
        (
            {"report": "retrieval-toy-val"},
            "no report that all runs have; .*a: retrieval-toy-test; .*b: retrieval-toy-v",
        ),
    ],
)
def test_runs_of_different_data_are_refused_with_what_differs(make_report, call, other, message):
    found = call("compare", make_report("a", drawn(0)), make_report("b", drawn(1), **other), script=main)
    assert found.exit_code != 0
    assert found.out == ""
    assert found.err.splitlines()[-1].startswith("error: ")
    assert re.search(message, found.err)


def test_gallery_of_another_size_is_refused(make_report, call):
    runs = [make_report(name, drawn(0)) for name in "ab"]
    file = runs[1] / f"reports/{NAME}.json"
    file.write_text(file.read_text().replace('"num_gallery": 50', '"num_gallery": 40'))
    assert "text-to-image is among 40 items, not 50" in call("compare", *runs, script=main).err


def test_ranks_of_another_report_are_refused(make_report, call):
    runs = [make_report(name, drawn(seed)) for seed, name in enumerate("ab")]
    (runs[0] / f"reports/{NAME}.ranks.npz").replace(runs[1] / f"reports/{NAME}.ranks.npz")
    make_report("a", drawn(0))
    assert f"{NAME}.ranks.npz is not of {NAME}.json: text-to-image" in call("compare", *runs, script=main).err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / f"reports/{NAME}.ranks.npz").unlink(), "the report has no ranks of single queries"),
        (lambda run: (run / f"reports/{NAME}.ranks.npz").write_bytes(b"PK"), "ranks.npz is damaged: "),
        (
            lambda run: replaced_in(run, '"R@1": ', '"R@1": "high", "R@0": '),
            "the report says high; `eval retrieval`",
        ),
        (
            lambda run: replaced_in(run, '"random": {', '"random": 5, "r": {'),
            "not a retrieval report: AttributeError",
        ),
        (lambda run: (run / f"reports/{NAME}.json").write_text("{"), "not a retrieval report: JSONDecodeError"),
        (lambda run: (run / f"reports/{NAME}.json").write_text("[]"), "not a retrieval report: TypeError"),
        (lambda run: (run / f"reports/{NAME}.json").unlink(), "has no retrieval report; `eval retrieval --run "),
        (lambda run: (run / "run.json").unlink(), "no run there (it has no run.json)"),
    ],
)
def test_damaged_report_is_one_line(make_report, call, spoil, message):
    runs = [make_report(name, drawn(seed)) for seed, name in enumerate("ab")]
    spoil(runs[1])
    found = call("compare", *runs, script=main)
    assert found.exit_code != 0
    assert message in found.err.splitlines()[-1]


def test_changed_byte_of_the_ranks_is_an_error_or_changes_nothing(make_report):
    report = make_report("a", drawn(0)) / f"reports/{NAME}.json"
    good, before = rank_files.path(report).read_bytes(), rank_files.read(report)
    for place in range(0, len(good), 3):
        rank_files.path(report).write_bytes(good[:place] + bytes([good[place] ^ 0x41]) + good[place + 1 :])
        with suppress(RunError):
            found = rank_files.read(report)
            assert all((found[way].ranks == before[way].ranks).all() for way in found)


def test_name_of_a_run_is_no_mark_in_markdown_or_latex(make_report, call):
    runs = [make_report("a", drawn(0) + 9), make_report("<b>_%*", drawn(1))]
    assert r"\<b\>\_%\*" in call("compare", *runs, "--format", "markdown", script=main).out
    latex = call("compare", *runs, "--format", "latex", script=main).out
    assert r"\textless{}b\textgreater{}\_\%*" in latex
    body = [line for line in latex.splitlines() if not line.startswith("%")]
    assert r"$\neq$" in latex
    assert "\n".join(body).isascii()


def test_several_common_reports_must_be_told_apart(make_report, call):
    runs = [make_report(name, drawn(0), report=report) for name in "ab" for report in (NAME, "retrieval-toy-val")][
        ::2
    ]
    assert (
        f"several reports in common: {NAME}, retrieval-toy-val; choose one with --report"
        in call("compare", *runs, script=main).err
    )
    assert call("compare", *runs, "--report", NAME, script=main).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/a"], "give two runs or more to compare"),
        (["runs/a", "runs/../runs/a"], "a run is given twice"),
        (["runs/a", "runs/b", "--out", "table.doc"], "--out table.doc: give --format, or a name that ends in .txt"),
        (
            ["runs/a", "runs/b", "--report", "retrieval-x"],
            "retrieval-x.json: no such report; `eval retrieval --run",
        ),
    ],
)
def test_a_mistake_in_the_command_is_one_line(make_report, call, arguments, message):
    for name in "ab":
        make_report(name, drawn(0))
    found = call("compare", *arguments, script=main)
    assert found.exit_code != 0
    assert message in found.err.splitlines()[-1]
