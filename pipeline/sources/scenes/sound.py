"""Sounds like a scene looks: one second in which every attribute can be heard.

shape       timbre: which multiples of the pitch sound, and how loudly
colour      pitch, red lowest, in steps of four semitones from 262 Hz
texture     rhythm: one held note, four pulses, eight short ones, or long-short-short
size        loudness and envelope: small things are quiet and fade quickly, large things swell
position    top glides upwards, bottom downwards; left ticks at the beginning, right at the end
background  a low drone, black lowest
secondary   a second, softer voice with its own timbre and pitch (between those of the first voice's scale);
            its relation is the quarter of the second in which it sounds
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.scenes.world import COLOURS, RELATIONS, Scene

SAMPLE_RATE = 16_000
NUM_SAMPLES = 16_000
NOISE = 0.003

Wave = NDArray[np.float32]

TIMBRE: dict[str, tuple[tuple[float, float], ...]] = {
    "circle": ((1, 1.0),),
    "square": ((1, 0.8), (3, 0.6), (5, 0.45)),
    "triangle": ((1, 0.7), (2, 0.7)),
    "star": ((1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5), (5, 0.5), (6, 0.5)),
    "flower": ((1, 0.4), (4, 0.8)),
    "cross": ((1, 0.6), (2.4, 0.6), (3.4, 0.5)),
}
"""(multiple of the pitch, amplitude) of each partial."""

PULSES: dict[str, tuple[tuple[float, float], ...]] = {
    "plain": ((0.0, 1.0),),
    "striped": ((0.0, 0.15), (0.25, 0.15), (0.5, 0.15), (0.75, 0.15)),
    "dotted": tuple((k / 8, 0.05) for k in range(8)),
    "checked": ((0.0, 0.3), (0.4, 0.07), (0.5, 0.3), (0.9, 0.07)),
}
"""(beginning, length) of each note in seconds."""

LOUDNESS = {"small": 0.15, "medium": 0.3, "large": 0.5}
ENVELOPE = {"small": (1.0, 0.15), "medium": (1.0, 1.0), "large": (0.5, 1.0)}
"""Level at the beginning and at the end of the second."""

GLIDE = {"top": 1.5, "bottom": -1.5}
"""Semitones over the second, less than half a step of the scale."""

TICK = {"left": 0.02, "right": 0.95}
DRONE_HZ = {"black": 65.0, "grey": 110.0, "white": 175.0}
LOWEST_HZ = 261.63
SEMITONES_PER_COLOUR = 4
SECOND_VOICE_SEMITONES = 6
SECOND_VOICE_LOUDNESS = 0.15
HIGHEST_HZ = 7_500.0


def sound(scene: Scene, rng: np.random.Generator) -> Wave:
    """Sound of a scene: float32 [16000] at 16 kHz, within -1 and 1."""
    time = np.arange(NUM_SAMPLES, dtype=np.float32) / np.float32(SAMPLE_RATE)
    begin, end = ENVELOPE[scene.size]
    swell = begin * (end / begin) ** time
    cycles = _cycles(time, _pitch_hz(scene.colour), GLIDE.get(scene.position, 0.0))
    wave = LOUDNESS[scene.size] * swell * _rhythm(time, PULSES[scene.texture])
    wave *= _voice(scene.shape, cycles, _pitch_hz(scene.colour), rng)
    wave += 0.03 * np.sin(2 * math.pi * DRONE_HZ[scene.background] * time)
    if scene.position in TICK:
        wave += (
            0.25
            * _rhythm(time, ((TICK[scene.position], 0.02),))
            * rng.standard_normal(NUM_SAMPLES, dtype=np.float32)
        )
    if scene.secondary is not None:
        pitch_hz = _pitch_hz(scene.secondary.colour, SECOND_VOICE_SEMITONES)
        quarter = RELATIONS.index(scene.secondary.relation) / 4
        voice = _voice(scene.secondary.shape, _cycles(time, pitch_hz, 0.0), pitch_hz, rng)
        wave += SECOND_VOICE_LOUDNESS * _rhythm(time, ((quarter, 0.22),)) * voice
    wave += NOISE * rng.standard_normal(NUM_SAMPLES, dtype=np.float32)
    clipped: Wave = np.clip(wave, -1.0, 1.0)
    return clipped


def _pitch_hz(colour: str, semitones: int = 0) -> float:
    return float(LOWEST_HZ * 2 ** ((SEMITONES_PER_COLOUR * COLOURS.index(colour) + semitones) / 12))


def _cycles(time: Wave, pitch_hz: float, glide: float) -> Wave:
    """Cycles of the pitch done until each moment, while it glides by `glide` semitones a second."""
    cycles = np.cumsum(pitch_hz * 2 ** (glide * time / 12), dtype=np.float64) / SAMPLE_RATE
    return cycles.astype(np.float32)


def _voice(shape: str, cycles: Wave, pitch_hz: float, rng: np.random.Generator) -> Wave:
    """Sum of the partials below the highest frequency, each beginning anywhere in its cycle; power 1/2."""
    partials = [(multiple, level) for multiple, level in TIMBRE[shape] if multiple * pitch_hz <= HIGHEST_HZ]
    scale = math.sqrt(sum(level**2 for _, level in partials))
    voice = np.zeros_like(cycles)
    for multiple, level in partials:
        voice += level / scale * np.sin(2 * math.pi * (multiple * cycles + rng.random()))
    return voice


def _rhythm(time: Wave, pulses: tuple[tuple[float, float], ...]) -> Wave:
    """Level of notes with ramps of 10 ms, between 0 and 1: float32 [16000]."""
    level = np.zeros_like(time)
    for begin, length in pulses:
        rise, fall = (time - begin) / 0.01, (begin + length - time) / 0.01
        level = np.maximum(level, np.clip(np.minimum(rise, fall), 0, 1))
    return level
