"""Captions of a run: what is written, and what they score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from contract.errors import DataError, MissingExtraError, RunError
from contract.store import TargetStore
from trainer import captioning, runs
from trainer.captioning import bleu, cider
from trainer.cli import app
from trainer.fit import fit
from trainer.recipes import Recipe

Make = Callable[..., Recipe]

CAPTION: dict[str, Any] = {
    "objectives": {
        "infonce": {"kind": "infonce"},
        "caption": {"kind": "caption", "decoder": {"width": 16, "num_heads": 2}},
    },
    "streams": [{"pair": "image-text"}],
    "targets": {},
}
REFERENCES = [
    ["a red star on a black background", "a small red star in the middle", "a star"],
    ["two blue circles", "a pair of blue circles on the left"],
]


@pytest.fixture(scope="module")
def finished(recipe: Make, store: TargetStore, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """A run of few epochs that trained a decoder."""
    run = runs.begin(recipe({**CAPTION, "epochs": 2}), [store.path], tmp_path_factory.mktemp("runs") / "run")
    fit(run)
    return run


def test_every_item_of_the_split_has_a_caption_beside_its_references(
    finished: runs.Run, store: TargetStore
) -> None:
    done = CliRunner().invoke(app, ["caption", "--run", str(finished.path), "--split", "test", "--beam", "2"])
    assert done.exit_code == 0, done.output
    path = finished.path / "captions/tiny-test.jsonl"
    assert f"{path}: 16 image: BLEU-4 " in done.output
    found = [json.loads(line) for line in path.read_text().splitlines()]
    rows = store.manifest.rows("image", "test")
    assert [item["id"] for item in found] == store.manifest.column("image", "id", rows)
    english = store.manifest.rows("text", "test", ["en"])
    references = store.manifest.column("text", "text", english)
    assert [item["references"] for item in found] == [references[2 * k : 2 * k + 2] for k in range(16)]
    words = finished.streams.words
    assert words is not None
    assert all(set(item["caption"].replace("!", " !").split()) <= set(words.vocabulary) for item in found)


def test_captions_are_the_same_each_time(finished: runs.Run) -> None:
    path = finished.path / "captions/tiny-val.jsonl"
    texts = []
    for _ in range(2):
        list(captioning.write(finished, ["val"], beam=1))
        texts.append(path.read_text())
    assert texts[0] == texts[1]


def test_mistakes_are_told_before_anything_is_written(
    finished: runs.Run, recipe: Make, store: TargetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="nothing in split 'dev' has captions"):
        list(captioning.write(finished, ["dev"], beam=1))
    unfinished = runs.begin(recipe(CAPTION), [store.path], tmp_path / "unfinished")
    with pytest.raises(RunError, match="is not finished"):
        list(captioning.write(unfinished, ["test"], beam=1))
    other = runs.begin(recipe(), [store.path], tmp_path / "other")
    other.record["finished"] = True
    with pytest.raises(RunError, match="recipe tiny trains no decoder"):
        list(captioning.write(other, ["test"], beam=1))
    monkeypatch.setattr(captioning, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'install "precept\[captions\]"'):
        list(captioning.write(finished, ["test"], beam=1))


def test_perfect_captions_score_highest_whatever_the_case_and_the_final_point() -> None:
    perfect = ["A red star on a black background.", "Two blue circles on the left."]
    references = [[text.lower().rstrip(".")] for text in perfect]
    assert cider(perfect, references) == pytest.approx(1000)
    assert bleu(perfect, [[text] for text in perfect]) == pytest.approx(100)
    assert bleu(["no dog", "no dog"], references) < 10
    assert cider(["no dog", "no dog"], references) == 0


def test_bleu_takes_unlike_numbers_of_references() -> None:
    import sacrebleu

    found = ["a red star in the middle", "a pair of circles on the left"]
    whole = [REFERENCES[0], [*REFERENCES[1], REFERENCES[1][0]]]  # said twice, which changes nothing
    expected = sacrebleu.corpus_bleu(found, [list(of_kind) for of_kind in zip(*whole, strict=True)]).score
    assert bleu(found, REFERENCES) == pytest.approx(expected)
    assert 0 < expected < 100


def test_cider_is_the_mean_cosine_of_weighted_n_grams() -> None:
    """Two items, one reference each: the formula of CIDEr-D for n = 1 alone can be told by hand."""
    import math

    found, references = ["red star", "blue circle"], [["red circle"], ["blue star"]]
    # Each word stands in one item's references: idf log 2. One of two words is shared, no longer n-gram is.
    expected = 1000 * (1 * math.log(2) ** 2 / (2 * math.log(2) ** 2)) / 4
    assert cider(found, references) == pytest.approx(expected)
