from __future__ import annotations

import numpy as np
import pytest

from contract.errors import DataError
from contract.manifest import Manifest, items_table, pairs_table
from eval import grading
from eval.embedded import Embedded, Items


def split_of(labels: list[int], captions: list[int]) -> Embedded:
    """Images with these labels, and captions of the images with these numbers, which have none."""
    manifest = Manifest(
        dataset="toy",
        protocol="toy",
        items={
            "image": items_table(
                {"id": [f"i{n}" for n in range(len(labels))], "split": ["test"] * len(labels), "label": labels}
            ),
            "text": items_table({"id": [f"c{n}" for n in range(len(captions))], "split": ["test"] * len(captions)}),
        },
        pairs=dict([pairs_table("image", "text", [(image, row) for row, image in enumerate(captions)])]),
    )
    items = {
        modality: Items(
            rows=np.arange(manifest.num_rows(modality)),
            ids=manifest.ids(modality),
            embeddings=np.ones((manifest.num_rows(modality), 1), np.float32),
            num_quarantined=0,
        )
        for modality in ("image", "text")
    }
    return Embedded(manifest=manifest, split="test", language="", items=items)


SPLIT = split_of([0, 0, 1, -1], captions=[0, 1, 2, 3])


def dense(first: str, second: str, table: grading.Table | None = None) -> list[list[float]]:
    """The grade of every item of `second` for each of `first`."""
    grades = grading.grades(SPLIT, first, second, SPLIT.positives(first, second), table)
    assert grades is not None
    return grades.of(np.tile(np.arange(4), (4, 1))).tolist()


@pytest.mark.parametrize(("first", "second"), [("image", "text"), ("text", "image")])
def test_what_belongs_together_counts_twice_what_shares_a_label(first, second):
    assert dense(first, second) == [[2, 1, 0, 0], [1, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 2]]


def test_without_labels_nothing_is_graded():
    split = split_of([-1, -1], captions=[0, 1])
    assert grading.grades(split, "image", "text", split.positives("image", "text"), None) is None


def test_a_table_says_all_that_is_relevant_in_both_directions(tmp_path):
    path = tmp_path / "grades.csv"
    path.write_text("text,image,grade\nc0,i1,2.5\nc3,i0,1\nelsewhere,i0,3\n")
    table = grading.read(path)
    assert dense("text", "image", table) == [[0, 2.5, 0, 0], [0] * 4, [0] * 4, [1, 0, 0, 0]]
    assert dense("image", "text", table) == np.transpose(dense("text", "image", table)).tolist()
    assert grading.grades(SPLIT, "image", "audio", np.empty((0, 2), np.int64), table) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its header is ''; expected two modalities and `grade`"),
        ("image,caption,grade\n", "its header is 'image,caption,grade'"),
        ("image,image,grade\n", "its header is 'image,image,grade'"),
        ("image,text,grade\n", "it has no grade above 0"),
        ("image,text,grade\ni0,c0,0\n", "it has no grade above 0"),
        ("image,text,grade\ni0,c0,good\n", "grades.csv:2: expected two ids and a number, found 'i0,c0,good'"),
        ("image,text,grade\ni0,c0\n", "grades.csv:2: expected two ids and a number"),
        ("image,text,grade\ni0,c0,-1\n", "grades.csv:2: grade -1 of 'i0' and 'c0'"),
        ("image,text,grade\ni0,c0,nan\n", "grades.csv:2: grade nan"),
        ("image,text,grade\ni0,c0,1\ni0,c0,2\n", "grades.csv:3: grade 2 of 'i0' and 'c0'"),
    ],
)
def test_a_table_that_is_not_one_is_an_error_that_names_the_line(tmp_path, text, message):
    path = tmp_path / "grades.csv"
    path.write_text(text)
    with pytest.raises(DataError) as raised:
        grading.read(path)
    assert message in str(raised.value)


def test_a_table_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DataError, match="can't be read as a table of grades"):
        grading.read(tmp_path / "gone.csv")
