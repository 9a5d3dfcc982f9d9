"""Captions in English."""

from __future__ import annotations

import numpy as np

from pipeline.sources.scenes.world import Scene, choose

SHAPES = {shape: shape for shape in ("circle", "square", "triangle", "star", "flower", "cross")}
COLOURS = {colour: colour for colour in ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink")}
SIZES = {"small": ("small", "little"), "medium": ("medium-sized", "mid-sized"), "large": ("large", "big")}
TEXTURES = {
    "plain": ("plain",),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
    "checked": ("checked", "chequered"),
}
POSITIONS = {
    "centre": ("in the centre", "in the middle"),
    "left": ("on the left", "at the left"),
    "right": ("on the right", "at the right"),
    "top": ("at the top", "in the upper part"),
    "bottom": ("at the bottom", "in the lower part"),
}
BACKGROUNDS = {name: (f"on a {name} background",) for name in ("black", "grey", "white")}
BESIDE = {"left": "to its left", "right": "to its right", "above": "above it", "below": "below it"}
RELATIONS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
OPENINGS = ("", "", "there is ", "the picture shows ", "a picture of ", "we see ")


def caption(scene: Scene, told: frozenset[str], rng: np.random.Generator) -> str:
    """Say the main object's shape and colour, and of the rest what is to be told."""
    parts = [
        _noun_phrase(
            choose(rng, SIZES[scene.size]) if "size" in told else "",
            choose(rng, TEXTURES[scene.texture]) if "texture" in told else "",
            COLOURS[scene.colour],
            SHAPES[scene.shape],
        )
    ]
    if "position" in told:
        parts.append(choose(rng, POSITIONS[scene.position]))
    if "secondary" in told and scene.secondary is not None:
        second, relation = scene.secondary, scene.secondary.relation
        other = _noun_phrase(COLOURS[second.colour], SHAPES[second.shape])
        if "position" not in told and rng.random() < 0.5:
            parts = [other, choose(rng, RELATIONS[relation]), *parts]
        else:
            parts.append(f"with {other} {BESIDE[relation]}")
    if "background" in told:
        parts.append(choose(rng, BACKGROUNDS[scene.background]))
    sentence = choose(rng, OPENINGS) + " ".join(parts)
    return sentence[0].upper() + sentence[1:] + "."


def _noun_phrase(*words: str) -> str:
    phrase = " ".join(word for word in words if word)
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
