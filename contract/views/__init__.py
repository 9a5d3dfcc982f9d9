"""Views: what an encoder is shown of an item, decoded and resized but never normalised.

Each model owns its mean and standard deviation, so a view is the last thing that two encoders, or a teacher and
a student, can share. A view is a frozen dataclass whose fields are stored with what was computed from it; its
`load(item)` raises `UndecodableError` for an input that is to be quarantined.
"""

from contract.views.audio import AudioView
from contract.views.image import ImageView
from contract.views.item import Item, UndecodableError
from contract.views.text import TextView

__all__ = ["AudioView", "ImageView", "Item", "TextView", "UndecodableError", "View"]

# A new view is a file beside this one and one name here.
View = ImageView | TextView | AudioView
