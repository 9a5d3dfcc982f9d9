"""The embedded default: drawn scenes with captions in three languages and a sound each, made from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeInt

if TYPE_CHECKING:
    from pipeline.building import ManifestBuilder
    from pipeline.sources.scenes.world import Sample


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """A set of scenes: its seed and how many scenes each split has."""

    kind: Literal["scenes"] = "scenes"
    seed: NonNegativeInt = 0
    num_train: NonNegativeInt = 3000
    num_val: NonNegativeInt = 250
    num_test: NonNegativeInt = 500

    def samples(self) -> list[Sample]:
        """Every scene with its id and split, sampled and not yet drawn."""
        from pipeline.sources.scenes.world import sample_world

        # Training comes last: more of it leaves the other two splits as they are.
        return sample_world(self.seed, {"test": self.num_test, "val": self.num_val, "train": self.num_train})

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Render the scenes into `root`, unless they are there already, and describe them."""
        from pipeline.sources.scenes.render import describe_folder, render

        describe_folder(builder, render(self, root), root)
