from __future__ import annotations

import numpy as np
import pytest

from contract import ranking
from eval import exact
from eval.vectors import Vectors

NUM_ITEMS = 300
IDS = np.array([f"i{number:03}" for number in np.random.default_rng(2).permutation(NUM_ITEMS)])


def held(array: np.ndarray) -> Vectors:
    return Vectors(name="toy", num_rows=len(array), width=array.shape[1], load=lambda rows: array[rows])


def crowded() -> tuple[np.ndarray, np.ndarray]:
    """Queries and a gallery in which every vector stands three times."""
    rng = np.random.default_rng(0)
    gallery = np.repeat(rng.standard_normal((NUM_ITEMS // 3, 8)), 3, axis=0)[rng.permutation(NUM_ITEMS)]
    return rng.standard_normal((20, 8)).astype(np.float32), gallery.astype(np.float32)


@pytest.mark.parametrize("block_rows", [1, 4, 64, 299, 300, 1000])
@pytest.mark.parametrize("k", [1, 10, NUM_ITEMS])
def test_blocks_change_no_neighbour_and_no_tie(monkeypatch, block_rows, k):
    monkeypatch.setattr("eval.vectors.BLOCK_ROWS", block_rows)
    queries, gallery = crowded()
    found = exact.nearest(queries, held(gallery), IDS, k)
    np.testing.assert_array_equal(found, ranking.nearest(queries, held(gallery).read(np.arange(300)), IDS, k))


def test_scores_are_cosines_and_no_row_has_none():
    queries, gallery = crowded()
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    rows = np.tile([7, 0, -1], (len(queries), 1))
    found = exact.scores(queries, held(gallery), rows)
    lengths = np.linalg.norm(gallery, axis=1)
    np.testing.assert_allclose(found[:, 0], queries @ gallery[7] / lengths[7], atol=1e-6)
    np.testing.assert_allclose(found[:, 1], queries @ gallery[0] / lengths[0], atol=1e-6)
    assert (found[:, 2] == -np.inf).all()
