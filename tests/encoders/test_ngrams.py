import numpy as np
import pytest

from contract.errors import ConfigError
from encoders import Ngrams


def vector(word: str) -> np.ndarray:
    embedding = Ngrams().build("cpu")([word])["token_embeddings"][0, 0]
    return np.asarray(embedding / np.linalg.norm(embedding))


def test_words_that_share_ngrams_are_near_and_others_are_not() -> None:
    assert vector("triangle") @ vector("triangles") > 0.3
    assert abs(vector("triangle") @ vector("blue")) < 0.3
    assert vector("Blue") @ vector("blue") == pytest.approx(1)


def test_vectors_are_the_same_bytes_everywhere() -> None:
    # The first signs of the digest of "<red>" and its n-grams: a hash, not a random generator, decides them.
    first = Ngrams(width=8).build("cpu")(["red"])["token_embeddings"][0, 0]
    np.testing.assert_allclose(first, Ngrams(width=8).build("cpu")(["a red one"])["token_embeddings"][0, 1])


def test_caption_is_cut_into_words_of_any_language() -> None:
    outputs = Ngrams(max_length=4).build("cpu")(["Ein grüner Würfel.", "", "one two three four five"])
    assert outputs["length"].tolist() == [4, 0, 4]
    assert outputs["token_embeddings"].shape == (3, 4, 128)
    assert not outputs["token_embeddings"][1].any()


def test_width_without_a_digest_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 8"):
        Ngrams(width=100)


def test_text_of_words_is_written_as_one_would() -> None:
    for text in ("a dog, a t-shirt and a cat's toy.", "two (or three) red stars!", "ein grüner würfel: 3 % mehr?"):
        (words,) = Ngrams().tokens([text])
        assert Ngrams().tokens([Ngrams().text(words)]) == [words]
    assert Ngrams().text(["a", "dog", "'", "s", "t", "-", "shirt", ",", "red", "."]) == "a dog's t-shirt, red."
