"""data2vec's teachers: the modality encoder's output and the regression targets, from one forward pass.

`targets.py` says what is regressed; `image.py`, `text.py` and `audio.py` run the models of transformers.
"""

from encoders.data2vec.audio import Data2VecAudio
from encoders.data2vec.image import Data2VecImage
from encoders.data2vec.text import Data2VecText

__all__ = ["Data2VecAudio", "Data2VecImage", "Data2VecText"]
