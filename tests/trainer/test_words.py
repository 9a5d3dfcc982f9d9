"""The words seam: vocabularies and ids of the captions of a run's batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from contract.errors import ConfigError, StoreError
from contract.store import TargetStore
from encoders.ngrams import Ngrams
from trainer.loader import Loader
from trainer.recipes import Recipe
from trainer.resolve import resolve
from trainer.words import PADDING, UNKNOWN, Words, spread

Make = Callable[..., Recipe]
MLM: dict[str, Any] = {"objectives": {"mlm": {"kind": "mlm"}}, "streams": [{"pair": "image-text"}]}


def words_of(store: TargetStore, texts: list[str]) -> Words:
    return Words(store.fieldsets["text/teacher"], str(store.path), lambda: texts)


def test_vocabulary_is_ordered_by_frequency_then_alphabet(store: TargetStore) -> None:
    words = words_of(store, ["b a b", "c a b"])
    assert words.vocabulary == (UNKNOWN, "b", "a", "c")
    assert words.special == ()


def test_ids_are_those_of_the_captions_tokens_row_for_row(recipe: Make, store: TargetStore) -> None:
    streams = resolve(recipe(MLM), [store])
    assert streams.words is not None
    vocabulary = streams.words.vocabulary
    for step, batch in enumerate(Loader(streams, 0, 4, "cpu")):
        _, drawn = streams.draw(step)
        texts = store.manifest.column("text", "text", drawn.shown.rows["text"])
        found = [[vocabulary[i] for i in row if i != PADDING] for row in batch.words["text"].tolist()]
        assert found == Ngrams(max_length=5).tokens(texts)
        length = batch.inputs["text"].length
        assert length is not None
        assert torch.equal((batch.words["text"] != PADDING).sum(1), length.long())
        assert batch.words["text"].shape == batch.inputs["text"].values.shape[:2]


def test_vocabulary_is_that_of_training_captions_in_the_streams_languages(recipe: Make, store: TargetStore) -> None:
    streams = resolve(recipe(MLM), [store])
    assert streams.words is not None
    assert "47" in streams.words.vocabulary
    assert "79" not in streams.words.vocabulary  # of the test split
    assert resolve(recipe(MLM), [store]).words.vocabulary == streams.words.vocabulary  # type: ignore[union-attr]


def test_words_are_not_told_where_no_objective_reads_them(recipe: Make, store: TargetStore) -> None:
    assert resolve(recipe(), [store]).words is None
    listed = [{"pair": "image-text", "objectives": ["rank"]}, {"pair": "text", "objectives": ["mlm"]}]
    objectives = {"rank": {"kind": "ranking"}, "mlm": {"kind": "mlm", "reads": None}}
    streams = resolve(recipe({"targets": {}, "objectives": objectives, "streams": listed}), [store])
    told = {stream.kind: bool(stream.read(stream.draw((0,), 0, 4)).words) for stream in streams.streams}
    assert told == {"image-text": False, "text": True}


def test_unknown_objective_of_a_stream_is_refused(recipe: Make, store: TargetStore) -> None:
    listed = [{"pair": "image-text", "objectives": ["nce"]}]
    with pytest.raises(ConfigError, match="image-text: objectives: the recipe has no nce, only kd, rank"):
        resolve(recipe({"streams": listed}), [store])


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        ({"recipe": {}}, "was not filled by an encoder that Precept knows, so what its tokens are can't be told"),
        ({"recipe": {"kind": "x"}, "encoder": {"kind": "ngrams"}}, "its encoder is not the one that filled"),
    ],
)
def test_store_whose_text_encoder_is_not_known_is_refused(
    store: TargetStore, provenance: dict[str, Any], message: str
) -> None:
    fieldset = replace(store.fieldsets["text/teacher"], provenance=provenance)
    with pytest.raises(StoreError, match=message):
        Words(fieldset, "a.zarr", list)


def test_caption_with_other_tokens_than_are_stored_is_refused(recipe: Make, store: TargetStore) -> None:
    stream = resolve(recipe(MLM), [store]).streams[0]
    stored = stream.read(stream.draw((0,), 0, 2)).inputs["text"]
    with pytest.raises(
        StoreError, match=r"has \d tokens of the caption 'a b'.*finds 2: one of the two has changed"
    ):
        words_of(store, ["a b"]).ids(["a b", "a b"], stored)


def test_captions_beyond_the_most_are_taken_evenly(store: TargetStore) -> None:
    rows = store.manifest.rows("text", "train")
    found = spread([(store, rows[:100]), (store, rows[100:])], 12)
    every = store.manifest.column("text", "text", rows)
    assert len(found) == 12
    assert (found[0], found[-1]) == (every[0], every[-1])


def test_vectors_are_the_encoders_own_and_that_of_unknown_words_their_mean(store: TargetStore) -> None:
    words = words_of(store, ["a red star", "a blue star", "a a"])
    vectors = words.vectors()
    single = Ngrams(width=8).build("cpu")(list(words.vocabulary[1:]))["token_embeddings"][:, 0]
    torch.testing.assert_close(vectors[1:], torch.from_numpy(single))
    torch.testing.assert_close(vectors[0], vectors[1:].mean(0))


def test_every_word_of_many_captions_has_a_vector(store: TargetStore) -> None:
    words = words_of(store, [f"word{k} and word{k + 1}" for k in range(2500)])
    assert len(words.vocabulary) == 2503
    assert bool((words.vectors()[1:].square().sum(1) > 0).all())


def test_text_of_ids_is_what_the_encoder_writes_of_their_strings(store: TargetStore) -> None:
    words = words_of(store, ["a red star."])
    ids = [words.vocabulary.index(string) for string in ("a", "red", "star", ".")]
    assert words.text(ids) == "a red star."
