from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval import gallery, sample, tradeoff, tuning
from eval.gallery import Gallery
from eval.indexes import KINDS, Index, named
from eval.indexes.knobs import put
from eval.sample import Recalls, Sample
from eval.tuning import Tuned, _smallest
from eval.vectors import Vectors


def held(array: np.ndarray) -> Vectors:
    return Vectors(name="toy", num_rows=len(array), width=array.shape[1], load=lambda rows: array[rows])


def clustered(num_vectors: int, seed: int) -> Vectors:
    rng, centres = np.random.default_rng(seed), np.random.default_rng(9).standard_normal((20, 16))
    noise = rng.standard_normal((num_vectors, 16))
    return held((centres[rng.integers(20, size=num_vectors)] + noise).astype(np.float32))


GALLERY, QUERIES = clustered(3000, 0), clustered(200, 1)
IDS = np.array([f"i{row:04}" for row in range(3000)])


@pytest.fixture(scope="module")
def halves() -> tuple[Sample, Sample]:
    return sample.samples(QUERIES, GALLERY, IDS, 10)


def opened(folder: Path, index: Index, of: Vectors = GALLERY) -> Gallery:
    about = {"run": Path("runs/a"), "dataset": "toy", "split": "test", "language": "en", "modality": "image"}
    description = gallery.describe(index, **about, ids=IDS[: of.num_rows], vectors=of)
    return gallery.open_or_build(description, folder, of, [].append)


def tuned(index: Gallery, among: Sample, wanted: float, said: list[str] | None = None) -> Tuned:
    return tuning.tune(index, [among], wanted, (said if said is not None else []).append)


@pytest.mark.parametrize(("kind", "knob"), [("ivf", "nprobe"), ("hnsw", "efSearch")])
@pytest.mark.parametrize("wanted", [0.5, 0.9, 0.99])
def test_settings_are_the_least_that_reach_the_wanted_recall(tmp_path, halves, kind, knob, wanted):
    index, among = opened(tmp_path, named(kind)), halves[0]
    settings = tuned(index, among, wanted).settings
    assert among.recalls(index).all_at_k >= wanted
    put(index.index, {knob: settings[knob] - 1} if settings[knob] > 1 else {})
    assert among.recalls(index).all_at_k < wanted or settings[knob] == 1


def test_more_recall_costs_more(tmp_path, halves):
    index = opened(tmp_path, named("ivf"))
    effort = [tuned(index, halves[0], wanted).settings["nprobe"] for wanted in (0.3, 0.8, 0.95, 1.0)]
    assert effort == sorted(effort)
    assert effort[0] < effort[-1]


def test_recall_holds_on_queries_that_were_not_tuned_on(tmp_path, halves):
    index = opened(tmp_path, named("ivf"))
    tuned(index, halves[0], 0.95)
    assert halves[1].recalls(index).all_at_k > 0.92
    assert not {*map(bytes, halves[0].queries)} & {*map(bytes, halves[1].queries)}


def test_recall_is_reached_for_the_hardest_of_several_kinds_of_queries(tmp_path, halves):
    rng = np.random.default_rng(5)
    astray = sample.samples(held(rng.standard_normal((100, 16)).astype(np.float32)), GALLERY, IDS, 10)[0]
    index = opened(tmp_path, named("ivf"))
    tuning.tune(index, [halves[0], astray], 0.9, [].append)
    assert min(halves[0].recalls(index).all_at_k, astray.recalls(index).all_at_k) >= 0.9


def test_settings_are_kept_beside_the_index(tmp_path, halves):
    first = tuned(opened(tmp_path, named("ivf")), halves[0], 0.9)
    again = opened(tmp_path, named("ivf"))
    assert again.reused
    written = (again.path / "description.json").stat().st_mtime_ns
    assert tuned(again, halves[0], 0.9) == first
    assert (again.path / "description.json").stat().st_mtime_ns == written
    assert again.settings == first.settings
    assert halves[0].recalls(again).all_at_k == first.reached


def test_settings_that_can_not_be_kept_are_used_all_the_same(tmp_path, halves):
    index, said = opened(tmp_path, named("ivf")), []
    (index.path / "description.json.partial").mkdir()
    found = tuned(index, halves[0], 0.9, said)
    assert halves[0].recalls(index).all_at_k == found.reached >= 0.9
    assert index.settings == found.settings
    assert len(said) == 1
    assert "toy-test-image.ivf76-flat: its settings can't be kept, they are chosen anew each time" in said[0]


def test_another_recall_or_other_queries_are_tuned_for_anew(tmp_path, halves):
    index = opened(tmp_path, named("ivf"))
    assert tuned(index, halves[0], 0.5).settings != tuned(index, halves[0], 1.0).settings
    assert tuned(index, halves[1], 1.0).queries != tuned(index, halves[0], 1.0).queries


