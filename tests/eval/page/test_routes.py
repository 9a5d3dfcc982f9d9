from __future__ import annotations

import numpy as np

from eval.page.examples import examples
from eval.page.outcomes import outcomes, rank_among
from eval.page.routes import middle_of, steps


def ways_of(measured):
    return {(one.way.queries, one.way.gallery): one for one in outcomes(measured)}


def test_untrained_directions_go_through_the_image(toy):
    ways = ways_of(toy())
    assert middle_of(ways, "text", "audio") == "image"
    assert middle_of(ways, "audio", "text") == "image"
    assert middle_of(ways, "text", "image") is None


def test_without_the_modality_between_there_is_no_route(toy):
    ways = ways_of(toy())
    assert middle_of({way: one for way, one in ways.items() if "image" not in way}, "text", "audio") is None


def test_steps_count_every_query_once(toy):
    measured = toy(num_scenes=40, noise=1.5)
    ways = ways_of(measured)
    found = {one.direction: one for one in steps(ways, measured.split)}
    assert set(found) == {"text-to-audio", "audio-to-text"}
    for (queries, gallery), outcome in ways.items():
        if outcome.way.trained:
            continue
        cells = found[f"{queries}-to-{gallery}"].steps
        assert sum(step.num_queries for step in cells) == len(outcome.ranks.ranks)
        assert sum(step.num_within for step in cells) == (outcome.ranks.ranks <= 10).sum()
        first = sum(step.num_queries for step in cells if step.first_within)
        assert first == (ways[queries, "image"].ranks.ranks <= 10).sum()


def test_the_second_step_is_that_of_the_shared_image(toy):
    measured = toy(num_scenes=40, noise=1.5)
    ways = ways_of(measured)
    cells = next(one for one in steps(ways, measured.split) if one.direction == "text-to-audio").steps
    owners = measured.split.positives("text", "image")[:, 1]
    within = ways["image", "audio"].ranks.ranks[owners] <= 10
    assert sum(step.num_queries for step in cells if step.second_within) == within.sum()


def test_a_hit_of_an_untrained_direction_names_its_image_and_both_ranks(toy):
    measured = toy(noise=1.5)
    ways, split = ways_of(measured), measured.split
    found = examples(ways["text", "audio"], split, ways, None)
    hits = [(example.position, hit) for example in found for hit in example.hits]
    assert hits
    texts, images, sounds = (split.items[name] for name in ("text", "image", "audio"))
    for query, hit in hits:
        assert hit.route.middle == "image"
        assert hit.route.position == hit.position  # of this toy, sound i belongs to image i
        here = np.array([hit.position])
        assert hit.route.first_rank == rank_among(texts.embeddings[[query]], images, here)[0]
        assert hit.route.second_rank == rank_among(images.embeddings[here], sounds, here)[0]


def test_hits_of_trained_directions_have_no_route(toy):
    measured = toy()
    ways = ways_of(measured)
    found = examples(ways["text", "image"], measured.split, ways, None)
    assert all(hit.route is None for example in found for hit in example.hits)
