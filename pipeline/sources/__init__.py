"""Sources: how a kind of dataset is read from a folder into a manifest.

A source is a frozen dataclass with `build(dataset: str, data_root: Path) -> Manifest`.
"""

from typing import Annotated

from pydantic import Field as Discriminated

from pipeline.sources.karpathy import Karpathy
from pipeline.sources.scenes import Scenes

# A new source is a file beside this one and one name here.
Source = Annotated[Karpathy | Scenes, Discriminated(discriminator="kind")]
