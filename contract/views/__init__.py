"""Views: what an encoder is shown of an item, decoded and resized but never normalised.

Each model owns its mean and standard deviation, so a view is the last thing that two encoders, or a teacher and
a student, can share. A view is a frozen dataclass whose fields are stored with what was computed from it; its
`load(item)` raises `UndecodableError` for an input that is to be quarantined.

Images and sounds also have `load_views(item, augmentation, seed, num_views)`, which adds random views, each a pure
function of seed, item and number, and `replay(item, parameters)`, which makes them again from what was drawn. An
ensemble's `JointView` has a tuple of arrays for each.
"""

from contract.views.audio import AudioAugmentation, AudioView
from contract.views.image import ImageAugmentation, ImageView
from contract.views.item import Item, UndecodableError
from contract.views.joint import JointView
from contract.views.text import TextView

__all__ = [
    "AudioAugmentation",
    "AudioView",
    "ImageAugmentation",
    "ImageView",
    "Item",
    "JointView",
    "TextView",
    "UndecodableError",
    "View",
]

# A new view is a file beside this one and one name here.
View = ImageView | TextView | AudioView | JointView
