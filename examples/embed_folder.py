"""Embed a folder of pictures with what `trainer export` wrote, and find those that are nearest to a text.

python embed_folder.py EXPORT PICTURES "a dog on a beach"
"""

import sys
from pathlib import Path

import numpy as np

export, pictures, text = sys.argv[1:] if len(sys.argv) == 4 else sys.exit(__doc__)
sys.path.insert(0, export)
from embed import Embedder  # noqa: E402

embedder = Embedder(export)
files = [file for file in sorted(Path(pictures).rglob("*")) if file.suffix.lower() in (".jpg", ".jpeg", ".png")]
images = embedder.images(files or sys.exit(f"{pictures}: no pictures there"))  # float32 [n, D], unit length
np.save("embeddings.npy", images)
cosines = images @ embedder.texts([text])[0]
for place in np.argsort(-cosines)[:10]:
    print(f"{cosines[place]:.3f}  {files[place]}")
