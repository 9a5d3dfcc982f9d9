"""Captions in German: the noun's gender and the sentence's case decide article and adjective endings."""

from __future__ import annotations

import numpy as np

from pipeline.sources.scenes.world import Scene, choose

SHAPES = {
    "circle": ("Kreis", "m"),
    "square": ("Quadrat", "n"),
    "triangle": ("Dreieck", "n"),
    "star": ("Stern", "m"),
    "flower": ("Blume", "f"),
    "cross": ("Kreuz", "n"),
}
COLOURS = {
    "red": "rot",
    "orange": "orangefarben",
    "yellow": "gelb",
    "green": "grün",
    "turquoise": "türkisfarben",
    "blue": "blau",
    "purple": "violett",
    "pink": "rosafarben",
}
SIZES = {"small": ("klein",), "medium": ("mittelgroß",), "large": ("groß",)}
TEXTURES = {
    "plain": ("einfarbig",),
    "striped": ("gestreift",),
    "dotted": ("gepunktet", "getupft"),
    "checked": ("kariert",),
}
POSITIONS = {
    "centre": ("in der Mitte", "im Zentrum"),
    "left": ("auf der linken Seite", "links"),
    "right": ("auf der rechten Seite", "rechts"),
    "top": ("im oberen Teil", "oben"),
    "bottom": ("im unteren Teil", "unten"),
}
BACKGROUNDS = {
    "black": ("auf schwarzem Hintergrund", "vor schwarzem Hintergrund"),
    "grey": ("auf grauem Hintergrund", "vor grauem Hintergrund"),
    "white": ("auf weißem Hintergrund", "vor weißem Hintergrund"),
}
BESIDE = {"left": "links daneben", "right": "rechts daneben", "above": "darüber", "below": "darunter"}
RELATIONS = {
    "left": ("links von", "links neben"),
    "right": ("rechts von", "rechts neben"),
    "above": ("über", "oberhalb von"),
    "below": ("unter", "unterhalb von"),
}
"""All with the dative."""

NOMINATIVE, ACCUSATIVE, DATIVE = "nominative", "accusative", "dative"
OPENINGS = {
    "": NOMINATIVE,
    "hier ist ": NOMINATIVE,
    "es gibt ": ACCUSATIVE,
    "das Bild zeigt ": ACCUSATIVE,
    "man sieht ": ACCUSATIVE,
    "ein Bild mit ": DATIVE,
}
ENDINGS = {
    (NOMINATIVE, "m"): ("ein", "er"),
    (NOMINATIVE, "f"): ("eine", "e"),
    (NOMINATIVE, "n"): ("ein", "es"),
    (ACCUSATIVE, "m"): ("einen", "en"),
    (ACCUSATIVE, "f"): ("eine", "e"),
    (ACCUSATIVE, "n"): ("ein", "es"),
    (DATIVE, "m"): ("einem", "en"),
    (DATIVE, "f"): ("einer", "en"),
    (DATIVE, "n"): ("einem", "en"),
}
"""(case, gender) -> the indefinite article and the ending of every adjective after it."""


def caption(scene: Scene, told: frozenset[str], rng: np.random.Generator) -> str:
    """Say the main object's shape and colour, and of the rest what is to be told."""
    opening = choose(rng, tuple(OPENINGS))
    case = OPENINGS[opening]
    adjectives = (
        choose(rng, SIZES[scene.size]) if "size" in told else "",
        choose(rng, TEXTURES[scene.texture]) if "texture" in told else "",
        COLOURS[scene.colour],
    )
    parts = [_noun_phrase(scene.shape, adjectives, case)]
    if "position" in told:
        parts.append(choose(rng, POSITIONS[scene.position]))
    if "secondary" in told and scene.secondary is not None:
        second, relation = scene.secondary, scene.secondary.relation
        if "position" not in told and rng.random() < 0.5:
            other = _noun_phrase(second.shape, (COLOURS[second.colour],), case)
            main = _noun_phrase(scene.shape, adjectives, DATIVE)
            parts = [other, choose(rng, RELATIONS[relation]), main]
        else:
            other = _noun_phrase(second.shape, (COLOURS[second.colour],), DATIVE)
            parts.append(f"mit {other} {BESIDE[relation]}")
    if "background" in told:
        parts.append(choose(rng, BACKGROUNDS[scene.background]))
    sentence = opening + " ".join(parts)
    return sentence[0].upper() + sentence[1:] + "."


def _noun_phrase(shape: str, adjectives: tuple[str, ...], case: str) -> str:
    noun, gender = SHAPES[shape]
    article, ending = ENDINGS[case, gender]
    return " ".join([article, *(adjective + ending for adjective in adjectives if adjective), noun])
