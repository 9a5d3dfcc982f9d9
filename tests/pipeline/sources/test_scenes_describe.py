from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline.sources.scenes import english, german, spanish
from pipeline.sources.scenes.describe import LANGUAGES, describe
from pipeline.sources.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Secondary,
    sample_scene,
)

SCENE = Scene(
    shape="star",
    colour="red",
    size="large",
    texture="striped",
    position="top",
    background="white",
    secondary=Secondary(shape="flower", colour="blue", relation="below"),
)
MODULES = {"en": english, "de": german, "es": spanish}
ALL = frozenset({"size", "texture", "position", "background", "secondary"})


def test_there_are_english_german_and_spanish() -> None:
    assert set(LANGUAGES) == {"en", "de", "es"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_five_different_captions_the_same_for_the_same_generator(language: str) -> None:
    for seed in range(100):
        scene = sample_scene(np.random.default_rng(seed))
        captions = describe(scene, language, np.random.default_rng(seed))
        assert len(set(captions)) == len(captions) == 5
        assert captions == describe(scene, language, np.random.default_rng(seed))


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_differ_in_wording_and_detail(language: str) -> None:
    captions = {caption for seed in range(40) for caption in describe(SCENE, language, np.random.default_rng(seed))}
    assert len(captions) > 60
    lengths = [len(caption.split()) for caption in captions]
    assert max(lengths) > 2 * min(lengths)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_table_covers_every_value(language: str) -> None:
    module = MODULES[language]
    for table, values in (
        (module.SHAPES, SHAPES),
        (module.COLOURS, COLOURS),
        (module.SIZES, SIZES),
        (module.TEXTURES, TEXTURES),
        (module.POSITIONS, POSITIONS),
        (module.BACKGROUNDS, BACKGROUNDS),
        (module.BESIDE, RELATIONS),
        (module.RELATIONS, RELATIONS),
    ):
        assert set(table) == set(values)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_caption_names_colour_and_shape_and_nothing_untrue(language: str) -> None:
    for seed in range(200):
        scene = sample_scene(np.random.default_rng(seed))
        second = scene.secondary
        for caption in describe(scene, language, np.random.default_rng(seed)):
            words = _words(language, "SHAPES", caption)
            assert scene.shape in words
            assert words <= {scene.shape, second.shape if second else scene.shape}
            words = _words(language, "COLOURS", caption)
            assert scene.colour in words
            assert words <= {scene.colour, second.colour if second else scene.colour}
            assert _words(language, "SIZES", caption) <= {scene.size}
            assert _words(language, "TEXTURES", caption) <= {scene.texture}
            assert _words(language, "BACKGROUNDS", caption) <= {scene.background}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_first_caption_tells_every_attribute(language: str) -> None:
    for seed in range(100):
        scene = sample_scene(np.random.default_rng(seed))
        caption = describe(scene, language, np.random.default_rng(seed))[0]
        assert _words(language, "SIZES", caption) == {scene.size}
        assert _words(language, "TEXTURES", caption) == {scene.texture}
        assert _words(language, "BACKGROUNDS", caption) == {scene.background}
        assert any(phrase in caption for phrase in MODULES[language].POSITIONS[scene.position])
        if scene.secondary is not None:
            assert MODULES[language].BESIDE[scene.secondary.relation] in caption


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("en", "an orange star"),
        ("de", "einem orangefarbenen Stern"),
        ("es", "una estrella naranja"),
    ],
)
def test_article_fits_the_noun(language: str, expected: str) -> None:
    scene = replace(SCENE, secondary=Secondary(shape="star", colour="orange", relation="left"))
    assert expected in LANGUAGES[language](scene, ALL, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("circle", {"ein roter Kreis", "einen roten Kreis", "einem roten Kreis"}),
        ("flower", {"eine rote Blume", "einer roten Blume"}),
        ("square", {"ein rotes Quadrat", "einem roten Quadrat"}),
    ],
)
def test_german_declines_by_gender_and_case(shape: str, expected: set[str]) -> None:
    scene = replace(SCENE, shape=shape, secondary=None)
    captions = [german.caption(scene, frozenset(), np.random.default_rng(seed)) for seed in range(40)]
    assert {
        phrase for caption in captions for phrase in re.findall(r"ein\S* rot\S* \w+", _lowered(caption))
    } == expected


def test_german_openings_govern_their_case() -> None:
    scene = replace(SCENE, shape="circle", secondary=None)
    captions = {german.caption(scene, frozenset(), np.random.default_rng(seed)) for seed in range(60)}
    assert captions == {
        "Ein roter Kreis.",
        "Hier ist ein roter Kreis.",
        "Es gibt einen roten Kreis.",
        "Das Bild zeigt einen roten Kreis.",
        "Man sieht einen roten Kreis.",
        "Ein Bild mit einem roten Kreis.",
    }


@pytest.mark.parametrize(
    ("shape", "colour", "expected"),
    [
        ("circle", "red", "un círculo rojo liso"),
        ("flower", "red", "una flor roja lisa"),
        ("cross", "purple", "una cruz morada lisa"),
        ("star", "blue", "una estrella azul lisa"),
        ("star", "pink", "una estrella rosa lisa"),
    ],
)
def test_spanish_adjectives_agree(shape: str, colour: str, expected: str) -> None:
    scene = replace(SCENE, shape=shape, colour=colour, texture="plain", secondary=None)
    for seed in range(20):
        caption = spanish.caption(scene, frozenset({"texture"}), np.random.default_rng(seed))
        assert expected in caption.lower()


def _lowered(caption: str) -> str:
    return caption[0].lower() + caption[1:]


def _words(language: str, table: str, caption: str) -> set[str]:
    """The values of an attribute that a caption names, in whatever form."""
    found = set()
    for value, words in getattr(MODULES[language], table).items():
        if language == "de":
            forms = words[:1] if table == "SHAPES" else (words if isinstance(words, tuple) else (words,))
            pattern = "|".join(rf"{word}(e|er|es|en)?" for word in forms)
        elif language == "es" and table != "BACKGROUNDS":
            forms = words[:1] if table == "SHAPES" else (words if isinstance(words, tuple) else (words,))
            pattern = "|".join(word[:-1] + "[oa]" if word.endswith("o") else word for word in forms)
        else:
            pattern = "|".join(words) if isinstance(words, tuple) else words
        if re.search(rf"\b({pattern})\b", caption):
            found.add(value)
    return found
