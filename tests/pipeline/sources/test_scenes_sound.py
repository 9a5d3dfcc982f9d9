from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.sources.scenes.sound import SAMPLE_RATE, TIMBRE, Wave, sound
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
    shape="circle",
    colour="red",
    size="medium",
    texture="plain",
    position="centre",
    background="black",
    secondary=None,
)


def test_sound_is_one_second_within_one() -> None:
    for seed in range(20):
        wave = _sound(sample_scene(np.random.default_rng(seed)))
        assert wave.shape == (SAMPLE_RATE,)
        assert wave.dtype == np.float32
        assert 0.05 < np.abs(wave).max() <= 1


def test_same_generator_same_sound_other_generator_other_noise() -> None:
    assert np.array_equal(_sound(SCENE), _sound(SCENE))
    assert not np.array_equal(_sound(SCENE), sound(SCENE, np.random.default_rng(1)))


@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        ("shape", SHAPES),
        ("colour", COLOURS),
        ("size", SIZES),
        ("texture", TEXTURES),
        ("position", POSITIONS),
        ("background", BACKGROUNDS),
        ("secondary", (None, Secondary(shape="star", colour="blue", relation="left"))),
    ],
)
def test_every_attribute_can_be_heard(attribute: str, values: tuple[object, ...]) -> None:
    spectrograms = [_spectrogram(_sound(replace(SCENE, **{attribute: value}))) for value in values]
    again = _spectrogram(sound(replace(SCENE, **{attribute: values[0]}), np.random.default_rng(9)))
    noise = np.abs(again - spectrograms[0]).max()
    for i, spectrogram in enumerate(spectrograms):
        for other in spectrograms[:i]:
            assert np.abs(spectrogram - other).max() > 2 * noise


@pytest.mark.parametrize("relation", RELATIONS)
def test_relation_is_the_quarter_in_which_the_second_voice_sounds(relation: str) -> None:
    secondary = Secondary(shape="circle", colour="pink", relation=relation)
    difference = _sound(replace(SCENE, secondary=secondary)) - _sound(SCENE)
    power = (difference.reshape(4, -1) ** 2).sum(axis=1)
    assert power.argmax() == RELATIONS.index(relation)


@pytest.mark.parametrize("colour", ["red", "blue"])
@pytest.mark.parametrize("shape", SHAPES)
def test_partials_of_the_shape_stand_on_the_pitch_of_the_colour(shape: str, colour: str) -> None:
    spectrum = np.abs(np.fft.rfft(_sound(replace(SCENE, shape=shape, colour=colour)) * np.hanning(SAMPLE_RATE)))
    pitch_hz = 261.63 * 2 ** (4 * COLOURS.index(colour) / 12)
    floor = np.median(spectrum)
    for multiple, _ in TIMBRE[shape]:
        around = round(multiple * pitch_hz)
        assert spectrum[around - 3 : around + 4].max() > 100 * floor


def test_larger_things_are_louder() -> None:
    power = [float((_sound(replace(SCENE, size=size)) ** 2).mean()) for size in SIZES]
    assert power == sorted(power)


def _sound(scene: Scene) -> Wave:
    return sound(scene, np.random.default_rng(0))


def _spectrogram(wave: Wave) -> np.ndarray:
    """Magnitudes, float64 [50, 161]: 20 ms a row."""
    return np.abs(np.fft.rfft(wave.reshape(50, 320) * np.hanning(320), axis=1))
