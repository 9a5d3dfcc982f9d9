"""What a scene is, and how a data set of scenes is sampled so that every split holds distractors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "flower", "cross")
COLOURS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink")
SIZES = ("small", "medium", "large")
TEXTURES = ("plain", "striped", "dotted", "checked")
POSITIONS = ("centre", "left", "right", "top", "bottom")
BACKGROUNDS = ("black", "grey", "white")
RELATIONS = ("left", "right", "above", "below")
CLASSES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)

VARYING = ("shape", "colour", "size", "texture", "position", "secondary")
"""The attributes in which the scenes of one group of distractors may differ."""

GROUP_SIZE = 4
OUTWARD = {"left": "left", "right": "right", "top": "above", "bottom": "below"}
"""Where the main object leaves no room: at the left nothing fits to the left of it."""


@dataclass(frozen=True, kw_only=True)
class Secondary:
    """A smaller object behind the main one; `relation` says where it is, seen from the main object."""

    shape: str
    colour: str
    relation: str


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One main object on a background, perhaps with a second object; `seed` only shakes it a little."""

    shape: str
    colour: str
    size: str
    texture: str
    position: str
    background: str
    secondary: Secondary | None
    seed: int = 0

    @property
    def label(self) -> int:
        """The class of the main object: a row of `CLASSES`."""
        return SHAPES.index(self.shape) * len(COLOURS) + COLOURS.index(self.colour)

    @property
    def description(self) -> Scene:
        """Every attribute but the seed: no two scenes of a data set share it."""
        return replace(self, seed=0)

    @property
    def possible(self) -> bool:
        """Whether the second object has room and another colour than the main one."""
        if self.secondary is None:
            return True
        return self.secondary.colour != self.colour and self.secondary.relation != OUTWARD.get(self.position)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A scene with its place in the data set; `group` is -1 for a scene without planned distractors."""

    id: str
    split: str
    scene: Scene
    group: int
    varies: str


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw one scene, every attribute on its own; three in four have a second object."""
    while True:
        scene = Scene(
            shape=choose(rng, SHAPES),
            colour=choose(rng, COLOURS),
            size=choose(rng, SIZES),
            texture=choose(rng, TEXTURES),
            position=choose(rng, POSITIONS),
            background=choose(rng, BACKGROUNDS),
            secondary=_sample_secondary(rng) if rng.random() < 0.75 else None,
            seed=_sample_seed(rng),
        )
        if scene.possible:
            return scene


def sample_world(seed: int, num_samples: Mapping[str, int]) -> list[Sample]:
    """Sample splits one after another, in the order given, without repeating a description anywhere.

    A split depends on the seed and on the splits before it: put the largest last, and its size moves no other.
    """
    taken: set[Scene] = set()
    samples: list[Sample] = []
    for number, (split, num) in enumerate(num_samples.items()):
        samples += _sample_split(np.random.default_rng([seed, number]), split, num, taken)
    return samples


def distractors(scene: Scene, varies: str, rng: np.random.Generator) -> list[Scene]:
    """Return the scene and up to three others; any two of them differ in the attribute `varies` only."""
    values: Mapping[str, tuple[Any, ...]] = {
        "shape": SHAPES,
        "colour": COLOURS,
        "size": SIZES,
        "texture": TEXTURES,
        "position": POSITIONS,
        "secondary": (None, *(_sample_secondary(rng) for _ in range(GROUP_SIZE))),
    }
    shuffled = [values[varies][i] for i in rng.permutation(len(values[varies]))]
    group = {scene.description: scene}
    for value in shuffled:
        other = replace(scene, seed=_sample_seed(rng), **{varies: value})
        if other.possible:
            group.setdefault(other.description, other)
    return list(group.values())[:GROUP_SIZE]


def choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """Pick one option, all equally likely."""
    return options[int(rng.integers(len(options)))]


def _sample_split(rng: np.random.Generator, split: str, num: int, taken: set[Scene]) -> list[Sample]:
    """Half of a split in groups of distractors, the attribute in turn; the other half scene by scene."""
    found: list[tuple[Scene, int, str]] = []
    group = 0
    while len(found) < num // 2:
        varies = VARYING[group % len(VARYING)]
        members = [s for s in distractors(sample_scene(rng), varies, rng) if s.description not in taken]
        members = members[: num - len(found)]
        if len(members) < 2:
            continue
        found += [(member, group, varies) for member in members]
        taken.update(member.description for member in members)
        group += 1
    while len(found) < num:
        scene = sample_scene(rng)
        if scene.description not in taken:
            found.append((scene, -1, ""))
            taken.add(scene.description)
    return [
        Sample(id=f"{split}-{i:06d}", split=split, scene=found[j][0], group=found[j][1], varies=found[j][2])
        for i, j in enumerate(rng.permutation(num))
    ]


def _sample_secondary(rng: np.random.Generator) -> Secondary:
    return Secondary(shape=choose(rng, SHAPES), colour=choose(rng, COLOURS), relation=choose(rng, RELATIONS))


def _sample_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