def test_what_is_out_of_reach_is_said_and_not_chased(tmp_path, halves):
    said: list[str] = []
    index = opened(tmp_path, named("IVF16,PQ2"))
    found = tuned(index, halves[0], 0.99, said)
    assert found.reached < 0.99
    assert found.settings["nprobe"] < 16
    assert said == [
        f"note: toy-test-image.ivf16-pq2: a recall of 0.99 is out of its reach, it is set to {found.reached:.3f}; "
        f"what codes lose, `,RFlat` behind them in --index-factory brings back"
    ]


def test_exact_scores_behind_codes_bring_it_within_reach(tmp_path, halves):
    found = tuned(opened(tmp_path, named("IVF16,PQ2,RFlat")), halves[0], 0.99)
    assert found.reached >= 0.99
    assert 1 < found.settings["k_factor_rf"] <= 64


def test_flat_has_nothing_to_tune_and_finds_everything(tmp_path, halves):
    index = opened(tmp_path, named("flat"))
    assert tuned(index, halves[0], 1.0).settings == {}
    assert halves[1].recalls(index) == Recalls(k=10, first_at_1=1.0, first_at_k=1.0, all_at_k=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_ties_is_as_good(tmp_path, kind):
    same = held(np.ones((300, 16), np.float32))
    among = sample.samples(same, same, IDS[:300], 10)[0]
    index = opened(tmp_path, named(kind), same)
    tuned(index, among, 1.0)
    assert among.recalls(index).all_at_k == 1.0


def test_recalls_are_what_a_slow_count_gives(tmp_path, halves):
    index, among = opened(tmp_path, named("ivf")), halves[0]
    put(index.index, {"nprobe": 1})
    vectors = GALLERY.read(np.arange(3000)).astype(np.float64)
    exact = [set(np.argsort(-vectors @ query)[:10].tolist()) for query in among.queries.astype(np.float64)]
    nearest = [int(np.argmax(vectors @ query)) for query in among.queries.astype(np.float64)]
    found = index.search(among.queries, 10)
    recalls = among.recalls(index)
    assert recalls.first_at_1 == pytest.approx(np.mean(found[:, 0] == nearest))
    assert recalls.first_at_k == pytest.approx(
        np.mean([one in row for one, row in zip(nearest, found, strict=True)])
    )
    assert recalls.all_at_k == pytest.approx(
        np.mean([len(best & set(row)) / 10 for best, row in zip(exact, found.tolist(), strict=True)])
    )


def test_a_single_query_and_a_single_item_are_enough(tmp_path):
    one = clustered(1, 3)
    both = sample.samples(one, one, IDS[:1], 10)
    index = opened(tmp_path, named("ivf"), one)
    tuned(index, both[0], 0.95)
    assert both[1].recalls(index) == Recalls(k=1, first_at_1=1.0, first_at_k=1.0, all_at_k=1.0)
    assert both[1].queries_per_second(index, 1) > 0


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 100])
def test_the_smallest_that_is_enough_is_found(most):
    for least in range(1, most + 1):
        tried: list[int] = []
        assert (
            _smallest(most, lambda value, least=least, tried=tried: not tried.append(value) and value >= least)
            == least
        )
        assert most not in tried
        assert len(tried) <= 2 * most.bit_length()


def test_every_kind_has_a_curve_from_quick_to_right(tmp_path):
    few = clustered(500, 0)
    halves = sample.samples(QUERIES, few, IDS[:500], 10)

    def ready(index: Index) -> Gallery:
        built = opened(tmp_path, index, few)
        tuned(built, halves[0], 0.9)
        return built

    compared = tradeoff.compare("text-to-image", named("IVF16,PQ4,RFlat"), ready, halves[1])
    assert [curve.kind for curve in compared.curves] == [*KINDS, "factory"]
    for curve in compared.curves:
        recalls = [point.recalls.all_at_k for point in curve.points]
        assert recalls == pytest.approx(sorted(recalls), abs=0.02)
        assert all(point.queries_per_second > 0 for point in curve.points)
    assert [curve.gallery.index for curve in compared.curves if curve.gallery] == [None] * 6
    refined = compared.curves[-1]
    assert refined.gallery is not None
    assert [point.settings["nprobe"] for point in refined.points][:3] == [1, 2, 4]
    assert {point.settings["k_factor_rf"] for point in refined.points} == {refined.gallery.settings["k_factor_rf"]}


def test_a_kind_that_the_gallery_is_too_small_for_is_left_out_with_the_reason(tmp_path):
    small = clustered(40, 4)
    among = sample.samples(small, small, IDS[:40], 10)[0]

    def ready(index: Index) -> Gallery:
        built = opened(tmp_path, index, small)
        tuned(built, among, 0.9)
        return built

    compared = tradeoff.compare("image-to-text", named("flat"), ready, among)
    assert [curve.kind for curve in compared.curves if curve.skipped] == ["ivfpq", "opq"]
    assert "for the 40 vectors of toy-test-image" in compared.curves[-1].skipped
