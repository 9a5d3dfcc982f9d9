"""Sources: how a kind of dataset is read from a folder into a manifest.

A source is a frozen dataclass with

    fill(builder: ManifestBuilder, root: Path) -> None     adds its items and pairs, in an order that never changes

which raises `DataError` for a dataset that is not there or is not as it should be. Paths are relative to the root.
"""

from typing import Annotated

from pydantic import Field as Discriminated

from pipeline.sources.aligned import Aligned
from pipeline.sources.captioned_sounds import CaptionedSounds
from pipeline.sources.cifar import Cifar
from pipeline.sources.coco import CocoCaptions
from pipeline.sources.esc import Esc
from pipeline.sources.flickr import Flickr
from pipeline.sources.hdf5 import Hdf5
from pipeline.sources.huggingface import HuggingFace
from pipeline.sources.image_folder import ImageFolder
from pipeline.sources.image_sound import ImageSound
from pipeline.sources.imagenet import ImageNet
from pipeline.sources.karpathy import Karpathy
from pipeline.sources.scenes import Scenes
from pipeline.sources.speech_folder import SpeechFolder
from pipeline.sources.tables import Tables
from pipeline.sources.webdataset import WebDataset

# A new source is a file beside this one and one name here.
Source = Annotated[
    Aligned
    | CaptionedSounds
    | Cifar
    | CocoCaptions
    | Esc
    | Flickr
    | Hdf5
    | HuggingFace
    | ImageFolder
    | ImageNet
    | ImageSound
    | Karpathy
    | Scenes
    | SpeechFolder
    | Tables
    | WebDataset,
    Discriminated(discriminator="kind"),
]
