"""Describes a scene in words: five captions in each language, from everything that can be said to very little."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from pipeline.sources.scenes import english, german, spanish
from pipeline.sources.scenes.world import Scene

NUM_CAPTIONS = 5
TELLABLE = ("size", "texture", "position", "background", "secondary")
"""What a caption may tell; shape and colour of the main object are in every caption."""

Caption = Callable[[Scene, frozenset[str], np.random.Generator], str]

LANGUAGES: Mapping[str, Caption] = {"en": english.caption, "de": german.caption, "es": spanish.caption}
"""A language says of a scene what it is told to say, in one of its wordings."""


def describe(scene: Scene, language: str, rng: np.random.Generator) -> list[str]:
    """Five different captions of a scene."""
    captions: list[str] = []
    while len(captions) < NUM_CAPTIONS:
        told = _told(len(captions), rng)
        caption = LANGUAGES[language](scene, told, rng)
        if caption not in captions:
            captions.append(caption)
    return captions


def _told(k: int, rng: np.random.Generator) -> frozenset[str]:
    """What caption number k tells: all; much; the second object; one attribute; two attributes."""
    some = [("size", "texture", "position")[i] for i in rng.permutation(3)]
    plans = (
        TELLABLE,
        ("size", "texture", "secondary"),
        ("secondary", "background") if rng.random() < 0.3 else ("secondary",),
        some[:1],
        some[:2],
    )
    return frozenset(plans[k])
