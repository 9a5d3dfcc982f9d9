"""Captions in Spanish: adjectives follow the noun and agree with its gender."""

from __future__ import annotations

import numpy as np

from pipeline.sources.scenes.world import Scene, choose

SHAPES = {
    "circle": ("círculo", "m"),
    "square": ("cuadrado", "m"),
    "triangle": ("triángulo", "m"),
    "star": ("estrella", "f"),
    "flower": ("flor", "f"),
    "cross": ("cruz", "f"),
}
COLOURS = {
    "red": "rojo",
    "orange": "naranja",
    "yellow": "amarillo",
    "green": "verde",
    "turquoise": "turquesa",
    "blue": "azul",
    "purple": "morado",
    "pink": "rosa",
}
SIZES = {
    "small": ("pequeño", "de tamaño pequeño"),
    "medium": ("mediano", "de tamaño mediano"),
    "large": ("grande", "de gran tamaño"),
}
"""As an adjective right after the noun, or as a phrase after everything else."""

TEXTURES = {
    "plain": ("liso",),
    "striped": ("a rayas", "de rayas"),
    "dotted": ("de lunares", "con lunares"),
    "checked": ("a cuadros", "de cuadros"),
}
POSITIONS = {
    "centre": ("en el centro", "en el medio"),
    "left": ("a la izquierda", "en la parte izquierda"),
    "right": ("a la derecha", "en la parte derecha"),
    "top": ("arriba", "en la parte superior"),
    "bottom": ("abajo", "en la parte inferior"),
}
BACKGROUNDS = {
    "black": ("sobre fondo negro", "sobre un fondo negro"),
    "grey": ("sobre fondo gris", "sobre un fondo gris"),
    "white": ("sobre fondo blanco", "sobre un fondo blanco"),
}
BESIDE = {"left": "a su izquierda", "right": "a su derecha", "above": "encima", "below": "debajo"}
RELATIONS = {
    "left": ("a la izquierda de", "a mano izquierda de"),
    "right": ("a la derecha de", "a mano derecha de"),
    "above": ("encima de", "por encima de"),
    "below": ("debajo de", "por debajo de"),
}
OPENINGS = ("", "", "hay ", "la imagen muestra ", "una imagen de ", "se ve ")
FEMININE = {"rojo": "roja", "amarillo": "amarilla", "morado": "morada", "liso": "lisa"} | {
    "pequeño": "pequeña",
    "mediano": "mediana",
}
"""The adjectives with two genders; all others have one form for both."""


def caption(scene: Scene, told: frozenset[str], rng: np.random.Generator) -> str:
    """Say the main object's shape and colour, and of the rest what is to be told."""
    size = choose(rng, SIZES[scene.size]) if "size" in told else ""
    texture = choose(rng, TEXTURES[scene.texture]) if "texture" in told else ""
    before, after = ("", size) if size.startswith("de ") else (size, "")
    parts = [_noun_phrase(scene.shape, before, COLOURS[scene.colour], texture, after)]
    if "position" in told:
        parts.append(choose(rng, POSITIONS[scene.position]))
    if "secondary" in told and scene.secondary is not None:
        second, relation = scene.secondary, scene.secondary.relation
        other = _noun_phrase(second.shape, COLOURS[second.colour])
        if "position" not in told and rng.random() < 0.5:
            parts = [other, choose(rng, RELATIONS[relation]), *parts]
        else:
            parts.append(f"con {other} {BESIDE[relation]}")
    if "background" in told:
        parts.append(choose(rng, BACKGROUNDS[scene.background]))
    sentence = choose(rng, OPENINGS) + " ".join(parts)
    return sentence[0].upper() + sentence[1:] + "."


def _noun_phrase(shape: str, *adjectives: str) -> str:
    noun, gender = SHAPES[shape]
    words = [FEMININE.get(word, word) if gender == "f" else word for word in adjectives if word]
    return " ".join(["una" if gender == "f" else "un", noun, *words])
