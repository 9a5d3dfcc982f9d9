"""One input for models that take it in different sizes, or at different sample rates: an ensemble's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.views import audio, image_file
from contract.views.audio import AudioAugmentation, AudioView
from contract.views.augmentation import drawn
from contract.views.image import ImageAugmentation, ImageView
from contract.views.item import Item

Arrays = tuple[npt.NDArray[Any], ...]

# The parameters of the evaluation view are zeros, however many.
EVALUATION = np.zeros(1, np.float32)


@dataclass(frozen=True, kw_only=True)
class JointView:
    """What each of `views` makes of an item that is decoded once; random views are of one region for all."""

    views: tuple[ImageView, ...] | tuple[AudioView, ...]

    def load(self, item: Item) -> Arrays:
        """Return what `load` of each view does."""
        return self._render(self._decode(item, 0.0), EVALUATION)

    def load_views(
        self, item: Item, augmentation: ImageAugmentation | AudioAugmentation, seed: int, num_views: int
    ) -> tuple[list[Arrays], npt.NDArray[np.float32]]:
        """Return what `load` does and `num_views` augmentations of it, and their parameters, float32 [1 + n, P].

        Those of sounds are drawn for the shortest of the views.
        """
        latest_s = augmentation.max_shift_s if isinstance(augmentation, AudioAugmentation) else 0.0
        decoded = self._decode(item, -latest_s)
        extent = (
            (min(decoded.duration_s, *(view.duration_s for view in self._sounds)),)
            if self._sounds
            else decoded.size
        )
        parameters = drawn(augmentation, seed, item.id, num_views, *extent)
        return [self._render(decoded, row) for row in parameters], parameters

    def replay(self, item: Item, parameters: npt.NDArray[np.float32]) -> list[Arrays]:
        """Return the views that have these parameters, float32 [n, P]."""
        decoded = self._decode(item, parameters[:, 0].min(initial=0.0))
        return [self._render(decoded, row) for row in parameters]

    @property
    def _sounds(self) -> list[AudioView]:
        """The views, if they are of sounds."""
        return [view for view in self.views if isinstance(view, AudioView)]

    def _decode(self, item: Item, shift_s: float) -> Any:
        """The image, or as much of the sound as views need of which one is shifted by `shift_s`."""
        if self._sounds:
            return audio.decode(item, max(view.needed_s(shift_s) for view in self._sounds))
        return image_file.decode(item)

    def _render(self, decoded: Any, row: npt.NDArray[np.float32]) -> Arrays:
        return tuple(view.render(decoded, row) for view in self.views)
