from __future__ import annotations

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from eval import page, report
from eval.page.contents import gather
from eval.page.rendering import as_html
from eval.protocols import Protocol
from eval.rerank import Reranked

NASTY = [
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "</script><script>window.hacked = 1</script>",
    "<!--<script>",
    "javascript:window.hacked=1",
    "{{ 7 * 7 }}{% raw %}",
    "' onmouseover='window.hacked=1",
    "exe\u202egpj",
    "&lt;b&gt; & &amp;",
]


class Reader(HTMLParser):
    """Tags, ids, headings, and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag


def read(text: str) -> list[tuple[str, dict[str, str | None]]]:
    reader = Reader()
    reader.feed(text)
    return reader.tags


def rows_of(text: str, caption: str) -> list[list[str]]:
    """The lines of a table: a name and the texts of its cells."""
    body = text.partition(f"<caption>{caption}</caption>")[2].partition("<tbody>")[2].partition("</tbody>")[0]
    cells = (re.findall("<t[hd].*?</t[hd]>", line) for line in body.splitlines() if line)
    return [[re.sub("<[^>]*>", "", cell) for cell in line] for line in cells]


def written(measured, tmp_path, **options) -> str:
    (path,) = page.write(measured, tmp_path / "page.html", **options)
    return path.read_text(encoding="utf-8")


def test_nothing_on_the_page_comes_from_elsewhere(toy, tmp_path):
    for tag, attributes in read(written(toy(), tmp_path)):
        assert tag not in ("iframe", "object", "embed", "base")
        for name in ("src", "href", "action", "srcset", "data"):
            address = attributes.get(name)
            assert address is None or address.startswith(("#", "data:")), (tag, address)


def test_the_policy_forbids_the_network_and_names_the_script_by_its_hash(toy, tmp_path):
    metas = [attributes for tag, attributes in read(written(toy(), tmp_path)) if tag == "meta"]
    policy = next(one["content"] for one in metas if one.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert re.search(r"script-src 'sha256-[^']+'", policy)


def test_captions_ids_and_files_stay_text(toy, tmp_path):
    ids = ['i"><script>window.hacked=1</script>', "<b>", "i\u202e'"]
    text = written(toy(captions=NASTY * 2, ids=ids, files={3: "<img src=x>.png"}, noise=2.0), tmp_path)
    tags = read(text)
    assert sum(tag == "script" for tag, _ in tags) == 2
    assert not any(tag in ("img", "b") for tag, _ in tags)
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "49" not in re.findall(r'<bdi class="caption"[^>]*>([^<]*)<', text)
    assert "{{ 7 * 7 }}{% raw %}" in text
    assert "\u202e" not in text
    assert "&lt;script&gt;window.hacked = 1&lt;/script&gt;" in text
    assert "<bdi>&lt;img src=x&gt;.png</bdi>" in text


def test_scripts_of_every_alphabet_stay_as_they_are(toy, tmp_path):
    captions = ["一只猫", "كلب في الحديقة", "हाथी", "שלום", "👩‍🚀 in space", "ไก่"]
    text = written(toy(captions=captions, noise=2.0), tmp_path)
    assert sum(caption in text for caption in captions) >= 4


def test_ids_on_the_page_are_unique_and_every_reference_has_one(toy, tmp_path):
    tags = read(written(toy(), tmp_path))
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in tags:
        for reference in (attributes.get("href") or "", f"#{attributes.get('aria-labelledby', '')}"):
            assert not reference.startswith("#") or reference == "#" or reference[1:] in ids


def test_headings_descend_one_level_at_a_time(toy, tmp_path):
    levels = [int(tag[1]) for tag, _ in read(written(toy(), tmp_path)) if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_chart_and_picture_says_what_it_shows(toy, tmp_path):
    text = written(toy(), tmp_path)
    charts = re.findall(r'<svg class="chart".*?</svg>', text, re.DOTALL)
    assert len(charts) == 6 + 6 + 1
    assert all("<title>" in chart and "<desc>" in chart for chart in charts)
    pictures = [attributes for tag, attributes in read(text) if attributes.get("class") == "picture"]
    assert pictures
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in pictures)


def test_untrained_directions_are_marked_and_explained(toy, tmp_path):
    text = written(toy(), tmp_path)
    assert "Where hits of untrained directions come from" in text
    assert re.search(r'text-to-audio <span class="badge">untrained</span>', text)
    assert not re.search(r'text-to-image <span class="badge">', text)
    assert ">untrained<" not in written(toy(name="two", modalities=("image", "text")), tmp_path)


def test_what_changed_since_another_run_is_there_when_asked_for(toy, tmp_path):
    now, then = toy(), toy(name="before", noise=2.0, seed=1)
    assert "What changed since" not in written(now, tmp_path)
    text = written(now, tmp_path, since=then)
    assert "What changed since" in text
    assert 'data-kind="gained"' in text


def test_files_that_are_gone_are_said_and_counted(toy, tmp_path):
    measured = toy()
    for file in (tmp_path / "media").iterdir():
        file.unlink()
    text = written(measured, tmp_path)
    assert "image not shown: <bdi>the file is missing</bdi>, <bdi>0.png</bdi>" in text
    assert "audio not shown: <bdi>the file is missing</bdi>" in text
    assert re.search(r"Could not be read: \d+\.", text)


@pytest.mark.parametrize("modalities", [("image", "text"), ("image", "audio")])
def test_two_modalities_are_a_page(toy, tmp_path, modalities):
    assert "<h2" in written(toy(modalities=modalities), tmp_path)


def test_one_item_is_a_page(toy, tmp_path):
    assert "of 1</small>" in written(toy(num_scenes=1), tmp_path)


def test_collapsed_embeddings_are_a_page(toy, tmp_path):
    flat = {"image": np.ones((12, 8)), "text": np.ones((24, 8)), "audio": np.zeros((12, 8))}
    assert "others tie with the best positive" in written(toy(vectors=flat), tmp_path)


def test_folds_are_said(toy, tmp_path):
    measured = toy()
    assert "a gallery of its own" not in written(measured, tmp_path)
    folded = replace(measured, protocol=Protocol(name="coco-1k", num_images=5000, num_folds=5))
    assert "are of 5 folds, each with a gallery of its own" in written(folded, tmp_path)


def test_a_protocol_beside_the_own_has_a_table_of_its_own(toy, tmp_path):
    measured = toy()
    folded = Protocol(name="coco-1k", num_images=5000, num_folds=5)
    text = written(replace(measured, beside={folded: measured.directions[:2]}), tmp_path)
    assert "<caption>coco-1k: figures in percent, ranks from 1</caption>" in text


def test_intervals_are_shown_and_explained(toy, tmp_path):
    text = written(toy(noise=2.0), tmp_path)
    assert re.search("<td>[0-9.]+<small>[0-9.]+\N{EN DASH}[0-9.]+</small></td>", text)
    assert "95% intervals, by a bootstrap over queries" in text


def test_a_run_without_a_direction_in_common_is_said(toy, tmp_path):
    now, then = toy(modalities=("image", "text")), toy(name="before", modalities=("image", "audio"))
    text = written(now, tmp_path, since=then)
    assert "Not measured then: text-to-image, image-to-text." in text
    assert "moved most" not in text
    assert "gained" not in re.search(r'<section id="gallery".*', text, re.DOTALL).group()


def test_a_run_that_ranks_alike_is_said(toy, tmp_path):
    text = written(toy(), tmp_path, since=toy(name="again"))
    assert "No query ranks better or worse than then." in text
    assert "moved most" not in text


def test_queries_that_had_no_rank_then_are_counted(toy, tmp_path):
    text = written(toy(), tmp_path, since=toy(name="before", num_scenes=8))
    assert "text-to-image: 16 of 24 queries had a rank then too." in text
    assert "text-to-image: the gallery had 8 items then, and has 12 now" in text


def test_figures_by_scores_stand_under_those_of_the_embeddings(toy, tmp_path):
    measured = toy(noise=2.0)
    way = next(way for way in measured.directions if way.name == "text-to-image")
    first = replace(way.ranks, ranks=np.ones_like(way.ranks.ranks))
    measured = replace(measured, reranked={way.name: Reranked(k=5, ranks=first, reachable=83.4)})
    text = written(measured, tmp_path)
    rows = rows_of(text, "Figures in percent, ranks from 1")
    assert [row[0] for row in rows[:4]] == ["text-to-image", "random order", "scores of 5", "image-to-text"]
    assert rows[2][1:5] == ["100.0", "100.0", "100.0", "1.0"]
    assert "the K nearest by embedding are put in the order of a cross-encoder&#39;s scores" in text
    assert "text-to-image, scores of 5: 83.4 percent of the queries have a positive among the 5" in text


def test_the_figures_are_those_of_the_json(toy, tmp_path):
    measured = toy(noise=2.0)
    tree = report.as_tree(measured)
    rows = iter(rows_of(written(measured, tmp_path), "Figures in percent, ranks from 1"))
    columns = ["R@1", "R@5", "R@10", "mean_rank", "median_rank", "mAP@R", "nDCG@10"]
    counts = ["num_queries", "num_gallery", "independent_queries", "graded_queries"]
    for name, found in tree["directions"].items():
        shown = [
            f"{found[key]:,.1f}{low:,.1f}\N{EN DASH}{high:,.1f}"
            for key in columns
            for low, high in [found["intervals"][key]]
        ]
        badge = "" if found["trained"] else " untrained"
        assert next(rows) == [f"{name}{badge}", *shown, *(f"{found[key]:,}" for key in counts)]
        random = [f"{tree['random'][name][key]:,.1f}" for key in columns]
        assert next(rows) == ["random order", *random, *("" for _ in counts)]
    assert next(rows, None) is None


def test_equal_measurements_are_equal_pages(toy, tmp_path):
    measured = toy()
    assert written(measured, tmp_path) == written(measured, tmp_path)


def test_a_large_gallery_is_a_bounded_page(toy):
    text = as_html(gather(toy(num_scenes=400, noise=3.0), max_bytes=20_000))
    assert len(text) < 800_000
    assert "left out, since this page is full" in text
    assert "a page holds at most 0.02 MB" in text
